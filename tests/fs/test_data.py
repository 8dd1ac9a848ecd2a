"""File data on every format: reads return what was written, holes are zeros, a full pool stops cleanly."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from daxfs.errors import FsError
from daxfs.fs.filesystem import ROOT_INO, FileSystem, OpenFile
from daxfs.fs.types import Caller, FileExtent, SetAttributes
from daxfs.tools.mapview import huge_bytes
from support import fsck, mke2fs, wait_a_tick

OpenFs = Callable[..., FileSystem]


def make(fs: FileSystem, name: bytes = b"f", flags: int = os.O_RDWR) -> tuple[int, OpenFile]:
    file, made = fs.create(ROOT_INO, name, 0o644, flags)
    return made.ino, file


def fill(fs: FileSystem, file: OpenFile) -> int:
    """Write until the pool is full; return the number of bytes."""
    written = 0
    try:
        while True:
            written += fs.write(file, written, b"x" * 100_000)
    except FsError as error:
        assert error.errno == errno.ENOSPC
    return written


def test_random_writes_and_cuts_equal_a_bytearray(open_fs: OpenFs, any_format: tuple[str, ...]) -> None:
    fs = open_fs(*any_format)
    chance = random.Random(7)
    ino, file = make(fs)
    model = bytearray()
    for _ in range(250):
        offset = chance.randrange(400_000)
        if chance.random() < 0.15:
            fs.setattr(ino, SetAttributes(size=offset))
            model = model[:offset] + bytes(max(offset - len(model), 0))
        elif chance.random() < 0.1:
            fs.sync()
        else:
            content = chance.randbytes(chance.choice((1, 100, 4096, 5000, 40_000)))
            assert fs.write(file, offset, content) == len(content)
            model += bytes(max(offset + len(content) - len(model), 0))
            model[offset : offset + len(content)] = content
        start = chance.randrange(400_000)
        assert bytes(fs.read(file, start, 50_000)) == model[start : start + 50_000]
    assert bytes(fs.read(file, 0, 1 << 20)) == model
    assert fs.getattr(ino).size == len(model)
    fs.release(file)


@pytest.mark.crash
def test_reads_of_written_ranges_are_views_of_the_pool(fs: FileSystem) -> None:
    _, file = make(fs)
    fs.write(file, 0, b"a" * 65536)
    view = fs.read(file, 4096, 8192)
    assert isinstance(view, memoryview)
    fs.write(file, 4096, b"b" * 4096)
    assert bytes(view[:4096]) == b"b" * 4096
    view.release()


def test_sparse_files_of_many_terabytes(fs: FileSystem) -> None:
    ino, file = make(fs)
    far = 15 << 40
    fs.write(file, far, b"end")
    assert fs.getattr(ino).size == far + 3
    assert fs.getattr(ino).blocks <= 64
    assert fs.read(file, far, 10) == b"end"
    assert fs.read(file, far - 4096, 4096) == bytes(4096)
    with pytest.raises(FsError) as refused:
        fs.write(file, 1 << 45, b"x")
    assert refused.value.errno == errno.EFBIG
    with pytest.raises(FsError) as refused:
        fs.setattr(ino, SetAttributes(size=1 << 45))
    assert refused.value.errno == errno.EFBIG
    fs.release(file)


def test_a_full_pool_leaves_a_short_write_and_a_clean_pool(open_fs: OpenFs) -> None:
    fs = open_fs("-m", "0", size="16M")
    ino, file = make(fs)
    written = fill(fs, file)
    assert fs.statfs().available == 0
    assert fs.getattr(ino).size == written
    with pytest.raises(FsError):
        fs.tree.mkdir("/no-room")
    fs.setattr(ino, SetAttributes(size=written - 8192))
    assert fs.write(file, written - 8192, b"y" * 4096) == 4096
    fs.release(file)


def test_reserved_blocks_are_the_superusers(open_fs: OpenFs) -> None:
    fs = open_fs("-m", "10", size="16M")
    user = Caller(uid=1000, gid=1000)
    file, _ = fs.create(ROOT_INO, b"f", 0o666, os.O_RDWR, user)
    fill(fs, file)
    left = fs.statfs()
    assert left.available == 0
    assert left.free > 0
    fs.release(file)
    fs.tree.write_bytes("/root", b"x" * 65536)


def test_no_change_of_a_users_takes_reserved_blocks(open_fs: OpenFs) -> None:
    """Attributes and names need blocks too, and users have none."""
    fs = open_fs("-m", "10", size="16M")
    user = Caller(uid=1000, gid=1000)
    full = fs.mkdir(ROOT_INO, b"d", 0o777, user).ino
    file, made = fs.create(ROOT_INO, b"f", 0o666, os.O_RDWR, user)
    names = [bytes([letter]) * 255 for letter in range(65, 81)]
    for name in names[:-1]:
        fs.link(made.ino, full, name, user)
    assert fs.getattr(full).size == 4096, "the next name takes a block"
    fill(fs, file)
    fs.release(file)
    left = fs.statfs().free
    for change in (
        lambda caller: fs.setxattr(made.ino, b"user.x", b"v" * 900, 0, caller),
        lambda caller: fs.link(made.ino, full, names[-1], caller),
        lambda caller: fs.rename(ROOT_INO, b"f", full, names[-1][:-1], caller=caller),
    ):
        with pytest.raises(FsError) as caught:
            change(user)
        assert caught.value.errno == errno.ENOSPC
        assert fs.statfs().free == left
    fs.setxattr(made.ino, b"user.x", b"v" * 900)
    fs.link(made.ino, full, names[-1])
    assert fs.statfs().free < left


def test_times_follow_reads_and_writes(fs: FileSystem) -> None:
    ino, file = make(fs)
    fs.write(file, 0, b"x" * 4096)
    first = fs.getattr(ino)
    wait_a_tick()
    fs.write(file, 0, b"y" * 4096)
    second = fs.getattr(ino)
    assert second.mtime_ns > first.mtime_ns
    assert second.ctime_ns == second.mtime_ns
    wait_a_tick()
    fs.read(file, 0, 10)
    assert fs.getattr(ino).atime_ns > second.mtime_ns
    fs.setattr(ino, SetAttributes(mtime_ns=123_456_789_012_345_678, atime_ns=-1_000_000_001))
    found = fs.getattr(ino)
    assert (found.mtime_ns, found.atime_ns) == (123_456_789_012_345_678, -1_000_000_001)
    fs.sync()
    assert fs.getattr(ino)[8:10] == found[8:10]
    fs.release(file)


def test_a_file_in_very_many_pieces(open_fs: OpenFs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has more runs than a map may have: every access then searches the tree."""
    monkeypatch.setattr("daxfs.fs.data.MAX_RUNS", 20)
    monkeypatch.setattr("daxfs.fs.nodes.MAX_RUNS", 20)
    fs = open_fs("-b", "1024")
    ino, file = make(fs)
    for number in range(0, 600, 2):
        fs.write(file, number * 1024, b"%04d" % number)
    for number in range(0, 600, 2):
        assert bytes(fs.read(file, number * 1024, 1028))[:4] == b"%04d" % number
    whole = bytes(fs.read(file, 0, 600 * 1024))
    assert [whole[at : at + 4] for at in range(0, 600 * 1024, 2048)] == [b"%04d" % n for n in range(0, 600, 2)]
    assert len(fs.describe(ino)) == 300
    fs.release(file)
    fs.unlink(ROOT_INO, b"f")


