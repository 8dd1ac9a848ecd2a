"""The ranges of a pool that are known to be bad: what the kernel lists of the device, and where a load or store failed.

`listed` reads the kernel's list of a device once, when the pool is opened. `BadRanges` keeps what is known. It decides
nothing: `daxfs.pmem.faults` keeps everybody away from these ranges, and the layers above ask before they give memory
out. A pool in good health has an empty list, which is false.

Sources: ``badblocks_show`` in block/badblocks.c (lines of first sector and number of sectors, of 512 bytes each);
``pmem_attach_disk`` in drivers/nvdimm/pmem.c (the list of a disk begins with its first sector); ``nd_region_probe`` in
drivers/nvdimm/region.c (that of a region with the region).
"""

from __future__ import annotations

import mmap
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from daxfs.pmem import fiemap, kinds
from daxfs.runs import ByteRange, joined, overlap, subtract

_SECTOR = 512
_LINE = re.compile(r"([0-9]{1,19})\s+([0-9]{1,19})")
_PARENTS = 8  # folders between a devdax device and its region: four


class BadRanges(list[ByteRange]):
    """Disjoint ranges of whole pages of a pool, in order. Change the list by `add` and `take_out`.

    It is a list because every operation asks some times whether there are any.
    """

    __slots__ = ("_size",)

    def __init__(self, size: int, ranges: Iterable[ByteRange] = ()) -> None:
        super().__init__(joined(_pages(begin, end, size) for begin, end in ranges))
        self._size = size

    def follow_size(self, size: int) -> None:
        """The size of the pool has changed."""
        self._size = size

    @property
    def bytes(self) -> int:
        """The bytes in all ranges."""
        return sum(end - begin for begin, end in self)

    def first(self, begin: int, end: int) -> ByteRange | None:
        """Return the first bad range that overlaps [begin, end), not cut to it; None: all of it is good."""
        at = bisect_right(self, (begin, self._size))
        if at and self[at - 1].end > begin:
            at -= 1
        return self[at] if at < len(self) and self[at].begin < end else None

    def within(self, begin: int, end: int) -> Iterator[ByteRange]:
        """Return the bad parts of [begin, end), in order."""
        return overlap(self, begin, end)

    def add(self, begin: int, end: int) -> None:
        """Add the pages that a range touches; what is past the end of the pool is left out."""
        self[:] = joined([*self, _pages(begin, end, self._size)])

    def take_out(self, begin: int, end: int) -> None:
        """Take the range out of the bad ones."""
        self[:] = list(subtract(self, [ByteRange(begin, end)]))


def _pages(begin: int, end: int, size: int) -> ByteRange:
    """Return the pages that a range of bytes touches, up to ``size``."""
    return ByteRange(begin - begin % mmap.PAGESIZE, min(end + -end % mmap.PAGESIZE, size))


def listed(target: kinds.Target, sysfs: str = "/sys") -> list[ByteRange]:
    """Return the ranges that the kernel lists as bad, in bytes of the pool; empty if it lists none of this pool.

    There is a list for block devices, for the device below a file, and for devdax devices of an NVDIMM region. That of
    a region needs the addresses of both, which only the superuser may read.
    """
    if target.kind == kinds.BLOCK:
        return _of_disk(f"{sysfs}/dev/block/{target.device}", target.size)
    if target.kind == kinds.FILE:
        device = target.status.st_dev
        return _of_file(target, _of_disk(f"{sysfs}/dev/block/{os.major(device)}:{os.minor(device)}", 1 << 63))
    if target.kind == kinds.DEVDAX:
        return _of_region(f"{sysfs}/dev/char/{target.device}", target.size)
    return []


def _of_disk(folder: str, size: int) -> list[ByteRange]:
    """A partition has no list of its own: that of its disk counts from the disk's first sector."""
    if not os.path.exists(f"{folder}/partition"):
        return _parse(kinds.read_text(f"{folder}/badblocks"), 0, size)
    start = kinds.read_text(f"{folder}/start")
    whole = os.path.dirname(os.path.realpath(folder))
    return _parse(kinds.read_text(f"{whole}/badblocks"), int(start) * _SECTOR, size) if start.isdigit() else []


def _of_file(target: kinds.Target, device: list[ByteRange]) -> list[ByteRange]:
    """Translate the bad ranges of the device below a file to bytes of the file."""
    if not device:
        return []
    found = []
    with open(target.path, "rb") as file:
        for logical, physical, length, placed in fiemap.blocks(file.fileno(), 0, target.size):
            for begin, end in device if placed else ():
                low, high = max(begin, physical), min(end, physical + length)
                if low < high:
                    found.append(ByteRange(low - physical + logical, high - physical + logical))
    return list(joined(found))


def _of_region(folder: str, size: int) -> list[ByteRange]:
    """The list counts from the region's first byte."""
    place = os.path.realpath(folder)
    begin = _address(place)
    for _ in range(_PARENTS):
        place = os.path.dirname(place)
        text = kinds.read_text(f"{place}/badblocks")
        if text:
            region = _address(place)
            return [] if begin is None or region is None else _parse(text, begin - region, size)
    return []


def _address(folder: str) -> int | None:
    """The physical address at which a device begins; None: unknown."""
    text = kinds.read_text(f"{folder}/resource")
    return int(text, 16) if re.fullmatch(r"0x[0-9a-f]{1,16}", text) else None


def _parse(text: str, begin: int, size: int) -> list[ByteRange]:
    """Return the ranges of a list that are among ``size`` bytes from byte ``begin`` on, counted from there."""
    found = []
    for line in text.splitlines():
        if (match := _LINE.fullmatch(line.strip())) is not None:
            first = int(match[1]) * _SECTOR - begin
            end = first + int(match[2]) * _SECTOR
            found.append(ByteRange(max(first, 0), min(end, size)))
    return list(joined(each for each in found if each.begin < each.end))
