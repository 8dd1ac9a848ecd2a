"""The extents of one open file, held in DRAM as byte ranges so that a read or an overwrite finds its memory at once.

A `FileMap` is only a cache: a copy of the extent tree, with at most `MAX_RUNS` runs for each file. A file with more
runs has no map, and each access looks its block up. Code that changes the tree updates the map (`put`, `cut`) or drops
it. Offsets and lengths are in bytes; a pool offset is ``file offset + delta``.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from daxfs.runs import ByteRange

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daxfs.ext4.extent import Extent

MAX_RUNS = 8192
"""A file with more runs has no map in DRAM (a run takes about 150 bytes)."""

UNWRITTEN = 1
"""The state of a run of unwritten blocks."""
LOGGED = 2
"""The state of a run of which the running transaction has a newer copy (`daxfs.fs.datalog`)."""
ON_STORAGE = 3
"""The state of a run that has no memory (docs/TIERS.md)."""

Run = tuple[int, int, int, int]
"""``(begin, end, delta, state)``: file bytes [begin, end) lie in the pool at the same offset plus delta.

The state is 0 if the pool has the newest content in memory, else `UNWRITTEN` (or True), `LOGGED` or `ON_STORAGE`.

A plain tuple, since CPython indexes and unpacks one faster than a named one, and each read and overwrite does so.
"""


class FileMap:
    """The sorted, disjoint runs of one file. Gaps are holes."""

    __slots__ = ("begins", "runs")

    def __init__(self) -> None:
        self.begins: list[int] = []
        self.runs: list[Run] = []

    @classmethod
    def of_columns(cls, columns: NDArray[np.int64], bits: int) -> FileMap:
        """Return the map of extents (`extents.columns`) of blocks of ``1 << bits`` bytes."""
        made = cls()
        lblks, pblks, lengths, unwritten = columns
        if lblks.size:
            begins, ends, deltas = lblks << bits, lblks + lengths << bits, pblks - lblks << bits
            parted = (begins[1:] != ends[:-1]) | (deltas[1:] != deltas[:-1]) | (unwritten[1:] != unwritten[:-1])
            firsts = np.append(0, np.flatnonzero(parted) + 1)
            lasts = np.append(firsts[1:], lblks.size) - 1
            made.begins = begins[firsts].tolist()
            states = (unwritten[firsts] != 0).tolist()
            made.runs = list(zip(made.begins, ends[lasts].tolist(), deltas[firsts].tolist(), states, strict=True))
        return made

    def find(self, offset: int) -> Run | None:
        """Return the run that contains the byte ``offset``; None: it lies in a hole."""
        index = bisect_right(self.begins, offset) - 1
        if index < 0:
            return None
        run = self.runs[index]
        return run if offset < run[1] else None

    def reaches_past(self, offset: int) -> bool:
        """Return whether anything after the byte ``offset`` is mapped."""
        return bool(self.runs) and self.runs[-1][1] > offset

    def next_begin(self, offset: int) -> int | None:
        """Return where the first run begins that lies after ``offset``."""
        index = bisect_right(self.begins, offset)
        return self.begins[index] if index < len(self.begins) else None

    def within(self, begin: int, end: int) -> Iterator[Run]:
        """Yield the runs in [begin, end), trimmed to it, in order; the map is searched anew for each."""
        position = begin
        while position < end:
            found = self.find(position)
            if found is None:
                following = self.next_begin(position)
                if following is None:
                    return
                position = following
            else:
                yield position, min(found[1], end), found[2], found[3]
                position = found[1]

    def gaps(self, begin: int, end: int) -> Iterator[ByteRange]:
        """Yield the parts of [begin, end) that no run contains."""
        position = begin
        for low, high, _, _ in self.within(begin, end):
            if low > position:
                yield ByteRange(position, low)
            position = high
        if position < end:
            yield ByteRange(position, end)

    def put(self, begin: int, end: int, delta: int, state: int) -> None:
        """Map [begin, end), whatever it was before, and merge the run with its neighbours."""
        begins, runs = self.begins, self.runs
        if runs and begin >= runs[-1][1]:
            index = len(runs)
        else:
            self.cut(begin, end)
            index = bisect_left(begins, begin)
        if index and runs[index - 1][1:] == (begin, delta, state):
            index -= 1
            begin = begins[index]
            del begins[index], runs[index]
        if index < len(runs) and begins[index] == end and runs[index][2:] == (delta, state):
            end = runs[index][1]
            del begins[index], runs[index]
        begins.insert(index, begin)
        runs.insert(index, (begin, end, delta, state))

    def mark(self, begin: int, end: int, state: int) -> None:
        """Set the state of [begin, end), which lies in one run, and merge it with its neighbours."""
        begins, runs = self.begins, self.runs
        index = bisect_right(begins, begin) - 1
        low, high, delta, before = runs[index]
        if before == state:
            return
        runs[index] = begin, end, delta, state
        if end < high:
            runs.insert(index + 1, (end, high, delta, before))
            begins.insert(index + 1, end)
        elif index + 1 < len(runs):
            self._join(index + 1)
        if low < begin:
            runs.insert(index, (low, begin, delta, before))
            begins.insert(index + 1, begin)
        elif index:
            self._join(index)

    def _join(self, index: int) -> None:
        """Merge the run with the one before it, if they lie together and have the same state."""
        low, border, place, earlier = self.runs[index - 1]
        begin, end, delta, state = self.runs[index]
        if border == begin and place == delta and earlier == state:
            self.runs[index - 1] = low, end, delta, state
            del self.runs[index], self.begins[index]

    def put_blocks(self, run: Extent, bits: int, memory_end: int) -> None:
        """Map a run of blocks of ``1 << bits`` bytes; at ``memory_end`` of the pool its memory ends."""
        lblk, pblk, length, unwritten = run
        begin, end, delta = lblk << bits, lblk + length << bits, pblk - lblk << bits
        border = max(memory_end - delta, begin)
        if border < end and not unwritten:
            self.put(border, end, delta, ON_STORAGE)
            end = border  # a run that another program has made may have blocks of both kinds
        if begin < end:
            self.put(begin, end, delta, unwritten)

    def copy(self) -> FileMap:
        """Return an equal map."""
        made = FileMap()
        made.begins, made.runs = self.begins[:], self.runs[:]
        return made

    def covers(self, begin: int, end: int) -> bool:
        """Return whether one run contains all of [begin, end)."""
        found = self.find(begin)
        return found is not None and end <= found[1]

    def move_border(self, begin: int, end: int) -> bool:
        """Move the border between a written run and the unwritten run after it from ``begin`` to ``end``.

        Returns:
            False: the runs do not lie like that, and nothing has changed.
        """
        begins, runs = self.begins, self.runs
        index = bisect_right(begins, begin) - 1
        if index < 1:
            return False
        first, stop, delta, unwritten = runs[index]
        head, border, place, before = runs[index - 1]
        if first != begin or border != begin or stop <= end or delta != place or before or not unwritten:
            return False
        runs[index - 1] = head, end, delta, False
        runs[index] = end, stop, delta, True
        begins[index] = end
        return True

    def cut(self, begin: int, end: int) -> None:
        """Make [begin, end) a hole."""
        begins, runs = self.begins, self.runs
        first = max(bisect_right(begins, begin) - 1, 0)
        if first < len(runs) and runs[first][1] <= begin:
            first += 1
        last = bisect_left(begins, end)
        if first >= last:
            return
        head, tail = runs[first], runs[last - 1]
        kept: list[Run] = []
        if head[0] < begin:
            kept.append((head[0], begin, head[2], head[3]))
        if tail[1] > end:
            kept.append((end, tail[1], tail[2], tail[3]))
        runs[first:last] = kept
        begins[first:last] = [run[0] for run in kept]
