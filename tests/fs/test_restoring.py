"""Restoring a snapshot: the tree of its making is back, after power cuts too, and nothing else has changed."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from crash_rig import FORMATS, OPERATIONS, Picture, Workbench, image, image_of
from range_rig import refused
from recorder import Fence, RecordingPool
from snapshot_rig import differences, tree, tree_in, unmounted
from tree_rig import QUIET

from daxfs.errors import FsError
from daxfs.fs import mounting, restoring
from daxfs.fs.filesystem import FileSystem
from daxfs.pmem.memory import MemoryPool
from support import fsck, run, write_image

LATER = ("overwrite", "unlink", "write new in d", "rename", "truncate at hole", "mkdir")


def mounted(name: str) -> FileSystem:
    return FileSystem.open(MemoryPool(bytearray(image(name))), QUIET)


def busy(fs: FileSystem, *names: str) -> None:
    bench = Workbench(fs)
    for name in names:
        OPERATIONS[name](bench)


def clean_tree(pool: MemoryPool, folder: Path) -> Picture:
    """The tree of an unmounted pool in which e2fsck finds nothing."""
    path = folder / "pool"
    write_image(path, pool.image())
    fsck(path)
    return tree_in(bytearray(pool.image()))


def snapshots(pool: MemoryPool) -> dict[bytes, str]:
    with FileSystem.open(MemoryPool(bytearray(pool.image())), QUIET) as fs:
        return {each.name: each.lost for each in fs.list_snapshots()}


@pytest.mark.parametrize("name", FORMATS)
def test_the_tree_is_that_of_the_snapshot(name: str, tmp_path: Path) -> None:
    fs = mounted(name)
    expected = tree(fs)
    fs.create_snapshot(b"s")
    busy(fs, *LATER)
    pool = MemoryPool(unmounted(fs))
    assert restoring.restore(pool, b"s") == [b"s"]
    assert clean_tree(pool, tmp_path) == expected
    assert snapshots(pool) == {}
    assert restoring.interrupted(pool) is None


def with_chain(count: int) -> tuple[FileSystem, dict[bytes, Picture]]:
    """A mount with the snapshots 0, 1, ..., each followed by changes, and the tree at each."""
    fs = mounted("4k")
    trees = {}
    for number, what in enumerate(LATER[:count]):
        trees[b"%d" % number] = tree(fs)
        fs.create_snapshot(b"%d" % number)
        busy(fs, what)
    return fs, trees


def test_newer_snapshots_are_deleted_only_by_force_and_older_ones_stay(tmp_path: Path) -> None:
    fs, trees = with_chain(4)
    pool = MemoryPool(unmounted(fs))
    before = tree_in(bytearray(pool.image()))
    with pytest.raises(FsError, match=r"would be deleted: 3$") as caught:
        restoring.restore(pool, b"2")
    assert caught.value.errno == errno.EEXIST
    assert clean_tree(pool, tmp_path) == before
    assert restoring.restore(pool, b"2", force=True) == [b"2", b"3"]
    assert clean_tree(pool, tmp_path) == trees[b"2"]
    assert snapshots(pool) == {b"0": "", b"1": ""}
    with FileSystem.open(MemoryPool(bytearray(pool.image())), QUIET) as again:
        busy(again, "write new", "append")
        for name in (b"0", b"1"):
            assert not differences(again, name, trees[name], tmp_path), name


def test_an_older_snapshot_that_was_deleted_does_not_come_back(tmp_path: Path) -> None:
    fs, trees = with_chain(3)
    fs.delete_snapshot(b"1")
    busy(fs, "write new", "append")
    pool = MemoryPool(unmounted(fs))
    restoring.restore(pool, b"2", force=True)
    assert clean_tree(pool, tmp_path) == trees[b"2"]
    left = snapshots(pool)
    assert left == {b"0": ""}
    with FileSystem.open(MemoryPool(bytearray(pool.image())), QUIET) as again:
        for name, lost in left.items():
            assert lost or not differences(again, name, trees[name], tmp_path)


def test_a_restore_that_is_refused_changes_nothing() -> None:
    fs = mounted("4k")
    fs.create_snapshot(b"s")
    pool = MemoryPool(unmounted(fs))
    before = tree_in(bytearray(pool.image()))
    with refused(errno.ENOENT):
        restoring.restore(pool, b"other")
    assert tree_in(bytearray(pool.image())) == before
    assert list(snapshots(pool)) == [b"s"]


def begun(name: str) -> tuple[RecordingPool, Picture, Picture]:
    """A recording pool with a snapshot and an older one; the tree, and that of the snapshot."""
    fs = mounted(name)
    fs.create_snapshot(b"older")
    busy(fs, "write new")
    shown = tree(fs)
    fs.create_snapshot(b"s")
    busy(fs, "overwrite", "unlink", "rename")
    now = tree(fs)
    return RecordingPool(unmounted(fs)), now, shown


@pytest.mark.parametrize(
    ("name", "cuts"), [("4k", 1), ("1k", 1), *(pytest.param(name, 20, marks=pytest.mark.full) for name in FORMATS)]
)
def test_power_cuts(name: str, cuts: int, tmp_path: Path) -> None:
    pool, now, shown = begun(name)
    restoring.begin(pool, b"s")
    restoring.finish(pool)
    rng = random.Random(3)
    seen = {"before": 0, "between": 0, "after": 0}
    for number, left in enumerate(pool.crash_images(rng, prefixes=cuts, subsets=3 if cuts > 1 else 1)):
        crashed = MemoryPool(bytearray(left.image))
        what = f"cut at {left.position}: {left.choice}"
        found = restoring.interrupted(crashed)
        busy_bit = bool(mounting.read_superblock(crashed).s_feature_incompat >> 31)
        if busy_bit:
            seen["between"] += 1
            with refused(errno.EBUSY):
                FileSystem.open(MemoryPool(bytearray(left.image)), QUIET)
            if found is not None and number % 3 == 0:  # cut once more
                second = RecordingPool(left.image)
                restoring.finish(second)
                again = next(iter(second.crash_images(random.Random(number), start=len(second.events) // 2)))
                crashed = MemoryPool(bytearray(again.image))
            restoring.finish(crashed)
        restored = tree_in(bytearray(crashed.image()))
        if found is None and restored == now:
            seen["before"] += 1
            restoring.restore(crashed, b"s")
            restored = tree_in(bytearray(crashed.image()))
        elif not busy_bit:
            seen["after"] += 1
        assert restored == shown, what
        restoring.clean(crashed)
        if number % 8 == 0:
            assert clean_tree(crashed, tmp_path) == shown, what
    assert all(seen.values()), seen


def one_snapshot(fs: FileSystem) -> dict[bytes, Picture]:
    fs.create_snapshot(b"s")
    busy(fs, "overwrite", "unlink", "truncate at hole", "write new in d")
    return {}


def in_a_chain(fs: FileSystem) -> dict[bytes, Picture]:
    """An older and a newer snapshot, and one between that was deleted since."""
    older = tree(fs)
    fs.create_snapshot(b"older")
    busy(fs, "write new")
    fs.create_snapshot(b"gone")
    busy(fs, "overwrite and append")
    fs.create_snapshot(b"s")
    busy(fs, "overwrite", "unlink")
    fs.create_snapshot(b"newer")
    busy(fs, "mkdir")
    fs.delete_snapshot(b"gone")
    busy(fs, "overwrite moved")
    return {b"older": older}


def with_a_store_that_has_grown(fs: FileSystem) -> dict[bytes, Picture]:
    busy(fs, "unlink big")
    fs.tree.write_bytes("data", os.urandom(400_000))
    size = fs.create_snapshot(b"s").snapshot.size
    with fs.tree.open("data", "r+b") as file:
        file.write(os.urandom(400_000))
    assert fs.list_snapshots()[0].size > size
    return {}


SHAPES = {each.__name__: each for each in (one_snapshot, in_a_chain, with_a_store_that_has_grown)}


def cut_again(content: bytearray, rng: random.Random, times: int) -> MemoryPool:
    """Begin a restore again as often, each time with another power cut, and then to its end."""
    for _ in range(times):
        pool = RecordingPool(content)
        if not restored_or_done(pool):
            break
        cuts = [position for position, event in enumerate(pool.events) if isinstance(event, Fence)]
        left = next(pool.crash_images(rng, start=rng.choice(cuts), prefixes=0, subsets=1))
        content = bytearray(left.image)
    last = MemoryPool(content)
    restored_or_done(last)
    return last


def restored_or_done(pool: MemoryPool) -> bool:
    """Restore the snapshot; False: that was done before, and the pool has it no longer."""
    try:
        restoring.restore(pool, b"s", force=True)
    except FsError as error:
        assert error.errno == errno.ENOENT
        return False
    return True


@pytest.mark.parametrize(
    ("name", "shape", "step"),
    [
        ("1k", "in_a_chain", 60),
        *(pytest.param(name, shape, 1, marks=pytest.mark.full) for name in FORMATS for shape in SHAPES),
    ],
)
def test_a_restore_that_is_cut_anywhere_and_begun_again(name: str, shape: str, step: int, tmp_path: Path) -> None:
    fs = mounted(name)
    older = SHAPES[shape](fs)
    shown = tree_in(image_of(fs, b"s"))
    pool = RecordingPool(unmounted(fs))
    restoring.restore(pool, b"s", force=True)
    assert tree_in(bytearray(pool.image())) == shown
    rng = random.Random(f"{name} {shape}")
    seen = 0
    for number, left in enumerate(pool.crash_images(rng, prefixes=6, subsets=6)):
        if number % step:
            continue
        last = cut_again(bytearray(left.image), rng, number % 3)
        seen += 1
        what = f"cut at {left.position}: {left.choice}, then {number % 3} more"
        assert tree_in(bytearray(last.image())) == shown, what
        if number % 4 == 0:
            assert clean_tree(last, tmp_path) == shown, what
            with FileSystem.open(MemoryPool(last.image()), QUIET) as again:
                assert {each.name for each in again.list_snapshots() if not each.lost} == older.keys(), what
                again.tree.write_bytes("later", os.urandom(1 << 18))
                for each, expected in older.items():
                    assert not differences(again, each, expected, tmp_path), what
    assert seen


def test_other_programs_refuse_a_pool_whose_restore_was_interrupted(tmp_path: Path) -> None:
    pool, _, _ = begun("4k")
    restoring.begin(pool, b"s")
    path = tmp_path / "pool"
    write_image(path, pool.image())
    assert "unsupported feature" in run("e2fsck", "-fn", path, code=8)
    with refused(errno.EBUSY):
        restoring.restore(MemoryPool(pool.image()), b"older")


def test_old_transactions_of_the_log_are_cleared() -> None:
    pool, _, _ = begun("4k")
    magic = b"\xc0\x3b\x39\x98"
    with FileSystem.open(MemoryPool(pool.image()), QUIET) as fs:
        area, size = fs.volume.log_area, fs.volume.block_size
    assert area is not None
    blocks = [area.physical(at) * size for at in range(area.blocks)]
    pool.write(blocks[9], magic)  # of a block that a transaction has logged
    restoring.begin(pool, b"s")
    restoring.finish(pool)
    assert [at for at in blocks if pool.memory[at : at + 4] == magic] == blocks[:1]
