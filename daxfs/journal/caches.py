"""Layer 4: what the layers above remember of one mounted pool, as long as it is mounted.

A `daxfs.journal.view.View` has the caches, and shares them with the handle of its journal; a volume that is remounted
hands them on to its next view. So they belong to a pool and end with its mount: nothing that is undone in one pool is
forgotten of another. Each cache is a class of the module that uses it; this layer knows no more of it than `Cache`.

What is undone in the pool must be undone in its caches. A handle is undone often, and most handles that are have
changed nothing yet: so whoever changes a cache together with blocks has `Handle.on_rollback` take it back. An abort of
the journal undoes finished handles too, which nobody can name any more: then every cache drops what may come of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar


class Cache:
    """What one module remembers. It is made without arguments when it is first asked for, and it is bounded."""

    __slots__ = ()

    def drop(self) -> None:
        """The journal was aborted: forget what changes may have led to that are undone now. Here: nothing."""


CacheT = TypeVar("CacheT", bound=Cache)


class Caches(dict[type[Cache], Any]):
    """The caches of one mounted pool: ``caches[SomeCache]`` is the one of that class."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __getitem__(self, kind: type[CacheT]) -> CacheT: ...

    def __missing__(self, kind: type[CacheT]) -> CacheT:
        made = self[kind] = kind()
        return made

    def drop(self) -> None:
        """Have every cache drop what changes may have led to."""
        for cache in self.values():
            cache.drop()
