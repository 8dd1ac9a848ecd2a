"""The label of a mounted pool: durable when the call returns, in the superblock and in its backups."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from daxfs.errors import FsError, MissingMemory
from daxfs.ext4.superblock import Superblock
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import Caller, Options
from support import fsck, run

NEW = b"sixteen bytes it"


@pytest.mark.parametrize(
    "options", [("-b", "1024"), ("-b", "1024", "-O", "^metadata_csum"), ("-b", "1024", "-O", "sparse_super2")]
)
def test_a_label_is_in_every_superblock(pool: Callable[..., Path], options: tuple[str, ...]) -> None:
    path = pool(*options, size="64M")
    with FileSystem.open(path) as fs:
        assert fs.get_label() == b""
        fs.set_label(NEW)
        assert fs.get_label() == NEW
        backups = [
            fs.volume.geometry.first_block(group) for group in range(1, 8) if fs.volume.geometry.has_super(group)
        ]
    fsck(path)
    assert backups
    assert run("e2label", path).strip().encode() == NEW
    for block in backups:
        assert f"Filesystem volume name:   {NEW.decode()}" in run("dumpe2fs", "-h", "-o", f"superblock={block}", path)
        Superblock(memoryview(bytearray(path.read_bytes()[block * 1024 : block * 1024 + 1024]))).verify()


def test_a_label_survives_a_crash_at_once(pool: Callable[..., Path], tmp_path: Path) -> None:
    path = pool("-b", "4096", size="16M")
    cut = tmp_path / "cut"
    with FileSystem.open(path) as fs:
        fs.set_label(b"new")
        cut.write_bytes(path.read_bytes())
    with FileSystem.open(cut) as fs:
        assert fs.get_label() == b"new"
    fsck(cut)


@pytest.mark.parametrize(
    ("label", "caller", "number"),
    [
        (b"x", Caller(1000, 1000), errno.EPERM),
        (NEW + b"s", Caller(1000, 1000), errno.EPERM),
        (NEW + b"s", Caller(), errno.EINVAL),
        (b"a\0b", Caller(), errno.EINVAL),
    ],
)
def test_a_label_that_is_refused(pool: Callable[..., Path], label: bytes, caller: Caller, number: int) -> None:
    with FileSystem.open(pool("-b", "4096", size="16M")) as fs:
        with pytest.RaisesExc(FsError, check=lambda error: error.errno == number):
            fs.set_label(label, caller)
        assert fs.get_label() == b""


def test_a_read_only_mount_keeps_its_label(pool: Callable[..., Path]) -> None:
    refused = pytest.RaisesExc(FsError, check=lambda error: error.errno == errno.EROFS)
    with FileSystem.open(pool("-b", "4096", size="16M"), Options(read_only=True)) as fs, refused:
        fs.set_label(b"x")


def test_a_label_that_some_superblock_has_no_room_for(
    pool: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system keeps the label that it has."""
    path = pool("-b", "1024", size="64M")
    with FileSystem.open(path) as fs:
        backup = fs.volume.geometry.first_block(3) * 1024

        def reserve(offset: int, _length: int) -> None:
            if offset == backup:
                raise MissingMemory(errno.ENOSPC)

        monkeypatch.setattr(fs.volume.pool, "reserve", reserve)
        with pytest.raises(MissingMemory):
            fs.set_label(NEW)
        assert fs.get_label() == b""
    fsck(path)
