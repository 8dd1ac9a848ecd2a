"""Searches in steps: when an operation on names needs one, and what is seen that changes meanwhile."""

from __future__ import annotations

import errno

import pytest
from steps_rig import count

from daxfs.errors import FsError
from daxfs.fs import searches
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.steps import Steps, finish
from daxfs.fs.types import ROOT_INO, Caller

BLOCK = 4096
ROOT = Caller()


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each step do the least that it can."""
    monkeypatch.setattr(searches, "LEVELS_PER_STEP", 4)
    monkeypatch.setattr(searches, "BLOCKS_PER_STEP", 1)


@pytest.fixture
def fs(memory_fs: FileSystem) -> FileSystem:
    return memory_fs


def test_a_deep_rename_is_in_steps(fs: FileSystem) -> None:
    """The search for a loop takes steps if the destination is deep and the directory has subdirectories."""
    deep = ROOT_INO
    for _ in range(20):
        deep = fs.mkdir(deep, b"d", 0o700).ino
    fs.mkdir(ROOT_INO, b"leaf", 0o700)
    moved = fs.mkdir(ROOT_INO, b"moved", 0o700).ino
    fs.mkdir(moved, b"sub", 0o700)
    assert count(fs.steps.rename(ROOT_INO, b"leaf", deep, b"leaf", 0, ROOT), lambda: None) == 0
    assert count(fs.steps.rename(ROOT_INO, b"moved", deep, b"moved", 0, ROOT), lambda: None) >= 5
    assert fs.lookup(deep, b"moved").ino == moved
    top = fs.lookup(ROOT_INO, b"d").ino
    with pytest.raises(FsError) as caught:
        finish(fs.steps.rename(ROOT_INO, b"d", moved, b"d", 0, ROOT))
    assert caught.value.errno == errno.EINVAL
    assert fs.lookup(ROOT_INO, b"d").ino == top


def emptied(fs: FileSystem, name: bytes) -> int:
    """Make a directory of several blocks, all of whose names are removed again."""
    ino = fs.mkdir(ROOT_INO, name, 0o700).ino
    file = fs.mknod(ROOT_INO, b"file of " + name, 0o600).ino
    for number in range(300):
        fs.link(file, ino, b"%0100d" % number)
    for number in range(300):
        fs.unlink(ino, b"%0100d" % number)
    return ino


@pytest.mark.parametrize("by", ["rmdir", "rename"])
def test_the_removal_of_a_large_directory_is_in_steps(fs: FileSystem, by: str) -> None:
    """Its blocks are searched for names; a name that is made between two steps is found, wherever it lies."""

    def remove() -> Steps[None]:
        if by == "rmdir":
            return fs.steps.rmdir(ROOT_INO, b"large")
        return fs.steps.rename(ROOT_INO, b"other", ROOT_INO, b"large", 0, ROOT)

    fs.mkdir(ROOT_INO, b"other", 0o700)
    ino = emptied(fs, b"large")
    fs.pin(fs.getattr(ino))
    blocks = fs.getattr(ino).size // BLOCK
    assert blocks >= 8
    for stop in range(1, blocks - 1):
        steps = remove()
        for _ in range(stop):
            next(steps)
        fs.mknod(ino, b"late", 0o600)
        with pytest.raises(FsError) as caught:
            finish(steps)
        assert caught.value.errno == errno.ENOTEMPTY
        fs.unlink(ino, b"late")
    assert count(remove(), lambda: fs.getattr(ino)) >= blocks - 1
    assert fs.getattr(ino).nlink == 0
    fs.unpin(ino, 1)


def test_a_small_directory_is_removed_at_once(fs: FileSystem) -> None:
    fs.mkdir(ROOT_INO, b"small", 0o700)
    assert count(fs.steps.rmdir(ROOT_INO, b"small"), lambda: None) == 0
