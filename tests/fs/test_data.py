"""File data on every format: reads return what was written, holes are zeros, a full pool stops cleanly."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from daxfs.errors import FsError
from daxfs.ext4.inode import EXT4_APPEND_FL
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


@pytest.mark.crash
def test_growing_shows_zeros_where_the_old_end_was(fs: FileSystem) -> None:
    ino, file = make(fs)
    fs.write(file, 0, b"\xff" * 8192)
    fs.setattr(ino, SetAttributes(size=100))
    fs.setattr(ino, SetAttributes(size=8192))
    assert bytes(fs.read(file, 0, 8192)) == b"\xff" * 100 + bytes(8092)
    fs.write(file, 0, b"\xee" * 5000)
    fs.setattr(ino, SetAttributes(size=4500))
    fs.write(file, 6000, b"z")
    assert bytes(fs.read(file, 4400, 1601)) == b"\xee" * 100 + bytes(1500) + b"z"
    fs.release(file)


@pytest.mark.crash
def test_append_goes_to_the_end(fs: FileSystem) -> None:
    ino, file = make(fs, flags=os.O_WRONLY | os.O_APPEND)
    for number in range(10):
        fs.write(file, 0, b"%04d" % number)
    fs.release(file)
    reader = fs.open_file(ino)
    assert bytes(fs.read(reader, 0, 100)) == b"".join(b"%04d" % number for number in range(10))
    with pytest.raises(FsError) as refused:
        fs.write(reader, 0, b"x")
    assert refused.value.errno == errno.EBADF
    fs.release(reader)


@pytest.mark.crash
def test_truncating_open_frees_the_blocks(fs: FileSystem) -> None:
    free = fs.statfs().free
    ino, file = make(fs)
    fs.write(file, 0, b"x" * (1 << 20))
    fs.release(file)
    assert fs.statfs().free == free - 256
    fs.release(fs.open_file(ino, os.O_RDWR | os.O_TRUNC))
    assert fs.getattr(ino).size == 0
    assert fs.statfs().free == free


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


@pytest.mark.crash
def test_writing_takes_set_id_bits_from_other_users_files(fs: FileSystem) -> None:
    user = Caller(uid=1000, gid=1000)
    ino = fs.mknod(ROOT_INO, b"f", 0o6777).ino
    root = fs.open_file(ino, os.O_RDWR)
    fs.write(root, 0, b"by root")
    assert fs.getattr(ino).mode & 0o7777 == 0o6777
    file = fs.open_file(ino, os.O_RDWR, user)
    fs.write(file, 0, b"by a user")
    assert fs.getattr(ino).mode & 0o7777 == 0o777
    fs.setattr(ino, SetAttributes(mode=0o6777))
    fs.setattr(ino, SetAttributes(size=1), user)
    assert fs.getattr(ino).mode & 0o7777 == 0o777
    fs.release(file)
    fs.release(root)


@pytest.mark.crash
def test_set_gid_without_group_execute_is_locking_and_stays_for_members(fs: FileSystem) -> None:
    ino = fs.mknod(ROOT_INO, b"f", 0o2767, caller=Caller(uid=1, gid=1000)).ino
    for user, stays in (
        (Caller(uid=1000, gid=1000), True),
        (Caller(uid=1000, gid=7, groups=frozenset({1000})), True),
        (Caller(uid=0, gid=0), True),
        (Caller(uid=1000, gid=7), False),
    ):
        file = fs.open_file(ino, os.O_RDWR, user)
        fs.write(file, 0, b"x")
        fs.setattr(ino, SetAttributes(size=1), user)
        assert bool(fs.getattr(ino).mode & stat.S_ISGID) == stays
        fs.release(file)


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


@pytest.mark.parametrize("flag", [0, os.O_DSYNC, os.O_SYNC])
@pytest.mark.crash
def test_what_is_changed_with_o_sync_is_durable(fs: FileSystem, tmp_path: Path, flag: int) -> None:
    """Without O_SYNC nothing is left of the same changes after a power cut."""
    fs.tree.write_bytes("/source", b"s" * 4096)
    _, file = make(fs, flags=os.O_RDWR | flag)
    source = fs.open_file(fs.tree.resolve("/source"))
    fs.sync()
    changes: list[tuple[Callable[[], object], int]] = [
        (lambda: fs.write(file, 0, b"w" * 5000), 5000),
        (lambda: fs.copy_range(source, 0, file, 8192, 4096), 12288),
        (lambda: fs.fallocate(file, 0, 0, 20_000), 20_000),
    ]
    for change, size in changes:
        change()
        cut = tmp_path / "cut"
        cut.write_bytes(fs.volume.pool.memory)
        with FileSystem.open(cut) as after:
            assert after.getattr(after.tree.resolve("/f")).size == (size if flag else 0)
    fs.release(file)
    fs.release(source)


@pytest.mark.crash
def test_append_only_files_keep_what_they_hold(fs: FileSystem) -> None:
    """This holds also after O_APPEND was cleared on an open file, as a mount's session always does."""
    ino, before = make(fs)
    fs.write(before, 0, b"kept")
    fs.set_flags(ino, fs.get_flags(ino) | EXT4_APPEND_FL)
    file = fs.open_file(ino, os.O_RDWR | os.O_APPEND)
    file.append = False
    for change in (lambda: fs.write(file, 3, b"x"), lambda: fs.copy_range(before, 0, file, 2, 1)):
        with pytest.raises(FsError) as raised:
            change()
        assert raised.value.errno == errno.EPERM
    fs.write(file, 4, b" more")
    assert fs.read(file, 0, 100) == b"kept more"
    fs.write(before, 0, b"K")
    fs.release(file)
    fs.release(before)


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
