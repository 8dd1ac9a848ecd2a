"""Directories, maps, long symbolic links and attributes leave a part of the pool, and stay what they are."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from range_rig import content, make, refused
from relocation_rig import fragmented, owned, place_of, used_places
from snapshot_rig import after_power_loss, differences, tree
from tree_rig import QUIET

from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import ATTRIBUTES, BAD, CONTENT, DAMAGED, FULL, MAP, Options, Relocation, Stayed
from daxfs.pmem.memory import MemoryPool
from daxfs.runs import BlockRun, ByteRange
from daxfs.structures import blocks, dirblocks, inodes, mapping, xattrs

OpenFs = Callable[..., FileSystem]


def names(fs: FileSystem, path: str) -> set[bytes]:
    directory = fs.opendir(fs.tree.resolve(path))
    found = [entry.name for entry in fs.readdir(directory)]
    fs.releasedir(directory)
    assert len(found) == len(set(found))
    return set(found)


def crowded(fs: FileSystem, count: int, path: str = "d") -> int:
    """A directory of several blocks; returns its inode."""
    fs.tree.mkdir(path)
    ino = fs.tree.resolve(path)
    file, made = fs.create(ino, b"0", 0o600)
    fs.release(file)
    for number in range(1, count):
        fs.link(made.ino, ino, b"%d" % number + b"n" * 200)
    return ino


def leaves(fs: FileSystem, ino: int) -> Relocation:
    """Have an inode leave all blocks that it has; check that it did."""
    before = owned(fs, ino)
    attributes = fs.getattr(ino)
    done = fs.vacate(ino, place_of(fs, before))
    assert done.stayed == ()
    fs.check()
    assert not before & owned(fs, ino)
    assert len(owned(fs, ino)) == len(before)
    assert fs.getattr(ino) == attributes
    return done


def test_the_old_places_become_free_with_the_commit(open_fs: OpenFs) -> None:
    """Until then they are what a power cut brings back."""
    fs = open_fs()
    ino = crowded(fs, 90)
    file = fragmented(fs, 400)
    fs.setxattr(ino, b"user.x", b"x" * 600)
    fs.sync()
    for number in (ino, file.ino):
        before = owned(fs, number)
        fs.vacate(number, place_of(fs, before))
        assert not [block for block in before if blocks.is_free(fs.volume.view, block)]
        fs.sync()
        assert [block for block in sorted(before) if blocks.is_free(fs.volume.view, block)] == sorted(before)
    fs.release(file)


@pytest.mark.parametrize("count", [3, 90])
def test_a_directory_moves_and_goes_on(open_fs: OpenFs, any_format: tuple[str, ...], count: int) -> None:
    """Small and linear, and of several blocks with an index."""
    fs = open_fs(*any_format)
    ino = crowded(fs, count)
    before = names(fs, "d")
    assert names(fs, "d") == before, "what a listing keeps is in use"
    size = inodes.read(fs.volume.view, ino).size
    assert leaves(fs, ino).moved == size
    assert names(fs, "d") == before
    for name in before - {b".", b".."}:
        fs.lookup(ino, name)
    fs.mknod(ino, b"new", 0o100600)
    fs.unlink(ino, b"0")
    assert names(fs, "d") == before - {b"0"} | {b"new"}
    fs.sync()
    assert leaves(fs, ino).moved == inodes.read(fs.volume.view, ino).size
    assert names(fs, "d") == before - {b"0"} | {b"new"}


def test_a_listing_goes_on_where_it_was(open_fs: OpenFs) -> None:
    fs = open_fs("-b", "1024")
    ino = crowded(fs, 120)
    expected = names(fs, "d")
    directory = fs.opendir(ino)
    found: list[bytes] = []
    cookie = 0
    while True:
        portion = [entry for entry, _ in zip(fs.readdir(directory, cookie), range(7), strict=False)]
        if not portion:
            break
        found += [entry.name for entry in portion]
        cookie = portion[-1].cookie
        leaves(fs, ino)
    fs.releasedir(directory)
    assert sorted(found) == sorted(expected)


def test_a_removed_directory_that_is_open_moves(open_fs: OpenFs) -> None:
    fs = open_fs()
    fs.tree.mkdir("d")
    directory = fs.opendir(fs.tree.resolve("d"))
    fs.rmdir(ROOT_INO, b"d")
    assert leaves(fs, directory.ino).moved == fs.volume.block_size
    fs.releasedir(directory)


def test_changes_between_two_steps(open_fs: OpenFs) -> None:
    """Names come and go, and the directory is removed in the end, while it moves."""
    fs = open_fs("-b", "1024")
    ino = crowded(fs, 300)
    model = names(fs, "d")
    steps = fs.steps.vacate(ino, place_of(fs, owned(fs, ino)))
    for number, _ in enumerate(steps):
        name = b"%d" % number + b"between" * 20
        fs.mknod(ino, name, 0o100600)
        model.add(name)
        gone = min(model - {b".", b".."})
        fs.unlink(ino, gone)
        model.discard(gone)
        assert names(fs, "d") == model
    assert number > 1
    steps = fs.steps.vacate(ino, place_of(fs, owned(fs, ino)))
    next(steps)
    for name in model - {b".", b".."}:
        fs.unlink(ino, name)
    fs.rmdir(ROOT_INO, b"d")
    steps.close()
    for _ in fs.steps.freeing():
        pass
    assert not fs.holds_forgettable


def test_the_blocks_of_a_map_move(open_fs: OpenFs, any_format: tuple[str, ...]) -> None:
    """A map of three levels; the data is not touched where it does not lie there."""
    fs = open_fs(*any_format)
    file = fragmented(fs, 600)
    before = content(fs, file)
    data = used_places(fs, file.ino)
    nodes = owned(fs, file.ino) - data
    assert len(nodes) > 1
    runs = fs.describe(file.ino)
    moved = 0
    for number in sorted(nodes):
        done = fs.vacate(file.ino, ByteRange(number << fs.volume.block_bits, number + 1 << fs.volume.block_bits))
        assert done.stayed == ()
        moved += done.metadata
        assert number not in owned(fs, file.ino)
    assert moved == len(nodes) << fs.volume.block_bits
    assert fs.describe(file.ino) == runs
    assert content(fs, file) == before
    fs.write(file, 0, b"new" * 1000)
    fs.sync()
    fs.check()
    fs.release(file)


def test_all_of_a_file_moves(open_fs: OpenFs, any_format: tuple[str, ...]) -> None:
    fs = open_fs(*any_format)
    file = fragmented(fs, 300)
    fs.setxattr(file.ino, b"user.large", b"x" * 700)
    before = content(fs, file)
    was = owned(fs, file.ino)
    done = fs.vacate(file.ino, place_of(fs, was))
    assert done.stayed == ()
    assert done.metadata
    low, high = min(was), max(was)
    assert not [number for number in owned(fs, file.ino) if low <= number <= high]
    assert content(fs, file) == before
    assert fs.getxattr(file.ino, b"user.large") == b"x" * 700
    fs.check()
    fs.release(file)


def test_long_symbolic_links_and_attributes_move(open_fs: OpenFs, any_format: tuple[str, ...]) -> None:
    fs = open_fs(*any_format)
    fs.tree.symlink("t" * 300, "l")
    fs.tree.mkdir("d")
    fs.mknod(ROOT_INO, b"fifo", 0o010600)
    link = fs.tree.resolve("l", follow=False)
    assert leaves(fs, link).moved == fs.volume.block_size
    assert fs.readlink(link) == b"t" * 300
    for path in ("d", "fifo", "l"):
        ino = fs.tree.resolve(path, follow=False)
        fs.setxattr(ino, b"trusted.x", b"v" * 600)
        assert leaves(fs, ino).metadata == fs.volume.block_size
        fs.sync()
        assert fs.getxattr(ino, b"trusted.x") == b"v" * 600
        fs.setxattr(ino, b"trusted.x", b"w" * 500)
        assert fs.getxattr(ino, b"trusted.x") == b"w" * 500
    assert fs.readlink(link) == b"t" * 300


def share_attributes(fs: FileSystem, inos: list[int]) -> int:
    """Have all inodes refer to the first one's block of attributes, as the kernel shares them; return the block."""
    with fs.volume.handle(8) as tx:
        first = inodes.read(tx, inos[0])
        for ino in inos[1:]:
            inode = inodes.edit(tx, ino)
            target = first.file_acl
            block = tx.edit(target, xattrs._sealer(tx.geometry, target))
            block.cast("I")[1] += 1
            inode.file_acl = target
            inodes.add_blocks(inode, 1, tx.geometry)
        return first.file_acl


