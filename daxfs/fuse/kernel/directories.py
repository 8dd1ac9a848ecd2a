"""Handlers of open directories. They need no handles: the kernel does not forget a node that is open.

The kernel caches listings (FOPEN_CACHE_DIR) until it changes the directory; nobody else changes a directory.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from daxfs.errors import FsError, OnStorage
from daxfs.fs.types import DirListing
from daxfs.fuse import logs
from daxfs.fuse.kernel import abi, dirents, encoding
from daxfs.fuse.kernel.abi import Init, Opcode

if TYPE_CHECKING:
    from daxfs.fs.steps import Steps
    from daxfs.fs.types import Attributes
    from daxfs.fuse.kernel.connection import Connection, Handler
    from daxfs.fuse.kernel.request import Request
    from daxfs.fuse.kernel.work import Answer

FIRST_PLUS = 32
"""The most names with attributes in the first answer. The kernel asks for attributes at the start of every listing, and
goes on with them only if somebody has used some."""
PLUS_AT_ONCE = 100
"""The most names with attributes in a later answer: reading an inode takes longer than reading a name."""

SMALLEST = dirents.HEAD + 8
"""Bytes of the shortest fuse_dirent."""
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


def listing(connection: Connection, request: Request, head: int, encode: Callable[[DirListing, int], bytes]) -> Answer:
    """Answer with the names after a cookie, as ``encode`` puts them into as many bytes as the kernel has room for.

    Each takes ``head`` bytes beside its fuse_dirent. One answer has some hundred names at most, whatever room there is:
    others wait meanwhile.
    """
    given = request.arguments(abi.READ_IN)
    core, ino = connection.core, request.ino
    most = given.size // (head + SMALLEST) + 1

    def steps() -> Steps[DirListing]:
        directory = core.opendir(ino)
        try:
            return (yield from core.steps.readdir(directory, given.offset, most))
        finally:
            core.releasedir(directory)

    return connection.scheduler.begin(request, steps(), lambda found: encode(found, given.size))


def readdir(connection: Connection, request: Request) -> Answer:
    """Answer READDIR: the names of a directory."""

    def encode(found: DirListing, room: int) -> bytes:
        return dirents.encoded(as_known(connection, found), dirents.fitting(found, room))

    return listing(connection, request, 0, encode)


def as_known(connection: Connection, found: DirListing) -> DirListing:
    """Return names with the inode numbers that stat(2) shows (`daxfs.fs.moving.aliases`)."""
    aliases = connection.core.pins.aliases
    if not aliases:
        return found
    return DirListing(found.names, [aliases.shown(ino) for ino in found.inos], found.file_types, found.cookies)


def readdirplus(connection: Connection, request: Request) -> Answer:
    """Answer READDIRPLUS: names with attributes. Each entry with a node is a lookup that the kernel will forget.

    A node that the kernel knows already gets an entry without a node: the kernel has its attributes or requests them
    when it needs them.
    """
    core = connection.core
    generation, shown = core.pins.generation, core.pins.aliases.shown
    most = PLUS_AT_ONCE if request.arguments(abi.READ_IN).offset else FIRST_PLUS

    def encode(found: DirListing, room: int) -> bytes:
        count = dirents.fitting(found.part(0, most), room, abi.ENTRY_OUT.size)
        heads: list[bytes] = []
        pinned: list[Attributes] = []
        for name, ino, file_type in zip(found.names[:count], found.inos, found.file_types, strict=False):
            known = generation(ino) is not None or name in DOTS
            heads.append((None if known else entry_of(connection, ino, pinned)) or without_node(shown(ino), file_type))
        for inode in pinned:
            core.pin(inode)

        def undo() -> None:
            for inode in pinned:
                core.unpin(inode.ino)

        request.undo = undo
        return dirents.encoded(as_known(connection, found), count, heads)

    return listing(connection, request, abi.ENTRY_OUT.size, encode)


def without_node(ino: int, file_type: int) -> bytes:
    """Return fuse_entry_out of a name without its node."""
    return encoding.nameless_entry(ino, dirents.d_type(file_type))


def entry_of(connection: Connection, ino: int, pinned: list[Attributes]) -> bytes | None:
    """Return fuse_entry_out of a name whose node the kernel does not know, and add its inode to ``pinned``.

    The inode may be damaged, or have no links, and a LOOKUP of the name says so: None, and nothing is added.
    """
    try:
        inode = connection.core.getattr(ino)
    except OnStorage:
        raise
    except FsError as error:
        logs.unanswered(f"inode {ino}", error)
        return None
    if not inode.nlink:
        return None
    pinned.append(inode)
    return connection.entry(inode)


TABLE: dict[int, Handler] = {
    Opcode.OPENDIR: opendir,
    Opcode.READDIR: readdir,
    Opcode.READDIRPLUS: readdirplus,
    Opcode.RELEASEDIR: releasedir,
    Opcode.FSYNCDIR: fsyncdir,
}
