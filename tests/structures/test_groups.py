"""Group descriptors, compared with dumpe2fs; and the bit arithmetic of the bitmaps, compared with plain lists."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from alloc_rig import LAYOUTS, AllocRig
from hypothesis import given
from hypothesis import strategies as st

from daxfs.errors import Corrupt
from daxfs.structures import bitmaps, groups, metadata_zone
from daxfs.structures.noted import Noted
from support import fsck, run


@pytest.mark.parametrize("layout", LAYOUTS)
def test_descriptors_are_what_dumpe2fs_says(tmp_path: Path, layout: str) -> None:
    options, size = LAYOUTS[layout]
    rig = AllocRig(tmp_path / "pool", *options, size=size)
    texts = re.split(r"\nGroup \d+:", run("dumpe2fs", rig.path))[1:]
    assert len(texts) == rig.geometry.groups_count
    for group, text in enumerate(texts):
        desc = groups.descriptor(rig.view, group)
        free = re.search(r"(\d+) free blocks, (\d+) free inodes, (\d+) directories", text)
        assert free
        assert tuple(map(int, free.groups())) == (
            desc.free_blocks_count,
            desc.free_inodes_count,
            desc.used_dirs_count,
        )
        assert int(re.search(r"Block bitmap at (\d+)", text)[1]) == desc.block_bitmap
        assert int(re.search(r"Inode bitmap at (\d+)", text)[1]) == desc.inode_bitmap
        assert int(re.search(r"Inode table at (\d+)", text)[1]) == desc.inode_table
        index, slot = divmod(group, rig.geometry.desc_per_block)
        counts = groups.counts(rig.view, index)
        assert (counts.free_blocks[slot], counts.free_inodes[slot], counts.used_dirs[slot]) == (
            desc.free_blocks_count,
            desc.free_inodes_count,
            desc.used_dirs_count,
        )
        # In an empty pool only metadata and the few blocks of / and lost+found are in use.
        length = len(
            {block for start, count in groups.metadata_runs(rig.view, group) for block in range(start, start + count)}
        )
        used = rig.geometry.blocks_in_group(group) - desc.free_blocks_count
        assert length <= used <= length + (64 if not group else 0)
    for group in (-1, len(texts)):
        with pytest.raises(Corrupt, match="group number"):
            groups.descriptor(rig.view, group)
    rig.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_edited_descriptors_are_sealed(tmp_path: Path, layout: str) -> None:
    options, size = LAYOUTS[layout]
    rig = AllocRig(tmp_path / "pool", *options, size=size)
    last = rig.geometry.groups_count - 1
    with rig.handle() as tx:
        for group in (0, last):
            desc = groups.edit_descriptor(tx, group)
            desc.itable_unused, kept = 1, desc.itable_unused
            assert groups.descriptor(rig.view, group).itable_unused == 1
            desc.itable_unused = kept
            desc.bg_flags ^= 4
    rig.journal.commit()
    with rig.handle() as tx:
        for group in (0, last):
            groups.edit_descriptor(tx, group).bg_flags ^= 4
    rig.close()
    fsck(rig.path)


def test_one_damaged_descriptor_is_named(tmp_path: Path) -> None:
    for layout in ("default", "crc16"):
        options, size = LAYOUTS[layout]
        rig = AllocRig(tmp_path / layout, *options, size=size)
        number, offset = rig.geometry.descriptor_position(2)
        with rig.corrupting():
            rig.pool.memory[(number << rig.geometry.block_bits) + offset + 18] ^= 4
        assert groups.descriptor(rig.view, 2).inode_table, "readers find the inode table"
        assert [groups.has_blocks(rig.view, group) for group in (1, 2)] == [True, False]
        assert [groups.has_inodes(rig.view, group) for group in (1, 2)] == [True, False]
        (noted,) = rig.view.caches[Noted].waiting
        assert "group descriptor checksum: group 2" in str(noted)
        assert not groups.counts(rig.view, 0).free_blocks[2]
        rig.close()


def test_groups_without_right_places_protect_nothing(tmp_path: Path) -> None:
    """A group that has neither a copy of the superblock nor a descriptor that can be believed has an empty zone."""
    options, size = LAYOUTS["no flex"]
    rig = AllocRig(tmp_path / "pool", *options, size=size)
    group = next(group for group in range(rig.geometry.groups_count) if not rig.geometry.base_blocks(group))
    number, offset = rig.geometry.descriptor_position(group)
    with rig.corrupting():
        rig.pool.memory[(number << rig.geometry.block_bits) + offset + 10] = 0xFF
    start = np.array([rig.geometry.first_block(group) + 5])
    assert metadata_zone.first_overlap(rig.view, 12, start, start + 1) is None
    rig.close()


def test_a_descriptor_with_wrong_places_leads_nowhere(tmp_path: Path) -> None:
    options, size = LAYOUTS["default"]
    rig = AllocRig(tmp_path / "pool", *options, size=size)
    number, offset = rig.geometry.descriptor_position(2)
    with rig.corrupting():
        rig.pool.memory[(number << rig.geometry.block_bits) + offset + 10] = 0xFF
    with pytest.raises(Corrupt, match="group descriptor block number: group 2"):
        groups.descriptor(rig.view, 2)
    assert groups.descriptor(rig.view, 1).inode_table
    assert not groups.places_are_right(rig.view, 2)
    assert all(run.start < rig.geometry.blocks_count for run in groups.metadata_runs(rig.view, 0))
    rig.close()


# Bits

BITS = st.lists(st.booleans(), min_size=64, max_size=64)


def packed(bits: list[bool]) -> memoryview:
    return memoryview(bytearray(sum(bit << at for at, bit in enumerate(bits)).to_bytes(len(bits) // 8, "little")))


def run_length(bits: list[bool], start: int, value: bool, limit: int) -> int:
    end = start
    while end < min(start + limit, len(bits)) and bits[end] == value:
        end += 1
    return end - start


@given(bits=BITS, start=st.integers(0, 63), data=st.data())
def test_runs(bits: list[bool], start: int, data: st.DataObject) -> None:
    bitmap = packed(bits)
    limit = data.draw(st.integers(1, 64 - start))
    assert bitmaps.free_run(bitmap, start, limit) == run_length(bits, start, False, limit)
    assert bitmaps.used_run(bitmap, start, limit) == run_length(bits, start, True, limit)
    assert bitmaps.test(bitmap, start) == bits[start]
    size = start + limit
    assert bitmaps.count_free(bitmap, size) == bits[:size].count(False)
    assert bitmaps.first_free(bitmap, size) == (bits[:size].index(False) if False in bits[:size] else -1)
    value = data.draw(st.booleans())
    (bitmaps.set_run if value else bitmaps.clear_run)(bitmap, start, limit)
    assert bitmap == packed(bits[:start] + [value] * limit + bits[size:])


@pytest.mark.parametrize("bit", [0, 5, 1023, 1024, 1025, 4000])
def test_the_first_free_bit_of_a_large_bitmap(bit: int) -> None:
    size = 4008
    bitmap = packed([at != bit for at in range(size)])
    for start in range(0, bit + 1, 25):
        assert bitmaps.first_free(bitmap, size, start) == bitmaps.first_free(bitmap, bit + 1, start) == bit
        assert bitmaps.first_free(bitmap, bit, start) == -1


@given(bits=BITS, length=st.integers(1, 20), align=st.integers(1, 20), data=st.data())
def test_searches(bits: list[bool], length: int, align: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 64))
    free = bitmaps.free_mask(packed(bits), size)
    assert free == sum(1 << at for at in range(size) if not bits[at])
    starts = bitmaps.run_starts(free, length)
    fits = [at for at in range(size - length + 1) if not any(bits[at : at + length])]
    assert starts == sum(1 << at for at in fits)
    phase = data.draw(st.integers(0, align - 1))
    assert bitmaps.multiples(size, align, phase) == sum(1 << at for at in range(phase, size, align))
    first = data.draw(st.integers(0, 64))
    assert bitmaps.lowest(starts, first) == min((at for at in fits if at >= first), default=min(fits, default=-1))
    lengths = [run_length(bits[:size], at, False, size) for at in range(size)]
    best = max(lengths)
    assert bitmaps.longest_run(packed(bits), size) == ((lengths.index(best), best) if best else (0, 0))


def test_empty_runs_change_nothing() -> None:
    bitmap = packed([True, False] * 32)
    before = bytes(bitmap)
    bitmaps.set_run(bitmap, 3, 0)
    bitmaps.clear_run(bitmap, 4, 0)
    assert bytes(bitmap) == before
