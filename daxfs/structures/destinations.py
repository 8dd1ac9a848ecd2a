"""Searches for where blocks can be moved to: free runs that the caller may choose, unlike those of the allocator.

A `Search` takes nothing. It looks at some groups at a time, so that its caller can answer others in between, and what
it has found is free until the next change (`blocks.take_run` looks again). It knows neither files nor what is moved.
The allocator's own searches (`blocksearch`) are for new blocks: there a request comes with a goal near which any run
will do, and has one answer at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from daxfs.runs import BlockRun
from daxfs.structures import blocks, groupmaps, groups

if TYPE_CHECKING:
    from daxfs.journal.view import View

GROUPS_PER_LOOK = 16
"""The most bitmaps that one look opens."""
NOTHING = BlockRun(0, 0)


class Search:
    """A search for free runs that begins where the one before it has ended.

    Attributes:
        avoid: no run that is found has a block of this one.
        ended: whether the running search has looked at all groups.
    """

    def __init__(self, goal: int, avoid: BlockRun = NOTHING) -> None:
        """Search near the block ``goal`` first."""
        self.avoid = avoid
        self.ended = True
        self._goal = goal
        self._group = -1
        self._left = 0
        self._length = 0
        self._align = 1

    def begin(self, view: View, length: int, align: int) -> None:
        """Begin a search for ``length`` blocks that begin at a multiple of ``align``."""
        geometry = view.geometry
        if self._group < 0:
            near = geometry.first_data_block < self._goal < geometry.memory_blocks
            self._group = geometry.group_of_block(self._goal) if near else 0
        self._length = length
        self._align = align
        self._left = geometry.memory_groups
        self.ended = False

    def look(self, view: View) -> BlockRun | None:
        """Look at some groups; return a run of the length, or None: look again, unless the search has `ended`.

        Raises:
            Corrupt: a bitmap or a descriptor is damaged.
        """
        opened, count = 0, view.geometry.memory_groups
        if self._group >= count:  # the file system has become smaller
            self._group, self._left = 0, count
        while self._left and opened < GROUPS_PER_LOOK:
            group = self._group
            skipped = self._roomless(view, group)
            if not skipped:
                opened += 1
                found = self._in_group(view, group)
                if found is not None:
                    self._goal = found.start + found.length
                    return found
                skipped = 1
            skipped = min(skipped, self._left)
            self._left -= skipped
            self._group = (group + skipped) % view.geometry.memory_groups
        self.ended = not self._left
        return None

    def _roomless(self, view: View, group: int) -> int:
        """Return how many groups from ``group`` on have fewer free blocks than are searched, or none to look at."""
        geometry = view.geometry
        low, length = self.avoid
        count = geometry.memory_groups
        if length and low <= geometry.first_block(group) and group < count - 1:
            after = geometry.group_of_block(min(low + length, geometry.memory_blocks - 1))
            if after > group:
                return after - group
        found = groups.counts(view, group // geometry.desc_per_block)
        free = found.free_blocks[group - found.first : count - found.first]
        roomy = np.flatnonzero(free >= self._length)
        return int(roomy[0]) if roomy.size else len(free)

    def _in_group(self, view: View, group: int) -> BlockRun | None:
        """Return a place in a group: the next one after the last for aligned runs, else the one that fits best."""
        if view.pool.bad and not groupmaps.readable(view, groups.descriptor(view, group)):
            return None
        length, align = self._length, self._align
        best: BlockRun | None = None
        room = 0
        for run in blocks.free_runs(view, group, length):
            for start, count in self._allowed(run):
                first = start + -start % align
                if first + length > start + count:
                    continue
                if align > 1:
                    place = self._goal + -self._goal % align
                    if first <= place and place + length <= start + count:
                        return BlockRun(place, length)
                    if best is None:
                        best = BlockRun(first, length)
                elif best is None or count < room:
                    best, room = BlockRun(first, length), count
        return best

    def _allowed(self, run: BlockRun) -> list[BlockRun]:
        """Return the parts of a run outside of `avoid`."""
        start, end = run.start, run.start + run.length
        low, high = self.avoid.start, self.avoid.start + self.avoid.length
        if not self.avoid.length or end <= low or high <= start:
            return [run]
        parts = [BlockRun(start, low - start)] if start < low else []
        if high < end:
            parts.append(BlockRun(high, end - high))
        return parts
