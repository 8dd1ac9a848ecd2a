"""Handlers of open directories. They need no handles: the kernel does not forget a node that is open.

The kernel caches listings (FOPEN_CACHE_DIR) until it changes the directory; nobody else changes a directory.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fs.types import DirEntry
from daxfs.fuse import logs
from daxfs.fuse.kernel import abi, dirents, encoding
from daxfs.fuse.kernel.abi import Init, Opcode

if TYPE_CHECKING:
    from daxfs.fs.steps import Steps
    from daxfs.fs.types import Attributes
    from daxfs.fuse.kernel.connection import Connection, Handler
    from daxfs.fuse.kernel.request import Request
    from daxfs.fuse.kernel.work import Answer

PLUS_AT_ONCE = 100
"""The most names with attributes in one answer: reading an inode takes longer than reading a name."""

SMALLEST = len(dirents.encoded([DirEntry(b".", 0, 0, 0)], 64))
DOTS = (b".", b"..")


def opendir(connection: Connection, _request: Request) -> bytes:
    """Answer OPENDIR: with NO_OPENDIR_SUPPORT by ENOSYS, after which the kernel opens and caches without asking."""
    if connection.agreement.has(Init.NO_OPENDIR_SUPPORT):
        raise FsError(errno.ENOSYS)
    return abi.OPEN_OUT.pack(0, abi.FOPEN_KEEP_CACHE | abi.FOPEN_CACHE_DIR, 0)


def releasedir(_connection: Connection, _request: Request) -> bytes:
    """Answer RELEASEDIR: an open directory holds nothing."""
    return b""


def fsyncdir(connection: Connection, request: Request) -> bytes:
    """Answer FSYNCDIR: fsync(2) on a directory."""
    flags = request.arguments(abi.FSYNC_IN).fsync_flags
    connection.core.fsync(request.ino, bool(flags & abi.FSYNC_FDATASYNC))
    return b""


def listing(
    connection: Connection, request: Request, head: int, encode: Callable[[list[DirEntry], int], bytes]
) -> Answer:
    """Answer with the names after a cookie, as ``encode`` puts them into as many bytes as the kernel has room for.

    Each takes ``head`` bytes beside its fuse_dirent. One answer has some hundred names at most, whatever room there is:
    others wait meanwhile.
    """
    given = request.arguments(abi.READ_IN)
    core, ino = connection.core, request.ino
    most = given.size // (head + SMALLEST) + 1

    def steps() -> Steps[list[DirEntry]]:
        directory = core.opendir(ino)
        try:
            return (yield from core.steps.readdir(directory, given.offset, most))
        finally:
            core.releasedir(directory)

    return connection.scheduler.begin(request, steps(), lambda found: encode(found, given.size))


def readdir(connection: Connection, request: Request) -> Answer:
    """Answer READDIR: the names of a directory."""
    return listing(connection, request, 0, dirents.encoded)


def readdirplus(connection: Connection, request: Request) -> Answer:
    """Answer READDIRPLUS: names with attributes. Each entry with a node is a lookup that the kernel will forget.

    A node that the kernel knows already gets an entry without a node: the kernel has its attributes or requests them
    when it needs them.
    """
    core = connection.core
    generation = core.pins.generation

    def encode(found: list[DirEntry], room: int) -> bytes:
        parts: list[bytes] = []
        pinned: list[Attributes] = []
        entries = dirents.split(found[:PLUS_AT_ONCE], room, abi.ENTRY_OUT.size)
        for name, entry in zip(found, entries, strict=False):
            known = generation(name.ino) is not None or name.name in DOTS
            parts += (without_node(name) if known else entry_of(connection, name, pinned), entry)
        for inode in pinned:
            core.pin(inode)

        def undo() -> None:
            for inode in pinned:
                core.unpin(inode.ino)

        request.undo = undo
        return b"".join(parts)

    return listing(connection, request, abi.ENTRY_OUT.size, encode)


def without_node(found: DirEntry) -> bytes:
    """Return fuse_entry_out of a name without its node."""
    return encoding.nameless_entry(found.ino, dirents.d_type(found.file_type))


def entry_of(connection: Connection, found: DirEntry, pinned: list[Attributes]) -> bytes:
    """Return fuse_entry_out of a name whose node the kernel does not know, and add its inode to ``pinned``.

    The inode may be damaged. Then the entry is one without a node, and not added.
    """
    try:
        inode = connection.core.getattr(found.ino)
    except FsError as error:
        logs.unanswered(f"inode {found.ino}", error)
        return without_node(found)
    pinned.append(inode)
    return connection.entry(inode)


TABLE: dict[int, Handler] = {
    Opcode.OPENDIR: opendir,
    Opcode.READDIR: readdir,
    Opcode.READDIRPLUS: readdirplus,
    Opcode.RELEASEDIR: releasedir,
    Opcode.FSYNCDIR: fsyncdir,
}
