"""The addresses of a pool: a reserved range, into which regions of files and devices are mapped.

The range is larger than the pool. So a region can be added after the last one, and a part of a region can be mapped
again in place (`Faults.settle`), without moving memory that views refer to. Everything outside the regions is
PROT_NONE, but for what a file has lost that was cut: a store past the end of the pool ends in SIGSEGV or SIGBUS, and
never in memory of something else.

Python's `mmap` can do neither, since it chooses the address and owns one mapping. What it gives is kept: the memory
stays mapped as long as a view of it lives. `AddressRange.close` lets go of the range; the last view unmaps it.

Source: mmap(2); ``thp_get_unmapped_area`` in mm/huge_memory.c for the alignment that huge pages need.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from daxfs.pmem.libc import last_error
from daxfs.runs import ByteRange

HUGE = 2 << 20
"""Alignment of the range at least: a 2 MiB page maps a file's 2 MiB only where both are multiples of it."""
ROOM = 64 << 30
"""Addresses reserved for a pool, or twice its size if that is more. They cost nothing until they are mapped."""

_PROT_NONE, _MAP_FIXED, _MAP_NORESERVE = 0, 0x10, 0x4000
_NOTHING = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.msync.argtypes = _libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MS_SYNC = 4
_POPULATE_READ = 22  # MADV_POPULATE_READ, include/uapi/asm-generic/mman-common.h


class Region(NamedTuple):
    """A member of the pool: ``length`` bytes of an open file or device, in bytes from the range's begin.

    ``descriptor`` must stay open while the region may be mapped again. ``flags`` and ``protection`` as in mmap(2).
    """

    offset: int
    length: int
    descriptor: int
    file_offset: int
    protection: int
    flags: int

    @property
    def end(self) -> int:
        """The offset in the range after the region's last byte."""
        return self.offset + self.length


