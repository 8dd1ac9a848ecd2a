"""daxfs check recovers fast commits before e2fsck, which replays some of them to less."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import fast_commit_rig
import pytest
from fast_commit_rig import FastCommits
from tree_rig import QUIET

from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.tools import check
from support import fsck


@pytest.fixture
def left(pool: Callable[..., Path]) -> Path:
    """Return a pool whose fast commits make a directory, with a name in it that has gone again."""
    path = pool("-b", "4096", "-O", "fast_commit")
    with FileSystem.open(path, QUIET) as fs:
        fs.tree.mkdir("/old")
        fs.tree.write_bytes("/file", b"content")
        old, file = fs.tree.resolve("/old"), fs.tree.resolve("/file")
    new = file + 1
    raw = bytearray(fast_commit_rig.slot_of(path, old))
    assert stat.S_ISDIR(int.from_bytes(raw[:2], "little"))
    raw[0x64:0x68] = b"new!"
    log = FastCommits(4096).inode(new, bytes(raw)).creat(ROOT_INO, new, b"new")
    log.unlink(new, new + 1, b"made and removed").link(new, file, b"again")
    linked = bytearray(fast_commit_rig.slot_of(path, file))
    linked[0x1A] = 2
    fast_commit_rig.store(path, log.inode(file, bytes(linked)).tail().content)
    return path


@pytest.mark.parametrize("option", ["-p", "-y"])
def test_check_recovers_them(left: Path, option: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert check.check(str(left), [option]) == 0
    assert "recovered from the journal" in capfd.readouterr().out
    fsck(left)
    with FileSystem.open(left, QUIET) as fs:
        assert fs.tree.read_bytes("/new/again") == b"content"


def test_check_n_changes_nothing(left: Path) -> None:
    before = left.read_bytes()
    check.check(str(left), ["-n"])
    assert left.read_bytes() == before


def test_what_daxfs_refuses_is_left_to_e2fsck(left: Path) -> None:
    with FileSystem.open(left, QUIET):
        pass
    fast_commit_rig.store(left, FastCommits(4096).link(ROOT_INO, 1, b"x").tail().content)
    check.check(str(left), ["-y"])
    fsck(left)
