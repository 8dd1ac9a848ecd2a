"""Layer 4: the caches that the layers above keep for one mounted pool.

A `daxfs.journal.view.View` has the caches and shares them with the handle of its journal. A volume that is remounted
passes them to its next view. So caches belong to one pool and end with its mount, and a rollback in one pool does not
touch the caches of another. Each cache is a class of the module that uses it; this layer knows only `Cache`.

What is undone in the pool must be undone in its caches. Handles are undone often, and most of these have changed
nothing yet. So a module that changes a cache together with blocks registers an undo function with `Handle.on_rollback`.
An abort of the journal undoes finished handles too, whose undo functions are gone. Then every cache drops all entries
that such a handle may have made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from daxfs.journal.cache import Cache

CacheT = TypeVar("CacheT", bound=Cache)


class Caches(dict[type[Cache], Any]):
    """The caches of one mounted pool: ``caches[SomeCache]`` is the cache of that class."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __getitem__(self, kind: type[CacheT]) -> CacheT: ...

    def __missing__(self, kind: type[CacheT]) -> CacheT:
        made = self[kind] = kind()
        return made

    def drop(self) -> None:
        """Call `Cache.drop` of every cache."""
        for cache in self.values():
            cache.drop()
