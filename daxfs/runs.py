"""Runs of blocks and ranges of bytes: one type for each unit.

All layers use them; nothing here knows a pool or a format.

The blocks of a file, with where they lie in the pool, are `daxfs.ext4.extent.Extent`. The same in bytes is
`daxfs.protocol.GrantedExtent` where clients are told it, and `daxfs.fs.filemap.Run` in the cache that reads use.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class BlockRun(NamedTuple):
    """``length`` contiguous blocks of the pool, from block ``start`` on."""

    start: int
    length: int


class BitRun(NamedTuple):
    """``length`` contiguous bits of the bitmap of ``group``, from bit ``bit`` on: blocks counted within their group."""

    group: int
    bit: int
    length: int


class ByteRange(NamedTuple):
    """The bytes [begin, end) of a file or of the pool."""

    begin: int
    end: int


def joined(ranges: Iterable[ByteRange]) -> Iterator[ByteRange]:
    """Yield ranges in order, those that overlap or touch as one; empty ones are left out."""
    first, last = 0, -1
    for begin, end in sorted(ranges):
        if begin > last:
            if last > first:
                yield ByteRange(first, last)
            first = begin
        last = max(last, end)
    if last > first:
        yield ByteRange(first, last)


def subtract(ranges: Iterable[ByteRange], taken: Sequence[ByteRange]) -> Iterator[ByteRange]:
    """Yield the parts of ``ranges`` that are not in ``taken``; both are sorted."""
    index = 0
    for first, end in ranges:
        while index < len(taken) and taken[index].end <= first:
            index += 1
        look = index
        while look < len(taken) and taken[look].begin < end:
            if first < taken[look].begin:
                yield ByteRange(first, taken[look].begin)
            first = max(first, taken[look].end)
            look += 1
        if first < end:
            yield ByteRange(first, end)


def overlap(ranges: Sequence[ByteRange], first: int, end: int) -> Iterator[ByteRange]:
    """Yield what [first, end) has in common with sorted, disjoint ranges."""
    for index in range(bisect_right(ranges, first, key=_end), len(ranges)):
        begin, stop = ranges[index]
        if begin >= end:
            return
        yield ByteRange(max(begin, first), min(stop, end))


def _end(found: ByteRange) -> int:
    return found.end