@pytest.mark.crash
def test_views_of_the_pool_can_t_be_written_through(fs: FileSystem) -> None:
    """A store through a view would be neither flushed nor dated, whatever the file was opened for."""
    ino, file = make(fs)
    fs.write(file, 0, b"x" * 8192)
    for flags in (os.O_RDONLY, os.O_RDWR):
        opened = fs.open_file(ino, flags)
        found = fs.read(opened, 0, 4096)
        assert isinstance(found, memoryview)
        assert found.readonly
        fs.release(opened)
    with fs.tree.open("/f") as again:
        view = again.view(0, 4096)
        assert isinstance(view, memoryview)
        with pytest.raises(TypeError):
            view[0] = 0
        view.release()
    found.release()


@pytest.mark.parametrize("piece", [4 << 10, 100 << 10, 128 << 10, 1 << 20])
def test_a_file_that_grows_in_pieces_lies_in_large_pages_from_4_mib_on(piece: int, tmp_path: Path) -> None:
    pool = mke2fs(tmp_path / "pool", "-b", "4096", size="64M")
    with FileSystem.open(pool) as fs:
        fs.tree.write_bytes("/small", b"small")  # its chunk is in use
        with fs.tree.open("/file", "w+b") as file:
            while file.tell() < 16 << 20:
                file.write(bytes(piece))
        inode = fs.tree.stat("/file").ino
        runs = [FileExtent(run.lblk << 12, run.pblk << 12, run.length << 12, 0) for run in fs.describe(inode)]
        assert huge_bytes(runs) >= 12 << 20
    fsck(pool)


def test_a_file_that_is_written_in_a_hole_takes_no_chunk_of_its_own(tmp_path: Path) -> None:
    pool = mke2fs(tmp_path / "pool", "-b", "4096", size="64M")
    with FileSystem.open(pool) as fs:
        fs.tree.write_bytes("/small", b"small")
        with fs.tree.open("/file", "w+b") as file:
            file.truncate(32 << 20)
            file.seek(8 << 20)
            file.write(b"x")
        (run,) = fs.describe(fs.tree.stat("/file").ino)
        assert run.pblk % 512
