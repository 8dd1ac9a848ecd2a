"""Copies from file to file within a pool: holes, EOF, full pools, files with many extents, and the kernel's answers."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_rig import kernel_mount
from range_rig import IN_PLACE, KEEP_SIZE, SIZES, KernelFile, Model, PoolFile, refused, set_flag

from daxfs.ext4.inode import EXT4_IMMUTABLE_FL
from daxfs.fs.filesystem import FileSystem
from support import fsck

OpenFs = Callable[..., FileSystem]


@pytest.mark.crash
def test_copies_keep_holes_and_stop_at_the_end(fs: FileSystem) -> None:
    source, target = PoolFile(fs, b"source"), PoolFile(fs, b"target")
    source.write(0, b"a" * 10_000)
    source.write(1 << 20, b"b" * 5000)
    source.fallocate(KEEP_SIZE, 0, 2 << 20)
    source.truncate(3 << 20)
    before = fs.getattr(target.ino).mtime_ns
    assert target.copy(source, 0, 0, 1 << 40) == 3 << 20
    assert target.content() == source.content()
    assert target.blocks() == dict.fromkeys((0, 1, 2, 256, 257), False)
    assert fs.getattr(target.ino).mtime_ns >= before
    assert target.copy(source, 3 << 20, 0, 10) == 0
    assert target.copy(source, 4 << 20, 0, 10) == 0
    assert target.copy(target, 0, 3 << 20, 1 << 40) == 3 << 20
    assert target.content() == 2 * source.content()


@pytest.mark.crash
def test_copies_that_are_refused(fs: FileSystem) -> None:
    file = PoolFile(fs, b"f")
    file.write(0, b"x" * 9000)
    reader, writer = fs.open_file(file.ino), fs.open_file(file.ino, os.O_WRONLY)
    appender = fs.open_file(file.ino, os.O_RDWR | os.O_APPEND)
    largest = fs.volume.geometry.max_extent_file_size
    for source, target in ((writer, writer), (reader, reader), (reader, appender)):
        with refused(errno.EBADF):
            fs.copy_range(source, 0, target, 20_000, 10)
    for source_offset, offset, length in ((0, 100, 101), (100, 0, 101), (5, 5, 1), (-1, 0, 1), (0, -1, 1), (0, 9, -1)):
        with refused(errno.EINVAL):
            fs.copy_range(reader, source_offset, writer, offset, length)
    with refused(errno.EFBIG):
        fs.copy_range(reader, 0, writer, largest, 1)
    assert fs.copy_range(reader, 0, writer, 100, 100) == 100
    assert fs.copy_range(reader, 8990, writer, 9000, 100) == 10
    set_flag(fs, file.ino, EXT4_IMMUTABLE_FL)
    with refused(errno.EPERM):
        fs.copy_range(reader, 0, writer, 9000, 100)
    for opened in (reader, writer, appender):
        fs.release(opened)


def test_a_copy_into_a_full_pool_is_short(open_fs: OpenFs) -> None:
    fs = open_fs("-m", "0", size="16M")
    source, target = PoolFile(fs, b"source"), PoolFile(fs, b"target")
    content = random.Random(1).randbytes(5 << 20)
    source.write(0, content)
    filler = PoolFile(fs, b"filler")
    filler.fallocate(0, 0, (fs.statfs().free - 700) * 4096)
    done = target.copy(source, 0, 0, 5 << 20)
    assert 600 * 4096 < done <= 700 * 4096
    assert target.content() == content[:done]
    assert target.copy(source, done, done, 5 << 20) == "ENOSPC"


def test_copies_of_files_in_very_many_pieces(open_fs: OpenFs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both files have more runs than a map may have."""
    monkeypatch.setattr("daxfs.fs.data.MAX_RUNS", 20)
    monkeypatch.setattr("daxfs.fs.nodes.MAX_RUNS", 20)
    fs = open_fs("-b", "1024")
    source, target = PoolFile(fs, b"source"), PoolFile(fs, b"target")
    model, copied = Model(1024), Model(1024)
    for at in range(300):
        content = random.Random(at).randbytes(1024)
        source.write(3 * at * 1024, content)
        model.write(3 * at * 1024, content)
        target.write((2 * at + 1) * 1024, content)
        copied.write((2 * at + 1) * 1024, content)
    for source_offset, offset, length in ((0, 0, 1 << 20), (5000, 700, 300_000), (3072, 1024, 90_000)):
        assert target.copy(source, source_offset, offset, length) == copied.copy(model, source_offset, offset, length)
        assert target.content() == copied.content
        assert target.blocks() == copied.blocks
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            assert [target.seek(at, whence) for at in range(0, 200_000, 999)] == [
                copied.seek(at, whence) for at in range(0, 200_000, 999)
            ]


def test_copies_answer_as_the_kernel(pool: Callable[..., Path]) -> None:
    """Results and bytes are compared; which blocks are holes may differ."""
    theirs_path, ours_path = pool("-b", "4096"), pool("-b", "4096")
    chance = random.Random(8)
    with kernel_mount(theirs_path) as root, FileSystem.open(ours_path) as fs:
        theirs = [KernelFile(root / name, 4096) for name in "fg"]
        ours = [PoolFile(fs, name) for name in (b"f", b"g")]
        try:
            for _ in range(250):
                source, target = chance.randrange(2), chance.randrange(2)
                offset, other = chance.randrange(200_000), chance.randrange(200_000)
                kind = chance.randrange(4)
                if not kind:
                    content = chance.randbytes(chance.choice(SIZES))
                    answers = theirs[target].write(offset, content), ours[target].write(offset, content)
                elif kind == 1:
                    call = chance.choice(IN_PLACE), offset, chance.choice(SIZES)
                    answers = theirs[target].fallocate(*call), ours[target].fallocate(*call)
                elif chance.random() < 0.1:
                    answers = theirs[target].truncate(offset), ours[target].truncate(offset)
                else:
                    length = chance.choice(SIZES)
                    answers = (
                        theirs[target].copy(theirs[source], other, offset, length),
                        ours[target].copy(ours[source], other, offset, length),
                    )
                assert answers[0] == answers[1]
                assert [file.content() for file in theirs] == [file.content() for file in ours]
        finally:
            for file in theirs:
                file.close()
    fsck(ours_path)


def test_fragments_are_gathered(fs: FileSystem) -> None:
    """Single blocks that follow each other in the source get blocks of the target together, not each in a handle."""
    block = fs.volume.block_size
    source, between, target = (PoolFile(fs, name) for name in (b"source", b"between", b"target"))
    for number in range(100):
        source.write(number * block, b"%04d" % number * (block // 4))
        between.write(number * block, b"-" * block)
    assert len(fs.describe(source.ino)) > 50
    rng = random.Random(7)
    for _ in range(30):
        begin = rng.randrange(100 * block)
        length = rng.randrange(1, 100 * block - begin + 1)
        assert target.copy(source, begin, begin, length) == length
        assert target.content()[begin : begin + length] == source.content()[begin : begin + length]
    target.truncate(0)
    assert target.copy(source, 0, 0, 100 * block) == 100 * block
    assert target.content() == source.content()
    assert len(fs.describe(target.ino)) < 5
