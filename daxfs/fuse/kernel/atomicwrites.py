"""Atomic writes that a client announces: the ioctl DAXFS_IOC_ATOMIC.

The client below ``daxfs exec`` announces a pwritev2(2) with RWF_ATOMIC, which the kernel passes to no FUSE daemon, and
then makes an ordinary write. Only the write of exactly these bytes through the same open file is atomic: other ones of
the program go in place, where its mappings are.

A write is atomic if it is one request, and the kernel cuts longer ones, which bounds the sizes.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from daxfs import protocol
from daxfs.errors import FsError
from daxfs.fuse.kernel import abi, staged, status
from daxfs.fuse.kernel.request import fixed

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Connection
    from daxfs.fuse.kernel.request import Request

LEAST = 512
"""Bytes of the shortest write that is promised: a sector, as of a BTT."""
ANNOUNCE, WITHDRAW = (int(flag) for flag in protocol.Announcement)


def most(connection: Connection) -> int:
    """Return the largest power of two, in bytes, that surely arrives as one request."""
    return 1 << status.atomic_write(connection).bit_length() - 1


def announce(connection: Connection, request: Request, given: memoryview) -> bytes:
    """Answer DAXFS_IOC_ATOMIC: note or forget a write that will come, and report the sizes.

    Raises:
        FsError: EOPNOTSUPP, the kernel caches the file's data and cuts writes as it likes, or the pool has no journal.
            EBADF, the file is not open for writing. EINVAL, no atomic write can be like this. EBUSY, the open file has
            a batch, or too many announced writes of the user are still to come.
    """
    offset, length, flags, _, _ = fixed(protocol.ATOMIC, given)
    handle = request.arguments(abi.IOCTL_IN).fh
    file = connection.file(handle)
    if connection.has_cache(file.ino) or not connection.core.has_atomic_writes:
        raise FsError(errno.EOPNOTSUPP, f"inode {file.ino}: writes can't be atomic")
    largest = most(connection)
    if flags not in (0, ANNOUNCE, WITHDRAW):
        raise FsError(errno.EINVAL, f"flags {flags:#x}")
    if flags == ANNOUNCE:
        if not file.writable:
            raise FsError(errno.EBADF)
        if not LEAST <= length <= largest or length & length - 1 or offset % length:
            raise FsError(errno.EINVAL, f"{length} bytes at {offset}")
        staged.refuse(connection, handle, request.pid)
        connection.announced.add(handle, offset, length, request.uid)
    elif flags == WITHDRAW:
        connection.announced.take(handle, offset, length)
    return protocol.Atomic(offset, length, flags, LEAST, largest).pack()
