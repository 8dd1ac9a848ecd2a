"""Remounting in the core: what a volume may do afterwards, what refuses it, and what the pool holds meanwhile."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from damage_rig import stopped_by_damage

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import ROOT_INO, Options
from daxfs.pmem.opening import open_pool
from support import fsck, wait_a_tick

OpenFs = Callable[..., FileSystem]


def refused(number: int, fs: FileSystem, options: Options) -> None:
    """Check that a remount is refused and that the volume stays as it was."""
    before = fs.options, fs.volume.read_only
    with pytest.raises(FsError) as caught:
        fs.remount(options)
    assert caught.value.errno == number
    assert (fs.options, fs.volume.read_only) == before


def test_read_only_and_back_in_every_format(open_fs: OpenFs, any_format: tuple[str, ...]) -> None:
    fs = open_fs(*any_format)
    path = fs.volume.pool.path
    file, made = fs.create(ROOT_INO, b"file", 0o644)
    for turn in range(3):
        fs.write(file, 0, b"data" * 1000 * (turn + 1))
        fs.remount(replace(fs.options, read_only=True))
        fsck(Path(path))
        with pytest.raises(FsError) as caught:
            fs.mkdir(ROOT_INO, b"d", 0o755)
        assert caught.value.errno == errno.EROFS
        assert bytes(fs.read(file, 0, 8)) == b"datadata"
        assert fs.statistics().journal is None
        fs.sync()
        fs.tick()
        fs.remount(replace(fs.options, read_only=False))
        fs.mkdir(ROOT_INO, b"d%d" % turn, 0o755)
    assert fs.getattr(made.ino).size == 12_000
    fs.release(file)


def test_what_is_in_use_without_a_name(open_fs: OpenFs) -> None:
    fs = open_fs()
    file, _ = fs.create(ROOT_INO, b"file", 0o644)
    fs.unlink(ROOT_INO, b"file")
    refused(errno.EBUSY, fs, replace(fs.options, read_only=True))
    fs.write(file, 0, b"still written")
    fs.release(file)
    fs.remount(replace(fs.options, read_only=True))


def test_damage_is_not_undone(pool: Callable[..., Path]) -> None:
    with FileSystem.open(pool()) as fs:
        stopped_by_damage(fs)
        refused(errno.EROFS, fs, fs.options)
        fs.remount(replace(fs.options, read_only=True))
        refused(errno.EROFS, fs, replace(fs.options, read_only=False))


def test_a_pool_that_is_open_for_reading(pool: Callable[..., Path]) -> None:
    path = pool()
    with FileSystem.open(path, Options(read_only=True)) as fs:
        refused(errno.EROFS, fs, replace(fs.options, read_only=False))
    fsck(path)


def test_what_is_recovered_in_memory_is_not_written(pool: Callable[..., Path]) -> None:
    path = pool()
    with open_pool(path, private=True) as private, FileSystem.open(private, Options(read_only=True)) as fs:
        refused(errno.EROFS, fs, replace(fs.options, read_only=False))


def test_options_are_in_force_at_once(open_fs: OpenFs) -> None:
    fs = open_fs(mount=Options(atime="noatime"))
    file, made = fs.create(ROOT_INO, b"file", 0o644)
    fs.write(file, 0, b"x")
    commits = fs.volume.journal.stats.commits
    fs.remount(replace(fs.options, sync=True, atime="relatime"))
    fs.mkdir(ROOT_INO, b"d", 0o755)
    assert fs.volume.journal.stats.commits == commits + 1
    before = fs.getattr(made.ino).atime_ns
    wait_a_tick()
    fs.read(file, 0, 1)
    assert fs.getattr(made.ino).atime_ns > before
    fs.release(file)
