"""Serve what a snapshot shows as one regular file that never changes, for a read-only mount of it.

As `poolfile`, but the page cache keeps what was read: a snapshot stays what it is. The blocks that were in use are
those of the snapshot; all others have any content.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fuse.kernel import abi, negotiation
from daxfs.fuse.kernel.device import Device
from daxfs.fuse.kernel.poolfile import HANDLE, PoolFile, answer_all

if TYPE_CHECKING:
    from daxfs.fuse.kernel.request import Request
    from daxfs.pmem.pool import Pool
    from daxfs.snapshots.reading import Past

log = logging.getLogger("daxfs.fuse")


class ImageFile(PoolFile):
    """Answers the requests of one mount."""

    def __init__(self, pool: Pool, past: Past, name: str, buffer: memoryview) -> None:
        super().__init__(pool, buffer)
        self._past = past
        self._name = name

    def _open(self, _request: Request) -> bytes:
        return abi.OPEN_OUT.pack(HANDLE, abi.FOPEN_KEEP_CACHE, 0)

    def _read(self, request: Request) -> bytes:
        given = request.arguments(abi.READ_IN)
        length = min(given.size, self._pool.size - given.offset)
        try:
            return self._past.read(given.offset, length) if length > 0 else b""
        except FsError as error:
            log.error("%s can't be read: %s", self._name, error.strerror)
            raise FsError(errno.EIO) from error

    def _write(self, _request: Request) -> bytes:
        raise FsError(errno.EROFS)

    def _fsync(self, _request: Request) -> bytes:
        return b""


def serve(pool: Pool, past: Past, name: str, descriptor: int) -> None:
    """Answer requests until the mount is gone.

    Args:
        pool: mapped for reading.
        past: what the snapshot shows of it.
        name: of the snapshot, for messages.
        descriptor: of /dev/fuse, mounted.
    """
    device = Device(descriptor, negotiation.buffer_size(), 0.0)
    answer_all(ImageFile(pool, past, name, device.buffer), device)
