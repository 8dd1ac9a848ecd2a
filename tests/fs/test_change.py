"""A change of a file in one handle: its node learns of all of it, or of nothing if the handle fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
from explorer.disk import Disk
from failing.seams import FailingPool, Trigger
from tree_rig import QUIET

from daxfs.errors import FsError, MissingMemory
from daxfs.fs.change import Change
from daxfs.fs.filesystem import FileSystem, OpenFile
from daxfs.fs.types import ROOT_INO
from daxfs.structures import mapping
from support import wait_a_tick

BLOCK = 4096
CREDITS = 200


class Listener:
    """Stands in for the grants of a file: the calls of `InodeNotifier`, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def bump_version(self) -> None:
        self.calls.append(("bump_version",))

    def set_size(self, size: int) -> None:
        self.calls.append(("set_size", size))

    def bump_epoch(self) -> None:
        self.calls.append(("bump_epoch",))

    def invalidate_range(self, begin: int, end: int) -> None:
        self.calls.append(("invalidate_range", begin, end))

    def zero_range(self, begin: int, end: int) -> None:
        self.calls.append(("zero_range", begin, end))


@pytest.fixture
def file(memory_fs: FileSystem) -> OpenFile:
    """Return a file of 16 blocks without block 4; its map is in DRAM."""
    file, _ = memory_fs.create(ROOT_INO, b"f", 0o600, os.O_RDWR)
    memory_fs.write(file, 0, b"." * 4 * BLOCK)
    memory_fs.write(file, 5 * BLOCK, b"." * 11 * BLOCK)
    memory_fs.read(file, 0, BLOCK)
    assert file.node.map is not None
    return file


def changed(fs: FileSystem, file: OpenFile, edit: Callable[[Change], object], *, dated: bool = True) -> Listener:
    """Make one change; return the calls that the listener received."""
    listener = file.node.grants = Listener()
    volume = fs.volume
    try:
        with volume.handle(CREDITS) as tx, Change(volume, tx, file.ino, dated=dated) as change:
            edit(change)
    finally:
        file.node.grants = None
    fs.check()
    return listener


def test_a_change_that_fails_is_not_heard_of(memory_fs: FileSystem, file: OpenFile) -> None:
    listener = Listener()
    before, size = memory_fs.getattr(file.ino), file.node.size

    def fail(change: Change) -> None:
        file.node.grants = listener
        change.unmap(0, None)
        change.inode.size = 0
        raise FsError(errno.EIO)

    with pytest.raises(FsError):
        changed(memory_fs, file, fail)
    assert listener.calls == []
    assert file.node.size == size
    assert memory_fs.getattr(file.ino) == before
    assert bytes(memory_fs.read(file, 0, BLOCK)) == b"." * BLOCK


def test_a_filled_hole_ends_what_clients_know(memory_fs: FileSystem, file: OpenFile) -> None:
    def fill(change: Change) -> None:
        change.maps(mapping.allocate(change._tx, change.inode, 4, 1, unwritten=False))

    assert changed(memory_fs, file, fill).calls == [("bump_version",), ("bump_epoch",)]
    assert file.node.map is not None
    assert file.node.map.covers(4 * BLOCK, 5 * BLOCK)


def test_blocks_past_eof_leave_what_clients_know(memory_fs: FileSystem, file: OpenFile) -> None:
    """No client was granted a hole there."""

    def lengthen(change: Change) -> None:
        change.maps(mapping.allocate(change._tx, change.inode, 16, 2, unwritten=False))
        change.inode.size = 18 * BLOCK

    assert changed(memory_fs, file, lengthen).calls == [("set_size", 18 * BLOCK)]


def test_unwritten_blocks_in_a_hole_leave_what_clients_know(memory_fs: FileSystem, file: OpenFile) -> None:
    """Unwritten blocks read as zeros, as the hole did."""

    def allocate(change: Change) -> None:
        change.maps(mapping.allocate(change._tx, change.inode, 4, 1, unwritten=True))

    assert changed(memory_fs, file, allocate).calls == [("bump_version",)]


def test_freed_blocks_leave_the_map(memory_fs: FileSystem, file: OpenFile) -> None:
    assert changed(memory_fs, file, lambda change: change.unmap(8, 11)).calls == [("bump_version",)]
    assert file.node.map is not None
    assert list(file.node.map.gaps(0, 16 * BLOCK)) == [(4 * BLOCK, 5 * BLOCK), (8 * BLOCK, 12 * BLOCK)]


