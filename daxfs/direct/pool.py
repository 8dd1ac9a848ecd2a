"""The pool behind a mounted file, mapped once in this process.

``attach`` asks a file which pool it lies in, opens that pool with this process's own rights, makes sure that it is the
same one, locks it as a client (docs/DIRECT.md, "The pool") and maps it. It knows nothing of files: offsets are offsets
in the pool. ``files`` and ``maps`` use it. A pool stays mapped as long as one of them needs it and no longer, because a
daemon that mounts the pool later waits for the lock to go.

Stores become durable in one of three ways, as the daemon says; ``daxfs.pmem.persist`` does the first:

- LINES: each store is copied by libpmem and on its way at once; ``sync`` waits for all of them.
- MSYNC: stores mark the 2 MiB they lie in; ``sync`` calls msync(2) for what is marked. Marks are set behind the store
  and taken before the msync, so that a store of another thread is covered by this sync or by the next one.
- VOLATILE: there is nothing to do.
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
from daxfs.direct.trust import Refused
from daxfs.errors import FsError
from daxfs.pmem import exclusive, persist
from daxfs.pmem.pool import MAP_SYNC

CHUNK = 21  # bits: what is marked dirty together

_MS_SYNC = 4

libc = ctypes.CDLL(None, use_errno=True)
libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def os_error() -> OSError:
    """The error of the last call of ``libc``."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def write_back(address: int, length: int) -> None:
    """Return when a mapped range, which begins on a page, is with the medium (msync(2)).

    Raises:
        OSError: the system's.
    """
    if libc.msync(address, length, _MS_SYNC):
        raise os_error()


def _rights() -> tuple[int, int, list[int]]:
    return os.geteuid(), os.getegid(), os.getgroups()


class Pool:
    """A mapped pool.

    Attributes:
        record: what the daemon said.
        memory: all of it, format "B"; read-only if the pool could be opened for reading only.
        address: of its first byte.
        descriptor: the open pool, for further mappings.
        token: what lease requests quote, to prove that this process can open the pool.
        writable: whether stores are possible.
        map_flags: what mmap(2) must be given for a piece of it: MAP_SHARED, or MAP_SYNC where the pool has it.
        store: ``store(offset, data)`` copies and cares for durability; None where a plain copy into ``memory`` does.
        dirty: chunks that were stored to and not synced yet (MSYNC).
    """

    def __init__(self, record: protocol.Pool, descriptor: int, mapping: mmap.mmap, map_flags: int) -> None:
        self.record = record
        self.descriptor = descriptor
        self.memory = memoryview(mapping)
        self.size = len(mapping)
        self.token = self.memory[record.token : record.token + protocol.TOKEN_SIZE].tobytes() if record.token else b""
        self.writable = not self.memory.readonly
        self.map_flags = map_flags
        self.dirty: dict[int, None] = {}
        self.store: Callable[[int, persist.Buffer], None] | None = None
        self._failed: OSError | None = None
        self._syncing = threading.Lock()
        self.address = 0
        self._rights = _rights()
        self._library: persist.Library | None = None
        if self.writable:
            self.address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
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
        """Return when everything that this process stored with ``store`` is durable.

        Raises:
            FsError: EIO, the medium failed, now or earlier (a second msync would hide it).
        """
        if self._library is not None:
            self._library.drain()
            return
        with self._syncing:
            while self.dirty:
                chunk, _ = self.dirty.popitem()
                start = chunk << CHUNK
                self._write_back(self.address + start, min(1 << CHUNK, self.size - start))

    def flush(self, address: int, length: int) -> None:
        """Return when the stores to a mapped range, of the pool or of a file on this mount, are durable.

        Raises:
            FsError: EIO, as ``sync``.
        """
        if self._library is not None:
            self._library.flush(address, length)
            self._library.drain()
        elif self.record.persistence != protocol.Persistence.VOLATILE:
            with self._syncing:
                start = address & -mmap.PAGESIZE
                self._write_back(start, address + length - start)

    def _write_back(self, address: int, length: int) -> None:
        if self._failed is None:
            try:
                write_back(address, length)
            except OSError as error:
                self._failed = error
        if self._failed is not None:
            raise FsError(errno.EIO, f"write-back of the pool failed ({self._failed})")

    def check_rights(self) -> None:
        """Look whether a process that has changed its effective ids or groups may still map the pool as it is.

        Raises:
            Refused: it may not; all files of the pool have gone over to the kernel.
            OSError: the same, and what one of them had stored was lost.
        """
        now = _rights()
        if now == self._rights:
            return
        try:
            os.close(trust.open_pool(self.record, os.O_RDWR if self.writable else os.O_RDONLY))
        except (OSError, Refused):
            for leave in _leavers:
                leave(self, DROPPED)
            raise Refused(DROPPED) from None
        self._rights = now

    def forked(self) -> None:
        """In a forked child: the lock may belong to a thread that is not here."""
        self._syncing = threading.Lock()


_pools: weakref.WeakValueDictionary[bytes, Pool] = weakref.WeakValueDictionary()
_attaching = threading.Lock()
_leavers: list[Callable[[Pool, str], None]] = []

DROPPED = "the rights that are left do not open the pool"


def when_rights_go(leave: Callable[[Pool, str], None]) -> None:
    """Call ``leave`` with a pool that this process may map no longer, and the reason."""
    _leavers.append(leave)


def attach(descriptor: int) -> Pool:
    """The pool of an open file.

    Asked each time, because another mount may have come to the same place: its answer then differs, in the lock at
    least, unless it lies.

    Raises:
        Refused: the file is not on a daxfs mount that serves direct access, or this process can't map the pool.
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
        pool.check_rights()
    return pool


def forked() -> None:
    """In a forked child: fresh locks."""
    global _attaching  # noqa: PLW0603 (a lock can't be made free in place)
    _attaching = threading.Lock()
    for pool in list(_pools.values()):
        pool.forked()


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
        # Without MAP_SYNC a written-back line may lie in a block that the pool's file system does not know yet.
        flags = MAP_SYNC
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        mapping = mmap.mmap(descriptor, record.size, flags=flags, prot=protection)
    except (OSError, OverflowError, ValueError) as error:
        raise Refused(f"the pool can't be mapped: {error}") from None
    trust.check_superblock(record, memoryview(mapping))
    return Pool(record, descriptor, mapping, flags)
