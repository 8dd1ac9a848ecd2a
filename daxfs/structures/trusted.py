"""Which inodes' maps, as they stand in ``i_block``, need no further check.

A reader checks the root of a map in full once and remembers its 60 bytes; writers remember what they made. Any other
content (another inode in the slot, a rollback, a hostile image seen for the first time) does not compare equal and is
checked: so nothing that is undone has to be forgotten. Used by `extent_tree` and `indirect` alone, each of which keeps
a cache of its own.
"""

from __future__ import annotations

from daxfs.journal.caches import Cache

LIMIT = 4096
"""Roots remembered per cache, about 200 bytes each."""


class Trusted(Cache):
    """The roots of one kind of map that were found good."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, bytes] = {}

    def holds(self, ino: int, words: memoryview) -> bool:
        """Whether this content of the inode's root was found good before."""
        return self._known.get(ino) == words.tobytes()

    def put(self, ino: int, words: memoryview) -> None:
        """This content of the inode's root is good."""
        known = self._known
        if len(known) >= LIMIT:
            known.clear()
        known[ino] = words.tobytes()