def test_a_range_that_is_freed_in_part_drops_the_map(memory_fs: FileSystem, file: OpenFile) -> None:
    """With a limit of one run the first two runs stay, so that the kept map would be wrong."""
    left: list[bool] = []
    changed(memory_fs, file, lambda change: left.append(change.unmap(0, 15, limit=1)))
    assert left == [False]
    assert file.node.map is None


def test_moved_blocks_drop_the_map(memory_fs: FileSystem, file: OpenFile) -> None:
    changed(memory_fs, file, lambda change: change.remaps())
    assert file.node.map is None


def test_freed_runs_are_announced_within_the_handle(
    memory_fs: FileSystem, file: OpenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`BlockNotifier.defer_frees` gets the index in the handle's list where this change's runs begin."""
    heard: list[tuple[int, list[tuple[int, int]]]] = []

    def defer_frees(tx: object, ino: int, mark: int) -> None:
        heard.append((ino, tx.frees[mark:]))  # type: ignore[attr-defined]

    monkeypatch.setattr(memory_fs.volume.notifier, "defer_frees", defer_frees)
    changed(memory_fs, file, lambda change: change.unmap(8, 11))
    ((ino, runs),) = heard
    assert ino == file.ino
    assert sum(length for _, length in runs) == 4


@pytest.mark.parametrize("dated", [True, False])
def test_times_move_with_a_dated_change_alone(memory_fs: FileSystem, file: OpenFile, dated: bool) -> None:
    memory_fs.sync()
    before = memory_fs.getattr(file.ino)
    wait_a_tick()
    listener = changed(memory_fs, file, lambda change: change.unmap(8, 11), dated=dated)
    after = memory_fs.getattr(file.ino)
    assert (after.mtime_ns > before.mtime_ns) == dated
    assert (after.ctime_ns > before.ctime_ns) == dated
    assert bool(listener.calls) == dated


def test_eof_advances_over_unwritten_blocks(memory_fs: FileSystem, file: OpenFile) -> None:
    """The blocks join the written run before them, in the tree and in the map."""

    def reserve(change: Change) -> None:
        change.maps(mapping.allocate(change._tx, change.inode, 16, 4, unwritten=True))

    changed(memory_fs, file, reserve, dated=False)
    advanced: list[bool] = []
    listener = changed(memory_fs, file, lambda change: advanced.append(change.advance_eof(16 * BLOCK, 18 * BLOCK)))
    assert advanced == [True]
    assert listener.calls == [("set_size", 18 * BLOCK)]
    assert memory_fs.getattr(file.ino).size == 18 * BLOCK


def test_eof_does_not_advance_over_a_hole(memory_fs: FileSystem, file: OpenFile) -> None:
    advanced: list[bool] = []
    changed(memory_fs, file, lambda change: advanced.append(change.advance_eof(16 * BLOCK, 18 * BLOCK)), dated=False)
    assert advanced == [False]
    assert memory_fs.getattr(file.ino).size == 16 * BLOCK


def test_a_file_that_nobody_has_open_has_no_node(memory_fs: FileSystem, file: OpenFile) -> None:
    memory_fs.release(file)
    memory_fs.sync()
    assert file.ino not in memory_fs.volume.nodes.open
    volume = memory_fs.volume
    with volume.handle(CREDITS) as tx, Change(volume, tx, file.ino) as change:
        change.unmap(8, 11)
    assert memory_fs.getattr(file.ino).blocks < 16 * 8


def test_a_change_that_met_missing_memory_is_not_heard_of(small_image: bytes) -> None:
    """The handle is undone at its end, after the change has ended without an error."""
    pool = FailingPool(Disk(small_image, BLOCK), "", Trigger())
    with FileSystem.open(pool, QUIET) as fs:
        file, _ = fs.create(ROOT_INO, b"f", 0o600, os.O_RDWR)
        fs.write(file, 0, b"." * 4 * BLOCK)

        def lose(change: Change) -> None:
            change.unmap(0, None)
            change.inode.size = 0
            pool.faults.pending[0] += 1  # type: ignore[index]

        with pytest.raises(MissingMemory):
            changed(fs, file, lose)
        assert file.node.size == 4 * BLOCK
        fs.check()
