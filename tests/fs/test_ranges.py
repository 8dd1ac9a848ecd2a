"""Ranges of files: fallocate and seek against a model of a file, against the kernel, and in a full pool."""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import crash_rig
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from in_memory import SHARED_MEMORY
from kernel_rig import kernel_mount
from range_rig import (
    COLLAPSE,
    EVERY_MODE,
    IN_PLACE,
    INSERT,
    KEEP_SIZE,
    LAST,
    MOVES,
    PUNCH,
    PUNCH_HOLE,
    SIZES,
    UNSHARE,
    UNWRITTEN,
    ZERO,
    KernelFile,
    Model,
    PoolFile,
    check_credits,
    kernel_fiemap,
    refused,
    set_flag,
    zeroing_off,
)
from recorder import RecordingPool
from tree_rig import QUIET

from daxfs.ext4.inode import EXT4_APPEND_FL, EXT4_IMMUTABLE_FL
from daxfs.fs import ranges
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import Caller, SetAttributes
from daxfs.fs.volume import Volume
from daxfs.pmem.memory import MemoryPool
from daxfs.structures import inodes
from support import fsck, mke2fs, write_image

OpenFs = Callable[..., FileSystem]


def depth(fs: FileSystem, ino: int) -> int:
    """Return the number of levels below the root of the file's extent tree."""
    return inodes.read(fs.volume.view, ino).words[11] >> 16


# Against a model