class AddressRange:
    """Reserved addresses, and the regions mapped there, in order and without gaps.

    Attributes:
        begin: the address of the first byte; a multiple of ``unit`` and of 2 MiB.
        room: bytes that are reserved.
        regions: what is mapped.
        empty: the descriptor of `end_in_nothing`; -1: nothing follows.
    """

    def __init__(self, length: int, unit: int = mmap.PAGESIZE) -> None:
        """Reserve addresses for ``length`` bytes and for a guard after them, and for growth if there are enough.

        Args:
            length: bytes to be mapped at first.
            unit: what mmap(2) can map or replace in the regions, in bytes: a page, or a device's alignment.

        Raises:
            OSError: ENOMEM: the process may not have so many addresses (RLIMIT_AS).
        """
        align = max(unit, HUGE)
        least = length + -length % align + align
        try:
            self.begin, self.room, token = _reserve(max(ROOM, 2 * least), align)
        except OSError:
            self.begin, self.room, token = _reserve(least, align)
        self.regions: list[Region] = []
        self.empty = -1
        self._token: ctypes.Array[Any] | None = token

    @property
    def length(self) -> int:
        """Bytes of all regions."""
        return self.regions[-1].end if self.regions else 0

    def map(self, length: int, descriptor: int, *, protection: int, flags: int, file_offset: int = 0) -> Region:
        """Map a file or device after the last region, and return the region.

        Raises:
            OSError: mmap(2) failed, and the addresses stay reserved. ENOMEM also if the range has no room.
        """
        region = Region(self.length, length, descriptor, file_offset, protection, flags)
        if region.end > self.room - mmap.PAGESIZE:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self._map(region, region.offset, length)
        self.regions.append(region)
        return region

    def lengthen(self, length: int, unit: int) -> None:
        """Map more of the last region's file or device, so that all regions have ``length`` bytes.

        Views made before stay valid, and see what later ones see. Where the reserved addresses don't suffice, the
        range moves: the regions are mapped at other addresses too, and the old ones end with the last view of them.

        Args:
            length: bytes of all regions, more than before.
            unit: what mmap(2) can map, in bytes.

        Raises:
            OSError: mmap(2) failed, or no range has so many addresses; the regions stay as they were.
        """
        last = self.regions[-1]
        grown = last._replace(length=length - last.offset)
        if grown.end > self.room - mmap.PAGESIZE:
            self._move(grown, unit)
        else:
            begin = last.end & -unit
            self._map(grown, begin, grown.end - begin)
        self.regions[-1] = grown

    def shorten(self, length: int) -> None:
        """Count only ``length`` bytes from now on: the file is about to be cut, or was.

        What lies after them stays mapped, so that a load or store there is SIGBUS, as past the end of any file, and
        never memory of something else.
        """
        last = self.regions[-1]
        self.regions[-1] = last._replace(length=length - last.offset)

    def _move(self, grown: Region, unit: int) -> None:
        """Map all regions at other addresses, the last one as ``grown``."""
        old = self.begin, self.room
        align = max(unit, HUGE)
        self.begin, self.room, token = _reserve(2 * (grown.end + -grown.end % align + align), align)
        try:
            for region in (*self.regions[:-1], grown):
                self._map(region, region.offset, region.length)
        except OSError:
            self.begin, self.room = old
            raise
        self._token = token

    def end_in_nothing(self, offset: int, length: int, empty: int, unit: int) -> None:
        """Let the regions end at ``offset``, and ``length`` bytes follow where every load and store is SIGBUS.

        A later call with the same ``offset`` makes what follows longer or shorter. Views made before stay valid.

        Args:
            offset: at most the bytes of all regions, a multiple of ``unit``.
            length: bytes of addresses that follow; 0: none.
            empty: the descriptor of an empty file, which must stay open.
            unit: what mmap(2) can map, in bytes.

        Raises:
            OSError: mmap(2) failed, or no range has so many addresses; the regions stay as they were.
        """
        before = self.regions[:]
        if self.regions[-1].descriptor == self.empty:
            self.regions.pop()
        last = self.regions[-1]
        kind = mmap.MAP_SHARED if last.flags & mmap.MAP_SHARED else mmap.MAP_PRIVATE
        nothing = Region(offset, length, empty, 0, last.protection, kind)
        self.regions[-1:] = [last._replace(length=offset - last.offset), nothing]
        try:
            if not length:
                self.regions.pop()
            elif nothing.end > self.room - mmap.PAGESIZE:
                self._move(nothing, unit)
            else:
                self._map(nothing, offset, length)
        except OSError:
            self.regions = before
            raise
        self.empty = empty

    def remap(self, offset: int, length: int) -> None:
        """Map the files again at [offset, offset + length), whatever lies there now. Views stay valid.

        Raises:
            OSError: mmap(2) failed; an access to what could not be mapped ends in SIGSEGV.
        """
        for region in self.regions:
            low, high = max(offset, region.offset), min(offset + length, region.end)
            if low < high:
                self._map(region, low, high - low)

    def withhold(self, ranges: Iterable[ByteRange]) -> None:
        """Have every load and store in some ranges end in SIGBUS, and touch nothing. `remap` ends it.

        The kernel answers EFAULT to system calls that are given these addresses.

        Raises:
            OSError: mmap(2) or memfd_create(2) failed.
        """
        empty = os.memfd_create("nothing", os.MFD_CLOEXEC)  # mapped past its end
        try:
            for begin, end in ranges:
                for region in self.regions:
                    low, high = max(begin, region.offset), min(end, region.end)
                    if low < high:
                        self._map(region._replace(descriptor=empty, flags=mmap.MAP_SHARED), low, high - low)
        finally:
            os.close(empty)

    def _map(self, region: Region, offset: int, length: int) -> None:
        place = region.file_offset + offset - region.offset
        flags = region.flags | _MAP_FIXED
        address = self.begin + offset
        if _libc.mmap(address, length, region.protection, flags, region.descriptor, place) == _FAILED:
            error = last_error()
            # The file system may have refused after the kernel took away what lay there. Whatever is mapped next, a
            # library for example, must not come to lie in the range.
            _libc.mmap(address, length, _PROT_NONE, _NOTHING | _MAP_FIXED, -1, 0)
            raise error

    def view(self) -> memoryview:
        """Return the regions' bytes, format "B"; read-only unless all regions may be stored to."""
        content = (ctypes.c_ubyte * self.length).from_address(self.begin)
        content.keeps = self._held()  # type: ignore[attr-defined]
        view = memoryview(content).cast("B")
        return view if all(region.protection & mmap.PROT_WRITE for region in self.regions) else view.toreadonly()

    def flush(self, offset: int, length: int) -> None:
        """Write the range's dirty pages back, and wait (msync(2), MS_SYNC). ``offset`` is a multiple of the page size.

        Raises:
            OSError: write-back failed.
        """
        if _libc.msync(self.begin + offset, length, _MS_SYNC):
            raise last_error()

    def advise(self, advice: int) -> None:
        """Give advice about all regions (madvise(2)).

        Raises:
            OSError: the kernel does not take this advice.
        """
        if _libc.madvise(self.begin, self.length, advice):
            raise last_error()

    def populate(self, offset: int, length: int) -> None:
        """Prepare [offset, offset + length), whole pages, for loads (madvise(2), MADV_POPULATE_READ).

        Raises:
            OSError: EFAULT, EHWPOISON: a load would be SIGBUS. EINVAL: the kernel is older than Linux 5.14.
        """
        if _libc.madvise(self.begin + offset, length, _POPULATE_READ):
            raise last_error()

    def region_at(self, offset: int) -> Region:
        """Return the region that contains the byte ``offset``."""
        return next(region for region in self.regions if region.offset <= offset < region.end)

    def at_end(self, function: Callable[..., object], *arguments: object) -> weakref.finalize[..., Any]:
        """Call a function when the range is about to be unmapped: after `close`, and after the last view has gone.

        Returns:
            What can take the call back, for a range that moves: it is about the addresses of now.
        """
        call = weakref.finalize(self._held(), function, *arguments)
        call.atexit = False
        return call

    @property
    def shared(self) -> bool:
        """Whether stores go to the files and devices; False for private (copy-on-write) regions."""
        return all(region.flags & mmap.MAP_SHARED for region in self.regions)

    @property
    def closed(self) -> bool:
        """Whether `close` was called: the descriptors of the regions may be closed too."""
        return self._token is None

    def _held(self) -> ctypes.Array[Any]:
        if self._token is None:
            raise ValueError("the range is closed")
        return self._token

    def close(self) -> None:
        """Let go of the range. It is unmapped now, or with the last view of it."""
        self._token = None


def _reserve(room: int, align: int) -> tuple[int, int, ctypes.Array[Any]]:
    """Reserve ``room`` bytes at a multiple of ``align``; returns the address, the room and what holds the reservation.

    The reservation ends when nothing refers to the token any longer.
    """
    whole = room + align
    address = _libc.mmap(None, whole, _PROT_NONE, _NOTHING, -1, 0)
    if address == _FAILED:
        raise last_error()
    token = (ctypes.c_ubyte * 0)()
    weakref.finalize(token, _libc.munmap, address, whole).atexit = False
    return address + -address % align, room, token
