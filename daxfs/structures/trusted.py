"""Which inodes' maps, as they stand in ``i_block``, need no further check.

A reader checks the root of a map in full once and remembers its 60 bytes; writers remember what they made. Any other
content (another inode in the slot, a rollback, a hostile image seen for the first time) does not compare equal and is
checked. Bounded, and kept per pool. Used by `extent_tree` and `indirect` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from daxfs.journal.view import View
    from daxfs.pmem.pool import Pool

LIMIT = 4096
"""Roots remembered per pool, about 200 bytes each."""


class Trusted:
    """The roots of one kind of map that were found good."""

    __slots__ = ("_pools",)

    def __init__(self) -> None:
        self._pools: WeakKeyDictionary[Pool, dict[int, bytes]] = WeakKeyDictionary()

    def holds(self, view: View, ino: int, words: memoryview) -> bool:
        """Whether this content of the inode's root was found good before."""
        known = self._pools.get(view.pool)
        return known is not None and known.get(ino) == words.tobytes()

    def put(self, view: View, ino: int, words: memoryview) -> None:
        """This content of the inode's root is good."""
        known = self._pools.get(view.pool)
        if known is None:
            known = self._pools[view.pool] = {}
        elif len(known) >= LIMIT:
            known.clear()
        known[ino] = words.tobytes()
