"""Which blocks are in use: the block bitmaps of all groups as one. Snapshots use it; nothing here changes anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.structures import bitmaps, blocks

if TYPE_CHECKING:
    from daxfs.journal.view import View


def used_blocks(view: View) -> bytearray:
    """Return one bit for each block of the file system, in the order of ext4's bitmaps; a set bit means in use.

    Raises:
        Corrupt: a bitmap or a descriptor is damaged.
    """
    geometry = view.geometry
    made = bytearray()
    for group in range(geometry.groups_count):
        made += blocks.bitmap(view, group)[: (geometry.blocks_in_group(group) + 7) >> 3]
    before = geometry.first_data_block
    if before:
        shifted = int.from_bytes(made, "little") << before | (1 << before) - 1
        made = bytearray(shifted.to_bytes(len(made) + 1, "little"))
    padding = 8 * len(made) - geometry.blocks_count
    if padding > 0:  # the last bitmap pads with ones
        bitmaps.clear_run(memoryview(made), geometry.blocks_count, padding)
    return made
