"""The pool: one range of mapped memory, and the only operations that change it.

Readers slice ``pool.memory``. Writers use the pool's operations, so that each store is flushed and a recording pool
sees it. The pool knows nothing of its content: no block numbers, no format. All layers above use it.

``write``, ``zero``, ``store_word``, ``flush`` and ``fence`` are attributes of the instance, not methods: closures that
are bound to the mapping when the pool is opened (see `persist`). A 4 KiB ``write`` to volatile memory costs 0.2 us.
Keep ``write = pool.write`` in a local variable where a loop calls it.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

from daxfs.errors import FsError, MissingMemory, PoolError
from daxfs.pmem import exclusive, kinds, persist
from daxfs.pmem.badblocks import BadRanges, listed
from daxfs.pmem.descriptors import above_standard
from daxfs.pmem.fallocate import PUNCH_HOLE, fallocate
from daxfs.pmem.faults import NEVER, Faults, MappedFaults
from daxfs.pmem.holes import data_extents
from daxfs.pmem.loopguard import LoopGuard
from daxfs.pmem.persist import Buffer, Operations
from daxfs.pmem.region import AddressRange
from daxfs.pmem.reservation import SECTOR, Reservation
from daxfs.pmem.storage import Storage
from daxfs.pmem.storehook import StoreHook
from daxfs.protocol import LOCK_NUMBERS, READER_LOCKS
from daxfs.runs import ByteRange

__all__ = ["Buffer", "Pool", "mapped_kind", "open_pool", "punch_hole"]

MAP_SYNC = 0x80000 | 3
"""Flags of a mapping whose flushed stores are durable, because the kernel has no metadata left to write."""
_BLKDISCARD = 0x1277  # include/uapi/linux/fs.h


class Pool:
    """A pool in memory.

    Attributes:
        path: the path that was opened; messages name it.
        kind: ``file``, ``tmpfs``, ``fsdax``, ``block``, ``devdax`` or ``memory``.
        size: bytes in ``memory``: a multiple of 1 KiB, so that the incomplete last block of a file is left out.
        memory_size: bytes of ``memory`` that are memory, all of them unless `attach` has put storage after it.
        storages: the members that have what is not memory, in order; none as a rule.
        file_size: bytes of the file or device as the system reports it.
        align: alignment of the medium's own mapping in bytes (2 MiB on most devdax devices, else a page).
        read_only: whether stores raise EROFS.
        private: stores stay in this process's memory.
        persistence: ``libpmem``, ``msync`` or ``volatile``.
        status: fstat(2) of the mapped descriptor at its opening; None for a pool without a descriptor.
        memory: the whole mapping, format "B"; read-only if the pool is.
        write: ``write(offset, data)`` stores bytes and starts to flush them; durable after the next
            ``fence()``.
        zero: ``zero(offset, length)`` stores zeros and starts to flush them, as ``write`` does.
        store_word: ``store_word(offset, value, size=4)`` stores and starts to flush one aligned little-endian word of
            4 or 8 bytes, in a single machine store: a reader and a power cut see the old or the new word.
        flush: ``flush(offset, length)`` starts the write-back of stores that other code made into ``memory``.
        fence: ``fence()`` returns when everything flushed so far is durable; FsError EIO if the medium
            failed.
        reserve: `Reservation.reserve`, which makes sure that a range has memory; None where all of the pool has.
        faults: the loads and stores that met no memory. An operation that ends with one pending fails with
            ``faults.settle()``.
        bad: the ranges that are known to be bad; empty, and so false, as a rule.
        hook: what runs before each store (`hook_stores`); None as a rule.
        unhooked: the operations without the hook, for the hook's own stores.

    A range outside the pool raises ``ValueError``. Where memory is missing, all operations raise MissingMemory: EIO, or
    ENOSPC if the pool's file has holes that its file system can't fill.
    """

    def __init__(
        self,
        path: str,
        kind: str,
        memory: memoryview,
        operations: Operations,
        *,
        read_only: bool = False,
        file_size: int | None = None,
        align: int = mmap.PAGESIZE,
        faults: Faults = NEVER,
        bad: BadRanges | None = None,
    ) -> None:
        self.path = path
        self.kind = kind
        self.memory = memory
        self.size = self.memory_size = len(memory)
        self.storages: tuple[Storage, ...] = ()
        self.file_size = self.size if file_size is None else file_size
        self.align = align
        self.read_only = read_only
        self.persistence = operations.name
        self.private = False
        self.faults = faults
        self.bad = BadRanges(self.size) if bad is None else bad
        self.reserve: Callable[..., None] | None = None
        self.status: os.stat_result | None = None
        self.write: Callable[[int, Buffer], None] = operations.write
        self.zero: Callable[[int, int], None] = operations.zero
        self.store_word: Callable[..., None] = operations.store_word
        self.flush: Callable[[int, int], None] = operations.flush
        self.fence: Callable[[], None] = operations.fence
        self.hook: StoreHook | None = None
        self.unhooked = operations
        self._open = True

    def hook_stores(self, hook: StoreHook | None) -> None:
        """Have ``hook`` called before each store from now on; None: call nothing, and cost nothing.

        Bound operations that a caller keeps from before do not call the hook.
        """
        operations = self.unhooked if hook is None else persist.hooked(self.unhooked, hook)
        self.hook = hook
        self.write = operations.write
        self.zero = operations.zero
        self.store_word = operations.store_word

    def discard(self, offset: int, length: int) -> None:
        """Give the memory of a range, whose content is no longer needed, back to the system.

        The range reads as zeros afterwards; on a block device the device determines what it reads as.

        Raises:
            FsError: EOPNOTSUPP: this kind of pool can't give memory back. Another errno: the system call failed.
        """
        self._check_range(offset, length)
        raise FsError(errno.EOPNOTSUPP, f"{self.path}: a pool of kind {self.kind} can't give memory back")

    def make_room(self, offset: int, length: int) -> None:
        """Make sure that a range has memory, where the pool's file may have holes; as `Reservation.reserve`."""
        if self.reserve is not None:
            self.reserve(offset, length)

    def prefault(self, offset: int, length: int) -> None:
        """Have the pages of a range mapped that is about to be stored to for the first time: one call costs a quarter
        of what their page faults cost. Where that is not possible, it does nothing.
        """

    def has_no_room_for_holes(self) -> bool:
        """Return whether the pool's file has holes, and its file system has (almost) no room to fill them."""
        return False

    def sync_file(self) -> None:
        """Make durable where the blocks of the pool's file lie, so that a write-back of cache lines is all that a store
        needs. Other code need not call it: an msync(2) does that, and so does the first touch of a hole with MAP_SYNC.

        Raises:
            FsError: the system call failed.
        """

    def data_ranges(self) -> Iterator[ByteRange]:
        """Yield the ranges [first, end) that are not holes of the pool's file, in order; a hole reads as zeros.

        What was cut off the file while it was in use is no hole: its memory is missing.
        """
        yield ByteRange(0, self.size)

    def rewrite(self, offset: int, data: Buffer) -> bool:  # noqa: ARG002
        """Store whole pages over bad memory through the device or the file, durably.

        Returns:
            True: they hold the data and are good again. False: the platform can't mend them.
        """
        return False

    def available(self) -> int:
        """Return how many bytes the pool could have: those of the file or device as it is now."""
        return self.size

    @property
    def extensible(self) -> bool:
        """Whether `extend` can make the pool's file longer; what lies under other pools has the length that it has."""
        return False

    def refuse_cut_file(self) -> None:
        """Refuse to change the size (EIO) of a pool whose file was cut while it was in use.

        What is missing would become a hole, and read as zeros.
        """

    def extend(self, length: int) -> None:
        """Make the pool larger: to at least ``length`` bytes, and to all that the file or device has.

        ``memory`` is then another view of the same bytes and more; older views stay valid. Bound operations work on the
        larger pool.

        Raises:
            FsError: EOPNOTSUPP, this kind of pool stays as large as it is; ENOSPC, the device is smaller; or the
                system's. Nothing has changed.
        """
        raise FsError(errno.EOPNOTSUPP, f"{self.path}: a pool of kind {self.kind} can't have {length} bytes")

    def attach(self, memory: int, length: int, storages: Sequence[Storage] = ()) -> None:  # noqa: ARG002
        """Let ``length`` bytes of storage follow the first ``memory`` bytes of the pool, which are then all of it.

        Storage has addresses and no memory: each load and store there is a fault, as where memory is missing. So code
        that does not know about storage gets EIO. The pool closes ``storages``; none: nobody reads what lies there. A
        later call with the same memory makes the storage longer or shorter; of members that go the caller disposes.

        Raises:
            PoolError: this kind of pool can't have storage, or there are not so many addresses. Nothing has changed.
        """
        raise PoolError(f"{self.path}: a pool of kind {self.kind} can't have storage", kinds.MOUNT_FAILED)

    def shorten(self, length: int) -> None:
        """Make the pool and its file ``length`` bytes long, whose end is not used any more; a device stays as it is.

        ``memory`` is then a shorter view. Older views stay valid up to that length; nobody may look past it.

        Raises:
            FsError: EROFS; or the system's, the file can't be cut: it stays longer.
        """

    def mapped_elsewhere(self, but: int | None = None) -> bool:  # noqa: ARG002
        """Return whether clients still map this pool, those of the mount with lock number ``but`` excepted."""
        return False

    def mapped_by_readers(self) -> bool:
        """Return whether clients of read-only mounts still map this pool."""
        return self.mapped_elsewhere()

    def other_owner(self) -> str:
        """Return the loop device through which another program uses the pool, or "" (see `loopguard`)."""
        return ""

    def refuse_clients(self) -> None:
        """Raise PoolError if clients still map this pool."""

    @property
    def block_store(self) -> Callable[[int, Buffer], None]:
        """How to store whole blocks: `replace` if memory of the pool is bad or may be missing, else `write`."""
        return self.replace if self.bad or self.reserve is not None else self.write

    def replace(self, offset: int, data: Buffer) -> None:
        """Store whole blocks whose old content is no longer needed as `write` does, over bad memory by `rewrite`."""
        if not (self.bad and self.bad.first(offset, offset + len(data)) and self.rewrite(offset, data)):
            self.write(offset, data)

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes at offset {offset} are outside the pool's {self.size} bytes")

    def close(self) -> None:
        """Release the mapping and the claim on the pool. A second call does nothing.

        Stores that were not fenced may or may not become durable. A view of ``memory`` that is still referenced stays
        readable: the mapping then ends with the last view.
        """
        if self._open:
            self._open = False
            for storage in self.storages:
                storage.close()
            self.unhooked.retire()
            _release(self.memory)
            self._unmap()

    def _unmap(self) -> None:
        """Release what a subclass owns, after the views were released."""

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path} {self.kind} {self.size} bytes, {self.persistence}>"


