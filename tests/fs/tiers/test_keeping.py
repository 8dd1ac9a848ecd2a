"""Each piece where it belongs: what comes up for reads, in whose place, how fast, and what attributes say."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tier_rig
from in_memory import tmp_path
from tier_rig import MIB, fs, tiered

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.steps import finish
from daxfs.fs.tiers import keeping, policy
from daxfs.fs.tiers.heat import PIECE
from daxfs.fs.tiers.placement import ATTRIBUTE, AUTO, MEMORY, STORAGE
from daxfs.fs.types import ROOT_INO, Options, SetAttributes
from daxfs.structures import inodes, mapping

__all__ = ["fs", "tiered", "tmp_path"]


def make(fs: FileSystem, name: bytes, size: int = PIECE) -> int:
    """Make a file with a content of its own; return its inode number."""
    fs.tree.write_bytes(b"/" + name, name[:1] * size)
    ino = fs.lookup(ROOT_INO, name).ino
    fs.setattr(ino, SetAttributes(atime_ns=0, mtime_ns=0))
    return ino


def on_storage(fs: FileSystem, ino: int) -> list[int]:
    """Return the pieces of a file that lie on storage, in part at least."""
    view = fs.volume.view
    bits = view.geometry.block_bits
    found: set[int] = set()
    for run in mapping.walk(view, inodes.read(view, ino)):
        if run.pblk >= view.geometry.memory_blocks:
            found.update(range(run.lblk << bits >> 21, ((run.lblk + run.length << bits) - 1 >> 21) + 1))
    return sorted(found)


def read(fs: FileSystem, ino: int, *offsets: int) -> None:
    """Read a few bytes at some offsets of a file."""
    file = fs.open_file(ino)
    for offset in offsets:
        assert len(fs.read(file, offset, 100)) == 100
    fs.release(file)


def keep(fs: FileSystem) -> None:
    """Do what a session does in the background."""
    assert fs.steps.misplaced
    finish(fs.steps.keeping_tiers())


def test_what_is_read_twice_comes_up_and_nothing_else(fs: FileSystem) -> None:
    ino = make(fs, b"f", 3 * PIECE)
    fs.demote(ino)
    read(fs, ino, 5, PIECE + 7, PIECE + 9)
    keep(fs)
    assert on_storage(fs, ino) == [0, 2]
    assert not fs.steps.misplaced
    read(fs, ino, PIECE)
    assert not fs.steps.misplaced
    assert fs.tree.read_bytes("/f") == b"f" * (3 * PIECE)


def test_a_scan_brings_nothing_up_and_a_second_one_all(fs: FileSystem) -> None:
    ino = make(fs, b"f", 2 * PIECE)
    fs.demote(ino)
    for left in ([0, 1], []):
        file = fs.open_file(ino)
        for offset in range(0, 2 * PIECE, 128 << 10):
            assert bytes(fs.read(file, offset, 128 << 10)) == b"f" * (128 << 10)
        fs.release(file)
        keep(fs)
        assert on_storage(fs, ino) == left


def test_reads_that_wait_are_one_read_and_no_hit(fs: FileSystem) -> None:
    ino = make(fs, b"f")
    fs.demote(ino)
    read(fs, ino, 0, 0)
    found = fs.tier_use()
    assert (found.reads, found.hits) == (2, 1)
    assert fs.volume.heat is not None
    assert fs.volume.heat.uses(ino, 0) == 2


@pytest.fixture
def full(tmp_path: Path) -> Iterator[FileSystem]:
    """Return a file system with more in memory than the low watermark and less than the high one."""
    made = tier_rig.make(tmp_path)
    with FileSystem.open(made.pool, Options(tier_high=90, tier_low=30)) as fs:
        yield fs
        fs.volume.check()
    made.check()


def test_above_the_low_watermark_it_takes_the_place_of_what_is_colder(full: FileSystem) -> None:
    cold, warm, hot = (make(full, name) for name in (b"cold", b"warm", b"hot"))
    rest = [make(full, b"%d" % number) for number in range(4)]
    for ino in (*rest, warm):
        read(full, ino, *range(40))
    full.demote(hot)
    assert policy.free_memory(full.volume) < policy.free_when_low(full.volume)
    read(full, hot, *range(10))
    free = policy.free_memory(full.volume)
    keep(full)
    assert not on_storage(full, hot)
    assert on_storage(full, cold) == [0]
    assert not any(on_storage(full, ino) for ino in (*rest, warm))
    assert policy.free_memory(full.volume) == free


def test_above_the_low_watermark_it_stays_if_all_else_is_as_warm(full: FileSystem) -> None:
    others = [make(full, b"%d" % number) for number in range(6)]
    hot = make(full, b"hot")
    full.demote(hot)
    assert policy.free_memory(full.volume) < policy.free_when_low(full.volume)
    for ino in (*others, hot):
        read(full, ino, *range(10))
    keep(full)
    assert on_storage(full, hot) == [0]
    assert not any(on_storage(full, ino) for ino in others)
    read(full, hot, *range(10))
    keep(full)
    assert not on_storage(full, hot)
    assert sum(len(on_storage(full, ino)) for ino in others) == 1


def test_cold_pieces_of_a_file_go_before_its_warm_ones(full: FileSystem) -> None:
    ino = make(full, b"f", 8 * PIECE)
    read(full, ino, 0, 3 * PIECE, 7 * PIECE)
    full.remount(Options(tier_high=50, tier_low=45))
    keep(full)
    gone = on_storage(full, ino)
    assert gone
    assert not {0, 3, 7} & set(gone)
    assert not policy.crowded(full.volume)
    full.remount(Options(tier_high=1, tier_low=0))
    keep(full)
    assert on_storage(full, ino) == list(range(8)), "if nothing else is left"


def test_cold_files_of_other_groups_go_before_warm_ones(full: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which only a part is compared at a time."""
    monkeypatch.setattr(policy, "LOOK", 1)
    hot = make(full, b"hot", 2 * PIECE)
    groups = (full.tree.mkdir(b"/%d" % number) or full.tree.resolve(b"/%d" % number) for number in range(20))
    per_group = full.volume.geometry.inodes_per_group
    directory = next(ino for ino in groups if (ino - 1) // per_group > (hot - 1) // per_group)
    file, made = full.create(directory, b"cold", 0o600)
    full.write(file, 0, bytes(2 * PIECE))
    full.release(file)
    assert full.volume.heat is not None
    full.volume.heat.forget(made.ino, 0, 2 * PIECE)
    read(full, hot, *range(0, 2 * PIECE, PIECE // 2))
    memory = full.volume.geometry.memory_blocks
    used = 100 - 100 * policy.free_memory(full.volume) // memory
    full.remount(Options(tier_high=used - 2, tier_low=used - 4))
    keep(full)
    assert on_storage(full, made.ino)
    assert not on_storage(full, hot)


def test_what_comes_up_is_bounded_in_time(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "BYTES_PER_SECOND", 2 * PIECE)
    now = 1000.0
    monkeypatch.setattr(keeping, "monotonic", lambda: now)
    ino = make(fs, b"f", 4 * PIECE)
    fs.demote(ino)
    read(fs, ino, *(piece * PIECE + at for piece in range(4) for at in range(piece + 2)))
    keep(fs)
    assert on_storage(fs, ino) == [0, 1, 2], "the hottest comes first"
    keep(fs)
    assert on_storage(fs, ino) == [0, 1, 2]
    now += 0.5
    keep(fs)
    assert on_storage(fs, ino) == [0, 1]
    now += 60
    keep(fs)
    assert on_storage(fs, ino) == [0], "at most what half a second allows"


def test_files_move_to_where_their_attribute_says(fs: FileSystem) -> None:
    ino = make(fs, b"f")
    for _ in range(2):
        fs.setxattr(ino, ATTRIBUTE, STORAGE)
        keep(fs)
        assert on_storage(fs, ino) == [0]
        read(fs, ino, *range(10))
        keep(fs)
        assert on_storage(fs, ino) == [0], "however often it is read"
        fs.setxattr(ino, ATTRIBUTE, MEMORY)
        keep(fs)
        assert not on_storage(fs, ino)
    fs.demote(ino)
    assert on_storage(fs, ino) == [0], "by hand it moves whatever it has"
    read(fs, ino, 0)
    keep(fs)
    assert not on_storage(fs, ino), "one read is enough"
    fs.setxattr(ino, ATTRIBUTE, AUTO)
    keep(fs)
    assert not on_storage(fs, ino)


def test_new_data_goes_to_where_its_attribute_says(fs: FileSystem) -> None:
    fs.setxattr(ROOT_INO, ATTRIBUTE, STORAGE)
    file, made = fs.create(ROOT_INO, b"f", 0o600)
    content = os.urandom(PIECE)
    fs.write(file, 0, content)
    fs.write(file, PIECE, content[:MIB])
    keep(fs)
    fs.write(file, PIECE + MIB, b"end")
    keep(fs)
    assert on_storage(fs, made.ino) == [0], "the piece that is being written stays"
    assert not fs.steps.misplaced
    fs.release(file)
    keep(fs)
    assert on_storage(fs, made.ino) == [0, 1]
    assert fs.tree.read_bytes("/f") == content + content[:MIB] + b"end"


def test_a_file_that_belongs_in_memory_does_not_crowd_it(full: FileSystem) -> None:
    large = make(full, b"large", 8 * PIECE)
    full.demote(large)
    other = make(full, b"other", 8 * PIECE)
    full.setxattr(large, ATTRIBUTE, MEMORY)
    full.setxattr(other, ATTRIBUTE, MEMORY)
    keep(full)
    assert on_storage(full, large)
    assert not on_storage(full, other)


def test_storage_that_has_failed_has_nothing_to_keep(fs: FileSystem) -> None:
    ino = make(fs, b"f")
    fs.demote(ino)
    read(fs, ino, 0, 0)
    assert fs.steps.misplaced
    assert fs.volume.tiers is not None
    for queue in fs.volume.tiers.queues:
        queue.fail("it did not answer")
    assert not fs.steps.misplaced


def test_a_file_with_damaged_attributes_stays_and_keeps_nothing_from_moving(full: FileSystem) -> None:
    damaged, other = make(full, b"damaged", 4 * PIECE), make(full, b"other", 4 * PIECE)
    for number in range(8):
        full.setxattr(damaged, b"user.%d" % number, bytes(100))
    full.sync()
    view = full.volume.view
    place = (inodes.read(view, damaged).file_acl << view.geometry.block_bits) + 8
    whole = bytes(full.volume.pool.memory[place : place + 40])
    full.volume.pool.write(place, b"\xff" * len(whole))
    view.forget_checks()
    full.remount(Options(tier_high=50, tier_low=40))
    keep(full)
    assert on_storage(full, other)
    assert not on_storage(full, damaged)
    full.volume.pool.write(place, whole)


@pytest.mark.parametrize("steps", range(1, 5))
def test_storage_that_leaves_meanwhile_ends_it(fs: FileSystem, steps: int) -> None:
    ino = make(fs, b"f")
    fs.setxattr(ino, ATTRIBUTE, AUTO)
    fs.remount(Options(tier_high=1, tier_low=0))
    keeping = fs.steps.keeping_tiers()
    for _ in range(steps):
        if (waiting := next(keeping)) is not None:
            waiting.wait()
    left = fs.volume.tiers, fs.volume.heat
    fs.volume.tiers = fs.volume.heat = None
    with pytest.raises(FsError) as gone:
        finish(keeping)
    assert gone.value.errno == errno.EOPNOTSUPP
    fs.volume.tiers, fs.volume.heat = left


def test_where_nothing_can_go_down_nobody_looks_all_the_time(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(keeping, "monotonic", lambda: now)
    fs.setxattr(ROOT_INO, ATTRIBUTE, MEMORY)
    ino = make(fs, b"f")
    fs.remount(Options(tier_high=1, tier_low=0))
    keep(fs)
    assert policy.crowded(fs.volume)
    assert not fs.steps.misplaced
    now += keeping.STUCK_SECONDS
    fs.setxattr(ino, ATTRIBUTE, AUTO)
    keep(fs)
    assert on_storage(fs, ino) == [0]
