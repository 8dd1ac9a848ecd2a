"""The ioctls of direct access (`daxfs.protocol`): the pool's identity, leases, write notifications.

This module only translates; `daxfs.fs.grants` has the policy. A lease ends when the kernel releases the open file
through which it was requested: when every descriptor of it is closed and every mapping removed.
"""

from __future__ import annotations

import errno
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from daxfs import protocol
from daxfs.errors import FsError
from daxfs.fs.steps import Steps
from daxfs.fs.types import LeaseRequest, WriteNotification
from daxfs.fuse.kernel import abi
from daxfs.fuse.kernel.files import change_of_content
from daxfs.fuse.kernel.request import fixed
from daxfs.pmem import persist

if TYPE_CHECKING:
    from daxfs.fs.filesystem import OpenFile
    from daxfs.fuse.kernel.connection import Connection
    from daxfs.fuse.kernel.request import Request

PERSISTENCE = {
    persist.VOLATILE: protocol.Persistence.VOLATILE,
    persist.MSYNC: protocol.Persistence.MSYNC,
    persist.LIBPMEM: protocol.Persistence.LINES,
}
KNOWN = protocol.DURABLE | protocol.DATA_ONLY
ALL_FLAGS = sum(protocol.Flag)


def opened(connection: Connection, request: Request) -> OpenFile:
    """Return the open file of the command; EBADF for a directory."""
    return connection.file(request.arguments(abi.IOCTL_IN).fh)


def pool(connection: Connection, _request: Request, _given: memoryview) -> bytes:
    """Answer DAXFS_IOC_POOL: the pool's identity; ENAMETOOLONG if its path does not fit."""
    found = connection.core.pool_identity()
    path = found.path.encode(errors="surrogateescape")
    if len(path) >= protocol.PATH_SIZE:
        raise FsError(errno.ENAMETOOLONG, f"a pool's path of {len(path)} bytes")
    return protocol.Pool(
        persistence=PERSISTENCE[found.persistence],
        device=found.device,
        inode=found.inode,
        rdevice=found.rdevice,
        size=found.size,
        block_size=found.block_size,
        lock=found.lock,
        uuid=found.uuid,
        path=path,
        align=found.align,
        token=found.token,
    ).pack()


def lease(connection: Connection, request: Request, given: memoryview) -> Steps[bytes]:
    """Answer DAXFS_IOC_LEASE of either length: an answer has room for as many extents as its request."""
    head: tuple[Any, ...] = fixed(protocol.LEASE, given)
    holder, offset, length, flags, *_, token = head
    if flags & ~ALL_FLAGS:
        raise FsError(errno.EINVAL, f"flags {flags:#x}")
    file = opened(connection, request)
    question = LeaseRequest(holder, offset, length, flags, protocol.room(len(given)), token)
    with change_of_content(connection, request, file) if flags & protocol.Flag.WRITE else nullcontext() as caller:
        answer = yield from connection.core.steps.lease(file, question, caller)
    connection.free_rest()
    if answer.made:
        connection.invalidate_attributes_once(file.ino)
    identity = connection.core.pool_identity()
    return protocol.Lease(
        holder,
        offset,
        length,
        flags,
        next=answer.next,
        size=answer.size,
        entry=answer.entry,
        epoch=answer.epoch,
        device=identity.device,
        inode=identity.inode,
        lock=identity.lock,
        extents=tuple(answer.pieces),
    ).pack()


def stored(connection: Connection, request: Request, given: memoryview) -> bytes:
    """Answer DAXFS_IOC_STORED, the write notification of a client."""
    size, flags = fixed(protocol.STORED, given)
    report_stores(connection, request, flags, size)
    return b""


def appended(connection: Connection, request: Request, given: memoryview) -> bytes:
    """Answer DAXFS_IOC_APPENDED, the notification of an extending write."""
    base, size, holder, flags, _ = fixed(protocol.APPENDED, given)
    changes = report_stores(connection, request, flags, size, base, holder)
    return protocol.APPENDED.pack(base, size, holder, flags, changes)


def armed(connection: Connection, request: Request, given: memoryview) -> bytes:
    """Answer DAXFS_IOC_ARMED: as DAXFS_IOC_APPENDED, durably, and the words of further appends."""
    if len(given) != protocol.ARMED_SIZE:
        raise FsError(errno.EINVAL)
    base, size, holder, flags, wanted, _ = protocol.ARMED.unpack_from(given)
    if flags & ~KNOWN:
        raise FsError(errno.EINVAL, f"flags {flags:#x}")
    file = opened(connection, request)
    claim = WriteNotification(size, base, True, flags & protocol.DATA_ONLY != 0, holder)
    changes, words = connection.core.append_stored(file, claim, min(wanted, protocol.COMMIT_WORDS))
    connection.invalidate_attributes_once(file.ino)
    head = protocol.ARMED.pack(base, size, holder, flags, len(words), changes)
    return head + b"".join([protocol.COMMIT_WORD.pack(*word) for word in words])


def sync(connection: Connection, _request: Request, _given: memoryview) -> bytes:
    """Answer DAXFS_IOC_SYNC: the same as SYNCFS, which many kernels never send."""
    connection.core.sync()
    return b""


def report_stores(
    connection: Connection, request: Request, flags: int, size: int, base: int | None = None, holder: int | None = None
) -> int:
    """Report a client's stores to the core; return the file's number of changes afterwards."""
    if flags & ~KNOWN:
        raise FsError(errno.EINVAL, f"flags {flags:#x}")
    file = opened(connection, request)
    claim = WriteNotification(size, base, flags & protocol.DURABLE != 0, flags & protocol.DATA_ONLY != 0, holder)
    changes = connection.core.notify_stored(file, claim)
    connection.invalidate_attributes_once(file.ino)
    return changes