MOST_PREFAULTED = 1 << 14
"""Ranges of which a pool remembers that it has mapped their pages."""


class MappedPool(Pool):
    """A pool in a mapped file or device; made by ``open_pool``."""

    def __init__(
        self,
        target: kinds.Target,
        kind: str,
        addresses: AddressRange,
        *,
        memory: memoryview,
        operations: Operations,
        descriptors: tuple[int, ...],
        read_only: bool,
        faults: MappedFaults,
        bad: BadRanges,
    ) -> None:
        super().__init__(
            target.path,
            kind,
            memory,
            operations if read_only else persist.guarded(operations, faults),
            read_only=read_only,
            file_size=target.exact_size,
            align=target.align,
            faults=faults,
            bad=bad,
        )
        faults.avoid()
        self.status = target.status
        self._addresses = addresses
        self._descriptors = descriptors
        self._empty = -1
        self._loops = LoopGuard(target)
        self._prefaulted: set[ByteRange] = set()
        self._reservation = Reservation(target.path, descriptors[0], target.size)

    def reserve_holes(self) -> None:
        """Have holes of the pool's file filled before they are needed, if it has any."""
        if self._has_holes():
            self.reserve = self._reservation.reserve

    def prefault(self, offset: int, length: int) -> None:
        """As `Pool.prefault`. A file's holes are left alone: a load of one maps no page that can be stored to."""
        first = offset & -mmap.PAGESIZE
        pages = ByteRange(first, offset + length + mmap.PAGESIZE - 1 & -mmap.PAGESIZE)
        if pages not in self._prefaulted:
            if len(self._prefaulted) >= MOST_PREFAULTED:
                self._prefaulted.clear()
            self._prefaulted.add(pages)
            with suppress(OSError):
                self._addresses.populate(first, pages.end - first)

    def has_no_room_for_holes(self) -> bool:
        """As `Pool.has_no_room_for_holes`."""
        return self._has_holes() and self._reservation.is_full()

    def replace(self, offset: int, data: Buffer) -> None:
        """As `Pool.replace`; and through the file where no page can be had for a block that is allocated.

        A page cache with folios larger than a page wants room for all of a folio before it lets anyone store to one
        page of it (``iomap_page_mkwrite`` in fs/iomap/buffered-io.c); pwrite(2) wants room for what is written.
        """
        self.faults.check()
        try:
            super().replace(offset, data)
        except MissingMemory as error:
            if error.errno != errno.ENOSPC or not self._store_through_file(offset, data):
                raise

    def _store_through_file(self, offset: int, data: Buffer) -> bool:
        """Store by pwrite(2) into the page cache that the mapping shows; durable after the next fence."""
        try:
            stored = os.pwrite(self._descriptors[0], data, offset)
        except OSError:
            return False
        self.flush(offset, stored)
        return stored == len(data)

    def rewrite(self, offset: int, data: Buffer) -> bool:
        """As `Pool.rewrite`: pwrite(2) has the driver clear the poison (``pmem_do_write`` in drivers/nvdimm/pmem.c)."""
        end = offset + len(data)
        self._check_range(offset, end - offset)
        if self.read_only or self.private or (offset | end) % mmap.PAGESIZE:
            return False
        if os.fstat(self._descriptors[0]).st_size < end and self.kind not in (kinds.BLOCK, kinds.DEVDAX):
            return False  # the file was cut: pwrite(2) would make it longer
        if self.hook is not None:
            self.hook.before(offset, end - offset)
        try:
            if os.pwrite(self._descriptors[0], data, offset) != end - offset:
                return False
            os.fdatasync(self._descriptors[0])
        except OSError:
            return False
        self.faults.forgive(offset, end)
        good = bytes(self.memory[offset:end]) == data
        if self.faults.pending[0]:
            self.faults.settle()
            return False
        return good

    def available(self) -> int:
        """As `Pool.available`."""
        if self.private or self.kind == kinds.DEVDAX:
            return self.size
        if self.kind == kinds.BLOCK:
            length = os.lseek(self._descriptors[0], 0, os.SEEK_END)
        else:
            length = os.fstat(self._descriptors[0]).st_size
        return max(length - length % self._unit, self.size)

    @property
    def extensible(self) -> bool:
        """As `Pool.extensible`."""
        return not self.private and self.kind not in (kinds.BLOCK, kinds.DEVDAX)

    @property
    def _unit(self) -> int:
        """The unit of the pool's size: as `kinds.identify` has it."""
        return self.align if self.align > mmap.PAGESIZE else kinds.SMALLEST

    def refuse_cut_file(self) -> None:
        """As `Pool.refuse_cut_file`."""
        if self.extensible:
            size = os.fstat(self._descriptors[0]).st_size
            if size < self.memory_size:
                raise FsError(errno.EIO, f"{self.path} was cut to {size} bytes while it was in use")

    def extend(self, length: int) -> None:
        """As `Pool.extend`: a file is made longer with a hole at its end."""
        if self.read_only or self.private:
            raise FsError(errno.EROFS, f"{self.path}: the pool is open for reading only")
        self.refuse_cut_file()
        length += -length % self._unit
        descriptor, before = self._descriptors[0], self.available()
        longer = length > before
        if longer and not self.extensible:
            raise FsError(errno.ENOSPC, f"{self.path} has {before} bytes, {length} are wanted")
        try:
            if longer:
                os.ftruncate(descriptor, length)
            try:
                self._addresses.lengthen(max(length, before), self.align)
            except OSError:
                if longer:
                    os.ftruncate(descriptor, before)
                raise
        except OSError as error:
            raise FsError(error.errno or errno.EIO, f"{self.path} can't be extended: {error.strerror}") from None
        self.memory_size = self._addresses.length
        self.file_size = max(self.file_size, self.memory_size)
        self._reservation.follow_size(self.memory_size)
        self._follow_addresses()
        self.advise()
        self.reserve_holes()

    def attach(self, memory: int, length: int, storages: Sequence[Storage] = ()) -> None:
        """As `Pool.attach`."""
        if self._empty < 0:
            self._empty = os.memfd_create("storage", os.MFD_CLOEXEC)  # mapped past its end
        try:
            self._addresses.end_in_nothing(memory, length, self._empty, self.align)
        except OSError as error:
            text = f"{self.path}: no addresses for {memory + length} bytes ({error.strerror})"
            raise PoolError(text, kinds.MOUNT_FAILED) from None
        self.memory_size, self.storages = memory, tuple(storages)
        self._follow_addresses()

    def _follow_addresses(self) -> None:
        """Use all that is mapped now."""
        self.memory = self._addresses.view()
        self.size = len(self.memory)
        self.bad.follow_size(self.memory_size)
        self.unhooked.follow_size(self.memory)
        self.faults.follow_size()

    def shorten(self, length: int) -> None:
        """As `Pool.shorten`."""
        length += -length % self._unit
        if not self.extensible or length >= self.available():
            return
        if self.read_only:
            raise FsError(errno.EROFS, f"{self.path}: the pool is open for reading only")
        self.refuse_cut_file()
        if length < self.size:
            self.fence()
            self.bad.take_out(length, self.size)
            self._addresses.shorten(length)
            self.memory = self._addresses.view()
            self.size = self.memory_size = self.file_size = length
            self.bad.follow_size(length)
            self._reservation.follow_size(length)
            self._reservation.forget()
            self._prefaulted.clear()
            self.unhooked.follow_size(self.memory)
        try:
            os.ftruncate(self._descriptors[0], length)
        except OSError as error:
            raise FsError(error.errno or errno.EIO, f"{self.path} can't be cut: {error.strerror}") from None

    def advise(self) -> None:
        """Ask for huge pages, which matters where a tmpfs is mounted with huge=advise: whoever touches memory first
        decides.
        """
        if self.kind == kinds.TMPFS:
            with suppress(OSError):  # a kernel without huge pages
                self._addresses.advise(mmap.MADV_HUGEPAGE)

    def _has_holes(self) -> bool:
        status = os.fstat(self._descriptors[0])
        return stat.S_ISREG(status.st_mode) and status.st_blocks * SECTOR < self.memory_size

    def discard(self, offset: int, length: int) -> None:
        """Punch a hole (fallocate(2)) into the file, or discard the range of the block device (BLKDISCARD)."""
        self._check_range(offset, length)
        if self.read_only:
            raise FsError(errno.EROFS, f"{self.path}: the pool is open for reading only")
        if self.kind == kinds.DEVDAX:
            super().discard(offset, length)
        if not length:
            return
        if self.hook is not None:
            self.hook.before(offset, length)
        try:
            if self.kind == kinds.BLOCK:
                # Through the descriptor that claims the device: only then does the kernel drop its page cache.
                fcntl.ioctl(self._descriptors[-1], _BLKDISCARD, struct.pack("=QQ", offset, length))
            else:
                fallocate(self._descriptors[0], PUNCH_HOLE, offset, length)
                self._reservation.forget()
                self.reserve = self._reservation.reserve
        except OSError as error:
            raise FsError(error.errno or errno.EIO, f"{self.path}: discarding {length} bytes at {offset}") from None

    def sync_file(self) -> None:
        """As `Pool.sync_file`."""
        if self.kind == kinds.FSDAX and not self.read_only:
            try:
                os.fsync(self._descriptors[0])
            except OSError as error:
                raise FsError(error.errno or errno.EIO, f"{self.path}: fsync of the pool's file") from None

    def data_ranges(self) -> Iterator[ByteRange]:
        """As `Pool.data_ranges`. A device has no holes (and lseek(2) of devdax does nothing)."""
        if self.kind in (kinds.BLOCK, kinds.DEVDAX):
            yield from super().data_ranges()
            return
        end = 0
        for found in data_extents(self._descriptors[0], self.size):
            yield found
            end = found.end
        end = max(end, os.fstat(self._descriptors[0]).st_size)
        if end < self.size:
            yield ByteRange(end, self.size)

    def mapped_elsewhere(self, but: int | None = None) -> bool:
        """Return whether clients still map the pool: each holds a lock while it does (`protocol.LOCKS`)."""
        ranges = [(0, LOCK_NUMBERS)] if but is None else [(0, but), (but + 1, LOCK_NUMBERS)]
        found = exclusive.mapped_by_clients
        return any(found(self._descriptors[0], first, end) for first, end in ranges if first < end)

    def other_owner(self) -> str:
        """Return the loop device of another owner, or "". Claims loop devices that nobody uses."""
        return self._loops.look()

    def mapped_by_readers(self) -> bool:
        """Return whether a client of a read-only mount maps the pool: such a client holds a lock of `READER_LOCKS`."""
        return exclusive.mapped_by_clients(self._descriptors[0], READER_LOCKS)

    def refuse_clients(self) -> None:
        """Raise PoolError while a client of an earlier mount holds a lock of the pool (`exclusive.refuse_clients`)."""
        exclusive.refuse_clients(self._descriptors[0], self.path)

    def _unmap(self) -> None:
        self._addresses.close()
        self._loops.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        if self._empty >= 0:
            os.close(self._empty)


