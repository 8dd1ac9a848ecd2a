"""Atomic writes of a few blocks: logged in place, seen at once, and never undone by a replay of the log."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crash_rig import FORMATS, QUIET, image, noise
from lease_rig import STORE, client, fill_up
from range_rig import COLLAPSE, KEEP_SIZE, PUNCH, ZERO, content, refused
from recorder import RecordingPool

from daxfs.ext4 import jbd2
from daxfs.ext4.inode import EXT4_JOURNAL_DATA_FL
from daxfs.fs import datalog, nodes
from daxfs.fs.filesystem import ROOT_INO, FileSystem, OpenFile
from daxfs.fs.types import SetAttributes
from daxfs.journal import recovery
from daxfs.pmem.memory import MemoryPool
from daxfs.structures import inodes
from support import fsck

OpenFs = Callable[..., FileSystem]


def make(fs: FileSystem, size: int = 0, name: bytes = b"file") -> OpenFile:
    file = fs.create(ROOT_INO, name, 0o644)[0]
    if size:
        fs.write(file, 0, noise(size, size))
    return file


def home(fs: FileSystem, file: OpenFile, lblk: int) -> bytes:
    """What the pool itself has of a block."""
    run = next(run for run in fs.describe(file.ino) if run.lblk <= lblk < run.lblk + run.length)
    size = fs.volume.block_size
    at = (run.pblk + lblk - run.lblk) * size
    return bytes(fs.volume.pool.memory[at : at + size])


def after_a_crash(fs: FileSystem, name: str = "file") -> bytes:
    """The content that a file has if the power fails now and everything stored so far is in the pool."""
    with FileSystem.open(bytes_of(fs), QUIET) as left:
        return left.tree.read_bytes(name)


def bytes_of(fs: FileSystem) -> MemoryPool:
    """A copy of the pool, without the daemon's state."""
    return MemoryPool(bytes(fs.volume.pool.memory))


def in_log(fs: FileSystem, ino: int) -> int:
    """How many blocks of a file the log or the running transaction holds."""
    return len(fs.volume.journal.logged.owners.get(ino, ()))


@pytest.fixture(params=FORMATS)
def fs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FileSystem]:
    pool = MemoryPool(image(request.param))
    with FileSystem.open(pool, QUIET) as opened:
        yield opened
        opened.check()
        pool.close = lambda: None  # type: ignore[method-assign]
    path = tmp_path / "pool"
    path.write_bytes(pool.image())
    fsck(path)


def test_it_goes_home_with_the_commit(fs: FileSystem) -> None:
    size = fs.volume.block_size
    file = make(fs, 4 * size)
    fs.sync()
    old, extents = content(fs, file), fs.describe(file.ino)
    fs.write(file, size - 5, b"n" * size, atomic=True)
    new = old[: size - 5] + b"n" * size + old[2 * size - 5 :]
    assert content(fs, file) == new
    assert bytes(fs.read(file, size - 7, 4)) == new[size - 7 : size - 3]
    assert home(fs, file, 0) == old[:size]
    assert after_a_crash(fs) == old
    fs.fsync(file.ino, datasync=True)
    assert home(fs, file, 0) == new[:size]
    assert content(fs, file) == new == after_a_crash(fs)
    assert fs.describe(file.ino) == extents
    fs.release(file)


def test_what_the_log_holds_is_stored_by_replay(fs: FileSystem) -> None:
    """Also what begins like a block of the log itself, and if the home copy was lost."""
    size = fs.volume.block_size
    file = make(fs, 2 * size)
    fs.sync()
    new = (jbd2.MAGIC_BYTES + noise(size, 3))[:size]
    fs.write(file, size, new, atomic=True)
    fs.sync()
    volume = fs.volume
    left = MemoryPool(volume.pool.image())
    at = left.memory.tobytes().index(new)
    left.write(at, bytes(size))
    assert volume.log_area is not None
    assert recovery.replay(left, volume.geometry, volume.log_area).replayed
    assert bytes(left.memory[at : at + size]) == new
    fs.release(file)


def test_readers_of_every_kind_see_it_before_the_commit(fs: FileSystem) -> None:
    size = fs.volume.block_size
    file, other = make(fs, 4 * size), make(fs, 0, b"other")
    fs.sync()
    model = bytearray(content(fs, file))
    fs.write(file, size, b"n" * size, atomic=True)
    model[size : 2 * size] = b"n" * size
    assert fs.seek(file, 0, os.SEEK_HOLE) == 4 * size
    assert fs.copy_range(file, 0, other, 0, 4 * size) == 4 * size
    assert content(fs, other) == model
    again = fs.open_file(file.ino)
    fs.release(file)
    assert content(fs, again) == model
    fs.release(again)
    reopened = fs.open_file(again.ino)
    assert content(fs, reopened) == model, "the node has outlived its last close"
    for opened in (reopened, other):
        fs.release(opened)


