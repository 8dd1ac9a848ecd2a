"""A full memory: the files that were used longest ago go to storage, and operations go on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import tier_rig
from in_memory import tmp_path
from tier_rig import MIB, fs, tiered

from daxfs.errors import FsError, OnStorage
from daxfs.fs.filesystem import FileSystem, OpenFile
from daxfs.fs.steps import Steps, Wait, finish
from daxfs.fs.tiers import placement, policy
from daxfs.fs.types import ROOT_INO, Caller, LeaseRequest, Options, SetAttributes
from daxfs.protocol import TOKEN_SIZE
from daxfs.structures import inodes, mapping, reserves

__all__ = ["fs", "tiered", "tmp_path"]


def in_memory(fs: FileSystem, name: bytes) -> bool:
    """Whether all of a file lies in memory."""
    view = fs.volume.view
    runs = mapping.walk(view, inodes.read(view, fs.lookup(ROOT_INO, name).ino))
    return all(run.pblk < view.geometry.memory_blocks for run in runs)


def fill(fs: FileSystem, count: int) -> dict[bytes, bytes]:
    """Make files of 1 MiB, each used later than the one before."""
    made = {b"%d" % number: os.urandom(MIB) for number in range(count)}
    for number, (name, content) in enumerate(made.items()):
        fs.tree.write_bytes(b"/" + name, content)
        ino = fs.lookup(ROOT_INO, name).ino
        fs.setattr(ino, SetAttributes(atime_ns=number * 10**9, mtime_ns=number * 10**9))
    return made


def fill_up(fs: FileSystem) -> None:
    """Make files until there is an error."""
    for number in range((tier_rig.STORAGE + tier_rig.MEMORY) // MIB):
        fs.tree.write_bytes(b"/%d" % number, bytes(MIB))


def test_more_is_written_than_memory_has(fs: FileSystem) -> None:
    made = fill(fs, 60)
    assert sum(not in_memory(fs, name) for name in made) > 30
    for name, content in made.items():
        assert fs.tree.read_bytes(b"/" + name) == content
    assert fs.tier_use().demoted >= 32 * MIB


def test_one_file_is_larger_than_the_memory(fs: FileSystem) -> None:
    content = os.urandom(50 * MIB)
    file, _ = fs.create(ROOT_INO, b"large", 0o600)
    done = 0
    while done < len(content):
        done += fs.write(file, done, content[done : done + MIB])
    fs.release(file)
    assert fs.tree.read_bytes("/large") == content


def test_the_oldest_go_first_and_no_more_than_needed(fs: FileSystem) -> None:
    made = fill(fs, 22)
    assert not policy.crowded(fs.volume)
    last = len(made)
    while not policy.crowded(fs.volume):
        made |= {b"%d" % last: b"x" * MIB}
        fs.tree.write_bytes(b"/%d" % last, b"x" * MIB)
        last += 1
    finish(fs.steps.keeping_tiers())
    assert not policy.crowded(fs.volume)
    gone = [name for name in made if not in_memory(fs, name)]
    assert gone == list(made)[: len(gone)]
    assert 0 < len(gone) < 6


def test_a_session_waits_for_room(fs: FileSystem) -> None:
    fs.leave_storage_to(lambda: None)
    with pytest.raises(OnStorage) as full:
        fill_up(fs)
    finish(full.value.bring())
    fs.tree.write_bytes("/again", bytes(MIB))
    assert not in_memory(fs, b"1")


def search(fs: FileSystem) -> Steps[None]:
    """Write as a user until the memory has no room; return the steps that make some."""
    file = fs.open_file(fs.tree.resolve("/filler"), os.O_RDWR, Caller(uid=1, gid=1))
    try:
        while True:
            fs.write(file, fs.getattr(file.ino).size, bytes(64 << 10))
    except OnStorage as full:
        return full.bring()
    finally:
        fs.release(file)


def to_storage(steps: Steps[None]) -> Wait:
    """Run steps until they wait for storage, or for another search."""
    while (waiting := next(steps)) is None:
        pass
    return waiting


@pytest.fixture
def cold(fs: FileSystem) -> FileSystem:
    """A file system as a session uses it, with 1 MiB that can go down and a file that belongs in memory."""
    fs.tree.write_bytes("/cold", bytes(MIB))
    fs.setxattr(ROOT_INO, placement.ATTRIBUTE, placement.MEMORY)
    fs.tree.write_bytes("/filler", b"")
    fs.leave_storage_to(lambda: None)
    return fs


def test_two_searches_for_room_copy_nothing_twice(cold: FileSystem) -> None:
    tiers = cold.volume.tiers
    assert tiers is not None
    first, second = search(cold), search(cold)
    storage, behind = to_storage(first), to_storage(second)
    assert behind is tiers.search
    assert not behind.due
    storage.wait()
    finish(first)
    assert behind.due
    finish(second)
    assert cold.tier_use().demoted == MIB


@pytest.mark.parametrize("parks", [True, False])
def test_room_that_others_have_made_and_taken_is_looked_for_again(cold: FileSystem, parks: bool) -> None:
    """The second search has nothing left to demote. But there was room meanwhile, so its request tries again."""
    assert cold.volume.tiers is not None
    first, second = search(cold), search(cold)
    cold.volume.tiers.parks = parks
    storage = to_storage(first), to_storage(second)
    storage[0].wait()
    finish(first)
    cold.volume.tiers.parks = True
    third = search(cold)
    finish(second)
    with pytest.raises(FsError) as full:
        finish(third)
    assert full.value.errno == errno.ENOSPC, "nothing has gone down since it began"


def test_room_for_what_is_needed_is_made_again_if_others_have_taken_it(cold: FileSystem) -> None:
    """A write needs data of storage. While that is read, other writes take the room that was made for it."""
    warm, _ = cold.create(ROOT_INO, b"warm", 0o600)
    cold.write(warm, 0, b"w" * MIB)
    finish(cold.steps.demote(warm.ino))
    cold.tree.write_bytes("/colder", bytes(MIB))
    search(cold).close()
    with pytest.raises(OnStorage) as needed:
        cold.write(warm, 5, b"x")
    steps = needed.value.bring()
    read = to_storage(steps)
    while in_memory(cold, b"cold"):
        read.wait()
        read = to_storage(steps)
    search(cold).close()
    cold.setxattr(cold.tree.resolve("/colder"), placement.ATTRIBUTE, placement.AUTO)
    read.wait()
    finish(steps)
    assert cold.write(warm, 5, b"x") == 1
    cold.release(warm)


def test_a_damaged_file_stays_and_keeps_no_other_from_going(cold: FileSystem) -> None:
    cold.setxattr(ROOT_INO, placement.ATTRIBUTE, placement.AUTO)
    damaged, made = cold.create(ROOT_INO, b"damaged", 0o600)
    for number in range(8):
        cold.write(damaged, number << 14, bytes(4096))
    cold.release(damaged)
    cold.setattr(made.ino, SetAttributes(atime_ns=0, mtime_ns=0))
    cold.sync()
    view = cold.volume.view
    leaf = int.from_bytes(inodes.read(view, made.ino).block_area[16:20], "little") << view.geometry.block_bits
    whole = bytes(cold.volume.pool.memory[leaf : leaf + 2])
    cold.volume.pool.write(leaf, bytes(2))
    cold.volume.forget_content()
    finish(search(cold))
    assert not in_memory(cold, b"cold")
    assert cold.metadata_errors().count == 1
    cold.volume.pool.write(leaf, whole)
    cold.volume.forget_content()


def test_both_are_full(fs: FileSystem) -> None:
    with pytest.raises(FsError) as full:
        fill_up(fs)
    assert full.value.errno == errno.ENOSPC
    found = len(fs.tree.listdir("/"))
    assert (tier_rig.STORAGE + 20 * MIB) // MIB < found < (tier_rig.STORAGE + tier_rig.MEMORY) // MIB
    fs.tree.unlink("/1")
    fs.sync()
    fs.tree.write_bytes("/again", b"x")


def test_an_error_that_room_does_not_help_stays(fs: FileSystem) -> None:
    """An attribute that is too large is ENOSPC too."""
    fill(fs, 20)
    fs.tree.write_bytes("/f", b"")
    with pytest.raises(FsError) as large:
        fs.setxattr(fs.lookup(ROOT_INO, b"f").ino, b"user.x", bytes(10_000))
    assert large.value.errno == errno.ENOSPC
    assert not fs.tier_use().demoted


def full(fs: FileSystem) -> tuple[OpenFile, OpenFile, bytes]:
    """Make a file on storage, which it returns with its content, and one that fills the memory."""
    content = os.urandom(MIB)
    cold, _ = fs.create(ROOT_INO, b"cold", 0o600)
    fs.write(cold, 0, content)
    fs.demote(cold.ino)
    hot, _ = fs.create(ROOT_INO, b"hot", 0o600)
    done, view = 0, fs.volume.view
    kept = reserves.must_stay_free(fs.volume.geometry, view.superblock(), privileged=True) * 4096
    while fs.tier_use().memory_free > kept + (128 << 10):
        done += fs.write(hot, done, bytes(64 << 10))
    fs.sync()
    return cold, hot, content


def test_others_go_down_for_what_an_operation_needs(fs: FileSystem) -> None:
    cold, hot, content = full(fs)
    assert fs.write(cold, 4000, b"x" * 100_000) == 100_000
    fs.fallocate(cold, 3, 5000, 300_000)
    assert bytes(fs.read(cold, 0, MIB)) == content[:4000] + b"x" * 1000 + bytes(300_000) + content[305_000:]
    assert not in_memory(fs, b"hot")
    for file in (cold, hot):
        fs.release(file)


def test_nothing_can_go_down_for_what_an_operation_needs(fs: FileSystem) -> None:
    """That is its error: no room. Nothing has changed, and it does not ask for storage again and again."""
    cold, hot, content = full(fs)
    place = fs.pool_identity().token
    fs.lease(hot, LeaseRequest(1, 0, MIB, 0, 64, bytes(fs.volume.memory[place : place + TOKEN_SIZE])))
    for change in (lambda: fs.fallocate(cold, 3, 5000, 300_000), lambda: fs.write(cold, 4000, b"x")):
        with pytest.raises(FsError) as error:
            change()
        assert error.value.errno == errno.ENOSPC
    assert bytes(fs.read(cold, 0, MIB)) == content
    for file in (cold, hot):
        fs.release(file)


def test_a_pool_without_storage_has_no_policy(tmp_path: Path) -> None:
    made = tier_rig.make(tmp_path)
    with FileSystem.open(made.pool) as fs:
        fs.volume.tiers = None
        assert not fs.steps.misplaced


@pytest.mark.parametrize("low", [0, 60])
def test_watermarks_are_options_of_the_mount(tmp_path: Path, low: int) -> None:
    made = tier_rig.make(tmp_path)
    with FileSystem.open(made.pool, Options(tier_high=65, tier_low=low)) as fs:
        names = list(fill(fs, 16))
        assert policy.crowded(fs.volume)
        fs.remount(Options(tier_high=90, tier_low=80))
        assert not policy.crowded(fs.volume)
        fs.remount(Options(tier_high=65, tier_low=low))
        finish(fs.steps.keeping_tiers())
        gone = [name for name in names if not in_memory(fs, name)]
        assert gone == (names if not low else names[: len(gone)])
        assert 0 < len(gone) <= (4 if low else 16)
    made.check()


def place(fs: FileSystem, name: bytes, where: bytes) -> None:
    """Say where a file or directory belongs."""
    fs.setxattr(fs.lookup(ROOT_INO, name).ino, placement.ATTRIBUTE, where)


def test_what_belongs_in_memory_stays_and_what_belongs_on_storage_goes_first(fs: FileSystem) -> None:
    names = list(fill(fs, 20))
    place(fs, names[0], placement.MEMORY)
    place(fs, names[1], placement.AUTO)
    place(fs, names[-1], placement.STORAGE)
    while not policy.crowded(fs.volume):
        fs.tree.write_bytes(b"/%d" % len(names), bytes(MIB))
        names.append(b"%d" % len(names))
    finish(fs.steps.keeping_tiers())
    gone = [name for name in names if not in_memory(fs, name)]
    assert gone[:2] == names[1:3]
    assert names[0] not in gone
    assert names[19] in gone


def test_only_what_belongs_in_memory_is_left(fs: FileSystem) -> None:
    fs.setxattr(ROOT_INO, placement.ATTRIBUTE, placement.MEMORY)
    with pytest.raises(FsError) as full:
        fill_up(fs)
    assert full.value.errno == errno.ENOSPC
    assert not fs.tier_use().demoted
