"""New blocks in the place of a range of an extent tree; `test_mapping_model.py` compares many with a dict."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from map_rig import MapRig, make_image

from daxfs.errors import FsError
from daxfs.structures import blocks, mapping
from daxfs.structures.extent_tree import descend


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[MapRig]:
    """A pool with blocks of 1 KiB, in two groups; afterwards debugfs and e2fsck check it."""
    made = MapRig(make_image(tmp_path / "pool", "-b", "1024"))
    yield made
    made.close()


def fragmented(rig: MapRig, count: int) -> None:
    """Map every second block, so that there are ``count`` extents."""
    for lblk in range(0, 2 * count, 2):
        rig.allocate(lblk)


def test_a_part_of_an_extent_is_replaced_within_its_leaf(rig: MapRig) -> None:
    rig.allocate(0, 100)
    before = rig.model.copy()
    rig.reallocate(40, 59)
    assert [run.length for run in mapping.walk(rig.view, rig.inode)] == [40, 20, 40]
    assert all(rig.model[lblk] == before[lblk] for lblk in [*range(40), *range(60, 100)])


def test_a_range_over_several_leaves_leaves_one_extent(rig: MapRig) -> None:
    fragmented(rig, 300)
    assert rig.depth == 1
    with rig.change(credits=200) as (tx, inode):
        (new,) = mapping.reallocate(tx, inode, 1, 598, blocks.GroupBound(2))
    rig.model = {0: rig.model[0]} | {new.lblk + at: (new.pblk + at, False) for at in range(new.length)}
    assert new.length == 598
    assert rig.depth == 0


def test_few_entries_go_back_into_the_root(rig: MapRig) -> None:
    fragmented(rig, 20)
    assert rig.depth == 1
    rig.reallocate(1, 39)
    assert rig.depth == 0


def test_a_full_leaf_is_split(rig: MapRig) -> None:
    per_leaf = (1024 - 12) // 12
    rig.allocate(0, 3 * per_leaf)
    for lblk in range(0, 3 * per_leaf, 3):
        rig.reallocate(lblk, lblk)
    path, _ = descend(rig.view, rig.inode, 0)
    assert len(path) == 2
    assert path[0].words[0] >> 16 > 1


def test_blocks_of_too_many_groups_are_refused_and_nothing_changes(rig: MapRig) -> None:
    rig.allocate(0, 4)
    free = blocks.free_blocks(rig.view)
    with pytest.raises(FsError, match="too many groups") as refused, rig.change() as (tx, inode):
        mapping.reallocate(tx, inode, 0, 9000, blocks.GroupBound(1))
    assert refused.value.errno == errno.ENOSPC
    assert blocks.free_blocks(rig.view) == free
    rig.check()


def test_a_full_pool_refuses_and_nothing_changes(rig: MapRig) -> None:
    rig.allocate(0, 4)
    free = blocks.free_blocks(rig.view)
    with pytest.raises(FsError) as refused, rig.change() as (tx, inode):
        mapping.reallocate(tx, inode, 0, free, blocks.GroupBound(2))
    assert refused.value.errno == errno.ENOSPC
    assert blocks.free_blocks(rig.view) == free
    rig.check()
