"""Room on the file system below a pool whose file has holes, made sure of before it is needed.

A commit that fails because that file system is full would stop the journal. So the blocks of the log are reserved at
mount, and each block of metadata before a handle changes it. Data is not reserved: a write that finds no room fails by
itself (`daxfs.pmem.faults`).
"""

from __future__ import annotations

import errno
import os
import stat

from daxfs.errors import MissingMemory
from daxfs.pmem.fallocate import fallocate
from daxfs.pmem.fiemap import is_allocated

SECTOR = 512
"""Bytes, the unit of st_blocks."""
_CHUNK_BITS = 16  # 64 KiB are reserved at once, where there is so much room
_SCARCE = 16 << 20  # bytes
_LARGEST_FOLIO = 2 << 20  # bytes
_REMEMBERED = 1 << 16  # chunks; more are asked for once more


def no_room(path: str) -> MissingMemory:
    """The error where a hole can't be filled."""
    return MissingMemory(errno.ENOSPC, f"{path}: its file system has no room for the holes of the pool")


def free_bytes(descriptor: int) -> int | None:
    """Return how much the file system of an open file has left; None: it has no limit, as some tmpfs.

    The superuser may use the blocks that the file system reserves for it, as in statvfs(3).
    """
    system = os.fstatvfs(descriptor)
    if not system.f_blocks:
        return None
    return (system.f_bfree if os.geteuid() == 0 else system.f_bavail) * system.f_frsize


def is_full(descriptor: int) -> bool:
    """Return whether the file system of an open file has less than 16 MiB left; no device is full."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return False
    free = free_bytes(descriptor)
    return free is not None and free < _SCARCE


def allocate(descriptor: int, offset: int, length: int, *, alone: bool = False) -> bool:
    """Allocate a range of an open file and keep its content; False: there is no room, or the quota is used up.

    xfs refuses where it has no free blocks at all, even if the range needs none: then the map of the file decides. A
    file system without fallocate(2) leaves the file as it is. If nobody else stores into the file (``alone``), the C
    library then stores a zero into each block that begins as a hole (posix_fallocate(3)), where it can.

    Raises:
        OSError: any other error of fallocate(2).
    """
    try:
        if alone:
            os.posix_fallocate(descriptor, offset, length)
        else:
            fallocate(descriptor, 0, offset, length)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return is_allocated(descriptor, offset, offset + length)
        if error.errno != errno.EOPNOTSUPP:
            raise
    return True


class Reservation:
    """Allocates ranges of an open file and remembers which chunks it has allocated.

    A file system without fallocate(2) can't reserve anything: a store that finds no room there fails by itself.
    """

    def __init__(self, path: str, descriptor: int, size: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._size = size
        self._done: set[int] = set()

    def reserve(self, offset: int, length: int, *, around: bool = False) -> None:
        """Allocate what of a range is a hole (`allocate`).

        Args:
            offset: in bytes.
            length: in bytes.
            around: allocate also, if there is room, what may share a folio with the ends of the range. The kernel may
                want room for all of a folio when a page of it is stored to.

        Raises:
            MissingMemory: ENOSPC, there is no room (or no quota) for it.
        """
        if around:
            first = offset & -_LARGEST_FOLIO
            end = min(offset + length + _LARGEST_FOLIO - 1 & -_LARGEST_FOLIO, self._size)
            if self._allocate(first, end - first):
                return
        missing = [
            chunk
            for chunk in range(offset >> _CHUNK_BITS, (offset + length - 1 >> _CHUNK_BITS) + 1)
            if chunk not in self._done
        ]
        if not missing:
            return
        first, end = missing[0] << _CHUNK_BITS, min(missing[-1] + 1 << _CHUNK_BITS, self._size)
        if not self._allocate(first, end - first):
            if not self._allocate(offset, length):
                raise no_room(self._path)
            return
        if len(self._done) > _REMEMBERED:
            self._done.clear()
        self._done.update(missing)

    def follow_size(self, size: int) -> None:
        """The length of the pool's file has changed; its last chunk may end with a hole now."""
        self._done.discard(self._size >> _CHUNK_BITS)
        self._size = size

    def is_full(self) -> bool:
        """As the function `is_full`."""
        return is_full(self._descriptor)

    def forget(self) -> None:
        """Holes were punched: nothing is known to be allocated."""
        self._done.clear()

    def _allocate(self, offset: int, length: int) -> bool:
        try:
            return allocate(self._descriptor, offset, length)
        except OSError as error:
            raise MissingMemory(error.errno or errno.EIO, f"{self._path}: {error.strerror}") from None