def punch_hole(descriptor: int, offset: int, length: int) -> bool:
    """Punch a hole into an open file or block device: free the range's memory, so that it reads as zeros.

    Returns:
        False if the file or device does not support it.
    """
    try:
        fallocate(descriptor, PUNCH_HOLE, offset, length)
    except OSError:
        return False
    return True


def open_pool(
    path: str | os.PathLike[str],
    *,
    read_only: bool = False,
    persistence: str | None = None,
    exclusively: bool = True,
    private: bool = False,
    sysfs: str = "/sys",
) -> Pool:
    """Map a pool.

    Args:
        path: a regular file, a block device or a /dev/dax device.
        read_only: map without the right to store, and share the pool with other readers.
        persistence: force ``libpmem``, ``msync`` or ``volatile``; None: choose by the kind of pool.
        exclusively: refuse a pool that is in use. A tool that only reads may pass False, together with
            ``read_only`` or ``private``.
        private: stores go to memory of this process and never to the pool, which is opened for reading and shared
            with other readers. Only pages that are stored to take memory.
        sysfs: where sysfs is mounted (tests bring their own).

    Raises:
        PoolError: the pool is missing or empty, is in use by daxfs or the kernel, or can't be accessed or flushed.
    """
    name = os.fspath(path)
    reading = read_only or private
    if not (exclusively or reading):
        raise ValueError("only a read-only pool may be opened while someone else uses it")
    target = kinds.identify(name, sysfs=sysfs)
    descriptors: list[int] = []
    with above_standard():
        try:
            if exclusively:
                descriptors.append(exclusive.claim(target, read_only=reading, sysfs=sysfs))
                # Before the claim, the last user of the pool may have resized or replaced it (mkfs).
                target = kinds.identify(name, sysfs=sysfs)
            access = os.O_RDONLY if reading else os.O_RDWR
            descriptors.insert(0, os.open(name, access | os.O_CLOEXEC))
            if not all(os.path.samestat(os.fstat(opened), target.status) for opened in descriptors):
                raise PoolError(f"{name} was just replaced by another file; try again", kinds.MOUNT_FAILED)
            target = replace(target, status=os.fstat(descriptors[0]))
            bad = BadRanges(target.size, listed(target, sysfs))
            if private:
                return _map_privately(target, tuple(descriptors), bad)
            return _map(target, tuple(descriptors), read_only, persistence, bad)
        except BaseException as error:
            for descriptor in descriptors:
                os.close(descriptor)
            if isinstance(error, OSError):
                raise kinds.pool_error(name, error) from None
            raise


