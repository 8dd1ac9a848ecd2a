"""Serve a pool as one regular file, for programs that only read and write files: e2fsck on ``/dev/dax``.

The file is the pool's memory, and its storage after that, if it has some.

The file is the root of its mount: there is no directory, and no name is looked up. It bypasses the page cache
(FOPEN_DIRECT_IO), so that each read sees the pool and each write is in the pool when it returns. fsync(2) is a fence of
the pool. The kernel copies the data of a read from the pool's memory itself; where memory is missing, that read fails
with EIO. The caller opens, claims and mounts.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from os import readv, writev

from daxfs.errors import BadMemory, FsError, MissingMemory
from daxfs.fs.pins import Pins
from daxfs.fuse.kernel import abi, dispatch, negotiation
from daxfs.fuse.kernel.abi import BODY, Init, Opcode
from daxfs.fuse.kernel.device import MISSING, Device
from daxfs.fuse.kernel.encoding import CACHE_SECONDS
from daxfs.fuse.kernel.request import Request
from daxfs.pmem.pool import Pool
from daxfs.pmem.storage import Storage

WANTED = Init.ASYNC_READ | Init.BIG_WRITES | Init.MAX_PAGES | Init.INIT_EXT | Init.ABORT_ERROR
HANDLE = 1
"""The handle of every open: the file has no state besides the pool."""
SECTOR = 512
"""Bytes, the unit of st_blocks."""


class PoolFile:
    """Answers the requests of one mount, each whole before the next.

    Attributes:
        missing: how many requests met memory that is not there.
    """

    def __init__(self, pool: Pool, buffer: memoryview) -> None:
        self._pool = pool
        self._request = Request(buffer, Pins())
        self.missing = 0
        self._table: dict[int, Callable[[Request], bytes | memoryview | None]] = {
            Opcode.INIT: self._init,
            Opcode.GETATTR: self._getattr,
            Opcode.STATFS: self._statfs,
            Opcode.OPEN: self._open,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.FSYNC: self._fsync,
            Opcode.RELEASE: self._release,
            Opcode.FORGET: self._ignore,
            Opcode.INTERRUPT: self._ignore,
        }

    def answer(self, length: int) -> dispatch.Reply | None:
        """Answer the message of ``length`` bytes in the buffer; None if it wants no answer."""
        request = self._request
        request.end = length
        opcode, unique = request.opcode, request.longs[dispatch.UNIQUE]
        try:
            handler = self._table.get(opcode)
            if handler is None:
                raise FsError(errno.ENOSYS)
            body = handler(request)
        except FsError as error:
            self.missing += isinstance(error, MissingMemory)
            return dispatch.refusal(error, opcode, unique)
        if body is None:
            return None
        return abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(body), 0, unique), body

    def _init(self, request: Request) -> bytes:
        return negotiation.answer_init(request, WANTED)[1]

    def _getattr(self, _request: Request) -> bytes:
        size = self._pool.size
        mode = stat.S_IFREG | (0o400 if self._pool.read_only else 0o600)
        owner = os.geteuid(), os.getegid()
        times = (0,) * 6
        return abi.ATTR_OUT.pack(
            CACHE_SECONDS, 0, abi.ROOT_ID, size, size // SECTOR, *times, mode, 1, *owner, 0, mmap.PAGESIZE, 0
        )

    def _statfs(self, _request: Request) -> bytes:
        """Say that there is no limit: no holes are waiting for room."""
        return abi.STATFS_OUT.pack(0, 0, 0, 0, 0, mmap.PAGESIZE, 0, mmap.PAGESIZE)

    def _open(self, _request: Request) -> bytes:
        return abi.OPEN_OUT.pack(HANDLE, abi.FOPEN_DIRECT_IO, 0)

    def _read(self, request: Request) -> bytes | memoryview:
        given = request.arguments(abi.READ_IN)
        pool, end = self._pool, given.offset + given.size
        if pool.bad and pool.bad.first(given.offset, end):
            raise BadMemory(f"{given.size} bytes at offset {given.offset} lie in bad memory")
        border = pool.memory_size
        if end <= border or given.offset >= pool.size:
            return pool.memory[given.offset : end]
        low = max(given.offset, border)
        content = bytearray(pool.memory[given.offset : low])
        for storage, begin, length in self._on_storage(low, min(end, pool.size)):
            content += storage.read(begin, length)
        return bytes(content)

    def _write(self, request: Request) -> bytes:
        given = request.arguments(abi.WRITE_IN)
        if given.offset + given.size > self._pool.size:
            raise FsError(errno.ENOSPC, "a write past the end of the pool")
        content = request.data(BODY + abi.WRITE_IN.size, given.size)
        at = min(max(self._pool.memory_size - given.offset, 0), given.size)
        if at:
            self._pool.write(given.offset, content[:at])
        for storage, begin, length in self._on_storage(given.offset + at, given.offset + given.size):
            storage.write(begin, content[at : at + length])
            at += length
        return abi.WRITE_OUT.pack(given.size)

    def _fsync(self, _request: Request) -> bytes:
        self._pool.fence()
        for storage in self._pool.storages:
            storage.sync()
        return b""

    def _on_storage(self, begin: int, end: int) -> Iterator[tuple[Storage, int, int]]:
        """Yield the members that hold bytes [begin, end) of the pool, each with offset and length of its part."""
        for storage in self._pool.storages:
            low, high = max(begin, storage.place.begin), min(end, storage.place.end)
            if low < high:
                yield storage, low - storage.place.begin, high - low

    def _release(self, _request: Request) -> bytes:
        return b""

    def _ignore(self, _request: Request) -> None:
        return


def serve(pool: Pool, descriptor: int) -> int:
    """Answer requests until the mount is gone; everything written is durable then.

    Args:
        pool: mapped, and claimed by the caller.
        descriptor: of /dev/fuse, mounted.

    Returns:
        How many reads and writes failed because memory of the pool is missing.

    Raises:
        FsError: EIO, the last fence failed.
    """
    device = Device(descriptor, negotiation.buffer_size(), 0.0)
    file = PoolFile(pool, device.buffer)
    answer_all(file, device)
    pool.fence()
    for storage in pool.storages:
        if not storage.read_only:
            storage.sync()
    return file.missing


def answer_all(file: PoolFile, device: Device) -> None:
    """Answer requests until the mount is gone."""
    while not device.ended:
        try:
            length = readv(device.descriptor, device.buffers)
        except OSError as error:
            device.not_received(error)
            device.poll(None)
            continue
        reply = file.answer(length)
        if reply is None:
            continue
        try:
            writev(device.descriptor, reply)
        except OSError as error:
            if error.errno == MISSING:
                file.missing += 1
            else:
                device.not_sent(error)
