"""Unwritten extents past EOF in files with deep trees: e2fsck finds nothing wrong with any of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from map_rig import MapRig, count_blocks, make_image

from daxfs.structures import extent_tail, extents, mapping
from support import fsck, run


class TailRig(MapRig):
    """A rig that allocates past EOF, and normalizes the tail after each change."""

    def reserve(self, lblk: int) -> None:
        with self.change() as (tx, inode):
            extent = mapping.allocate(tx, inode, lblk, 1, unwritten=True)
            mapping.normalize_tail(tx, inode)
        self.model[lblk] = (extent.pblk, True)

    def resize(self, blocks: int) -> None:
        with self.change() as (tx, inode):
            inode.size = blocks * self.geometry.block_size - 100
            mapping.normalize_tail(tx, inode)

    def sound(self) -> None:
        self.check()
        self.journal.commit()
        fsck(self.path)

    def root_entries(self) -> int:
        return self.inode.words[10] >> 16


@pytest.fixture
def rig(tmp_path: Path) -> TailRig:
    return TailRig(make_image(tmp_path / "pool", "-b", "1024", size="100M"))


@pytest.mark.interpreted
def test_e2fsck_refuses_index_entries_past_eof(rig: TailRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `normalize`, e2fsck reports an error. If this test fails, e2fsck is mended and the module may go."""
    monkeypatch.setattr(extent_tail, "normalize", lambda *_: None)
    rig.resize(3)
    for at in range(400):
        rig.reserve(2 * at)
    assert rig.depth == 2
    rig.journal.commit()
    assert "end of extent exceeds allowed value" in run("e2fsck", "-fn", rig.path, code=4)


@pytest.mark.parametrize("order", ["up", "down", "random"])
def test_reserving_many_pieces(rig: TailRig, order: str) -> None:
    rig.resize(50)
    places = [40 + 2 * at for at in range(3000)]
    if order == "down":
        places.reverse()
    elif order == "random":
        random.Random(4).shuffle(places)
    for count, lblk in enumerate(places):
        rig.reserve(lblk)
        if count % 600 == 400:
            rig.sound()
    assert rig.depth == 2
    rig.sound()


def test_the_end_moves_through_what_was_reserved(rig: TailRig) -> None:
    rig.resize(1)
    for at in range(3000):
        rig.reserve(2 * at)
    chance = random.Random(5)
    for size in (2, 100, 1000, 3000, 5900, 5998, 5999, 6000, 7000):
        rig.resize(size)
        rig.sound()
        first = chance.randrange(size, size + 500)
        rig.remove(first, first + 50)
        with rig.change() as (tx, inode):
            mapping.normalize_tail(tx, inode)
        rig.sound()


def test_growing_far_beyond_does_not_make_the_tree_deeper(rig: TailRig) -> None:
    """Subtrees that were separated are joined with their neighbours again, so the root's four entries suffice."""
    rig.resize(10)
    for at in range(25_000):
        rig.reserve(2 * at)
        if at % 2500 == 0:
            rig.resize(max(4 * at // 3, 1))
    assert rig.depth == 3
    assert rig.root_entries() <= 3
    rig.sound()
    blocks = count_blocks(rig.view, rig.inode) - len(rig.model)
    assert blocks < 25_000 // 80 + 20


def test_three_levels_at_every_size(tmp_path: Path) -> None:
    rig = TailRig(make_image(tmp_path / "pool", "-b", "1024", size="100M"))
    with rig.change() as (tx, inode):
        extents.new_inode_map(tx, inode)
    rig.resize(1)
    for at in range(29_000):
        rig.reserve(2 * at)
    assert rig.depth == 3
    chance = random.Random(6)
    for size in (1, 2, 30_000, 57_000, 57_998, 57_999, 58_000):
        rig.resize(size)
        rig.sound()
        for at in chance.sample(range(size // 2, 40_000), 30):
            if 2 * at + 1 not in rig.model:
                rig.reserve(2 * at + 1)
        rig.sound()
