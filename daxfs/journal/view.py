"""Layer 4: the newest state of the pool's metadata, for reading.

A `View` returns the running transaction's copy of a block or, if there is none, the pool's own memory. Structures read
through a view and never access the pool. A view changes nothing; `daxfs.journal.handle.Handle` is a view that can.
`PoolView` is for the time before a journal is loaded, and for mounts and tools that write nothing. Callers: every layer
above, and the tools.

Blocks on the storage of a tiered pool have no memory. A view reads what another program has put there as a copy
(`Pool.stored`); no handle changes it there.

A view returns blocks as read-only memoryviews of ``block_size`` bytes (format "B"). They are valid until the handle
ends or the next commit; don't keep them. A view keeps the mapping alive: call `View.release` before the pool is closed.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING

from daxfs.compiled import mypyc_attr
from daxfs.errors import Corrupt, CorruptKind, FsError, MetadataOnStorage
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET, Superblock
from daxfs.journal.caches import Caches

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.pmem.pool import Pool

Check = Callable[..., None]
"""``check(*context, content)`` raises Corrupt if the content of a block is damaged."""

SUPERBLOCK_KEY = 1 << 80  # the superblock's key among the copies; no block number in a damaged structure is so large
MOST_VERIFIED = 65_521
"""The most blocks of which a view remembers that they were verified; a prime number, since the descriptors and the
bitmaps of a large pool lie at multiples of powers of two."""


class Verified:
    """Blocks whose content in the pool was verified: 512 KiB for ever so many, where a set would take 6 MiB.

    Attributes:
        numbers: the block numbers, each at the index ``number % MOST_VERIFIED``; 0: none. A block takes another one's
            place, which is then verified once more.
    """

    __slots__ = ("numbers",)

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all blocks."""
        self.numbers = array("Q", bytes(8 * MOST_VERIFIED))

    def discard(self, number: int) -> None:
        """Forget a block."""
        if self.numbers[number % MOST_VERIFIED] == number:
            self.numbers[number % MOST_VERIFIED] = 0


@mypyc_attr(allow_interpreted_subclasses=True)
class View:
    """The newest state of the metadata, read only.

    Attributes:
        pool: the pool that holds the blocks.
        geometry: of the file system.
        block_size: in bytes.
        caches: the caches that the layers above keep for the pool.
    """

    __slots__ = (
        "_bits",
        "_limit",
        "_memory",
        "_overlay",
        "_verified",
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
        verified: Verified | None = None,
        caches: Caches | None = None,
    ) -> None:
        """Make a view of ``pool``, over which the read-only copies of ``overlay`` take precedence.

        Args:
            pool: the pool that holds the blocks.
            geometry: of the file system.
            overlay: block number -> its newest content, where it differs from the pool's. Its owner keeps changing it.
            verified: the blocks whose content in the pool was verified, to share them with another view; None: none.
            caches: the caches of an earlier or another view of the same mount; None: begin with empty ones.
        """
        self.pool = pool
        self.geometry = geometry
        self.block_size = geometry.block_size
        self._bits = geometry.block_size.bit_length() - 1
        self._limit = min(geometry.blocks_count, pool.memory_size >> self._bits)
        self._memory = pool.memory.toreadonly()
        self._overlay: dict[int, memoryview] = {} if overlay is None else overlay
        self._verified = Verified() if verified is None else verified
        self.caches = Caches() if caches is None else caches

    def block(self, number: int) -> memoryview:
        """Return the newest content of a block.

        Raises:
            Corrupt: the number is 0 or past the end of the file system, so it came from a damaged structure.
            FsError: it lies on storage, as `Pool.stored`.
        """
        copy = self._overlay.get(number)
        if copy is not None:
            return copy
        if 0 < number < self._limit:
            start = number << self._bits
            return self._memory[start : start + self.block_size]
        return self._on_storage(number)

    def verified(self, number: int, check: Check, *context: object) -> memoryview:
        """Return the newest content of a block after ``check(*context, content)`` has accepted it.

        ``check`` runs if the content comes from the pool and was not accepted before. A transaction's copy is not
        checked: it was made from accepted content, and it is sealed at commit. The context is apart from the function
        because most calls need neither: a function that holds the context would be made for each.

        Raises:
            Corrupt: as `block`, or raised by ``check``.
            FsError: as `block`.
        """
        copy = self._overlay.get(number)
        if copy is not None:
            return copy
        if 0 < number < self._limit:
            start = number << self._bits
            content = self._memory[start : start + self.block_size]
            verified = self._verified.numbers
            if verified[number % MOST_VERIFIED] != number:
                check(*context, content)
                verified[number % MOST_VERIFIED] = number
            return content
        content = self._on_storage(number)
        check(*context, content)
        return content

    def at_home(self, number: int) -> memoryview:
        """Return the content that a block has in the pool, whatever the running transaction has. Raises as `block`."""
        if 0 < number < self._limit:
            start = number << self._bits
            return self._memory[start : start + self.block_size]
        return self._on_storage(number)

    def lies_on_storage(self, number: int) -> bool:
        """Return whether a block of the file system has no memory, but an address (`Pool.attach`)."""
        pool = self.pool
        return pool.memory_size < pool.size and self._limit <= number < self.geometry.blocks_count

    def superblock(self) -> Superblock:
        """Return the newest superblock, bound to read-only memory."""
        copy = self._overlay.get(SUPERBLOCK_KEY)
        if copy is not None:
            return Superblock(copy, SUPERBLOCK_OFFSET & (self.block_size - 1))
        return Superblock(self._memory[SUPERBLOCK_OFFSET : 2 * SUPERBLOCK_OFFSET])

    def follow_size(self) -> None:
        """Read all of a file system or a pool whose size has changed."""
        self._limit = min(self.geometry.blocks_count, self.pool.memory_size >> self._bits)
        self._memory = self.pool.memory.toreadonly()

    def forget_checks(self) -> None:
        """Check every block once more before it is believed."""
        self._verified.clear()

    def release(self) -> None:
        """Release the pool's memory; the view can't be used afterwards. A second call does nothing."""
        self._memory.release()

    def _on_storage(self, number: int) -> memoryview:
        """Return the copy of a block that another program has put on storage."""
        if self.lies_on_storage(number):
            return self.pool.stored(number << self._bits, self.block_size)
        raise self._bad_number(number)

    def _bad_number(self, number: int) -> FsError:
        """Return the error of a block that can't be changed, or does not exist."""
        if self.lies_on_storage(number):
            return MetadataOnStorage(f"{self.pool.path}: block {number}, which is metadata, lies on storage")
        return Corrupt(CorruptKind.BLOCK_NUMBER, f"{number} is not in 1..{self._limit - 1}")


@mypyc_attr(allow_interpreted_subclasses=True)
class PoolView(View):
    """A view of the pool without a transaction: before the journal is loaded, on read-only mounts, and for tools."""

    __slots__ = ()

    def __init__(self, pool: Pool, geometry: Geometry, caches: Caches | None = None) -> None:
        """Make a view of ``pool``; ``caches``: the caches of an earlier view of the same mount."""
        super().__init__(pool, geometry, caches=caches)
