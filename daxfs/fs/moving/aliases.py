"""Aliases: the numbers by which renumbered inodes are known outside, until they are forgotten there.

The kernel knows an inode by the number and the generation with which it was looked up first, and programs have seen
that number in stat(2). A shrink gives the inode another number (`daxfs.fs.moving.renumbering`), which the kernel would
take for another file. So what the kernel knows keeps its old number outside: whoever translates numbers for the kernel
asks here, both ways. An entry lives as long as the inode is pinned (`Pins`, the owner of the only table). A new inode
gets such a number last (`daxfs.structures.inodes.keep_free`), since programs take two names with one number for links.

*Outside* is what the kernel knows, *inside* what the pool has. An inode without an entry has one number.
"""

from __future__ import annotations

from typing import NamedTuple


class Known(NamedTuple):
    """How an inode is known outside: the number and generation of its first lookup."""

    ino: int
    generation: int


class Aliases:
    """The aliases of one volume.

    Attributes:
        numbers: the outside numbers; always the same set.
    """

    __slots__ = ("_inside", "_outside", "numbers")

    def __init__(self) -> None:
        self.numbers: set[int] = set()
        self._inside: dict[Known, int] = {}
        self._outside: dict[int, Known] = {}

    def __len__(self) -> int:
        return len(self._outside)

    def put(self, known: Known, ino: int) -> None:
        """Add an entry for the inode that is ``ino`` inside."""
        self.numbers.add(known.ino)
        self._inside[known] = ino
        self._outside[ino] = known

    def inside(self, ino: int, generation: int) -> int | None:
        """Return the inside number of what is known by this number and generation; None: there is no such entry."""
        return self._inside.get(Known(ino, generation))

    def outside(self, ino: int) -> Known | None:
        """Return how an inode is known; None: by its number."""
        return self._outside.get(ino)

    def shown(self, ino: int) -> int:
        """Return the number that stat(2) shows for an inode."""
        known = self._outside.get(ino)
        return ino if known is None else known.ino

    def drop(self, ino: int) -> None:
        """Drop the entry of an inode, if it has one: nobody outside knows it any longer."""
        known = self._outside.pop(ino, None)
        if known is not None:
            del self._inside[known]
            self.numbers.discard(known.ino)

    def clear(self) -> None:
        """Drop all entries."""
        for ino in tuple(self._outside):
            self.drop(ino)

    def check(self) -> None:
        """Compare both directions; for tests.

        Raises:
            AssertionError: they do not agree.
        """
        assert {ino: known for known, ino in self._inside.items()} == self._outside
        assert self.numbers == {known.ino for known in self._inside}
        assert len(self.numbers) == len(self._inside), "two inodes are known by one number"
        assert not self.numbers & self._outside.keys(), "the number of one inode is another one outside"
