"""Open files: what the flags of open(2) mean for what is done through them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from daxfs.errors import FsError
from daxfs.ext4.inode import EXT4_APPEND_FL
from daxfs.fs.filesystem import ROOT_INO, FileSystem, OpenFile
from support import write_image


def make(fs: FileSystem, name: bytes = b"f", flags: int = os.O_RDWR) -> tuple[int, OpenFile]:
    file, made = fs.create(ROOT_INO, name, 0o644, flags)
    return made.ino, file


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
        write_image(cut, fs.volume.pool.memory)
        with FileSystem.open(cut) as after:
            assert after.getattr(after.tree.resolve("/f")).size == (size if flag else 0)
    fs.release(file)
    fs.release(source)
