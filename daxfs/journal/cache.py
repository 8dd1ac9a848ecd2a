"""Layer 4: what every cache of a mounted pool is. `daxfs.journal.caches` says whose they are and how long they live.

Each cache is a class of the module that uses it. All of these modules are compiled or none is: a compiled class has no
interpreted subclasses (docs/DESIGN.md).
"""

from __future__ import annotations


class Cache:
    """The cache of one module: made without arguments at its first use, and bounded in size."""

    __slots__ = ()

    def drop(self) -> None:
        """Drop the entries that undone changes may have made; called after an abort. The default drops nothing."""
