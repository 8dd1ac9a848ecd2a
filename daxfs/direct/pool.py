"""The pool of a mounted file, mapped once in this process.

``attach`` requests the pool's identity from the daemon, opens the pool with this process's own rights, verifies it,
locks it as a client (docs/DIRECT.md, rule 2) and maps it. This module knows no files: offsets are pool offsets.
``files`` and ``maps`` use it. A pool stays mapped only as long as an open file or a mapping needs it: while a client
holds the lock, a later mount of the pool does not reuse the blocks that the client might touch.

The daemon says how stores become durable:

- LINES: libpmem copies each store and starts its write-back at once; ``sync`` is a fence (``daxfs.pmem.persist``).
- MSYNC: a store marks the chunks of 2 MiB that it lies in, and ``sync`` calls msync(2) for marked chunks. A mark is set
  after the store and removed before the msync, so that this sync or the next one covers a store of another thread.
- VOLATILE: nothing has to be done.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import sys
import threading
import weakref
from collections.abc import Callable

from daxfs import protocol
from daxfs.direct import answers, trust
from daxfs.direct.missing import Guard
from daxfs.direct.trust import Refused
from daxfs.errors import FsError
from daxfs.pmem import exclusive, persist
from daxfs.pmem.address import address_of
from daxfs.pmem.libc import last_error
from daxfs.pmem.opening import MAP_SYNC

CHUNK = 21  # bits of a pool offset inside a chunk: 2 MiB are marked dirty together

_MS_SYNC = 4

libc = ctypes.CDLL(None, use_errno=True)
libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def write_back(address: int, length: int) -> None:
    """Write a mapped range back to the medium by msync(2), and wait for it. ``address`` is the start of a page.

    Raises:
        OSError: the system's.
    """
    if libc.msync(address, length, _MS_SYNC):
        raise last_error()


def _rights() -> tuple[int, int, list[int]]:
    return os.geteuid(), os.getegid(), os.getgroups()


class Pool:
    """A mapped pool.

    Attributes:
        record: the daemon's answer to DAXFS_IOC_POOL.
        memory: the whole pool, format "B"; read-only if the pool could be opened for reading only.
        guard: of ``memory``.
        faults: ``faults[0]`` is 0 until memory was missing; then ``memory`` has private zeros.
        size: bytes that are mapped.
        address: address of the first byte; 0 if the pool is read-only.
        descriptor: the open pool, for further mappings.
        token: the bytes that a lease request quotes to prove that this process can open the pool.
        writable: whether stores are possible.
        unit: the pool can be mapped in whole units of these bytes only.
        map_flags: flags for mmap(2) of a piece of the pool: MAP_SHARED, or MAP_SYNC where the pool has it.
        store: ``store(offset, data)`` copies and prepares ``sync``; None if a plain copy into ``memory`` suffices.
        dirty: chunks that were stored to since the last sync (MSYNC).
    """

    def __init__(
        self, record: protocol.Pool, descriptor: int, mapping: mmap.mmap, guard: Guard, map_flags: int
    ) -> None:
        self.record = record
        self.descriptor = descriptor
        self.memory = memoryview(mapping)
        self.size = len(mapping)
        self.guard = guard
        self.faults = guard.faults
        self.token = self.memory[record.token : record.token + protocol.TOKEN_SIZE].tobytes() if record.token else b""
        self.writable = not self.memory.readonly
        self.unit = max(record.align, mmap.PAGESIZE)
        self.map_flags = map_flags
        self.dirty: dict[int, None] = {}
        self.store: Callable[[int, persist.Buffer], None] | None = None
        self._failed: OSError | None = None
        self._syncing = threading.Lock()
        self.address = 0
        self._rights = _rights()
        self._library: persist.Library | None = None
        if self.writable:
            self.address = address_of(self.memory)
            if record.persistence == protocol.Persistence.LINES:
                self._library = persist.load_libpmem()
                assert self._library is not None, "attach looked"
                self.store = persist.libpmem(self.memory, self._library).write
            elif record.persistence == protocol.Persistence.MSYNC:
                self.store = self._store_and_mark
        weakref.finalize(self, os.close, descriptor).atexit = False

    def _store_and_mark(self, offset: int, data: persist.Buffer) -> None:
        end = offset + len(data)
        self.memory[offset:end] = data
        dirty = self.dirty
        for chunk in range(offset >> CHUNK, (end + (1 << CHUNK) - 1) >> CHUNK):
            dirty[chunk] = None

    def sync(self) -> None:
        """Make everything durable that this process stored with ``store``; return when it is.

        Raises:
            FsError: EIO, the medium failed now or earlier. The failure is kept, since a second msync would succeed.
        """
        if self._library is not None:
            self._library.drain()
            self._check_memory()
            return
        with self._syncing:
            while self.dirty:
                chunk, _ = self.dirty.popitem()
                start = chunk << CHUNK
                self._write_back(self.address + start, min(1 << CHUNK, self.size - start))

    def flush(self, address: int, length: int) -> None:
        """Make stores to a mapped range, of the pool or of a file of this mount, durable; return when they are.

        Raises:
            FsError: EIO, as ``sync``.
        """
        if self._library is not None:
            self._library.flush(address, length)
            self._library.drain()
            self._check_memory()
        elif self.record.persistence != protocol.Persistence.VOLATILE:
            with self._syncing:
                start = address & -mmap.PAGESIZE
                self._write_back(start, address + length - start)

    def _check_memory(self) -> None:
        if self.faults[0]:
            raise FsError(errno.EIO, LOST)

    def _write_back(self, address: int, length: int) -> None:
        self._check_memory()
        if self._failed is None:
            try:
                write_back(address, length)
            except OSError as error:
                self._failed = error
        if self._failed is not None:
            raise FsError(errno.EIO, f"write-back of the pool failed ({self._failed})")

    def check_rights(self) -> None:
        """Check that this process, if its effective ids or groups have changed, may still open the pool.

        Raises:
            Refused: it may not. All open files of the pool use the kernel from now on.
            OSError: it may not, and stores of an open file could not be reported or written back.
        """
        now = _rights()
        if now == self._rights:
            return
        try:
            os.close(trust.open_pool(self.record, os.O_RDWR if self.writable else os.O_RDONLY))
        except (OSError, Refused):
            for callback in _rights_lost_callbacks:
                callback(self, RIGHTS_LOST)
            raise Refused(RIGHTS_LOST) from None
        self._rights = now

    def after_fork(self) -> None:
        """Make a new lock, in a forked child: a thread that the child lacks may hold the old one."""
        self._syncing = threading.Lock()


_pools: weakref.WeakValueDictionary[bytes, Pool] = weakref.WeakValueDictionary()
_attaching = threading.Lock()
_rights_lost_callbacks: list[Callable[[Pool, str], None]] = []

LOST = "memory of the pool was missing"
"""Why the files of a pool go through the kernel after `Pool.faults`."""
RIGHTS_LOST = "the rights that are left do not open the pool"
"""The reason that the callbacks of ``on_rights_lost`` get."""


def on_rights_lost(callback: Callable[[Pool, str], None]) -> None:
    """Call ``callback(pool, reason)`` when this process may no longer open a pool that it has mapped."""
    _rights_lost_callbacks.append(callback)


def attach(descriptor: int) -> Pool:
    """Return the pool of an open file, and map it if this process has not.

    The daemon is asked each time, because the pool may have been mounted anew. The answers of two mounts differ in the
    lock at least.

    Raises:
        Refused: the file is on no daxfs mount that serves direct access, or this process can't map the pool.
        OSError: as ``Pool.check_rights``.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise Refused("this Python runs threads without a global interpreter lock")
    answer = bytearray(protocol.POOL.size)
    try:
        fcntl.ioctl(descriptor, protocol.IOC_POOL, answer, True)
    except OSError as error:
        raise Refused(f"the file gives no pool: {error.strerror}") from None
    trust.check_mount(descriptor)
    key = bytes(answer)
    with _attaching:
        pool = _pools.get(key)
        if pool is None:
            pool = _pools[key] = _open(answers.read_pool(answer))
        if pool.faults[0]:
            raise Refused(LOST)
        pool.check_rights()
    return pool


