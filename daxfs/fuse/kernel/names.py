"""Handlers of names: LOOKUP and FORGET; creating, linking, removing and renaming files; symbolic links.

A handler takes the connection and the request, and returns the body of the answer. An entry in an answer is a lookup
that the kernel will forget later: `remembered` pins its inode and sets the request's ``undo``.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fs.types import Attributes, RenameFlags
from daxfs.fuse.kernel import abi, encoding, nodeid
from daxfs.fuse.kernel.abi import BODY, Opcode
from daxfs.fuse.kernel.scheduling import TREE

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Connection, Handler
    from daxfs.fuse.kernel.request import Request
    from daxfs.fuse.kernel.work import Answer

DOT = b"."


def remembered(connection: Connection, request: Request, found: Attributes) -> bytes:
    """Pin an inode and return its entry, for an answer that the kernel counts as a lookup."""
    core = connection.core
    core.pin(found)
    request.undo = partial(core.unpin, found.ino)
    return connection.entry(found)


def lookup(connection: Connection, request: Request) -> bytes:
    """Answer LOOKUP: look a name up. For ``.`` return the node itself: an NFS file handle that the kernel forgot."""
    name = request.name()
    if name == DOT:
        return remembered(connection, request, by_handle(connection, request.node))
    found = connection.core.find(request.ino, name)
    return encoding.ABSENT if found is None else remembered(connection, request, found)


def by_handle(connection: Connection, node: int) -> Attributes:
    """Return the inode of an NFS file handle; ESTALE if it is old or forged (fs/ext4/super.c: ext4_nfs_get_inode)."""
    pins = connection.core.pins
    ino = nodeid.resolve(node, pins)
    found = connection.core.by_number(nodeid.decode(node) if ino is None else ino)
    known = nodeid.known_as(found, pins)
    if nodeid.encode(known.ino, known.generation) != node:
        raise FsError(errno.ESTALE, f"node {node:#x}")
    return found


def forget(connection: Connection, request: Request) -> None:
    """Handle FORGET: the kernel forgets some lookups of a node. It has no answer."""
    connection.forget(request.node, request.arguments(abi.FORGET_IN).nlookup)


def batch_forget(connection: Connection, request: Request) -> None:
    """Handle BATCH_FORGET: the kernel forgets lookups of several nodes. It has no answer."""
    count = request.arguments(abi.BATCH_FORGET_IN).count
    begin = BODY + abi.BATCH_FORGET_IN.size
    for node, lookups in abi.FORGET_ONE.iter_unpack(request.data(begin, count * abi.FORGET_ONE.size)):
        connection.forget(node, lookups)


def readlink(connection: Connection, request: Request) -> bytes:
    """Answer READLINK: return the target of a symbolic link, without a zero byte."""
    return connection.core.readlink(request.ino)


def mknod(connection: Connection, request: Request) -> bytes:
    """Answer MKNOD: create a regular file, device node, FIFO or socket."""
    given = request.arguments(abi.MKNOD_IN)
    name = request.name(BODY + abi.MKNOD_IN.size)
    device = encoding.device_of_kernel(given.rdev)
    made = connection.core.mknod(request.ino, name, given.mode, device, request.caller(given.umask))
    return remembered(connection, request, made)


def mkdir(connection: Connection, request: Request) -> bytes:
    """Answer MKDIR: create a directory."""
    given = request.arguments(abi.MKDIR_IN)
    name = request.name(BODY + abi.MKDIR_IN.size)
    made = connection.core.mkdir(request.ino, name, given.mode, request.caller(given.umask))
    return remembered(connection, request, made)


def symlink(connection: Connection, request: Request) -> bytes:
    """Answer SYMLINK: create a symbolic link."""
    name, target = request.names()
    return remembered(connection, request, connection.core.symlink(request.ino, name, target, request.caller()))


def link(connection: Connection, request: Request) -> bytes:
    """Answer LINK: give a node another name."""
    node = request.arguments(abi.LINK_IN).oldnodeid
    name = request.name(BODY + abi.LINK_IN.size)
    return remembered(
        connection, request, connection.core.link(request.ino_of(node), request.ino, name, request.caller())
    )


def unlink(connection: Connection, request: Request) -> bytes:
    """Answer UNLINK: remove a name."""
    connection.scheduler.name_removed()
    connection.core.unlink(request.ino, request.name())
    return b""


def rmdir(connection: Connection, request: Request) -> Answer:
    """Answer RMDIR: remove a directory, in steps if it is large. The kernel has locked it, so that no name is made."""
    connection.scheduler.name_removed()
    return connection.scheduler.begin(request, connection.core.steps.rmdir(request.ino, request.name()), lambda _: b"")


def rename(connection: Connection, request: Request) -> Answer:
    """Answer RENAME: rename(2)."""
    directory = request.ino_of(request.arguments(abi.RENAME_IN).newdir)
    old, new = request.names(BODY + abi.RENAME_IN.size)
    connection.scheduler.name_removed()
    return renamed(connection, request, old, directory, new, 0)


def rename2(connection: Connection, request: Request) -> Answer:
    """Answer RENAME2: renameat2(2)."""
    given = request.arguments(abi.RENAME2_IN)
    directory, flags = request.ino_of(given.newdir), RenameFlags(given.flags)
    old, new = request.names(BODY + abi.RENAME2_IN.size)
    connection.scheduler.name_removed()
    return renamed(connection, request, old, directory, new, flags)


def renamed(connection: Connection, request: Request, old: bytes, directory: int, new: bytes, flags: int) -> Answer:
    """Rename, in steps if the new directory is very deep. The kernel has locked the tree against other renames."""
    steps = connection.core.steps.rename(request.ino, old, directory, new, flags, request.caller())
    return connection.scheduler.begin(request, steps, lambda _: b"", TREE)


TABLE: dict[int, Handler] = {
    Opcode.LOOKUP: lookup,
    Opcode.FORGET: forget,
    Opcode.BATCH_FORGET: batch_forget,
    Opcode.READLINK: readlink,
    Opcode.MKNOD: mknod,
    Opcode.MKDIR: mkdir,
    Opcode.SYMLINK: symlink,
    Opcode.LINK: link,
    Opcode.UNLINK: unlink,
    Opcode.RMDIR: rmdir,
    Opcode.RENAME: rename,
    Opcode.RENAME2: rename2,
}