class Machine(RuleBasedStateMachine):
    """Two files in a pool of ``image``; all rules but one change one of them, until they change places."""

    image: Path
    block_size: int
    reach: int

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(dir=SHARED_MEMORY))
        self.path = self.directory / "pool"
        shutil.copyfile(self.image, self.path)
        self.model, self.other_model = Model(self.block_size), Model(self.block_size)
        self.names = [b"f", b"g"]
        self.open()
        self.serial = 0

    def open(self) -> None:
        self.fs = FileSystem.open(self.path)
        check_credits(self.fs)
        self.file, self.other = (PoolFile(self.fs, name) for name in self.names)

    @initialize(written=st.sampled_from((0, 3, 200)), behind=st.sampled_from((0, 5, 300)), step=st.integers(2, 3))
    def fragment(self, written: int, behind: int, step: int) -> None:
        for at in range(0, written * step, step):
            self.write(at * self.block_size, self.block_size)
        for at in range(written * step, (written + behind) * step, step):
            self.fallocate(KEEP_SIZE, at * self.block_size, self.block_size)
        self.change_places()

    def write(self, offset: int, size: int) -> None:
        self.serial += 1
        content = random.Random(self.serial).randbytes(size)
        assert self.file.write(offset, content) == size
        self.model.write(offset, content)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        assert self.file.fallocate(mode, offset, length) is None
        self.model.fallocate(mode, offset, length)

    @rule(data=st.data(), length=st.integers(1, 20_000))
    def write_somewhere(self, data: st.DataObject, length: int) -> None:
        self.write(self.place(data), length)

    @rule(data=st.data(), mode=st.sampled_from(IN_PLACE), length=st.integers(1, 40_000))
    def change_bytes(self, data: st.DataObject, mode: int, length: int) -> None:
        self.fallocate(mode, self.place(data), length)

    @rule(data=st.data(), mode=st.sampled_from(IN_PLACE), blocks=st.integers(1, 300))
    def change_blocks(self, data: st.DataObject, mode: int, blocks: int) -> None:
        offset = self.place(data) // self.block_size * self.block_size
        self.fallocate(mode, offset, blocks * self.block_size)

    @rule(data=st.data(), mode=st.sampled_from(MOVES), blocks=st.integers(1, 60))
    def move(self, data: st.DataObject, mode: int, blocks: int) -> None:
        offset = self.place(data) // self.block_size * self.block_size
        length = blocks * self.block_size
        size = len(self.model.content)
        if offset + length < size if mode == COLLAPSE else offset < size:
            self.fallocate(mode, offset, length)
        else:
            assert self.file.fallocate(mode, offset, length) == "EINVAL"

    @rule(data=st.data(), length=st.integers(1, 90_000), aligned=st.booleans(), within=st.booleans())
    def copy(self, data: st.DataObject, length: int, aligned: bool, within: bool) -> None:
        source, target = self.place(data), self.place(data)
        if aligned:
            source, target, length = (value // self.block_size * self.block_size for value in (source, target, length))
        file, model = (self.file, self.model) if within else (self.other, self.other_model)
        if within and abs(source - target) < min(length, len(model.content) - source):
            assert self.file.copy(file, source, target, length) == "EINVAL"
        else:
            assert self.file.copy(file, source, target, length) == self.model.copy(model, source, target, length)

    @rule()
    def change_places(self) -> None:
        self.file, self.other = self.other, self.file
        self.model, self.other_model = self.other_model, self.model
        self.names.reverse()

    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        size = self.place(data)
        assert self.file.truncate(size) is None
        self.model.truncate(size)

    @rule(data=st.data(), whence=st.sampled_from((os.SEEK_DATA, os.SEEK_HOLE)))
    def seek(self, data: st.DataObject, whence: int) -> None:
        offset = self.place(data)
        expected = self.model.seek(offset, whence)
        assert self.file.seek(offset, whence) == ("ENXIO" if expected is None else expected)

    @rule()
    def sync(self) -> None:
        self.fs.sync()

    @rule()
    def open_again(self) -> None:
        self.fs.close()
        fsck(self.path)
        self.open()

    @invariant()
    def agrees(self) -> None:
        assert self.file.size() == len(self.model.content)
        assert self.file.content() == self.model.content
        assert self.file.blocks() == self.model.blocks
        assert self.other.content() == self.other_model.content
        assert self.other.blocks() == self.other_model.blocks

    def place(self, data: st.DataObject) -> int:
        """Return a byte offset: often at the start or end of a mapped block, or at EOF."""
        if data.draw(st.booleans(), "near"):
            borders = [lblk * self.block_size for lblk in self.model.blocks] + [len(self.model.content)]
            at = data.draw(st.integers(0, len(borders) - 1), "at")
            return max(sorted(borders)[at] + data.draw(st.sampled_from((0, 0, -1, 1, 700)), "off"), 0)
        return data.draw(st.integers(0, self.reach), "byte")

    def teardown(self) -> None:
        try:
            self.open_again()
            self.agrees()
            self.fs.close()
        finally:
            shutil.rmtree(self.directory)


@pytest.mark.parametrize(("block_size", "at_once"), [(1024, True), (4096, True), (1024, False)])
def test_any_sequence_agrees_with_the_model(
    tmp_path: Path, block_size: int, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``at_once``: ranges are inserted and collapsed in one transaction; otherwise by two leaves at a time."""
    if not at_once:
        monkeypatch.setattr(ranges, "LEAVES_PER_MOVE", 2)
        monkeypatch.setattr(ranges, "fits", lambda *_: False)
    image = mke2fs(tmp_path / "image", "-b", str(block_size), size="24M")
    kind = type("MachineOf" + str(block_size), (Machine,), {"image": image, "block_size": block_size, "reach": 600_000})
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


# Behind the end of deep trees


def scatter_past_eof(file: PoolFile, count: int, size: int = 1024) -> None:
    """Allocate so many single blocks past EOF of the file, none next to another."""
    for at in range(count):
        assert file.fallocate(KEEP_SIZE, (10 + 2 * at) * size, size) is None


def test_many_extents_past_eof_are_no_error_to_e2fsck(pool: Callable[..., Path]) -> None:
    """This holds while the file is extended over them, and while they are freed."""
    path = pool("-b", "1024")
    fs = FileSystem.open(path)
    check_credits(fs)
    file = PoolFile(fs, b"f")
    file.write(0, b"x" * 5000)
    scatter_past_eof(file, 3000)
    assert depth(fs, file.ino) == 2
    for step in range(6):
        fs.sync()
        fs.close()
        fsck(path)
        fs = FileSystem.open(path)
        check_credits(fs)
        file = PoolFile(fs, b"f")
        if step % 2:
            file.fallocate(PUNCH, 1000 * step * 1024, 700 * 1024)
            file.truncate(file.size() + 100_000)
        else:
            file.write(1000 * step * 1024 + 100, b"y" * 3000)
    scatter_past_eof(file, 6000)
    assert len(fs.describe(file.ino)) > 5000
    fs.close()
    fsck(path)


# Errors and edges


def test_refusals(open_fs: OpenFs) -> None:
    fs = open_fs()
    file = PoolFile(fs, b"f")
    largest = fs.volume.geometry.max_extent_file_size
    for mode in EVERY_MODE:
        assert file.fallocate(mode, -1, 10) == "EINVAL"
        assert file.fallocate(mode, 0, 0) == "EINVAL"
        assert file.fallocate(mode, 5, -1) == "EINVAL"
    for mode in (PUNCH_HOLE, PUNCH | ZERO, ZERO | COLLAPSE, COLLAPSE | KEEP_SIZE, INSERT | KEEP_SIZE, UNSHARE, 4, 0x80):
        assert file.fallocate(mode, 0, 4096) == "ENOTSUP"
    for mode in EVERY_MODE:
        assert file.fallocate(mode, largest - 4095, 4096) == "EFBIG"
    reader = fs.open_file(file.ino)
    with refused(errno.EBADF):
        fs.fallocate(reader, 0, 0, 10)
    fs.release(reader)
    directory = fs.open_file(ROOT_INO)
    with refused(errno.EISDIR):
        fs.seek(directory, 0, os.SEEK_DATA)
    with refused(errno.EISDIR):
        fs.copy_range(directory, 0, file.file, 0, 10)
    fs.release(directory)
    with refused(errno.EINVAL):
        fs.seek(file.file, 0, os.SEEK_END)
    assert file.size() == 0
    assert not file.blocks()


@pytest.mark.crash
def test_protected_files(fs: FileSystem) -> None:
    file = PoolFile(fs, b"f")
    file.write(0, b"x" * 9000)
    set_flag(fs, file.ino, EXT4_APPEND_FL)
    assert [file.fallocate(mode, 0, 20_000) for mode in (0, KEEP_SIZE)] == [None, None]
    assert {file.fallocate(mode, 0, 20_000) for mode in EVERY_MODE[2:]} == {"EPERM"}
    assert file.content() == b"x" * 9000 + bytes(11_000)
    set_flag(fs, file.ino, EXT4_IMMUTABLE_FL)
    assert {file.fallocate(mode, 0, 20_000) for mode in EVERY_MODE} == {"EPERM"}


@pytest.mark.crash
def test_set_id_bits_go_and_times_move(fs: FileSystem) -> None:
    file = PoolFile(fs, b"f")
    file.write(0, b"x" * 9000)
    user = fs.open_file(file.ino, os.O_RDWR, Caller(uid=1000, gid=1000))
    for mode in EVERY_MODE:
        fs.setattr(file.ino, SetAttributes(mode=0o6777, mtime_ns=0, ctime_ns=0))
        fs.fallocate(user, mode, 0, 4096)
        found = fs.getattr(file.ino)
        assert found.mode & 0o7777 == 0o777
        assert found.mtime_ns == found.ctime_ns > 0


def test_block_mapped_files_can_only_be_punched(open_fs: OpenFs) -> None:
    fs = open_fs("-O", "^extent,^64bit", "-b", "1024")
    check_credits(fs)
    file, model = PoolFile(fs, b"f"), Model(1024)
    for mode in EVERY_MODE:
        if mode != PUNCH:
            assert file.fallocate(mode, 0, 4096) == "ENOTSUP"
    content = random.Random(1).randbytes(700_000)
    file.write(0, content)
    model.write(0, content)
    for offset, length in ((500, 100), (1000, 3000), (12 << 10, 256 << 10), (600_000, 1), (650_001, 90_000), (0, 1)):
        assert file.fallocate(PUNCH, offset, length) is None
        model.fallocate(PUNCH, offset, length)
        assert file.content() == model.content
        assert file.blocks() == model.blocks
    for offset in range(0, 700_000, 5003):
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            expected = model.seek(offset, whence)
            assert file.seek(offset, whence) == ("ENXIO" if expected is None else expected)


def test_a_gibibyte_takes_few_extents_on_huge_pages(open_fs: OpenFs) -> None:
    fs = open_fs(size="1500M")
    file = PoolFile(fs, b"f")
    assert file.fallocate(0, 0, 1 << 30) is None
    runs = fs.describe(file.ino)
    assert len(runs) < 20
    assert all(run.unwritten for run in runs)
    assert not [run for run in runs if (run.pblk - run.lblk) % 512]
    assert file.size() == 1 << 30
    assert file.seek(0, os.SEEK_HOLE) == 0
    assert file.seek(0, os.SEEK_DATA) == "ENXIO"
    file.write(300 << 20, b"here")
    assert file.seek(0, os.SEEK_DATA) == 300 << 20
    assert bytes(fs.read(file.file, (300 << 20) - 2, 8)) == b"\0\0here\0\0"


def test_a_longest_extent_becomes_two_unwritten_ones(open_fs: OpenFs) -> None:
    fs = open_fs("-b", "1024", size="80M")
    file = PoolFile(fs, b"f")
    chunk = b"x" * (1 << 20)
    for at in range(48):
        file.write(at << 20, chunk)
    before = fs.describe(file.ino)
    assert file.fallocate(ZERO, 0, 48 << 20) is None
    after = fs.describe(file.ino)
    assert {run.unwritten for run in after} == {True}
    assert sum(run.length for run in after) == sum(run.length for run in before) == 48 << 10
    assert not file.content().strip(b"\0")


def test_a_full_pool_keeps_what_was_allocated(open_fs: OpenFs) -> None:
    fs = open_fs("-m", "0", size="16M")
    check_credits(fs)
    for number in range(200):
        PoolFile(fs, b"%d" % number).write(0, b"x" * 4096)
    for number in range(0, 200, 2):
        fs.unlink(ROOT_INO, b"%d" % number)
    file = PoolFile(fs, b"f")
    free = fs.statfs().available
    assert file.fallocate(0, 1000, 1 << 30) == "ENOSPC"
    assert fs.statfs().available < 10
    blocks = file.blocks()
    assert len(blocks) > free - 10
    assert file.size() == len(blocks) * 4096
    assert set(blocks.values()) == {True}
    assert file.fallocate(PUNCH, 5000, 100_000) is None
    assert file.fallocate(KEEP_SIZE, 0, 100_000) is None
    assert file.blocks() == blocks


def test_blocks_that_wait_for_the_commit_are_found(open_fs: OpenFs) -> None:
    fs = open_fs("-m", "0", size="16M")
    file = PoolFile(fs, b"f")
    assert file.fallocate(0, 0, 1 << 30) == "ENOSPC"
    size = file.size()
    assert file.fallocate(PUNCH, 0, size) is None
    assert file.fallocate(0, 0, size) is None
    assert file.size() == size


# Moves in several transactions


@pytest.mark.parametrize("mode", MOVES)
def test_a_cut_between_two_parts_of_a_move(tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is valid, and each of its blocks is one of the old ones or a hole."""
    monkeypatch.setattr(ranges, "LEAVES_PER_MOVE", 1)
    monkeypatch.setattr(ranges, "fits", lambda *_: False)
    for name in ("move_up", "move_down", "punch_step"):
        step = getattr(ranges, name)

        def and_commit(volume: Volume, *arguments: object, step: Callable[..., object] = step) -> object:
            result = step(volume, *arguments)
            volume.commit()
            return result

        monkeypatch.setattr(ranges, name, and_commit)
    pool = RecordingPool(bytearray(crash_rig.image("1k")))
    fs = FileSystem.open(pool, QUIET)
    file = PoolFile(fs, b"f")
    for at in range(260):
        file.write(at * 2048, crash_rig.noise(1024, at))
    fs.sync()
    start, old = len(pool.events), file.content()
    file.fallocate(mode, 100 * 1024, 51 * 1024)
    fs.sync()
    new = file.content()
    assert fs.volume.journal.stats.commits > 4
    pieces = {old[at : at + 1024] for at in range(0, len(old), 1024)}
    between = 0
    for left in pool.crash_images(random.Random(mode), start=start, prefixes=1, subsets=1):
        with FileSystem.open(MemoryPool(left.image), QUIET) as again:
            found = again.tree.read_bytes("f")
        assert {found[at : at + 1024] for at in range(0, len(found), 1024)} <= pieces | {bytes(1024)}
        between += found not in (old, new)
        write_image(tmp_path / "pool", left.image)
        fsck(tmp_path / "pool")
    assert between


# Where things lie


def test_fiemap_tells_what_the_kernel_tells(pool: Callable[..., Path]) -> None:
    path = pool("-b", "1024")
    with FileSystem.open(path) as fs:
        file = PoolFile(fs, b"f")
        file.write(0, b"x" * 50_000)
        file.fallocate(PUNCH, 5000, 9000)
        file.fallocate(KEEP_SIZE, 90_000, 30_000)
        file.fallocate(0, 300_000, 5000)
        ranges_of_it = ((0, 1 << 62), (0, 1), (3000, 40_000), (7000, 10), (60_000, 1), (100_000, 500), (1 << 30, 5))
        ours = [fs.fiemap(file.ino, start, length, 100) for start, length in ranges_of_it]
        assert ours[0][-1].flags == UNWRITTEN | LAST
        assert not [extent for extent in ours[0][:-1] if extent.flags & LAST]
        assert fs.fiemap(file.ino, 0, 1 << 62, 2) == ours[0][:2]
        assert fs.fiemap(file.ino, 0, 1 << 62, 0) == []
        assert fs.fiemap(ROOT_INO, 0, 1 << 62, 10)[0].flags == LAST
        for start, length, number in ((0, 0, errno.EINVAL), (-1, 1, errno.EINVAL), (1 << 60, 1, errno.EFBIG)):
            with refused(number):
                fs.fiemap(file.ino, start, length, 10)
        with refused(errno.EOPNOTSUPP):
            fs.fiemap(fs.symlink(ROOT_INO, b"l", b"target").ino, 0, 10, 10)
    with kernel_mount(path, "ro") as root:
        theirs = KernelFile(root / "f", 1024, flags=os.O_RDONLY)
        for (start, length), mine in zip(ranges_of_it, ours, strict=True):
            found = kernel_fiemap(theirs.descriptor, start, length)
            # The kernel marks the last extent of what was asked for.
            assert [(*extent[:3], extent[3] & UNWRITTEN) for extent in found] == [
                (*extent[:3], extent.flags & UNWRITTEN) for extent in mine
            ]
        theirs.close()


def test_block_mapped_files_have_merged_extents(open_fs: OpenFs) -> None:
    fs = open_fs("-O", "^extent,^64bit", "-b", "1024")
    file = PoolFile(fs, b"f")
    file.write(0, b"x" * 5000)
    assert {extent.flags & ~LAST for extent in fs.fiemap(file.ino, 0, 1 << 40, 10)} == {0x1000}


# Against the kernel


def random_call(chance: random.Random, size: int) -> tuple[str, tuple[int, ...]]:
    offset = chance.choice((0, size, max(size - 1, 0), chance.randrange(300_000)))
    if chance.random() < 0.5:
        offset &= -4096
    name = chance.choice(("fallocate", "fallocate", "fallocate", "write", "truncate", "seek"))
    if name == "fallocate":
        return name, (chance.choice((*IN_PLACE, *IN_PLACE, *MOVES, UNSHARE, PUNCH_HOLE)), offset, chance.choice(SIZES))
    if name == "write":
        return name, (offset, chance.choice(SIZES))
    if name == "seek":
        return name, (offset, chance.choice((os.SEEK_DATA, os.SEEK_HOLE)))
    return name, (offset,)


@pytest.mark.parametrize("options", [("-b", "4096"), ("-b", "1024"), ("-b", "4096", "-O", "^extent,^64bit")])
def test_the_kernel_answers_and_maps_the_same(pool: Callable[..., Path], options: tuple[str, ...]) -> None:
    block_size = int(options[1])
    theirs_path, ours_path = pool(*options), pool(*options)
    chance = random.Random(str(options))
    with kernel_mount(theirs_path) as root, FileSystem.open(ours_path) as fs:
        zeroing_off(root)
        for number in range(12):
            theirs, ours = KernelFile(root / f"f{number}", block_size), PoolFile(fs, b"f%d" % number)
            story: list[object] = []
            for _ in range(25):
                name, arguments = random_call(chance, ours.size())
                story.append((name, arguments))
                if name == "write":
                    offset, size = arguments
                    content = chance.randbytes(size)
                    answers = theirs.write(offset, content), ours.write(offset, content)
                else:
                    answers = getattr(theirs, name)(*arguments), getattr(ours, name)(*arguments)
                assert answers[0] == answers[1], story
                assert theirs.size() == ours.size(), story
            assert theirs.content() == ours.content(), story
            assert theirs.blocks() == ours.blocks(), story
            theirs.close()
            ours.close()
    fsck(ours_path)
