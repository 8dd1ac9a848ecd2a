"""Handlers of open directories. They need no handles: the kernel does not forget a node that is open.

The kernel caches listings (FOPEN_CACHE_DIR) until it changes the directory; nobody else changes a directory.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fuse import logs
from daxfs.fuse.kernel import abi, encoding
from daxfs.fuse.kernel.abi import Init, Opcode

if TYPE_CHECKING:
    from daxfs.fs.types import Attributes, DirEntry
    from daxfs.fuse.kernel.connection import Connection, Handler
    from daxfs.fuse.kernel.request import Request


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


def listing(connection: Connection, request: Request, head: int) -> Iterator[tuple[DirEntry, bytes]]:
    """Yield the names after a cookie with their fuse_dirent, as many as fit with ``head`` bytes before each."""
    given = request.arguments(abi.READ_IN)
    room = given.size
    core = connection.core
    directory = core.opendir(request.ino)
    try:
        for found in core.readdir(directory, given.offset):
            entry = encoding.dirent(found.ino, found.cookie, encoding.d_type(found.file_type), found.name)
            room -= head + len(entry)
            if room < 0:
                return
            yield found, entry
    finally:
        core.releasedir(directory)


def readdir(connection: Connection, request: Request) -> bytes:
    """Answer READDIR: the names of a directory."""
    return b"".join(entry for _, entry in listing(connection, request, 0))


def readdirplus(connection: Connection, request: Request) -> bytes:
    """Answer READDIRPLUS: names with attributes. Each entry with a node is a lookup that the kernel will forget."""
    core = connection.core
    parts: list[bytes] = []
    pinned: list[Attributes] = []
    for found, entry in listing(connection, request, abi.ENTRY_OUT.size):
        parts += (entry_of(connection, found, pinned), entry)
    for inode in pinned:
        core.pin(inode)

    def undo() -> None:
        for inode in pinned:
            core.unpin(inode.ino)

    request.undo = undo
    return b"".join(parts)


def entry_of(connection: Connection, found: DirEntry, pinned: list[Attributes]) -> bytes:
    """Return fuse_entry_out of a name, and add its inode to ``pinned`` if the entry counts as a lookup.

    A node that the kernel knows already gets an entry without a node: the kernel has its attributes or requests them
    when it needs them.
    """
    if found.ino in connection.core.pins or found.name in (b".", b".."):
        return encoding.nameless_entry(found.ino, encoding.d_type(found.file_type))
    try:
        inode = connection.core.getattr(found.ino)
    except FsError as error:
        logs.unanswered(f"inode {found.ino}", error)
        return encoding.nameless_entry(found.ino, encoding.d_type(found.file_type))
    pinned.append(inode)
    return connection.entry(inode)


TABLE: dict[int, Handler] = {
    Opcode.OPENDIR: opendir,
    Opcode.READDIR: readdir,
    Opcode.READDIRPLUS: readdirplus,
    Opcode.RELEASEDIR: releasedir,
    Opcode.FSYNCDIR: fsyncdir,
}
