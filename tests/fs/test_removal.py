"""The end of inodes: those without a name wait while they are busy and are then freed."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import ROOT_INO, SetAttributes
from daxfs.structures import mapping


@pytest.mark.crash
def test_an_open_file_without_a_name_lives_until_closed(fs: FileSystem) -> None:
    before = fs.statfs()
    file, made = fs.create(ROOT_INO, b"f", 0o600)
    fs.write(file, 0, b"x" * 100_000)
    fs.unlink(ROOT_INO, b"f")
    assert fs.getattr(made.ino).nlink == 0
    assert bytes(fs.read(file, 99_990, 100)) == b"x" * 10
    fs.sync()
    fs.release(file)
    after = fs.statfs()
    assert (after.free, after.files_free) == (before.free, before.files_free)


@pytest.mark.crash
def test_a_pinned_inode_without_a_name_lives_until_forgotten(fs: FileSystem) -> None:
    made = fs.mknod(ROOT_INO, b"f", 0o600)
    fs.pin(made.ino)
    fs.pin(made.ino)
    fs.unlink(ROOT_INO, b"f")
    fs.unpin(made.ino)
    assert fs.getattr(made.ino).nlink == 0
    free = fs.statfs().files_free
    fs.unpin(made.ino)
    assert fs.statfs().files_free == free + 1


def test_files_cut_in_steps_leave_the_list(open_fs: Callable[..., FileSystem], monkeypatch: pytest.MonkeyPatch) -> None:
    """A truncate that failed between its handles stays listed, once, and the end of the file takes it off."""
    monkeypatch.setattr("daxfs.fs.data.BLOCKS_PER_CUT", 1)
    fs = open_fs(size="16M")
    file, _ = fs.create(ROOT_INO, b"f", 0o600)
    for begin in range(0, 12, 4):
        fs.write(file, begin * 4096, b"." * 8192)
    remove, count = mapping.remove, 0

    def fail(*arguments: object, **options: object) -> bool:
        nonlocal count
        count += 1
        if count == 2:
            raise FsError(errno.EIO)
        return remove(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(mapping, "remove", fail)
    with pytest.raises(FsError):
        fs.setattr(file.ino, SetAttributes(size=0))
    monkeypatch.setattr(mapping, "remove", remove)
    assert fs.volume.lives.listed == {file.ino}
    fs.unlink(ROOT_INO, b"f")
    fs.sync()
    fs.check()
    fs.release(file)
    assert not fs.volume.lives.listed
    with pytest.raises(FsError) as caught:
        fs.by_number(file.ino)
    assert caught.value.errno == errno.ESTALE
