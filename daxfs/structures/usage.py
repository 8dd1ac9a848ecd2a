"""Which blocks are in use, by the bitmaps of all groups. Nothing here changes anything.

Snapshots use it, and what moves everything out of a part of the pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from daxfs.structures import bitmaps, blocks, groups

if TYPE_CHECKING:
    from daxfs.journal.view import View
    from daxfs.runs import BlockRun


def used_blocks(view: View) -> bytearray:
    """Return one bit for each block of the file system, in the order of ext4's bitmaps; a set bit means in use.

    The bitmap of a group that counts all its blocks as free is not read: most groups of a large pool are such.

    Raises:
        Corrupt: a bitmap or a descriptor is damaged.
    """
    geometry = view.geometry
    stride = geometry.blocks_per_group >> 3
    last = geometry.groups_count - 1
    made = bytearray(last * stride + (geometry.blocks_in_group(last) + 7 >> 3))
    # All descriptors first: a check of a block is remembered until another block takes its place.
    free = np.concatenate([groups.counts(view, index).free_blocks for index in range(geometry.desc_blocks)])
    sizes = np.full(last + 1, geometry.blocks_per_group)
    sizes[last] = geometry.blocks_in_group(last)
    for group in np.flatnonzero(free < sizes).tolist():
        size = geometry.blocks_in_group(group) + 7 >> 3
        made[group * stride : group * stride + size] = blocks.bitmap(view, group)[:size]
    before = geometry.first_data_block
    if before:
        shifted = int.from_bytes(made, "little") << before | (1 << before) - 1
        made = bytearray(shifted.to_bytes(len(made) + 1, "little"))
    padding = 8 * len(made) - geometry.blocks_count
    if padding > 0:  # the last bitmap pads with ones
        bitmaps.clear_run(memoryview(made), geometry.blocks_count, padding)
    return made


def used_within(view: View, group: int, part: BlockRun) -> int:
    """Return how many blocks of a group that lie in a part of the pool are in use, beside the groups' own metadata.

    Raises:
        Corrupt: the bitmap or the descriptor is damaged.
    """
    geometry = view.geometry
    first, size = geometry.first_block(group), geometry.blocks_in_group(group)
    if groups.descriptor(view, group).free_blocks_count == size:
        return 0
    bits = np.unpackbits(np.frombuffer(blocks.bitmap(view, group), np.uint8), count=size, bitorder="little")
    for start, count in groups.metadata_runs(view, group):
        bits[max(start - first, 0) : max(start + count - first, 0)] = 0
    return int(bits[max(part.start - first, 0) : max(part.start + part.length - first, 0)].sum())