def references(fs: FileSystem, ino: int) -> tuple[int, int]:
    """The block of an inode's attributes, and how many inodes share it."""
    number = inodes.read(fs.volume.view, ino).file_acl
    return number, fs.volume.view.block(number).cast("I")[1]


@pytest.mark.parametrize("mount", ["default", "no-csum"])
def test_shared_attributes_stay_shared(open_fs: OpenFs, mount: str) -> None:
    fs = open_fs(*(() if mount == "default" else ("-O", "^metadata_csum")))
    inos = [fs.mknod(ROOT_INO, b"%d" % number, 0o100600).ino for number in range(4)]
    fs.setxattr(inos[0], b"user.x", b"s" * 600)
    shared = share_attributes(fs, inos)
    fs.sync()
    fs.evacuate(ByteRange(shared << 12, shared + 1 << 12))
    assert {references(fs, ino) for ino in inos} == {(references(fs, inos[0])[0], 4)}
    assert references(fs, inos[0])[0] != shared
    assert {fs.getxattr(ino, b"user.x") for ino in inos} == {b"s" * 600}


def test_one_of_several_that_share_attributes_moves_alone(open_fs: OpenFs) -> None:
    fs = open_fs()
    inos = [fs.mknod(ROOT_INO, b"%d" % number, 0o100600).ino for number in range(3)]
    fs.setxattr(inos[0], b"user.x", b"s" * 600)
    shared = share_attributes(fs, inos)
    assert fs.vacate(inos[1], ByteRange(shared << 12, shared + 1 << 12)).metadata == 4096
    assert references(fs, inos[1]) == (references(fs, inos[1])[0], 1)
    assert references(fs, inos[0]) == references(fs, inos[2]) == (shared, 2)
    assert {fs.getxattr(ino, b"user.x") for ino in inos} == {b"s" * 600}