def test_a_scattered_file(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without a map in DRAM."""
    for module in (nodes, __import__("daxfs.fs.data", fromlist=["data"])):
        monkeypatch.setattr(module, "MAX_RUNS", 1)
    size = fs.volume.block_size
    file = make(fs, 3 * size)
    fs.write(file, 5 * size, b"x" * size)
    fs.sync()
    model = bytearray(content(fs, file))
    fs.write(file, size, b"n" * 100, atomic=True)
    model[size : size + 100] = b"n" * 100
    assert content(fs, file) == model
    fs.sync()
    assert content(fs, file) == model == after_a_crash(fs)
    fs.release(file)


def test_long_writes_holes_and_unwritten_blocks_are_staged(fs: FileSystem) -> None:
    size = fs.volume.block_size
    file = make(fs, 8 * size)
    fs.write(file, 10 * size, b"x" * size)
    fs.sync()
    for offset, length in ((0, (datalog.MOST_BLOCKS + 1) * size), (9 * size, 100), (20 * size, 5)):
        fs.write(file, offset, b"n" * length, atomic=True)
        assert not in_log(fs, file.ino)
    fs.write(file, file.size - 1, b"nn", atomic=True)
    assert in_log(fs, file.ino) == 1
    fs.release(file)


def test_an_append_zeroes_what_it_leaves_out(fs: FileSystem) -> None:
    file = make(fs, 300)
    fs.sync()
    block = fs.describe(file.ino)[0].pblk * fs.volume.block_size
    fs.volume.pool.write(block + 300, b"litter")
    fs.write(file, 310, b"end", atomic=True)
    assert in_log(fs, file.ino) == 1
    assert content(fs, file)[300:] == bytes(10) + b"end"
    assert len(after_a_crash(fs)) == 300
    fs.sync()
    assert after_a_crash(fs) == content(fs, file)
    fs.release(file)


def test_the_next_plain_write_is_a_copy_again(fs: FileSystem) -> None:
    """A store in place revokes what the log holds, once; then the file is as any other."""
    size = fs.volume.block_size
    file = make(fs, 4 * size)
    fs.sync()
    fs.write(file, 0, b"a" * 10, atomic=True)
    assert not file.node.plain
    fs.write(file, 2 * size, b"b" * 10)
    assert in_log(fs, file.ino) == 1, "the log holds another block of the file"
    fs.write(file, 5, b"c" * 10)
    assert not in_log(fs, file.ino)
    fs.write(file, 7, b"d" * 10)
    assert file.node.plain
    fs.fsync(file.ino, datasync=True)
    assert after_a_crash(fs) == content(fs, file)
    fs.release(file)


def test_the_list_ends_with_the_lap_of_the_log(fs: FileSystem) -> None:
    size = fs.volume.block_size
    file = make(fs, 4 * size)
    moves = fs.volume.journal.stats.tail_moves
    while fs.volume.journal.stats.tail_moves == moves:
        fs.write(file, 0, noise(size, 1), atomic=True)
        fs.sync()
    fs.write(file, 2 * size, b"x", atomic=True)
    assert in_log(fs, file.ino) == 2
    fs.sync()
    fs.volume.journal.logged.keep(())
    assert not file.node.plain
    fs.write(file, 0, b"y")
    assert file.node.plain
    fs.write(file, 2 * size, b"x", atomic=True)
    fs.release(file)
    fs.unlink(ROOT_INO, b"file")
    fs.sync()
    assert not fs.volume.journal.logged


def test_a_journal_that_is_aborted_drops_it(fs: FileSystem) -> None:
    size = fs.volume.block_size
    file = make(fs, 2 * size)
    fs.sync()
    old = content(fs, file)
    fs.write(file, 0, b"n" * size, atomic=True)
    fs.volume.abort(RuntimeError())
    assert content(fs, file) == old
    fs.release(file)


class Mixed:
    """Atomic and plain operations on one file, beside a model."""

    def __init__(self, fs: FileSystem, seed: int) -> None:
        self.fs, self.chance = fs, random.Random(seed)
        self.file, self.model = make(fs), bytearray()
        self.size = fs.volume.block_size

    def put(self, offset: int, new: bytes) -> None:
        if not new:
            return
        self.model += bytes(max(offset + len(new) - len(self.model), 0))
        self.model[offset : offset + len(new)] = new

    def write(self, *, atomic: bool, most: int) -> None:
        new = self.chance.randbytes(self.chance.randrange(1, most))
        offset = self.chance.randrange(12 * self.size)
        self.fs.write(self.file, offset, new, atomic=atomic)
        self.put(offset, new)

    def truncate(self) -> None:
        size = self.chance.randrange(14 * self.size)
        self.fs.setattr(self.file.ino, SetAttributes(size=size))
        self.model = self.model[:size] + bytes(max(size - len(self.model), 0))

    def allocate(self, mode: int) -> None:
        begin = self.chance.randrange(12 * self.size)
        end = begin + self.chance.randrange(1, 4 * self.size)
        self.fs.fallocate(self.file, mode, begin, end - begin)
        if mode != KEEP_SIZE:
            inside = min(end, len(self.model))
            self.model[begin:inside] = bytes(max(inside - begin, 0))

    def collapse(self) -> None:
        if len(self.model) > 4 * self.size and self.fs.volume.geometry.has_extents:
            self.fs.fallocate(self.file, COLLAPSE, self.size, self.size)
            del self.model[self.size : 2 * self.size]

    def copy(self) -> None:
        source, target = self.chance.sample(range(12), 2)
        length = min(abs(source - target), 2) * self.size
        copied = self.fs.copy_range(self.file, source * self.size, self.file, target * self.size, length)
        self.put(target * self.size, bytes(self.model[source * self.size : source * self.size + copied]))

    def reopen(self) -> None:
        self.fs.release(self.file)
        self.file = self.fs.open_file(self.file.ino, os.O_RDWR)

    def sync(self) -> None:
        self.fs.fsync(self.file.ino, datasync=True)
        assert after_a_crash(self.fs) == self.model

    def step(self) -> None:
        extents = self.fs.volume.geometry.has_extents
        steps: list[Callable[[], object]] = [
            *[lambda: self.write(atomic=True, most=2 * self.size)] * 5,
            lambda: self.write(atomic=True, most=6 * self.size),
            *[lambda: self.write(atomic=False, most=2 * self.size)] * 2,
            lambda: self.write(atomic=False, most=6 * self.size),
            self.truncate,
            lambda: self.allocate(PUNCH | KEEP_SIZE),
            *([lambda: self.allocate(ZERO | KEEP_SIZE), lambda: self.allocate(KEEP_SIZE)] if extents else []),
            self.collapse,
            self.copy,
            self.reopen,
            *[self.sync] * 4,
        ]
        step = self.chance.choice(steps)
        step()
        assert content(self.fs, self.file) == self.model, step.__name__
        self.fs.check()


@pytest.mark.parametrize("seed", range(3))
def test_a_replay_undoes_nothing_that_was_synced(fs: FileSystem, seed: int) -> None:
    mixed = Mixed(fs, seed)
    for _ in range(150):
        mixed.step()
    mixed.sync()
    fs.release(mixed.file)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(3, 40))
def test_a_replay_undoes_nothing_in_many_mixtures(fs: FileSystem, seed: int) -> None:
    test_a_replay_undoes_nothing_that_was_synced(fs, seed)


def test_freed_blocks_of_the_log_become_those_of_other_files(fs: FileSystem) -> None:
    size = fs.volume.block_size
    victim, other = make(fs, 4 * size, b"victim"), make(fs)
    for lblk in range(4):
        fs.write(victim, lblk * size, b"v" * size, atomic=True)
    fs.sync()
    fs.release(victim)
    fs.unlink(ROOT_INO, b"victim")
    fs.sync()
    done = fs.write(other, 0, noise(16 << 20, 5))
    fs.fsync(other.ino)
    assert after_a_crash(fs) == noise(16 << 20, 5)[:done]
    fs.release(other)


def test_clients_store_where_no_replay_does(open_fs: OpenFs) -> None:
    """A grant for storing revokes what the log holds; while there are grants, writes go to new blocks."""
    fs = open_fs("-O", "^resize_inode")
    held = client(fs, b"file", noise(8192, 1))
    fs.sync()
    fs.write(held.file, 0, b"a" * 4096, atomic=True)
    held.ask(0, 8192, STORE)
    assert not in_log(fs, held.file.ino)
    held.store(100, b"by the client")
    held.stored(durable=True)
    with FileSystem.open(bytes_of(fs), QUIET) as left:
        assert left.tree.read_bytes("file")[100:113] == b"by the client"
    fs.write(held.file, 4096, b"b" * 4096, atomic=True)
    assert not in_log(fs, held.file.ino)
    held.close()


def journaled(fs: FileSystem, file: OpenFile, on: bool = True) -> None:
    """chattr +j or -j."""
    others = fs.get_flags(file.ino) & ~EXT4_JOURNAL_DATA_FL
    fs.set_flags(file.ino, others | on * EXT4_JOURNAL_DATA_FL)


def test_each_write_to_a_journaled_file_is_atomic(fs: FileSystem) -> None:
    """Short and long overwrites and appends, while the file is open and after it was opened anew."""
    size = fs.volume.block_size
    file = make(fs, 20 * size)
    journaled(fs, file)
    fs.sync()
    for _ in range(2):
        old, extents = content(fs, file), fs.describe(file.ino)
        fs.write(file, 10, b"n" * size)
        assert after_a_crash(fs) == old
        assert fs.describe(file.ino) == extents
        fs.write(file, size, b"m" * 18 * size)
        assert after_a_crash(fs) == old
        assert fs.describe(file.ino) != extents
        fs.write(file, file.size, b"append")
        assert after_a_crash(fs) == old
        fs.fsync(file.ino, datasync=True)
        assert after_a_crash(fs) == content(fs, file)
        fs.release(file)
        file = fs.open_file(file.ino, os.O_RDWR)
    fs.release(file)


def test_no_longer_journaled(fs: FileSystem) -> None:
    """A write that fsync makes durable after chattr -j is not undone by what the log holds."""
    size = fs.volume.block_size
    file = make(fs, 4 * size)
    journaled(fs, file)
    fs.write(file, 0, b"a" * size)
    fs.fsync(file.ino)
    fs.write(file, size, b"b" * size)
    journaled(fs, file, False)
    assert file.node.plain
    assert not in_log(fs, file.ino)
    fs.write(file, 10, b"c" * 2 * size)
    fs.fsync(file.ino)
    assert after_a_crash(fs) == content(fs, file)
    fs.release(file)


def test_an_append_to_a_journaled_file_that_finds_no_room(open_fs: OpenFs) -> None:
    """All or nothing: a plain write would be short."""
    fs = open_fs("-O", "^resize_inode")
    file = make(fs, 100)
    journaled(fs, file)
    fill_up(fs, 40)
    with refused(errno.ENOSPC):
        fs.write(file, 100, bytes(400_000))
    assert file.size == 100
    fs.release(file)


def test_clients_only_read_a_journaled_file(open_fs: OpenFs) -> None:
    fs = open_fs()
    held = client(fs, b"file", noise(8192, 1))
    held.ask(0, 8192, STORE)
    with refused(errno.EBUSY):
        journaled(fs, held.file)
    assert fs.write(held.file, 0, b"plain") == 5
    held.renew()
    journaled(fs, held.file)
    with refused(errno.EOPNOTSUPP):
        held.ask(0, 8192, STORE)
    fs.write(held.file, 4096, b"b" * 4096)
    answer = held.ask(0, 8192)
    place = answer.pieces[0].pool_offset
    assert bytes(fs.volume.pool.memory[place + 4096 : place + 8192]) == b"b" * 4096, "it has gone home"
    fs.write(held.file, 0, b"c" * 100)
    assert not held.current, "the client must ask again"
    held.close()


def test_clients_that_only_read_go_on_when_a_file_becomes_journaled(open_fs: OpenFs) -> None:
    """What is written then goes to new blocks, so they never see a part."""
    fs = open_fs()
    held = client(fs, b"file", noise(8192, 1))
    answer = held.ask(0, 8192)
    place = answer.pieces[0].pool_offset
    journaled(fs, held.file)
    fs.write(held.file, 0, b"n" * 4096)
    assert bytes(fs.volume.pool.memory[place : place + 8192]) == noise(8192, 1)
    assert not held.current, "the client must ask again"
    with refused(errno.EOPNOTSUPP):
        held.ask(0, 8192, STORE)
    fs.fsync(held.file.ino)
    place = held.ask(0, 4096).pieces[0].pool_offset
    assert bytes(fs.volume.pool.memory[place : place + 4096]) == b"n" * 4096
    held.close()


def test_a_pool_without_a_journal_has_no_atomic_writes(open_fs: OpenFs) -> None:
    """Its commits are not atomic themselves. A file that got the flag elsewhere is written as any other."""
    fs = open_fs("-O", "^has_journal")
    file = make(fs, 8192)
    assert not fs.has_atomic_writes
    for refusing in (lambda: fs.write(file, 0, b"n" * 4096, atomic=True), lambda: fs.batch(file)):
        with refused(errno.EOPNOTSUPP):
            refusing()
    with fs.volume.handle(1) as tx:
        inodes.edit(tx, file.ino).flags |= EXT4_JOURNAL_DATA_FL
    fs.volume.refresh(file.ino)
    fs.write(file, 0, b"n" * 4096)
    assert fs.read(file, 0, 4096) == b"n" * 4096
    fs.release(file)


def test_only_words_of_the_commit_decide() -> None:
    """Nothing is stored to the block before the commit record is durable."""
    pool = RecordingPool(bytearray(image("4k")))
    fs = FileSystem.open(pool, QUIET)
    file = make(fs, 8192)
    fs.sync()
    begun = len(pool.events)
    fs.write(file, 100, b"n" * 4096, atomic=True)
    assert len(pool.events) == begun
