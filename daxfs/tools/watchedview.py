"""A view that notes which blocks it was asked for, while a tool walks the structures of a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.journal.view import Check, PoolView

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.pmem.pool import Pool


class WatchedView(PoolView):
    """A view of a pool.

    Attributes:
        asked: the blocks that were noted; whoever reads them may clear them.
    """

    __slots__ = ("asked",)

    def __init__(self, pool: Pool, geometry: Geometry) -> None:
        super().__init__(pool, geometry)
        self.asked: set[int] = set()

    def note(self, number: int) -> None:
        """Note a block that is about to be read."""
        self.asked.add(number)

    def block(self, number: int) -> memoryview:
        """Return a block as `PoolView.block` does."""
        self.note(number)
        return super().block(number)

    def verified(self, number: int, check: Check, *context: object) -> memoryview:
        """Return a checked block as `PoolView.verified` does."""
        self.note(number)
        return super().verified(number, check, *context)
