"""A pool in a mapped file or device: what `Pool` declares, by system calls on the descriptor and the addresses.

`daxfs.pmem.opening` makes it. The stores themselves are those of `persist`, guarded against memory that is missing.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress

from daxfs.errors import FsError, MissingMemory, PoolError
from daxfs.pmem import exclusive, kinds, persist
from daxfs.pmem.badblocks import BadRanges
from daxfs.pmem.fallocate import PUNCH_HOLE, fallocate
from daxfs.pmem.faults import MappedFaults
from daxfs.pmem.holes import data_extents
from daxfs.pmem.loopguard import LoopGuard
from daxfs.pmem.persist import Buffer, Operations
from daxfs.pmem.pool import Pool
from daxfs.pmem.region import AddressRange
from daxfs.pmem.reservation import SECTOR, Reservation
from daxfs.pmem.storage import Storage
from daxfs.protocol import LOCK_NUMBERS, READER_LOCKS
from daxfs.runs import ByteRange

_BLKDISCARD = 0x1277  # include/uapi/linux/fs.h
MOST_PREFAULTED = 1 << 14
"""Ranges of which a pool remembers that it has mapped their pages."""


class MappedPool(Pool):
    """A pool in a mapped file or device; made by `opening.open_pool`."""

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
