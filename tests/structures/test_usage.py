"""Which blocks are in use: all bitmaps as one."""

from __future__ import annotations

from pathlib import Path

import pytest

from daxfs.ext4.geometry import Geometry
from daxfs.fs.mounting import read_superblock
from daxfs.journal import view as view_module
from daxfs.journal.view import PoolView
from daxfs.pmem.memory import MemoryPool
from daxfs.structures import blocks
from daxfs.structures.usage import used_blocks
from support import run


@pytest.mark.parametrize("block_size", [1024, 4096])
def test_the_bitmaps_of_all_groups_are_joined(block_size: int, tmp_path: Path) -> None:
    path = tmp_path / "pool"
    with path.open("wb") as file:
        file.truncate(40000 * block_size)
    run("mke2fs", "-q", "-t", "ext4", "-b", str(block_size), "-g", "8192", "-J", "size=4", str(path), "40000")
    pool = MemoryPool(bytearray(path.read_bytes()))
    view = PoolView(pool, Geometry.of(read_superblock(pool)))
    geometry = view.geometry
    used = used_blocks(view)
    for group in range(geometry.groups_count):
        bitmap = blocks.bitmap(view, group)
        first = geometry.first_block(group)
        for bit in range(geometry.blocks_in_group(group)):
            block = first + bit
            assert used[block >> 3] >> (block & 7) & 1 == bitmap[bit >> 3] >> (bit & 7) & 1, block
    assert geometry.groups_count == 5
    assert len(used) >= geometry.blocks_count + 7 >> 3


def test_no_descriptor_or_bitmap_of_a_large_pool_takes_the_place_of_another() -> None:
    descriptors = list(range(1, 9))  # 64 GiB
    bitmaps = [flexible * 16 * 32768 + 1025 + at for flexible in range(32) for at in range(32)]
    places = {number % view_module.MOST_VERIFIED for number in (*descriptors, *bitmaps)}
    assert len(places) == len(descriptors) + len(bitmaps)