def mapped_kind(target: kinds.Target, descriptor: int) -> str:
    """Return the kind of an open pool: that of ``target``, or ``fsdax`` where the kernel grants MAP_SYNC for a file."""
    if target.kind != kinds.FILE:
        return target.kind
    try:
        mmap.mmap(descriptor, mmap.PAGESIZE, flags=MAP_SYNC, prot=mmap.PROT_READ).close()
    except OSError:
        return kinds.FILE
    return kinds.FSDAX


def _map(
    target: kinds.Target, descriptors: tuple[int, ...], read_only: bool, persistence: str | None, bad: BadRanges
) -> Pool:
    protection = mmap.PROT_READ if read_only else mmap.PROT_READ | mmap.PROT_WRITE
    kind = mapped_kind(target, descriptors[0])
    way = persist.choose(target.path, kind, persistence, read_only=read_only)
    addresses = _reserve(target)
    flags = MAP_SYNC if kind == kinds.FSDAX else mmap.MAP_SHARED
    addresses.map(target.size, descriptors[0], protection=protection, flags=flags)
    memory = addresses.view()
    if read_only:
        operations = persist.refusing(way)
    elif way == persist.LIBPMEM and (library := persist.load_libpmem()) is not None:
        operations = persist.libpmem(memory, library)
    elif way == persist.MSYNC:
        operations = persist.msync(memory, addresses.flush)
    else:
        operations = persist.volatile(memory)
    pool = MappedPool(
        target,
        kind,
        addresses,
        memory=memory,
        operations=operations,
        descriptors=descriptors,
        read_only=read_only,
        faults=MappedFaults(target.path, addresses, target.align, bad),
        bad=bad,
    )
    pool.advise()
    if not read_only:
        pool.reserve_holes()
    return pool


