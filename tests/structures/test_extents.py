"""Extent trees, compared with a dict model, debugfs and e2fsck; and the errors for hostile ones."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from map_rig import FIRST_INO, MapRig, check_search, count_blocks, debugfs_map, make_image, spread

from daxfs.errors import Corrupt, FsError
from daxfs.ext4 import extent as format_
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.superblock import Superblock
from daxfs.journal.view import PoolView
from daxfs.pmem.memory import MemoryPool
from daxfs.structures import blocks, groups, inodes, mapping, metadata_zone
from daxfs.structures.extent_tree import MAX_BLOCKS, descend
from daxfs.structures.mapping import Extent
from support import fsck, mke2fs

Rigs = Callable[..., MapRig]


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[Rigs]:
    """Make rigs; after the test each is closed, compared with debugfs and checked by e2fsck."""
    made: list[MapRig] = []

    def make(*options: str, size: str = "16M") -> MapRig:
        path = make_image(tmp_path / f"pool{len(made)}", *(options or ("-b", "1024")), size=size)
        made.append(MapRig(path))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


def fragmented(rig: MapRig, count: int, *, start: int = 0) -> None:
    """Map every second block, so that there are ``count`` extents."""
    for lblk in range(start, start + 2 * count, 2):
        rig.allocate(lblk)


@pytest.mark.parametrize("options", [(), ("-b", "1024"), ("-b", "1024", "-O", "^metadata_csum,^64bit"), ("-I", "128")])
def test_reads_what_mke2fs_wrote(tmp_path: Path, options: tuple[str, ...]) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "plain").write_bytes(b"p" * 300_000)
    with (files / "sparse").open("wb") as file:
        for at in range(700):
            file.seek(at * 8192)
            file.write(b"s" * 4096)
    path = mke2fs(tmp_path / "pool", "-d", str(files), *options)
    pool = MemoryPool(path.read_bytes())
    view = PoolView(pool, Geometry.of(Superblock(pool.memory[1024:2048])))
    found = set()
    for ino in (12, 13):
        inode = inodes.read(view, ino)
        model = debugfs_map(path, ino)
        assert spread(mapping.walk(view, inode)) == model
        assert count_blocks(view, inode) == inode.blocks * 512 // view.block_size
        for lblk in range(0, max(model) + 9):
            run_ = mapping.lookup(view, inode, lblk)
            assert (run_.lblk, run_.pblk) == (lblk, model.get(lblk, (0, False))[0])
            following = mapping.next_mapped(view, inode, lblk)
            if run_.pblk:
                assert following == run_
            elif lblk <= max(model):
                assert following is not None
                assert following.lblk == lblk + run_.length
            else:
                assert following is None
            check_search(view, inode, lblk, model)
        found.add(len(mapping.runs(view, inode)))
    assert max(found) >= 700


def test_appends_stay_one_extent(rigs: Rigs) -> None:
    rig = rigs()
    for lblk in range(200):
        rig.allocate(lblk)
    assert len(mapping.runs(rig.view, rig.inode)) <= 2
    assert rig.depth == 0


def test_deep_tree_is_built_read_cut_and_flat_again(rigs: Rigs) -> None:
    rig = rigs("-b", "1024", size="100M")
    fragmented(rig, 29_000)
    assert rig.depth == 3
    rig.check()
    rig.commit_consistent()
    fsck(rig.path)
    for lblk in random.Random(1).sample(range(60_000), 300):
        rig.check_lookup(lblk)
    rig.remove(20_000, 20_300)
    rig.commit_consistent()
    fsck(rig.path)
    assert rig.remove(700, None, limit=100) >= 280
    rig.check()
    assert rig.depth == 2
    rig.remove(6, None, limit=100)
    assert rig.depth == 0
    assert count_blocks(rig.view, rig.inode) == 3


def test_every_step_of_a_truncate_leaves_a_valid_tree(rigs: Rigs) -> None:
    rig = rigs()
    fragmented(rig, 400)
    assert rig.depth == 2
    done = False
    steps = 0
    while not done:
        with rig.change() as (tx, inode):
            done = mapping.remove(tx, inode, 0, None, limit=37)
        rig.model = spread(mapping.walk(rig.view, rig.inode))
        assert list(rig.model) == list(range(0, 2 * len(rig.model), 2))
        rig.check()
        rig.commit_consistent()
        fsck(rig.path)
        steps += 1
    assert steps >= 400 // 37
    assert rig.inode.blocks == 0


def test_sparse_middle_leaves_are_joined(rigs: Rigs) -> None:
    rig = rigs()
    fragmented(rig, 420)
    taken = count_blocks(rig.view, rig.inode) - len(rig.model)
    for lblk in range(0, 840, 2):
        if lblk % 40:
            rig.remove(lblk, lblk)
    rig.check()
    assert count_blocks(rig.view, rig.inode) - len(rig.model) == 1 < taken
    assert rig.depth == 1


def test_filling_holes_backwards_moves_the_keys(rigs: Rigs) -> None:
    rig = rigs()
    for lblk in range(1200, 0, -3):
        rig.allocate(lblk)
    assert rig.depth >= 1
    rig.check()
    rig.remove(0, 700)
    rig.check()
    rig.allocate(1, 3)


def test_writing_an_unwritten_extent_splits_it_in_three_and_joins_again(rigs: Rigs) -> None:
    rig = rigs()
    rig.allocate(10, 30, unwritten=True)
    rig.mark_written(20, 5)
    assert [e[2:] for e in mapping.runs(rig.view, rig.inode)] == [(10, True), (5, False), (15, True)]
    rig.mark_written(25, 5)
    assert [e[2:] for e in mapping.runs(rig.view, rig.inode)] == [(10, True), (10, False), (10, True)]
    rig.mark_written(0, 100)
    assert [e[2:] for e in mapping.runs(rig.view, rig.inode)] == [(30, False)]


def test_unwritten_extents_split_where_leaves_are_full(rigs: Rigs) -> None:
    rig = rigs()
    for lblk in range(0, 3000, 10):
        rig.allocate(lblk, 5, unwritten=True)
    for lblk in range(2, 3000, 10):
        rig.mark_written(lblk, 1)
        if lblk % 500 == 2:
            rig.check()
    assert len(mapping.runs(rig.view, rig.inode)) == 900
    rig.mark_written(0, 3000)
    # Extents are joined within a leaf only; at the border of two leaves, two may stay.
    assert 150 <= len(mapping.runs(rig.view, rig.inode, 0, 1499)) <= 154


def test_punch_in_the_middle_of_one_extent(rigs: Rigs) -> None:
    rig = rigs()
    extent = rig.allocate(0, 100)
    assert extent.length == 100
    assert rig.remove(40, 49) == 1
    assert mapping.runs(rig.view, rig.inode) == [
        Extent(0, extent.pblk, 40, False),
        Extent(50, extent.pblk + 50, 50, False),
    ]
    rig.allocate(44)
    rig.remove(45, 47)
    rig.check()


def test_extents_join_only_up_to_their_limits(tmp_path: Path) -> None:
    rig = MapRig(make_image(tmp_path / "pool", size="600M"))
    for unwritten, longest in ((False, 32768), (True, 32767)):
        with rig.change() as (tx, inode):
            mapping.new_inode_map(tx, inode)
            mapping.insert(tx, inode, Extent(0, 50_000, longest - 1, unwritten))
            mapping.insert(tx, inode, Extent(longest - 1, 50_000 + longest - 1, 1, unwritten))
            mapping.insert(tx, inode, Extent(longest, 50_000 + longest, 1, unwritten))
            mapping.insert(tx, inode, Extent(longest + 1, 50_000 + longest + 1, 1, not unwritten))
            assert [e.length for e in mapping.walk(tx, inode)] == [longest, 1, 1]
            with pytest.raises(FsError, match="is mapped") as caught:
                mapping.insert(tx, inode, Extent(longest, 9000, 1, False))
            assert caught.value.errno == errno.EEXIST
    rig.pool.close()


def test_beyond_the_last_block(rigs: Rigs) -> None:
    rig = rigs("-b", "4096")
    last = MAX_BLOCKS - 1
    assert rig.allocate(last, 5_000, unwritten=True).length == 1
    rig.check_lookup(last)
    rig.check_lookup(last - 10)
    for lblk in (MAX_BLOCKS, MAX_BLOCKS + 7):
        with pytest.raises(FsError) as caught, rig.change() as (tx, inode):
            mapping.allocate(tx, inode, lblk, 1)
        assert caught.value.errno == errno.EFBIG
        assert mapping.next_mapped(rig.view, rig.inode, lblk) is None
    rig.remove(last, None)


def test_a_full_pool_changes_nothing(rigs: Rigs) -> None:
    rig = rigs("-b", "1024", "-m", "0", size="8M")
    lblk = 0
    while True:  # every second block, so that the tree needs blocks too
        try:
            rig.allocate(lblk)
        except FsError as error:
            assert error.errno == errno.ENOSPC
            break
        lblk += 2
    rig.check()
    assert len(rig.model) > 3000
    rig.remove(100, 200)
    rig.journal.commit()  # freed blocks can be used again after the commit
    rig.allocate(151)


@pytest.mark.interpreted
def test_failed_tree_growth_gives_the_data_block_back(rigs: Rigs, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = rigs()
    fragmented(rig, 4)
    real = blocks.allocate

    def only_data(tx: object, goal: int, want: int, **options: int) -> tuple[int, int]:
        if options.get("tree"):
            raise FsError(errno.ENOSPC)
        return real(tx, goal, want, **options)

    monkeypatch.setattr(blocks, "allocate", only_data)
    with rig.change() as (tx, inode):
        before = inode.blocks
        with pytest.raises(FsError):
            mapping.allocate(tx, inode, 100, 1)
        assert inode.blocks == before


def test_large_aligned_requests_lie_on_huge_page_boundaries(rigs: Rigs) -> None:
    rig = rigs("-b", "4096", size="64M")
    rig.allocate(3, 1)
    extent = rig.allocate(1024, 512)
    assert extent.pblk % 512 == 0
    assert extent.length == 512


def test_neighbours_decide_where_blocks_go(rigs: Rigs) -> None:
    rig = rigs("-b", "4096")
    left = rig.allocate(100, 10, goal=2000)
    assert rig.allocate(110, 4, goal=3000).pblk == left.pblk + 10
    before = rig.allocate(95, 5, goal=3000)
    assert before.pblk == left.pblk - 5
    assert len(mapping.runs(rig.view, rig.inode)) == 1


def test_rollback_restores_the_tree(rigs: Rigs) -> None:
    rig = rigs()
    fragmented(rig, 90)

    class Stop(Exception):
        pass

    def change_and_stop() -> None:
        with rig.change() as (tx, inode):
            mapping.remove(tx, inode, 20, None)
            mapping.allocate(tx, inode, 21, 4)
            raise Stop

    with pytest.raises(Stop):
        change_and_stop()
    rig.check()


def test_walk_is_trimmed_and_bounded(rigs: Rigs) -> None:
    rig = rigs()
    rig.allocate(10, 20)
    rig.allocate(40, 20)
    found = mapping.runs(rig.view, rig.inode, 15, 44)
    assert [(e.lblk, e.length) for e in found] == [(15, 15), (40, 5)]
    assert found[0].pblk == rig.model[15][0]
    assert len(mapping.runs(rig.view, rig.inode, limit=1)) == 1
    assert mapping.runs(rig.view, rig.inode, 30, 39) == []


# Hostile trees, without metadata_csum, so that no checksum hides these checks.


class Tree(NamedTuple):
    """The parts that a test damages: the pool, the words of the root and of the first leaf."""

    rig: MapRig
    top: memoryview
    leaf: memoryview


def hostile(tmp_path: Path, damage: Callable[[Tree], None], *options: str) -> PoolView:
    """Make the pool of a file with 100 extents in two leaves, and apply ``damage``."""
    rig = MapRig(make_image(tmp_path / "pool", "-b", "1024", "-O", "^metadata_csum", *options))
    fragmented(rig, 100)
    rig.commit_consistent()
    number, offset = inodes.position(rig.view, rig.ino)
    rig.journal.close()
    content = bytearray(rig.pool.memory)
    start = number * 1024 + offset + 0x28
    top = memoryview(content)[start : start + 60].cast("I")
    _, block = format_.index(top, 0)
    leaf = memoryview(content)[block * 1024 : block * 1024 + 1024].cast("I")
    damage(Tree(rig, top, leaf))
    pool = MemoryPool(content)
    view = PoolView(pool, rig.geometry)
    rig.pool.close()
    return view


def on_metadata(tree: Tree) -> None:
    table = int.from_bytes(tree.rig.pool.memory[2048 + 8 : 2048 + 12], "little")
    format_.put_leaf(tree.leaf, 3, 6, table + 1, 1, False)


DAMAGE: dict[str, Callable[[Tree], None]] = {
    "root magic": lambda t: t.top.__setitem__(0, 0x0002F30B),
    "root depth": lambda t: format_.set_depth(t.top, 6),
    "root one level too deep": lambda t: format_.set_depth(t.top, 2),
    "root has more entries than fit": lambda t: format_.set_entries(t.top, 5),
    "index without entries": lambda t: format_.set_entries(t.top, 0),
    "index key": lambda t: t.top.__setitem__(3, 1),
    "index out of order": lambda t: t.top.__setitem__(6, 0),
    "index outside of the pool": lambda t: t.top.__setitem__(4, 1 << 30),
    "index on block 0": lambda t: t.top.__setitem__(4, 0),
    "leaf magic": lambda t: t.leaf.__setitem__(0, 0),
    "leaf depth": lambda t: format_.set_depth(t.leaf, 1),
    "leaf has more entries than fit": lambda t: format_.set_entries(t.leaf, 85),
    "leaf maximum": lambda t: t.leaf.__setitem__(1, 4000),
    "overlap": lambda t: format_.put_leaf(t.leaf, 2, 4, 5000, 3, False),
    "overlap of leaves": lambda t: format_.put_leaf(t.leaf, 82, 164, 5000, 30, False),
    "unsorted": lambda t: format_.put_leaf(t.leaf, 2, 90, 5000, 1, False),
    "length 0": lambda t: format_.put_leaf(t.leaf, 2, 4, 5000, 0, False),
    "outside of the pool": lambda t: format_.put_leaf(t.leaf, 2, 4, 16383, 2, False),
    "block 0": lambda t: format_.put_leaf(t.leaf, 2, 4, 0, 1, False),
    "on metadata": on_metadata,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_hostile_trees_are_refused(tmp_path: Path, kind: str) -> None:
    view = hostile(tmp_path, DAMAGE[kind])
    inode = inodes.read(view, FIRST_INO)
    with pytest.raises(Corrupt, match=f"inode {FIRST_INO}"):
        list(mapping.walk(view, inode))


def test_a_tree_that_points_to_itself_ends(tmp_path: Path) -> None:
    def loop(tree: Tree) -> None:
        _, top, leaf = tree
        _, block = format_.index(top, 0)
        format_.set_depth(top, 2)
        format_.set_depth(leaf, 1)
        for at in range(format_.entries(leaf)):
            format_.put_index(leaf, at, 2 * at, block)

    view = hostile(tmp_path, loop)
    inode = inodes.read(view, FIRST_INO)
    for call in (count_blocks, lambda v, i: mapping.lookup(v, i, 0), lambda v, i: list(mapping.walk(v, i))):
        with pytest.raises(Corrupt):
            call(view, inode)


def test_checksum_of_a_leaf(rigs: Rigs) -> None:
    rig = rigs()
    fragmented(rig, 20)
    rig.commit_consistent()
    _, block = format_.index(rig.inode.words[10:25], 0)
    pool = MemoryPool(bytes(rig.pool.memory))
    view = PoolView(pool, rig.geometry)
    assert len(mapping.runs(view, inodes.read(view, rig.ino))) == 20
    content = bytearray(pool.memory)
    content[block * 1024 + 16] ^= 4
    broken = PoolView(MemoryPool(content), rig.geometry)
    with pytest.raises(Corrupt, match="checksum") as caught:
        mapping.lookup(broken, inodes.read(broken, rig.ino), 0)
    assert f"inode {rig.ino}" in caught.value.where
    assert str(block) in caught.value.where


def test_an_empty_leaf_of_another_writer_is_skipped_and_freed(rigs: Rigs) -> None:
    rig = rigs("-b", "1024", "-O", "^metadata_csum")
    fragmented(rig, 100)
    path, _ = descend(rig.view, rig.inode, 190)
    assert len(path) == 2
    for lblk in [n for n in rig.model if n >= path[1].words[3]]:
        with rig.change() as (tx, inode):
            blocks.free(tx, rig.model.pop(lblk)[0], 1)
            inodes.add_blocks(inode, -1, rig.geometry)
    with rig.change() as (tx, _):
        format_.set_entries(tx.edit(path[1].number).cast("I"), 0)
    rig.check()
    rig.check_lookup(190)
    rig.remove(150, None)
    rig.check()


@pytest.mark.parametrize("options", [("-b", "1024"), ("-b", "1024", "-O", "^flex_bg"), ()])
def test_zones_are_the_groups_metadata(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = mke2fs(tmp_path / "pool", *options, size="40M")
    pool = MemoryPool(path.read_bytes())
    view = PoolView(pool, Geometry.of(Superblock(pool.memory[1024:2048])))
    groups_ = range(view.geometry.groups_count)
    taken = {b for g in groups_ for start, n in groups.metadata_runs(view, g) for b in range(start, start + n)}
    every = np.arange(view.geometry.first_data_block, view.geometry.blocks_count, dtype=np.int64)
    found = {b for b in every.tolist() if metadata_zone.first_overlap(view, 12, np.array([b]), np.array([b + 1])) == 0}
    assert found == taken
    assert metadata_zone.first_overlap(view, 12, every[:0], every[:0]) is None
    free = [b for b in every.tolist() if b not in taken][:40]
    pick = np.array([*free, min(taken)])
    assert metadata_zone.first_overlap(view, 12, pick, pick + 1) == 40
