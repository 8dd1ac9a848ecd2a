"""Counts of references by inode number: for each inode that the kernel remembers, how many lookups it has to forget.

The kernel remembers as many inodes as its memory allows, millions of them, and each one is an entry here until it is
forgotten. So an entry is 12 bytes: the inode number, its generation and the count. Entries are sorted by inode number
and lie in *segments* of up to `MOST_ENTRIES`, whose first inode numbers are in a list. Finding an entry is two binary
searches in C.

A full segment is split in two, and two neighbours that fill less than `FEWEST_ENTRIES` together are joined. So an entry
takes 13 to 26 bytes while the table grows, in whatever order inodes come, and less than 40 after most have gone. No
change moves more than a segment.

A count that has reached `STUCK` stays there, and the inode stays pinned until the mount ends: a count that wraps would
free a file that is in use.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping

from daxfs.fs.moving.aliases import Aliases, Known

MOST_ENTRIES = 1024
"""The most entries of a segment."""
FEWEST_ENTRIES = MOST_ENTRIES // 2
"""Two neighbours with fewer entries together become one segment."""
STUCK = 0xFFFFFFFF
"""The largest count."""


class Pins(Mapping[int, int]):
    """The lookup counts by inode number; an inode without references has no entry.

    Attributes:
        aliases: how pinned inodes are known that were renumbered; always the same object.
    """

    __slots__ = ("_firsts", "_latest", "_latest_generation", "_numbers", "_size", "_values", "aliases")

    def __init__(self) -> None:
        self.aliases = Aliases()
        self.clear()

    def clear(self) -> None:
        """Remove all entries."""
        self._firsts = [0]  # the lowest inode number that belongs into each segment
        self._numbers = [array("I")]
        self._values = [array("Q")]  # generation << 32 | count
        self._size = 0
        self._latest = -1  # the inode that was asked for last, often a directory; -1: none, or it is no longer pinned
        self._latest_generation = 0
        self.aliases.clear()

    def pin(self, ino: int, generation: int) -> None:
        """Add one reference to an inode; its generation stays the same as long as it has any."""
        place = self._segment(ino)
        numbers, values = self._numbers[place], self._values[place]
        at = bisect_left(numbers, ino)
        if at < len(numbers) and numbers[at] == ino:
            if values[at] & STUCK != STUCK:
                values[at] += 1
            return
        self._insert(place, at, ino, generation << 32 | 1)

    def unpin(self, ino: int, count: int = 1) -> None:
        """Remove up to ``count`` references of an inode, if it has any."""
        place = self._segment(ino)
        numbers, values = self._numbers[place], self._values[place]
        at = bisect_left(numbers, ino)
        if at == len(numbers) or numbers[at] != ino:
            return
        held = values[at] & STUCK
        if held == STUCK:
            return
        if count < held:
            values[at] -= count
            return
        self._remove(place, at)
        if self.aliases:
            self.aliases.drop(ino)

    def renumbered(self, ino: int, new: int, generation: int) -> None:
        """The inode has the number and generation given last from now on; if it is pinned, it is known as before."""
        place = self._segment(ino)
        numbers, values = self._numbers[place], self._values[place]
        at = bisect_left(numbers, ino)
        if at == len(numbers) or numbers[at] != ino:
            return
        value = values[at]
        known = self.aliases.outside(ino) or Known(ino, value >> 32)
        self._remove(place, at)
        self.aliases.drop(ino)
        place = self._segment(new)
        self._insert(place, bisect_left(self._numbers[place], new), new, generation << 32 | value & STUCK)
        self.aliases.put(known, new)

    def generation(self, ino: int) -> int | None:
        """Return the generation with which the inode was pinned; None: it is not pinned."""
        if ino == self._latest:
            return self._latest_generation
        place = self._segment(ino)
        numbers = self._numbers[place]
        at = bisect_left(numbers, ino)
        if at < len(numbers) and numbers[at] == ino:
            self._latest, self._latest_generation = ino, self._values[place][at] >> 32
            return self._latest_generation
        return None

    def __contains__(self, ino: object) -> bool:
        return isinstance(ino, int) and self.generation(ino) is not None

    def __getitem__(self, ino: int) -> int:
        """Return the count of an inode that is pinned."""
        place = self._segment(ino)
        numbers = self._numbers[place]
        at = bisect_left(numbers, ino)
        if at == len(numbers) or numbers[at] != ino:
            raise KeyError(ino)
        return self._values[place][at] & STUCK

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        """Yield the inode numbers, in order."""
        for numbers in self._numbers:
            yield from numbers

    def check(self) -> None:
        """Compare the segments with what this module says of them; for tests.

        Raises:
            AssertionError: they do not agree.
        """
        assert self._size == sum(map(len, self._numbers))
        assert len(self._firsts) == len(self._numbers) == len(self._values)
        assert list(self) == sorted(set(self))
        assert all(self.values())
        self.aliases.check()
        assert len(self.aliases) == sum(self.aliases.outside(ino) is not None for ino in self), "an alias without a pin"
        ends = [*self._firsts[1:], 1 << 32]
        for first, end, numbers, values in zip(self._firsts, ends, self._numbers, self._values, strict=True):
            assert len(numbers) == len(values) <= MOST_ENTRIES
            assert not numbers or first <= numbers[0] <= numbers[-1] < end

    def _segment(self, ino: int) -> int:
        """Return the index of the segment that an inode number belongs into."""
        firsts = self._firsts
        return bisect_right(firsts, ino) - 1 if len(firsts) > 1 else 0

    def _insert(self, place: int, at: int, ino: int, value: int) -> None:
        numbers, values = self._numbers[place], self._values[place]
        numbers.insert(at, ino)
        values.insert(at, value)
        self._size += 1
        if len(numbers) > MOST_ENTRIES:
            self._split(place, at)

    def _remove(self, place: int, at: int) -> None:
        numbers = self._numbers[place]
        if numbers[at] == self._latest:
            self._latest = -1
        del numbers[at], self._values[place][at]
        self._size -= 1
        if len(numbers) < FEWEST_ENTRIES:
            self._join(place)

    def _split(self, place: int, at: int) -> None:
        """Split a segment that got one entry too many, at index ``at``.

        New inodes have rising numbers as a rule. So an entry at the end begins a segment and leaves the other one full.
        """
        numbers, values = self._numbers[place], self._values[place]
        begin = at if at == MOST_ENTRIES else MOST_ENTRIES // 2
        self._numbers.insert(place + 1, numbers[begin:])
        self._values.insert(place + 1, values[begin:])
        self._firsts.insert(place + 1, numbers[begin])
        self._numbers[place], self._values[place] = numbers[:begin], values[:begin]  # without spare room

    def _join(self, place: int) -> None:
        """Join a segment with a neighbour if both are small."""
        for left in (place - 1, place):
            if 0 <= left < len(self._numbers) - 1:
                right = left + 1
                if len(self._numbers[left]) + len(self._numbers[right]) < FEWEST_ENTRIES:
                    self._numbers[left] += self._numbers.pop(right)
                    self._values[left] += self._values.pop(right)
                    del self._firsts[right]
                    return
