"""Validated roots: contents of ``i_block`` that need no further check.

A reader checks the root of a map completely once and caches its 60 bytes; a writer caches the root that it made. Any
other content (another inode in the slot, a rollback, a hostile image read for the first time) does not compare equal
and is checked. So a rollback need not remove anything from the cache. Only `extent_tree` and `indirect` use this
module; each has a cache of its own.
"""

from __future__ import annotations

from daxfs.journal.cache import Cache

LIMIT = 4096
"""The most roots in one cache; each takes about 200 bytes."""


class ValidatedRoots(Cache):
    """The validated roots of one kind of map."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, bytes] = {}

    def holds(self, ino: int, words: memoryview) -> bool:
        """Whether this content of the inode's root is validated."""
        return self._known.get(ino) == words.tobytes()

    def put(self, ino: int, words: memoryview) -> None:
        """Record this content of the inode's root as validated."""
        known = self._known
        if len(known) >= LIMIT:
            known.clear()
        known[ino] = words.tobytes()