def test_an_old_place_takes_data_and_replay_leaves_it_alone(memory_fs: FileSystem) -> None:
    """What moves was in the log at its old place, where a file's data lies when the power fails."""
    fs = memory_fs
    ino = crowded(fs, 20)
    file = fragmented(fs, 300, b"fragments")
    fs.tree.symlink("t" * 300, "l")
    fs.setxattr(ino, b"user.x", b"x" * 600)
    link = fs.tree.resolve("l", follow=False)
    fs.sync()
    before = {number: owned(fs, number) for number in (ino, link)} | {
        file.ino: owned(fs, file.ino) - used_places(fs, file.ino)
    }
    for number in before:
        for block in sorted(before[number]):
            fs.vacate(number, ByteRange(block << 12, block + 1 << 12))
    fs.sync()
    taker = make(fs, b"taker")
    with refused(errno.ENOSPC):
        while True:
            fs.write(taker, taker.size, random.Random(taker.size).randbytes(65536))
    assert set().union(*before.values()) <= used_places(fs, taker.ino), "all old places hold data"
    fs.sync()
    expected = content(fs, taker)
    fs.release(taker)
    fs.release(file)
    with after_power_loss(fs) as again:
        assert content(again, again.open_file(again.tree.resolve("taker"))) == expected


def test_a_snapshot_shows_what_was(open_fs: OpenFs, tmp_path: Path) -> None:
    fs = open_fs(mount=QUIET)
    ino = crowded(fs, 90)
    file = fragmented(fs, 400, b"fragments")
    fs.tree.symlink("t" * 300, "l")
    fs.setxattr(file.ino, b"user.large", b"x" * 700)
    fs.sync()
    before = tree(fs)
    fs.create_snapshot(b"s")
    for number in (ino, file.ino, fs.tree.resolve("l", follow=False)):
        assert fs.vacate(number, place_of(fs, owned(fs, number))).stayed == ()
    fs.sync()
    more = make(fs, b"more")
    fs.write(more, 0, bytes(12 << 20))
    fs.sync()
    assert differences(fs, b"s", before, tmp_path) == []
    fs.release(more)
    fs.release(file)


