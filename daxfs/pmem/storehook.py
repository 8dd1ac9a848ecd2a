"""The hook of a pool that runs before each store: what is about to be overwritten can be copied first.

A pool has at most one hook (`Pool.hook_stores`), and without one its operations are not wrapped at all. The hook itself
stores with `Pool.unhooked`. `daxfs.snapshots.copier` implements it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from daxfs.runs import ByteRange


class StoreHook(Protocol):
    """What a pool calls before its stores. A call may fence, and returns when the range may be overwritten.

    Attributes:
        needed: one bit for each chunk of the pool: 0 means that a store to this chunk alone needs no call. The object
            stays the same; its bits change.
        bits: a chunk is ``1 << bits`` bytes.
    """

    needed: bytearray
    bits: int

    def before(self, offset: int, length: int) -> None:
        """Prepare a store of ``length`` bytes at ``offset``. For a range outside the pool nothing is done."""

    def before_all(self, ranges: Iterable[ByteRange]) -> None:
        """Prepare stores to many ranges at once, which costs as many fences as one."""

    def room(self) -> int:
        """Return how many bytes one handle may store without a call of `expect`; at least some KiB."""

    def expect(self, length: int) -> None:
        """Have room for the copies of ``length`` bytes. A caller that is about to store so much in one handle calls
        this before the handle begins.
        """

    def unneeded(self, begin: int, end: int) -> Iterator[ByteRange]:
        """Yield the parts of the pool's bytes [begin, end) that nobody needs the content of, in order."""