def _reserve(target: kinds.Target) -> AddressRange:
    try:
        return AddressRange(target.size, target.align)
    except OSError as error:
        text = f"{target.path}: no addresses for {target.size} bytes ({error.strerror}); raise the limit (ulimit -v)"
        raise PoolError(text, kinds.MOUNT_FAILED) from None


def _map_privately(target: kinds.Target, descriptors: tuple[int, ...], bad: BadRanges) -> Pool:
    """Map the pool copy-on-write. A devdax device does not support this (EINVAL)."""
    addresses = _reserve(target)
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    addresses.map(target.size, descriptors[0], protection=protection, flags=mmap.MAP_PRIVATE)
    memory = addresses.view()
    pool = MappedPool(
        target,
        mapped_kind(target, descriptors[0]),
        addresses,
        memory=memory,
        operations=persist.volatile(memory),
        descriptors=descriptors,
        read_only=False,
        faults=MappedFaults(target.path, addresses, target.align, bad),
        bad=bad,
    )
    pool.private = True
    pool.status = None  # other processes that map the file see different content
    return pool


def _release(memory: memoryview) -> None:
    """Release a view; if buffers made of it keep it, collect those that only a reference cycle keeps alive."""
    try:
        memory.release()
    except BufferError:
        gc.collect()
        with suppress(BufferError):  # a buffer is still in use: the mapping ends with it
            memory.release()
