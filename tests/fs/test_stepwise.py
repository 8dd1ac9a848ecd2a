"""Long operations in steps: what others see between two steps, what shortens them, and what is left to free."""

from __future__ import annotations

import errno
import os

import pytest
from steps_rig import count
from tree_rig import QUIET

from daxfs.errors import FsError, MissingMemory
from daxfs.fs import data, ranges, removal, trim, truncating
from daxfs.fs import volume as volume_module
from daxfs.fs.filesystem import FileSystem, OpenFile
from daxfs.fs.steps import Steps, finish, interruption
from daxfs.fs.types import ROOT_INO, Caller, SetAttributes
from daxfs.fs.volume import Volume
from daxfs.pmem.memory import MemoryPool
from daxfs.structures import dirlist, inodes

BLOCK = 4096
COMB = 24
ROOT = Caller()
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE = 0x01, 0x02, 0x08, 0x10


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each step do the least that it can."""
    monkeypatch.setattr(truncating, "BLOCKS_PER_CUT", 1)
    monkeypatch.setattr(data, "BYTES_PER_READ", 2 * BLOCK)
    monkeypatch.setattr(removal, "BLOCKS_PER_STEP", 1)
    monkeypatch.setattr(ranges, "RUNS_PER_STEP", 1)
    monkeypatch.setattr(ranges, "EXTENTS_PER_STEP", 1)
    monkeypatch.setattr(ranges, "LEAVES_PER_SEARCH", 1)
    monkeypatch.setattr(ranges, "BYTES_PER_STEP", 2 * BLOCK)
    monkeypatch.setattr(trim, "BYTES_PER_STEP", 4 * BLOCK)


@pytest.fixture
def fs(memory_fs: FileSystem) -> FileSystem:
    return memory_fs


def comb(fs: FileSystem, name: bytes = b"f", first: int = 0) -> OpenFile:
    """Make a file of many single blocks with holes between them."""
    file, _ = fs.create(ROOT_INO, name, 0o600)
    for number in range(COMB):
        fs.write(file, (2 * number + first) * BLOCK, b"%02d" % number * (BLOCK // 2))
    return file


def test_a_truncate_shows_its_new_size_and_frees_in_steps(fs: FileSystem) -> None:
    """Between two steps the orphan list names the file, and other files can be changed."""
    file = comb(fs)
    blocks: list[int] = []

    def between() -> None:
        blocks.append(fs.getattr(file.ino).blocks)
        assert fs.getattr(file.ino).size == 10
        fs.tree.write_bytes(f"/other{len(blocks) % 3}", b"x" * 5000)
        fs.sync()
        assert fs.volume.lives.listed == {file.ino}
        fs.check()

    assert count(fs.steps.setattr(file.ino, SetAttributes(size=10), ROOT), between) > COMB - 4
    assert blocks == sorted(blocks, reverse=True)
    assert bytes(fs.read(file, 0, 100)) == b"00" * 5
    assert not fs.volume.lives.listed
    fs.release(file)


def test_an_open_with_o_trunc_is_in_steps(fs: FileSystem) -> None:
    fs.release(comb(fs))
    ino = fs.tree.resolve("/f")
    assert count(fs.steps.open_file(ino, os.O_RDWR | os.O_TRUNC, ROOT), lambda: None) > COMB - 4
    assert fs.getattr(ino).size == 0
    fs.volume.nodes.closed(fs.volume.nodes.open[ino])


def test_a_long_read_of_fragments_is_in_steps(fs: FileSystem) -> None:
    """A change between two steps is in what is read later."""
    file = comb(fs)
    size = 2 * COMB * BLOCK
    expected = bytearray(fs.read(file, 0, size))
    steps = fs.steps.read(file, 100, size)
    next(steps)
    fs.write(file, BLOCK, b"too late")
    fs.write(file, size - 3 * BLOCK, b"seen")
    expected[size - 3 * BLOCK : size - 3 * BLOCK + 4] = b"seen"
    number, found = 1, None
    while found is None:
        try:
            next(steps)
            number += 1
        except StopIteration as end:
            found = end.value
    assert bytes(found) == expected[100 : len(expected)]
    assert number == COMB - 1
    fs.release(file)


def test_a_long_read_of_one_piece_is_a_view(fs: FileSystem) -> None:
    file, _ = fs.create(ROOT_INO, b"f", 0o600)
    fs.write(file, 0, b"x" * COMB * BLOCK)
    found = finish(fs.steps.read(file, BLOCK, COMB * BLOCK))
    assert isinstance(found, memoryview)
    assert found.obj is fs.volume.memory.obj
    assert len(found) == (COMB - 1) * BLOCK
    assert finish(fs.steps.read(file, COMB * BLOCK, 10 * BLOCK)) == b""
    fs.release(file)


def test_a_file_that_is_cut_meanwhile_is_read_to_its_end(fs: FileSystem) -> None:
    file = comb(fs)
    steps = fs.steps.read(file, 0, 2 * COMB * BLOCK)
    next(steps)
    fs.setattr(file.ino, SetAttributes(size=5 * BLOCK), ROOT)
    assert bytes(finish(steps)) == bytes(fs.read(file, 0, 10 * BLOCK))
    fs.release(file)


@pytest.mark.interpreted
@pytest.mark.parametrize("dax", [True, False])
def test_memory_that_fails_ends_a_long_read(fs: FileSystem, monkeypatch: pytest.MonkeyPatch, dax: bool) -> None:
    """What was read before is returned, unless the page cache would take it for the whole file."""
    file = comb(fs)
    file.node.dax = dax
    read = data.read

    def failing(volume: Volume, file: OpenFile, offset: int, size: int) -> memoryview | bytes:
        if offset >= 4 * BLOCK:
            raise FsError(errno.EIO)
        return read(volume, file, offset, size)

    monkeypatch.setattr(data, "read", failing)
    if dax:
        assert len(finish(fs.steps.read(file, 0, 10 * BLOCK))) == 4 * BLOCK
    for begin in (0, 4 * BLOCK)[dax:]:
        with pytest.raises(FsError) as refusal:
            finish(fs.steps.read(file, begin, 10 * BLOCK))
        assert refusal.value.errno == errno.EIO
    fs.release(file)


@pytest.mark.parametrize("unlinked", [False, True])
def test_an_abandoned_truncate_is_finished(fs: FileSystem, unlinked: bool) -> None:
    """The rest is freed as that of a removed file; a file that was removed meanwhile, too."""
    free = fs.statfs().free
    fs.release(comb(fs))
    ino = fs.tree.resolve("/f")
    steps = fs.steps.setattr(ino, SetAttributes(size=0), ROOT)
    for _ in range(3):
        next(steps)
    if unlinked:
        fs.unlink(ROOT_INO, b"f")
    steps.close()
    assert fs.steps.unfinished
    finish(fs.steps.freeing())
    assert not fs.volume.lives.nameless
    assert not fs.volume.lives.listed
    assert fs.statfs().free == free


def test_an_abandoned_truncate_is_finished_by_the_unmount(small_image: bytes) -> None:
    content = bytearray(small_image)
    fs = FileSystem.open(MemoryPool(content), QUIET)
    fs.release(comb(fs))
    ino = fs.tree.resolve("/f")
    steps = fs.steps.setattr(ino, SetAttributes(size=BLOCK), ROOT)
    next(steps)
    steps.close()
    fs.close()
    with FileSystem.open(MemoryPool(bytes(content)), QUIET) as again:
        assert again.getattr(ino).blocks == BLOCK // 512
        assert not again.volume.lives.listed


def test_a_closed_file_is_freed_afterwards(fs: FileSystem) -> None:
    """`release` does one step. What is left counts as free."""
    fs.sync()
    before = fs.statfs()
    file = comb(fs)
    fs.unlink(ROOT_INO, b"f")
    fs.steps.release(file)
    assert fs.steps.unfinished
    assert fs.statfs().free == before.free
    number = count(fs.steps.freeing(), lambda: fs.statfs().free == before.free or pytest.fail("blocks are lost"))
    assert number > COMB - 4
    assert not fs.steps.unfinished
    assert (fs.statfs().free, fs.statfs().files_free) == (before.free, before.files_free)


def test_a_forgotten_file_is_freed_afterwards(fs: FileSystem) -> None:
    file = comb(fs)
    fs.pin(fs.getattr(file.ino))
    fs.unlink(ROOT_INO, b"f")
    fs.release(file)
    assert not fs.steps.unfinished
    fs.steps.unpin(file.ino)
    assert fs.steps.unfinished
    with pytest.raises(FsError) as caught:
        fs.by_number(file.ino)
    assert caught.value.errno == errno.ESTALE
    finish(fs.steps.freeing())
    assert not fs.volume.lives.nameless


def test_a_full_pool_waits_for_what_is_being_freed(fs: FileSystem) -> None:
    """An operation that finds no room has some of it freed, until there is room, or all of it before it is refused."""
    file = comb(fs)
    fs.unlink(ROOT_INO, b"f")
    rest, _ = fs.create(ROOT_INO, b"rest", 0o600)
    with pytest.raises(FsError):
        fs.fallocate(rest, 0, 0, 1 << 40)
    fs.steps.release(file)
    assert fs.steps.unfinished
    assert fs.write(rest, 1 << 41, b"x" * BLOCK) == BLOCK
    assert fs.steps.unfinished
    with pytest.raises(FsError):
        fs.fallocate(rest, 0, 0, 1 << 40)
    assert not fs.steps.unfinished
    fs.release(rest)


def test_others_have_their_turn_while_an_operation_waits_for_room(fs: FileSystem) -> None:
    """An operation in steps that can be repeated has what it needs freed in steps."""
    file = comb(fs)
    fs.unlink(ROOT_INO, b"f")
    fs.steps.release(file)
    assert fs.steps.unfinished
    tried = 0

    def full() -> Steps[None]:
        nonlocal tried
        tried += 1
        yield from ()
        raise FsError(errno.ENOSPC)

    turns: list[int] = []
    with pytest.raises(FsError):
        count(fs.volume.reclaimers.retrying_steps(full), lambda: turns.append(tried))
    assert len(turns) == tried - 1 > 3
    assert not fs.steps.unfinished


@pytest.mark.parametrize(("mode", "least"), [(0, COMB), (ZERO_RANGE, 3 * COMB), (PUNCH_HOLE | KEEP_SIZE, COMB)])
def test_fallocate_in_steps(fs: FileSystem, mode: int, least: int) -> None:
    """Readers see each block as it was or as it will be."""
    file = comb(fs)
    size = 2 * COMB * BLOCK
    before = bytes(fs.read(file, 0, size)).ljust(size, b"\0")
    after = before if not mode else bytes(size)

    def between() -> None:
        found = bytes(fs.read(file, 0, size)).ljust(size, b"\0")
        for begin in range(0, size, BLOCK):
            block = slice(begin, begin + BLOCK)
            assert found[block] in {before[block], after[block]}
        fs.sync()

    assert count(fs.steps.fallocate(file, mode, 0, size), between) > least - 4
    assert bytes(fs.read(file, 0, size)).ljust(size, b"\0") == after
    fs.release(file)


def test_an_interrupted_fallocate_keeps_what_is_done(fs: FileSystem) -> None:
    file = comb(fs)
    blocks = fs.getattr(file.ino).blocks
    steps = fs.steps.fallocate(file, 0, 0, 2 * COMB * BLOCK)
    for _ in range(5):
        next(steps)
    with pytest.raises(FsError) as caught:
        steps.throw(interruption())
    assert caught.value.errno == errno.EINTR
    assert blocks < fs.getattr(file.ino).blocks < 2 * blocks
    fs.release(file)


def test_moves_are_one_step(fs: FileSystem) -> None:
    file = comb(fs)
    assert count(fs.steps.fallocate(file, COLLAPSE_RANGE, 0, BLOCK), lambda: None) == 0
    fs.release(file)


def test_an_interrupted_copy_returns_what_it_copied(fs: FileSystem) -> None:
    source, target = comb(fs), comb(fs, b"g", first=1)
    length = 2 * COMB * BLOCK
    steps = fs.steps.copy_range(source, 0, target, 0, length)
    for _ in range(3):
        next(steps)
    with pytest.raises(StopIteration) as caught:
        steps.throw(interruption())
    copied = caught.value.value
    assert 0 < copied < length
    assert bytes(fs.read(target, 0, copied)) == bytes(fs.read(source, 0, copied))
    done = copied + finish(fs.steps.copy_range(source, copied, target, copied, length - copied))
    assert done == source.size
    assert bytes(fs.read(target, 0, done)) == bytes(fs.read(source, 0, done))
    for file in (source, target):
        fs.release(file)


def test_a_search_is_in_steps(fs: FileSystem) -> None:
    """Each step looks at one leaf, so a search of data behind many reserved blocks takes many."""
    file, _ = fs.create(ROOT_INO, b"f", 0o600)
    extents, leaf = 900, 340
    for number in range(extents):
        fs.fallocate(file, 0, 2 * number * BLOCK, BLOCK)
    fs.write(file, 2 * extents * BLOCK, b"x")
    steps = fs.steps.seek(file, 0, os.SEEK_DATA)
    assert count(steps, lambda: None) >= extents // leaf
    assert fs.seek(file, 0, os.SEEK_DATA) == 2 * extents * BLOCK
    assert fs.seek(file, 0, os.SEEK_HOLE) == 0
    fs.release(file)


def test_a_listing_is_in_portions_and_steps(fs: FileSystem) -> None:
    """A portion has some hundred names, and blocks without names are searched in steps."""
    ino = fs.mkdir(ROOT_INO, b"d", 0o700).ino
    target = fs.mknod(ROOT_INO, b"f", 0o600).ino
    wanted = [b"%04d" % number + b"n" * 100 for number in range(1200)]
    for name in wanted:
        fs.link(target, ino, name)
    directory = fs.opendir(ino)
    found: list[bytes] = []
    cookie = 0
    while names := (portion := finish(fs.steps.readdir(directory, cookie))).names:
        assert len(names) <= dirlist.MOST_NAMES + 100
        found += names
        cookie = portion.cookies[-1]
    assert sorted(found) == sorted([b".", b"..", *wanted])
    for name in found[2:-1]:
        fs.unlink(ino, name)
    steps = fs.steps.readdir(directory, dirlist.COOKIE_DOTDOT)
    assert count(steps, lambda: None) >= 3
    assert [entry.name for entry in fs.readdir(directory)] == [b".", b"..", found[-1]]
    fs.releasedir(directory)


def test_a_trim_sees_what_was_taken_meanwhile(small_image: bytes) -> None:
    """Blocks that are allocated between two steps are not punched out, and all others are."""
    pool = MemoryPool(small_image)
    punched: list[tuple[int, int]] = []
    pool.discard = lambda offset, length: punched.append((offset, length))  # type: ignore[method-assign]
    with FileSystem.open(pool, QUIET) as fs:
        whole = fs.trim()
        assert sum(length for _, length in punched) == whole
        assert len({offset for offset, _ in punched}) == len(punched) > 10
        punched.clear()
        file, _ = fs.create(ROOT_INO, b"f", 0o600)
        steps = fs.steps.trim()
        next(steps)
        fs.fallocate(file, 0, 0, 64 * BLOCK)
        done = len(punched)
        finish(steps)
        later = punched[done:]
        for run in fs.describe(file.ino):
            begin, end = run.pblk * BLOCK, (run.pblk + run.length) * BLOCK
            assert not any(offset < end and offset + length > begin for offset, length in later)
        fs.release(file)


@pytest.mark.interpreted
def test_missing_memory_at_a_step_is_the_error(fs: FileSystem) -> None:
    """The step that met it ends the operation; the next operation is not affected."""
    file = comb(fs)
    steps = fs.steps.fallocate(file, 0, 0, 2 * COMB * BLOCK)
    next(steps)
    faults = [1]

    def lost() -> MissingMemory:
        faults[0] = 0
        return MissingMemory(errno.EIO, "lost")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fs.volume, "lost_memory", lost)
        patch.setattr(fs.volume, "faults", faults)
        with pytest.raises(MissingMemory):
            next(steps)
    assert not faults[0]
    assert bytes(fs.read(file, 0, 2)) == b"00"
    fs.release(file)


def test_a_synchronous_file_is_durable_at_the_end(fs: FileSystem) -> None:
    """Other operations between the steps neither commit early for it, nor take its commit away."""
    file = comb(fs)
    fs.set_flags(file.ino, fs.get_flags(file.ino) | 0x8)  # chattr +S
    fs.sync()
    steps = fs.steps.setattr(file.ino, SetAttributes(size=0), ROOT)
    next(steps)
    assert not fs.volume.sync_due
    fs.tree.write_bytes("/other", b"x")
    assert fs.volume.journal.dirty
    finish(steps)
    assert not fs.volume.journal.dirty
    fs.release(file)


def test_the_caller_of_steps_is_not_the_caller_between_them(fs: FileSystem) -> None:
    file = comb(fs)
    steps = fs.steps.fallocate(file, 0, 0, 2 * COMB * BLOCK, Caller(uid=1000, gid=1000))
    next(steps)
    assert file.caller.uid == 0
    finish(steps)
    assert inodes.read(fs.volume.view, file.ino).size == 2 * COMB * BLOCK
    fs.release(file)


def test_steps_commit_in_time(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a long operation changes does not add up to one long commit."""
    monkeypatch.setattr(volume_module, "MOST_PENDING", 8)
    file = comb(fs)
    fs.sync()
    pending: list[int] = []
    count(fs.steps.setattr(file.ino, SetAttributes(size=0), ROOT), lambda: pending.append(fs.volume.journal.pending))
    assert len(pending) > COMB - 4
    assert max(pending) < 8
    fs.release(file)
