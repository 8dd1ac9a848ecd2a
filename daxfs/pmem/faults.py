"""Memory of the pool that is not there: an error for the operation that met it, not the end of the process.

A load or a store is SIGBUS where the medium is poisoned, where the pool's file was cut, and where a file system without
room can't fill a hole. `guard` handles the signal: it puts a private page of zeros in the place of the missing one
and counts a fault. From then on until `Faults.settle`:

1. Nothing is stored to the pool. The operation may have read zeros that the pool does not hold (`persist` asks
   ``pending`` before each store, flush and fence).
2. What the operation has stored to the missing page is lost. So the operation has to fail (`persist` asks after each
   store, the handle when it ends, and `FileSystem` when the operation ends).

``settle`` maps the pool's own pages again and returns the error. A page that is still missing then faults again. One
that failed for another reason than a cut file or a full file system is bad memory: it joins the pool's list
(`daxfs.pmem.badblocks`). In the place of what is on the list, a page of an empty file is mapped, where every load and
store is SIGBUS too. So nobody touches the bad memory itself, whether Python or the kernel, which copies for a system
call; and while the list is empty, that costs nothing. Where mmap(2) can replace larger units only (most devdax
devices), the good neighbours would be lost: there each access meets the bad memory anew.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from daxfs.errors import MissingMemory, PoolError
from daxfs.pmem import guard
from daxfs.pmem.badblocks import BadRanges
from daxfs.pmem.kinds import MOUNT_FAILED
from daxfs.pmem.region import AddressRange
from daxfs.pmem.reservation import is_full, no_room

log = logging.getLogger("daxfs.pmem")


class Faults:
    """The faults of one mapping; this one has none, ever: for pools that are memory of the process.

    Attributes:
        pending: ``pending[0]`` is the number of faults that were not settled.
        total: faults that were settled.
        lasting: a page that failed is bad from then on. False: the pages come from a program, which may have more luck
            the next time (a mounted snapshot).
    """

    def __init__(self) -> None:
        self.pending = memoryview(bytes(8)).cast("Q")
        self.total = 0
        self.lasting = True

    def settle(self) -> MissingMemory:
        """Map the missing pages again; returns the error that the operation ends with.

        EIO: the medium failed there, or the file was cut. ENOSPC: the file system has no room for the file's holes.
        """
        return MissingMemory(errno.EIO)

    def check(self) -> None:
        """Raise the error of a pending fault, if there is one."""
        if self.pending[0]:
            raise self.settle()

    @contextmanager
    def checked(self) -> Iterator[None]:
        """End what is done inside with the error of the faults that it met, whatever it made of the zeros.

        What is no error but ends the program, such as KeyboardInterrupt, stays what it is.
        """
        try:
            yield
        except BaseException as error:
            if self.pending[0]:
                settled = self.settle()
                if isinstance(error, Exception):
                    raise settled from error
            raise
        self.check()

    def avoid(self) -> None:
        """Have every load and store in the bad ranges fail without touching them."""

    def forgive(self, begin: int, end: int) -> None:
        """Map a range of the pool again that is no longer bad."""

    def follow_size(self) -> None:
        """Watch all of a mapping that has become longer."""

    def install(self) -> None:
        """Put the handler of faults over those that other code has installed since it was installed."""


class MappedFaults(Faults):
    """The faults of a mapped pool.

    Args:
        path: for messages.
        addresses: the mapping; it is watched until it ends, which may be later than its `close`.
        unit: what mmap(2) can replace in it, in bytes.
        bad: the list of bad ranges, to which pages are added.

    Raises:
        PoolError: the signal can't be handled.
    """

    def __init__(self, path: str, addresses: AddressRange, unit: int, bad: BadRanges) -> None:
        super().__init__()
        self._bad = bad
        self._path = path
        self._addresses = addresses
        self._unit = unit
        self._guard = guard.handler()
        self._watch = watch = guard.Watch(begin=addresses.begin, end=addresses.begin + addresses.length, unit=unit)
        number = self._guard.watch(watch)
        if number:
            raise PoolError(f"{path}: faults of its memory can't be handled: {os.strerror(number)}", MOUNT_FAILED)
        self.pending = memoryview(watch).cast("B")[:8].cast("Q")
        self._at_end = addresses.at_end(self._guard.unwatch, watch)

    def follow_size(self) -> None:
        """As `Faults.follow_size`. Where the mapping has moved, the old place, which views may still show, is not
        watched.
        """
        watch, addresses = self._watch, self._addresses
        if watch.begin != addresses.begin:
            self._at_end.detach()
            self._at_end = addresses.at_end(self._guard.unwatch, watch)
        watch.begin, watch.end = addresses.begin, addresses.begin + addresses.length
        self.avoid()

    def install(self) -> None:
        """As `Faults.install`."""
        self._guard.install()

    def settle(self) -> MissingMemory:
        """As `Faults.settle`. A private mapping stays as it is, since it has content of its own: it is not usable.

        So does a mapping that views keep after the pool was closed.
        """
        if self._addresses.closed:
            return MissingMemory(errno.EIO)
        watch, addresses = self._watch, self._addresses
        if not addresses.shared:
            return self._error()
        try:
            addresses.remap(watch.low - watch.begin, watch.high - watch.low)
        except OSError as failed:
            return MissingMemory(failed.errno or errno.EIO, f"{self._path}: memory of the pool can't be mapped again")
        error, count = self._error(), watch.faults
        watch.faults = watch.low = watch.high = 0
        if not self.total:
            log.error("%s; the operation fails, the pool stays in use", error.strerror)
        self.total += count
        self.avoid()
        return error

    def avoid(self) -> None:
        """As `Faults.avoid`, if mmap(2) can replace single pages."""
        if self._bad and self._unit <= mmap.PAGESIZE and self._addresses.shared:
            self._addresses.withhold(self._bad)

    def forgive(self, begin: int, end: int) -> None:
        """As `Faults.forgive`."""
        self._bad.take_out(begin, end)
        if self._unit <= mmap.PAGESIZE and self._addresses.shared:
            self._addresses.remap(begin, end - begin)

    def _error(self) -> MissingMemory:
        """What is wrong at the missing pages; those that are bad memory join the list."""
        watch = self._watch
        low, high = watch.low - watch.begin, watch.high - watch.begin
        region = self._addresses.region_at(low)
        if region.descriptor == self._addresses.empty:
            return MissingMemory(errno.EIO, f"{self._path}: offset {low} lies on storage", low)
        status = os.fstat(region.descriptor)
        size = status.st_size
        past = region.file_offset + high - region.offset > size + -size % self._unit
        if past and stat.S_ISREG(status.st_mode):
            return MissingMemory(errno.EIO, f"{self._path} was cut to {size} bytes while it was in use", low)
        pages = [page - watch.begin for page in watch.pages[: watch.faults]]
        poisoned = [page for page in pages if not (self._has_hole(page) or self._lacks_room(page))]
        exhausted = self._unit > mmap.PAGESIZE and size  # hugetlbfs, where the system has run out of huge pages
        if self.lasting and not exhausted:
            for page in poisoned:
                self._bad.add(page, page + 1)
        if not poisoned and (watch.faults <= guard.PAGES or self._has_hole(low) or self._lacks_room(low)):
            return no_room(self._path)
        return MissingMemory(errno.EIO, f"{self._path}: no memory behind offset {low}", low)

    def _has_hole(self, page: int) -> bool:
        """Whether a part of the page is a hole of the file: its file system may have blocks smaller than a page."""
        region = self._addresses.region_at(page)
        begin = page - region.offset + region.file_offset
        try:
            hole = os.lseek(region.descriptor, begin, os.SEEK_HOLE)
        except OSError:  # a device
            return False
        return hole < min(begin + mmap.PAGESIZE, os.fstat(region.descriptor).st_size)

    def _lacks_room(self, page: int) -> bool:
        """Whether a page can be loaded and its file system is full: then only a store was refused.

        ext4 with blocks smaller than a page refuses stores even where all blocks of the page are allocated by then.
        """
        if not self._addresses.shared or not is_full(self._addresses.region_at(page).descriptor):
            return False
        try:
            self._addresses.populate(page, mmap.PAGESIZE)
        except OSError:
            return False
        return True


NEVER = Faults()
