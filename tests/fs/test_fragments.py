"""A badly fragmented pool: what an operation over many single blocks costs, counted in calls of functions."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
from range_rig import PUNCH, ZERO, check_credits

from daxfs.fs import data
from daxfs.fs.change import Change
from daxfs.fs.filesystem import ROOT_INO, FileSystem, OpenFile
from daxfs.fs.steps import Steps
from daxfs.fs.types import Caller, SetAttributes
from daxfs.structures import mapping
from support import fsck

FRAGMENTS = 3000
BLOCK = 4096


def calls(operation: Callable[[], object]) -> int:
    """Run an operation, and return how many Python functions it has called."""
    count = 0

    def called(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        operation()
    finally:
        sys.setprofile(before)
    return count


def fill(fs: FileSystem, name: bytes, size: int) -> OpenFile:
    """Create a file of contiguous unwritten blocks."""
    file, _ = fs.create(ROOT_INO, name, 0o644, os.O_RDWR)
    fs.fallocate(file, 0, 0, size)
    return file


def perforate(fs: FileSystem, file: OpenFile, count: int) -> None:
    """Free every second of the file's blocks, ``count`` of them."""
    for first in range(0, 2 * count, 128):
        with fs.volume.handle(32) as tx, Change(fs.volume, tx, file.ino) as change:
            for lblk in range(first, min(first + 128, 2 * count), 2):
                mapping.remove(tx, change.inode, lblk, lblk)
            change.remaps()
    fs.fsync(ROOT_INO)


@pytest.fixture
def fragmented(pool: Callable[..., Path]) -> Iterator[FileSystem]:
    """Yield a file system whose free blocks are single ones, but for the last few; it must be clean in the end."""
    path = pool("-b", "4096", "-m", "0", size="64M")
    fs = FileSystem.open(path)
    check_credits(fs)
    files = [fill(fs, b"perforated", 2 * FRAGMENTS * BLOCK)]
    kept = fs.volume.geometry.blocks_count // 50
    files.append(fill(fs, b"rest", (fs.statfs().free - kept - 16) * BLOCK))
    perforate(fs, files[0], FRAGMENTS)
    fs.tick()
    for file in files:
        fs.release(file)
    yield fs
    fs.check()
    fs.close()
    fsck(path)


def test_fragmentation_costs_once_and_not_for_each_block(fragmented: FileSystem) -> None:
    """One by one, each fragment cost three searches of bitmaps and descents of the tree: 162 calls."""
    fs = fragmented
    file, _ = fs.create(ROOT_INO, b"f", 0o644, os.O_RDWR)
    size = (FRAGMENTS - 100) * BLOCK
    assert calls(lambda: fs.fallocate(file, 0, 0, size)) < 12 * FRAGMENTS
    runs = fs.describe(file.ino)
    assert len(runs) > 0.85 * FRAGMENTS
    assert sum(run.length for run in runs) * BLOCK == size
    assert all(run.unwritten for run in runs)
    fs.release(file)


@pytest.fixture
def scattered(fragmented: FileSystem) -> Iterator[tuple[FileSystem, OpenFile, int]]:
    """Yield a file system and a file of single blocks, all written, with its size."""
    fs = fragmented
    file, _ = fs.create(ROOT_INO, b"f", 0o644, os.O_RDWR)
    size = (FRAGMENTS - 100) * BLOCK
    content = b"x" * (1 << 20)
    for offset in range(0, size, len(content)):
        fs.write(file, offset, content[: size - offset])
    assert len(fs.describe(file.ino)) > 0.85 * FRAGMENTS
    fs.fsync(ROOT_INO)
    yield fs, file, size
    fs.release(file)


def test_zeroing_costs_little_for_each_extent(scattered: tuple[FileSystem, OpenFile, int]) -> None:
    """One by one, each extent cost a search in each of three places: 53 calls."""
    fs, file, size = scattered
    count = len(fs.describe(file.ino))
    assert calls(lambda: fs.fallocate(file, ZERO, 0, size)) < 20 * count
    assert all(run.unwritten for run in fs.describe(file.ino))
    assert len(fs.describe(file.ino)) == count
    assert not any(fs.read(file, 0, 1 << 20))
    assert calls(lambda: fs.fallocate(file, ZERO, 0, size)) < 12 * count