def test_what_is_refused(open_fs: OpenFs) -> None:
    fs = open_fs()
    fs.create_snapshot(b"s")
    everything = ByteRange(0, fs.volume.pool.size)
    for ino in (7, 8, fs.tree.resolve(".daxfs/snapshots/s")):
        with refused(errno.EINVAL):
            fs.vacate(ino, everything)
    assert fs.vacate(fs.mknod(ROOT_INO, b"empty", 0o100600).ino, everything) == Relocation(0, ())


def test_a_full_pool_and_bad_memory(open_fs: OpenFs) -> None:
    fs = open_fs(size="24M")
    ino = crowded(fs, 60)
    first, second, *_ = sorted(run.pblk + at for run in fs.describe(ino) for at in range(run.length))
    fs.setxattr(ino, b"user.x", b"x" * 600)
    attributes = inodes.read(fs.volume.view, ino).file_acl
    for number in (second, attributes):
        fs.volume.pool.bad.add(number << 12, number + 1 << 12)
    done = fs.vacate(ino, place_of(fs, owned(fs, ino)))
    parts = {(part.why, part.part) for part in done.stayed}
    assert parts == {(BAD, CONTENT), (BAD, ATTRIBUTES)}
    assert {second, attributes} <= owned(fs, ino)
    assert first not in owned(fs, ino)
    fs.volume.pool.bad.take_out(0, fs.volume.pool.size)
    file = fragmented(fs, 400, b"fragments")
    rest = make(fs, b"rest")
    with refused(errno.ENOSPC):
        while True:
            fs.write(rest, rest.size, bytes(1 << 20))
    with refused(errno.ENOSPC):
        while True:
            fs.write(rest, rest.size, bytes(4096))
    nodes = owned(fs, file.ino) - used_places(fs, file.ino)
    done = fs.vacate(file.ino, ByteRange(min(nodes) << 12, max(nodes) + 1 << 12))
    assert {part.why for part in done.stayed} == {FULL}
    assert MAP in {part.part for part in done.stayed}
    fs.check()
    fs.release(rest)
    fs.release(file)


def test_a_damaged_block_stays_and_the_others_move(small_image: bytes) -> None:
    fs = FileSystem.open(MemoryPool(small_image), Options(errors="continue"))
    ino = crowded(fs, 60)
    fs.sync()
    victim = dirblocks.number_of(fs.volume.view, inodes.read(fs.volume.view, ino), 1)
    before = owned(fs, ino)
    fs.volume.pool.memory[victim << 12] ^= 0xFF
    fs.volume.forget_content()
    fs.volume.journal.checkpoint()
    remounted = FileSystem.open(MemoryPool(bytearray(fs.volume.pool.memory)), Options(errors="continue"))
    done = remounted.vacate(ino, place_of(remounted, before))
    assert {(part.why, part.part) for part in done.stayed} == {(DAMAGED, CONTENT)}
    assert victim in owned(remounted, ino)
    assert done.moved
    assert remounted.metadata_errors().count
    assert not remounted.read_only


def test_what_a_relocation_says(open_fs: OpenFs) -> None:
    """The fields that callers of the older form read."""
    moved, stayed, metadata = Relocation(1, (Stayed(0, 1, BAD),))
    assert (moved, stayed[0].part, metadata) == (1, CONTENT, 0)
    fs = open_fs()
    assert (
        mapping.own_blocks(fs.volume.view, inodes.read(fs.volume.view, ROOT_INO), 0, BlockRun(0, 1 << 30), 9)[0] == []
    )
