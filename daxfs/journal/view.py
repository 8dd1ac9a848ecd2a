"""Layer 4: the newest state of the pool's metadata, for reading.

A `View` answers with the running transaction's copy of a block, or else with the pool's own memory; structures read
through it and never touch the pool. It changes nothing: `daxfs.journal.transaction.Handle` is the view that can.
`PoolView` is the plain one, before a journal is loaded and where nothing will be written. Callers: every layer above,
and the tools.

Blocks are handed out as read-only memoryviews of ``block_size`` bytes (format "B"). They are valid until the handle
ends or the next commit; don't keep them. A view keeps the mapping alive: `View.release` before the pool is closed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, CorruptKind
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET, Superblock
from daxfs.journal.caches import Caches

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.pmem.pool import Pool

Check = Callable[[memoryview], None]

SUPERBLOCK_KEY = 1 << 80  # of its block among the copies: no number out of a damaged structure can reach it
CHECKED_LIMIT = 1 << 16  # verified blocks remembered before the memory of them starts anew


class View:
    """The newest state of the metadata, read only.

    Attributes:
        pool: where the blocks are.
        geometry: the file system's shape.
        block_size: in bytes.
        caches: what the layers above remember of the pool.
    """

    __slots__ = (
        "_bits",
        "_checked",
        "_limit",
        "_memory",
        "_overlay",
        "block_size",
        "caches",
        "geometry",
        "pool",
    )

    def __init__(
        self,
        pool: Pool,
        geometry: Geometry,
        overlay: dict[int, memoryview] | None = None,
        checked: set[int] | None = None,
        caches: Caches | None = None,
    ) -> None:
        """A view of ``pool``, under the read-only copies of ``overlay`` (which its owner goes on changing).

        Args:
            pool: where the blocks are.
            geometry: the file system's shape.
            overlay: block number -> its newest content, where that is not the pool's own.
            checked: the blocks whose content in the pool was verified, where another view of the pool shares them.
            caches: those of an earlier or another view of the same mount; else they begin empty.
        """
        self.pool = pool
        self.geometry = geometry
        self.block_size = geometry.block_size
        self._bits = geometry.block_size.bit_length() - 1
        self._limit = min(geometry.blocks_count, pool.size >> self._bits)
        self._memory = pool.memory.toreadonly()
        self._overlay: dict[int, memoryview] = {} if overlay is None else overlay
        self._checked: set[int] = set() if checked is None else checked
        self.caches = Caches() if caches is None else caches

    def block(self, number: int) -> memoryview:
        """The newest content of a block.

        Raises:
            Corrupt: the number is 0 or beyond the file system; it came from a damaged structure.
        """
        copy = self._overlay.get(number)
        if copy is not None:
            return copy
        if 0 < number < self._limit:
            start = number << self._bits
            return self._memory[start : start + self.block_size]
        raise self._bad_number(number)

    def verified(self, number: int, check: Check) -> memoryview:
        """`block`, after ``check`` accepted its content.

        ``check`` runs when the content comes from the pool and was not accepted before. A transaction's copy is not
        checked: it was made from accepted content, and its checksum is made at commit.

        Raises:
            Corrupt: as `block`, or raised by ``check``.
        """
        copy = self._overlay.get(number)
        if copy is not None:
            return copy
        if 0 < number < self._limit:
            start = number << self._bits
            content = self._memory[start : start + self.block_size]
            checked = self._checked
            if number not in checked:
                check(content)
                if len(checked) >= CHECKED_LIMIT:
                    checked.clear()
                checked.add(number)
            return content
        raise self._bad_number(number)

    def superblock(self) -> Superblock:
        """The newest superblock, bound to read-only memory."""
        copy = self._overlay.get(SUPERBLOCK_KEY)
        if copy is not None:
            return Superblock(copy, SUPERBLOCK_OFFSET & (self.block_size - 1))
        return Superblock(self._memory[SUPERBLOCK_OFFSET : 2 * SUPERBLOCK_OFFSET])

    def release(self) -> None:
        """Let go of the pool's memory; the view answers no more. Once is enough, more does no harm."""
        self._memory.release()

    def _bad_number(self, number: int) -> Corrupt:
        return Corrupt(CorruptKind.BLOCK_NUMBER, f"{number} is not in 1..{self._limit - 1}")


class PoolView(View):
    """The pool as it lies there: before the journal is loaded, on read-only mounts, for tools."""

    __slots__ = ()

    def __init__(self, pool: Pool, geometry: Geometry, caches: Caches | None = None) -> None:
        """A view straight on ``pool``; ``caches``: those of an earlier view of the same mount."""
        super().__init__(pool, geometry, caches=caches)