def after_fork() -> None:
    """Make new locks, in a forked child."""
    global _attaching  # noqa: PLW0603 (a lock of another thread can't be released)
    _attaching = threading.Lock()
    for pool in list(_pools.values()):
        pool.after_fork()


def _open(record: protocol.Pool) -> Pool:
    writable = True
    try:
        descriptor = trust.open_pool(record, os.O_RDWR)
    except OSError:
        writable = False
        try:
            descriptor = trust.open_pool(record, os.O_RDONLY)
        except OSError as error:
            raise Refused(f"the pool can't be opened: {error.strerror}") from None
    try:
        return _map(record, descriptor, writable)
    except BaseException:
        os.close(descriptor)
        raise


def _map(record: protocol.Pool, descriptor: int, writable: bool) -> Pool:
    try:
        exclusive.lock_as_client(descriptor, record.lock)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise Refused(f"the pool can't be locked: {error.strerror}") from None
    lines = record.persistence == protocol.Persistence.LINES
    if writable and lines and persist.load_libpmem() is None:
        raise Refused("the pool's stores need libpmem, and it is not installed")
    flags = mmap.MAP_SHARED
    if lines and stat.S_ISREG(os.fstat(descriptor).st_mode):
        # Without MAP_SYNC a flushed line may lie in a block that the pool's file system has not committed yet.
        flags = MAP_SYNC
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        mapping = mmap.mmap(descriptor, record.size, flags=flags, prot=protection)
    except (OSError, OverflowError, ValueError) as error:
        raise Refused(f"the pool can't be mapped: {error}") from None
    guard = Guard(mapping)
    trust.check_superblock(record, memoryview(mapping))
    return Pool(record, descriptor, mapping, guard, flags)
