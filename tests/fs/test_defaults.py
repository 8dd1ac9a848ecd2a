"""The superblock's settings for a mount: the group of new files, and who may take the reserved blocks."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import ROOT_INO, Caller, Options, SetAttributes

Open = Callable[..., FileSystem]
MAKER = Caller(uid=1000, gid=1000)
PIECE = bytes(1 << 16)


def made_below(fs: FileSystem, mode: int) -> tuple[int, int, int]:
    """Return the group of a file, and group and set-group-ID bit of a directory, made in a directory of group 77."""
    parent = fs.mkdir(ROOT_INO, b"parent", 0o777).ino
    fs.setattr(parent, SetAttributes(gid=77))
    fs.setattr(parent, SetAttributes(mode=mode))
    directory = fs.mkdir(parent, b"directory", 0o755, caller=MAKER)
    return fs.mknod(parent, b"file", 0o644, caller=MAKER).gid, directory.gid, directory.mode & 0o2000


@pytest.mark.parametrize(
    ("default", "asked", "mode", "found"),
    [
        ("bsdgroups", None, 0o777, (77, 77, 0)),
        ("bsdgroups", None, 0o2777, (77, 77, 0)),
        ("bsdgroups", False, 0o777, (1000, 1000, 0)),
        ("^bsdgroups", None, 0o777, (1000, 1000, 0)),
        ("^bsdgroups", None, 0o2777, (77, 77, 0o2000)),
        ("^bsdgroups", True, 0o777, (77, 77, 0)),
    ],
)
def test_the_group_of_new_files(
    open_fs: Open, default: str, asked: bool | None, mode: int, found: tuple[int, int, int]
) -> None:
    fs = open_fs(mount=Options(grpid=asked), size="16M", tune=("-o", default))
    assert made_below(fs, mode) == found


def fill(fs: FileSystem, caller: Caller, name: bytes) -> int:
    """Write a file until the pool is full for the caller; return the number of bytes."""
    file, _ = fs.create(ROOT_INO, name, 0o644, os.O_RDWR, caller)
    size = 0
    with pytest.RaisesExc(FsError, check=lambda error: error.errno == errno.ENOSPC):
        while True:
            size += fs.write(file, size, PIECE)
    fs.release(file)
    return size


@pytest.mark.parametrize(
    ("tune", "options", "caller", "may"),
    [
        ((), Options(), Caller(5, 5), False),
        (("-u", "5"), Options(), Caller(5, 5), True),
        (("-u", "5"), Options(resuid=0), Caller(5, 5), False),
        (("-g", "6"), Options(), Caller(5, 6), True),
        (("-g", "6"), Options(), Caller(5, 5, groups=frozenset({6})), True),
        (("-g", "6"), Options(resgid=7), Caller(5, 6), False),
        ((), Options(), Caller(5, 0), False),
        ((), Options(resuid=70000), Caller(70000, 5), True),
    ],
)
def test_who_may_take_the_reserved_blocks(
    open_fs: Open, tune: tuple[str, ...], options: Options, caller: Caller, may: bool
) -> None:
    fs = open_fs("-m", "10", mount=options, size="16M", tune=tune)
    fill(fs, Caller(9, 9), b"others")
    assert (fill(fs, caller, b"own") > 1 << 20) is may


def test_a_remount_changes_both(open_fs: Open) -> None:
    fs = open_fs(size="16M")
    fs.remount(replace(fs.options, grpid=True, resgid=6))
    assert made_below(fs, 0o777) == (77, 77, 0)
    assert fs.volume.privileged(Caller(5, 6))
    fs.remount(replace(fs.options, grpid=None, resgid=None))
    assert not fs.volume.privileged(Caller(5, 6))
    assert fs.mknod(ROOT_INO, b"file", 0o644, caller=MAKER).gid == 1000


def test_groups_are_looked_up_only_where_they_decide(open_fs: Open) -> None:
    fs = open_fs(size="16M", tune=("-g", "6"))
    asked: list[Caller] = []

    def groups_of(caller: Caller) -> frozenset[int]:
        asked.append(caller)
        return frozenset({6})

    fs.volume.groups_of = groups_of
    assert fs.volume.privileged(Caller())
    assert fs.volume.privileged(Caller(5, 6))
    assert not asked
    assert fs.volume.privileged(Caller(5, 5))
    assert asked == [Caller(5, 5)]
