"""Shifting extents to other logical blocks: whole trees, some leaves at a time, and the border where a shift begins."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from map_rig import MapRig, count_blocks, make_image

from daxfs.structures import extent_shift, extents
from daxfs.structures.extent_tree import MAX_BLOCKS
from support import fsck


class ShiftRig(MapRig):
    """A rig that shifts everything from ``first`` on, in the tree and in the model."""

    def shift(self, first: int, by: int, leaves: int = 0) -> int:
        """Shift in one handle, or ``leaves`` leaves at a time; return the number of handles."""
        with self.change() as (tx, inode):
            extent_shift.split_at(tx, inode, first)
        handles = 0
        if not leaves:
            with self.change(extent_shift.nodes_from(self.view, self.inode, first)) as (tx, inode):
                extent_shift.shift(tx, inode, first, MAX_BLOCKS, by)
            handles = 1
        elif by < 0:
            position = first
            while position < MAX_BLOCKS:
                end = extent_shift.leaves_after(self.view, self.inode, position, leaves)
                handles += self.part(position, end - 1, by, leaves)
                position = end
        else:
            last = MAX_BLOCKS - 1
            while last >= first:
                begin = max(extent_shift.leaves_before(self.view, self.inode, last, leaves), first)
                handles += self.part(begin, last, by, leaves)
                last = begin - 1
        self.model = {lblk + by if lblk >= first else lblk: target for lblk, target in self.model.items()}
        self.check()
        return handles

    def part(self, first: int, last: int, by: int, leaves: int) -> int:
        """Shift some leaves, and check that the tree is valid afterwards."""
        with self.change(leaves + 8) as (tx, inode):
            extent_shift.shift(tx, inode, first, last, by)
        count_blocks(self.view, self.inode)
        list(extents.walk(self.view, self.inode))
        return 1


@pytest.fixture
def rig(tmp_path: Path) -> ShiftRig:
    return ShiftRig(make_image(tmp_path / "pool", "-b", "1024", size="100M"))


def fragmented(rig: ShiftRig, count: int) -> None:
    """Map single blocks with holes between, some of them unwritten."""
    for at in range(count):
        rig.allocate(2 * at, unwritten=at % 3 == 0)


@pytest.mark.parametrize("leaves", [0, 1, 5])
@pytest.mark.parametrize("count", [0, 3, 60, 500])
def test_moving_up_and_down_again(rig: ShiftRig, count: int, leaves: int) -> None:
    fragmented(rig, count)
    before = rig.model
    for first in (0, 1, count // 3, count, 2 * count - 2, 2 * count, 10_000):
        for by in (1, 17, 100_000):
            up = rig.shift(max(first, 0), by, leaves)
            down = rig.shift(max(first, 0) + by, -by, leaves)
            assert rig.model == before
            if leaves == 1 and count == 500 and first <= 1:
                assert min(up, down) >= 6
    rig.close()


def test_deep_trees(rig: ShiftRig) -> None:
    fragmented(rig, 29_000)
    assert rig.depth == 3
    chance = random.Random(3)
    for leaves in (0, 40):
        for _ in range(2):
            first = chance.randrange(58_000)
            rig.shift(first, 999, leaves)
            rig.shift(first + 999, -999, leaves)
    rig.commit_consistent()
    fsck(rig.path)


def test_a_border_within_an_extent(rig: ShiftRig) -> None:
    first = rig.allocate(10, 50)
    rig.shift(30, 100)
    assert rig.model[29][0] == first.pblk + 19
    assert rig.model[130][0] == first.pblk + 20
    assert len(extents.runs(rig.view, rig.inode)) == 2
    rig.shift(130, -100)
    with rig.change() as (tx, inode):
        extent_shift.join_at(tx, inode, 30)
    assert len(extents.runs(rig.view, rig.inode)) == 1
    rig.close()


def test_borders_that_need_room_in_full_leaves(rig: ShiftRig) -> None:
    for at in range(400):
        rig.allocate(10 * at, 6, unwritten=True)
    depth = rig.depth
    for at in range(0, 400, 3):
        with rig.change() as (tx, inode):
            extent_shift.split_at(tx, inode, 10 * at + 3)
    rig.check()
    assert rig.depth >= depth
    for at in range(0, 400, 3):
        with rig.change() as (tx, inode):
            extent_shift.join_at(tx, inode, 10 * at + 3)
    rig.check()
    # The halves stay apart if a leaf was split between them.
    assert 400 <= len(extents.runs(rig.view, rig.inode)) <= 405
    rig.close()


def test_what_does_not_belong_together_is_not_joined(rig: ShiftRig) -> None:
    rig.allocate(0, 5)
    rig.allocate(5, 5, unwritten=True)
    rig.allocate(12, 5)
    rig.allocate(17, 5, goal=9000)
    before = extents.runs(rig.view, rig.inode)
    for lblk in (0, 3, 5, 11, 12, 17, 40):
        with rig.change() as (tx, inode):
            extent_shift.join_at(tx, inode, lblk)
    assert extents.runs(rig.view, rig.inode) == before
    assert extents.mapped_end(rig.view, rig.inode) == 22


def test_numbers_at_the_end_of_the_range(rig: ShiftRig) -> None:
    rig.allocate(5)
    rig.allocate(9)
    rig.shift(7, MAX_BLOCKS - 10)
    assert extents.mapped_end(rig.view, rig.inode) == MAX_BLOCKS
    rig.shift(MAX_BLOCKS - 1, 10 - MAX_BLOCKS)
    assert set(rig.model) == {5, 9}
    rig.close()