def test_freeing_costs_little_for_each_extent(scattered: tuple[FileSystem, OpenFile, int]) -> None:
    """One by one, each extent cost two looks at its bitmap, at the removal and at the commit: 54 calls.

    With an object for each run and each piece of it there were still 4.4.
    """
    fs, file, size = scattered
    count, free = len(fs.describe(file.ino)), fs.statfs().free
    half = size // 2 // BLOCK * BLOCK

    def all_of_it() -> None:
        fs.fallocate(file, PUNCH, 0, half)
        fs.setattr(file.ino, SetAttributes(size=0))
        fs.fsync(ROOT_INO)

    assert calls(all_of_it) < 2.5 * count
    assert fs.describe(file.ino) == []
    assert fs.statfs().free >= free + size // BLOCK


def test_a_file_of_too_many_extents_for_a_map_is_found_out_cheaply(
    scattered: tuple[FileSystem, OpenFile, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each read after a hole was punched began a map, and gave up after thousands of extents."""
    fs, file, _ = scattered
    monkeypatch.setattr(data, "MAX_RUNS", 2000)
    fs.volume.nodes.drop_maps()

    def punch_and_read() -> None:
        fs.fallocate(file, PUNCH, 100 * BLOCK, BLOCK)
        assert bytes(fs.read(file, 100 * BLOCK, 2 * BLOCK)) == bytes(BLOCK) + b"x" * BLOCK

    punch_and_read()
    assert calls(punch_and_read) < 400


def test_a_write_into_single_free_blocks_takes_few_handles(fragmented: FileSystem) -> None:
    """One by one, each block cost a handle, 130 calls, also if it was written before."""
    fs = fragmented
    count = 256
    first, second = os.urandom(count * BLOCK), os.urandom(count * BLOCK)
    fs.release(fill(fs, b"what is contiguous", 400 * BLOCK))
    hole, _ = fs.create(ROOT_INO, b"hole", 0o644, os.O_RDWR)
    reserved, _ = fs.create(ROOT_INO, b"reserved", 0o644, os.O_RDWR)
    fs.fallocate(reserved, 0, 0, (count + 1) * BLOCK)
    for file, begin in ((hole, 0), (reserved, BLOCK // 2)):
        assert calls(lambda file=file, begin=begin: fs.write(file, begin, first)) < 60 * count  # type: ignore[misc]
        assert bytes(fs.read(file, begin, count * BLOCK)) == first
        assert len(fs.describe(file.ino)) > count // 2
        fs.fsync(ROOT_INO)
        assert calls(lambda file=file, begin=begin: fs.write(file, begin, second)) < 15 * count  # type: ignore[misc]
        assert bytes(fs.read(file, begin, count * BLOCK)) == second
        assert not fs.volume.journal.dirty
    assert bytes(fs.read(reserved, 0, BLOCK // 2)) == bytes(BLOCK // 2)
    assert fs.read(reserved, begin + count * BLOCK, BLOCK) == bytes(BLOCK // 2)
    for opened in (hole, reserved):
        fs.release(opened)


MOST_CALLS = 10_000
"""Of Python functions in one step: some 5 ms on a machine where a call with what it does takes 0.5 us."""


def most_calls(steps: Steps[object]) -> int:
    """Run an operation in steps, and return the most calls of functions in one of them."""
    most = 0
    ended = False

    def step() -> None:
        nonlocal ended
        try:
            next(steps)
        except StopIteration:
            ended = True

    while not ended:
        most = max(most, calls(step))
    return most


def test_no_step_is_long(scattered: tuple[FileSystem, OpenFile, int]) -> None:
    """What others wait for, counted: the longest step of each operation on thousands of extents."""
    fs, file, size = scattered
    copy, _ = fs.create(ROOT_INO, b"copy", 0o644, os.O_RDWR)
    reserved, _ = fs.create(ROOT_INO, b"reserved", 0o644, os.O_RDWR)
    some = 90 * BLOCK
    operations = {
        "seek": fs.steps.seek(file, 0, os.SEEK_HOLE),
        "copy": fs.steps.copy_range(file, 0, copy, 0, some),
        "copy over itself": fs.steps.copy_range(file, 0, file, size // 2 // BLOCK * BLOCK, size // 2 // BLOCK * BLOCK),
        "zero": fs.steps.fallocate(file, ZERO, 0, size),
        "punch": fs.steps.fallocate(file, PUNCH, 0, size // 2),
        "truncate": fs.steps.setattr(file.ino, SetAttributes(size=0), Caller()),
        "allocate": fs.steps.fallocate(reserved, 0, 0, size // 2),
        "trim": fs.steps.trim(),
    }
    assert {name: most for name, steps in operations.items() if (most := most_calls(steps)) > MOST_CALLS} == {}
    for opened in (copy, reserved):
        fs.release(opened)
