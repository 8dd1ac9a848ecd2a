"""A view of the metadata as it was, and which chunks of the pool snapshots need.

`PastView` reads through a chain of stores. So everything that reads metadata through a view reads that of a snapshot as
well: superblock, descriptors, bitmaps, inodes, directories.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from daxfs.ext4.geometry import Geometry
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET, Superblock
from daxfs.fs.snapshots import files
from daxfs.journal.view import Check, View
from daxfs.snapshots.format import NotAStore, chunks_of
from daxfs.snapshots.reading import Chain, Past
from daxfs.structures import bitmaps, inodes, mapping
from daxfs.structures.usage import used_blocks

if TYPE_CHECKING:
    from daxfs.pmem.pool import Pool
    from daxfs.runs import ByteRange
    from daxfs.snapshots.store import Store


class PastView(View):
    """The metadata of a snapshot, read only. Its blocks are copies, and nothing is cached but what was verified."""

    __slots__ = ("_accepted", "past")

    def __init__(self, pool: Pool, past: Past) -> None:
        """Make a view of what ``past`` shows."""
        superblock = Superblock(memoryview(past.read(SUPERBLOCK_OFFSET, Superblock.SIZE)))
        superblock.verify()
        geometry = Geometry.of(superblock)
        geometry.check_pool_size(pool.size)
        super().__init__(pool, geometry)
        self.past = past
        self._accepted: set[int] = set()

    def block(self, number: int) -> memoryview:
        """As `View.block`."""
        if 0 < number < self._limit:
            return memoryview(self.past.read(number << self._bits, self.block_size))
        raise self._bad_number(number)

    def verified(self, number: int, check: Check, *context: object) -> memoryview:
        """As `View.verified`."""
        content = self.block(number)
        if number not in self._accepted:
            check(*context, content)
            self._accepted.add(number)
        return content

    def superblock(self) -> Superblock:
        """As `View.superblock`."""
        return Superblock(memoryview(self.past.read(SUPERBLOCK_OFFSET, Superblock.SIZE)))


def needed_at(view: View) -> bytearray:
    """Return which chunks of the pool hold content that a snapshot of this state needs, one bit for each.

    It needs the blocks in use, except for the log's and those of the stores of older snapshots.
    """
    used = used_blocks(view)
    bitmap = memoryview(used)
    shift = files.chunk_bits(view) - view.geometry.block_bits
    sb = view.superblock()
    if view.geometry.has_journal:
        log = inodes.read(view, sb.s_journal_inum)
        for extent in mapping.walk(view, log):
            bitmaps.clear_run(bitmap, extent.pblk, extent.length)
    for _, inode in files.found(view):
        try:
            runs = files.runs_of(view, inode)
        except NotAStore:
            continue
        for start, length in runs:
            bitmaps.clear_run(bitmap, start << shift, length << shift)
    return _by_chunks(used, shift)


def _by_chunks(used: bytearray, shift: int) -> bytearray:
    """Return one bit for each chunk of ``1 << shift`` blocks, set if the bit of any of its blocks is."""
    if not shift:
        return used
    flags = np.unpackbits(np.frombuffer(used, np.uint8), bitorder="little")
    chunks = np.pad(flags, (0, -len(flags) % (8 << shift))).reshape(-1, 1 << shift).max(axis=1)
    return bytearray(np.packbits(chunks, bitorder="little").tobytes())


def within(bitmap: bytearray, ranges: Sequence[ByteRange], bits: int) -> list[int]:
    """Return the chunks with a set bit that some ranges of the pool touch, in order."""
    if not ranges:
        return []
    first = min(begin for begin, _ in ranges) >> bits + 3
    last = max(end - 1 for _, end in ranges) >> bits + 3
    touched = bytearray(last + 1 - first)
    view = memoryview(touched)
    for begin, end in ranges:
        low, high = (begin >> bits) - (first << 3), (end - 1 >> bits) + 1 - (first << 3)
        bitmaps.set_run(view, low, high - low)
    wanted = np.frombuffer(touched, np.uint8) & np.frombuffer(bitmap, np.uint8)[first : last + 1]
    found: list[int] = (np.flatnonzero(np.unpackbits(wanted, bitorder="little")) + (first << 3)).tolist()
    return found


def union(first: bytearray, second: bytearray) -> bytearray:
    """Return the union of two bitmaps."""
    longer, shorter = (first, second) if len(first) >= len(second) else (second, first)
    made = bytearray(longer)
    part = np.frombuffer(made, np.uint8)[: len(shorter)]
    part |= np.frombuffer(shorter, np.uint8)
    return made


def count(bitmap: bytearray, chunks: npt.NDArray[np.uint64]) -> int:
    """Return how many of some chunks have a set bit in a bitmap."""
    found = np.frombuffer(bitmap, np.uint8)[(chunks >> 3).astype(np.intp)] >> (chunks & 7).astype(np.uint8)
    return int((found & 1).sum())


def without(bitmap: bytearray, chunks: Iterable[int]) -> bytearray:
    """Clear the bits of chunks in a bitmap, and return it."""
    for chunk in chunks:
        bitmap[chunk >> 3] &= ~(1 << (chunk & 7))
    return bitmap


def needed_by(pool: Pool, stores: Sequence[Store], count: int | None = None) -> bytearray:
    """Return which chunks the first ``count`` snapshots (None: all) need and have no copy of.

    ``stores`` are those of all valid snapshots, in the order of their making. An older
    snapshot needs what it had in use until that is copied into its own store or into a newer one.
    """
    needed = bytearray(chunks_of(pool.size, stores[0].bits) + 7 >> 3 if stores else 0)
    for at, store in enumerate(stores[:count]):
        needed = union(needed, needed_at(PastView(pool, Chain(pool, stores[at:]))))
        without(needed, store.table()[0].tolist())
    return needed
