"""Stores as files: where they are found, which blocks they take, and what is no store."""

from __future__ import annotations

import errno
import os

import pytest
from crash_rig import FORMATS, image
from range_rig import refused
from snapshot_rig import keeper
from tree_rig import QUIET

from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.snapshots import files
from daxfs.pmem.memory import MemoryPool
from daxfs.snapshots.format import NotAStore
from daxfs.structures import blocks, inodes


@pytest.fixture(params=FORMATS)
def fs(request: pytest.FixtureRequest) -> FileSystem:
    return FileSystem.open(MemoryPool(bytearray(image(request.param))), QUIET)


def test_a_store_has_whole_chunks_that_no_snapshot_needs(fs: FileSystem) -> None:
    fs.create_snapshot(b"older")
    fs.unlink(*fs.tree.parent("big"))
    fs.unlink(*fs.tree.parent("d/x"))
    fs.sync()
    needed = bytes(keeper(fs).copier.needed)  # type: ignore[union-attr]
    fs.create_snapshot(b"newer")
    for start, length in keeper(fs).kept[1].store.runs:
        assert not any(needed[chunk >> 3] >> (chunk & 7) & 1 for chunk in range(start, start + length))
    found = [name for name, _ in files.found(fs.volume.view)]
    assert sorted(found) == [b"newer", b"older"]


def test_a_store_gets_nothing_but_free_chunks_that_no_snapshot_needs(fs: FileSystem) -> None:
    fs.create_snapshot(b"s")
    view, ratio = fs.volume.view, 4096 // min(fs.volume.block_size, 4096)
    free = next(run for run in blocks.free_runs(view, 0, 8 * ratio) if run.length >= 8 * ratio)
    allowed = {-(-free.start // ratio) + at for at in (0, 2, 3, 5)}
    needed = bytearray(b"\xff" * (fs.volume.pool.size // 4096 // 8 + 1))
    for chunk in allowed:
        needed[chunk >> 3] &= ~(1 << (chunk & 7))
    with fs.volume.handle(files.CREDITS_RUNS + 4) as tx:
        inode = inodes.edit(tx, keeper(fs).kept[0].ino)
        assert files.extend(fs.volume, tx, inode, 10, needed) == 4
        runs = files.runs_of(tx, inode)
    taken = {chunk for start, length in runs for chunk in range(start, start + length)}
    assert allowed <= taken
    assert taken - allowed == {
        chunk for start, length in keeper(fs).kept[0].store.runs for chunk in range(start, start + length)
    }


def test_a_file_in_the_place_of_the_folder_is_refused(fs: FileSystem) -> None:
    fs.tree.write_bytes(".daxfs", b"somebody's")
    with refused(errno.ENOTDIR):
        fs.create_snapshot(b"s")
    assert fs.tree.read_bytes(".daxfs") == b"somebody's"
    assert files.folder(fs.volume.view) is None
    assert fs.list_snapshots() == []


def test_what_is_no_store_is_listed_as_lost_and_does_no_harm(fs: FileSystem) -> None:
    fs.create_snapshot(b"s")
    fs.tree.write_bytes(".daxfs/snapshots/other", b"x" * 10_000)
    fs.tree.mkdir(".daxfs/snapshots/folder")
    file = fs.open_file(fs.tree.resolve(".daxfs/snapshots/other"), os.O_RDWR)
    fs.write(file, 100_000, b"y")
    inode = inodes.read(fs.volume.view, file.ino)
    with pytest.raises(NotAStore):
        files.runs_of(fs.volume.view, inode)
    fs.release(file)
    fs.sync()
    again = FileSystem.open(MemoryPool(bytearray(fs.volume.pool.memory)), QUIET)
    assert {found.name: bool(found.lost) for found in again.list_snapshots()} == {b"s": False, b"other": True}
    again.delete_snapshot(b"other")
    assert [found.name for found in again.list_snapshots()] == [b"s"]
    assert [each.name for each in keeper(again).kept] == [b"s"]


def test_a_store_grows_at_its_end(fs: FileSystem) -> None:
    fs.create_snapshot(b"s")
    kept = keeper(fs).kept[0]
    before = kept.store.chunks
    with fs.volume.handle(files.CREDITS_RUNS + 4) as tx:
        inode = inodes.edit(tx, kept.ino)
        assert files.extend(fs.volume, tx, inode, 10, keeper(fs).copier.needed) == 10  # type: ignore[union-attr]
    runs = files.runs_of(fs.volume.view, inodes.read(fs.volume.view, kept.ino))
    assert sum(length for _, length in runs) == before + 10
    assert tuple(runs)[: len(kept.store.runs) - 1] == kept.store.runs[:-1]
    fs.sync()
    fs.check()


def test_a_pool_without_snapshots_has_no_folder(fs: FileSystem) -> None:
    assert files.folder(fs.volume.view) is None
    assert list(files.found(fs.volume.view)) == []
    assert b".daxfs" not in [entry.name for entry in fs.readdir(fs.opendir(ROOT_INO))]
