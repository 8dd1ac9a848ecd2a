"""A cut can leave old bytes past EOF, in a file's last block: whatever makes the file longer then zeroes them.

A truncate commits the new size before it zeroes the tail (docs/CRASH.md), so these bytes are what a cut between the two
leaves. Each way to grow is tried on such a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
from crash_rig import FORMATS, QUIET, image, noise
from lease_rig import EXTEND, STORE, Client
from range_rig import COLLAPSE, KEEP_SIZE, ZERO

from daxfs.fs.filesystem import ROOT_INO, FileSystem, OpenFile
from daxfs.fs.types import SetAttributes
from daxfs.pmem.memory import MemoryPool


class Way(NamedTuple):
    """How a file grows, and where the bytes are from which it is more than zeros; both in quarters of a block."""

    grow: Callable[[FileSystem, OpenFile, int], object]
    start: int
    extents: bool = False


SIZE = 6
"""Quarters of a block that the file is long: half of its second block is past EOF."""


def copied(source: str, offset: int, length: int) -> Callable[[FileSystem, OpenFile, int], object]:
    """Copy so many quarters from the beginning of another file."""

    def copy(fs: FileSystem, file: OpenFile, quarter: int) -> None:
        other = fs.open_file(fs.tree.resolve(source))
        done = fs.copy_range(other, 0, file, offset * quarter, length * quarter)
        assert done == length * quarter
        fs.release(other)

    return copy


def written(offset: int) -> Callable[[FileSystem, OpenFile, int], object]:
    return lambda fs, file, quarter: fs.write(file, offset * quarter, b"x" * quarter)


def cut(size: int) -> Callable[[FileSystem, OpenFile, int], object]:
    return lambda fs, file, quarter: fs.setattr(file.ino, SetAttributes(size=size * quarter))


def allocated(mode: int, offset: int, length: int) -> Callable[[FileSystem, OpenFile, int], object]:
    return lambda fs, file, quarter: fs.fallocate(file, mode, offset * quarter, length * quarter)


def appended(fs: FileSystem, file: OpenFile, quarter: int) -> None:
    """A client of direct mapping stores a part of what it says to have filled."""
    holder = Client(fs, file)
    holder.ask_all(SIZE * quarter, 20 * quarter, STORE | EXTEND)
    holder.store(9 * quarter, b"x" * quarter)
    holder.stored(10 * quarter)


def reserved_before(fs: FileSystem, file: OpenFile, quarter: int) -> None:
    """Blocks are reserved past EOF first; the size follows."""
    fs.fallocate(file, KEEP_SIZE, 8 * quarter, 8 * quarter)
    fs.write(file, 10 * quarter, b"x" * quarter)


def collapsed_before(fs: FileSystem, file: OpenFile, quarter: int) -> None:
    """The block with the tail moves down, then the file grows."""
    fs.fallocate(file, COLLAPSE, 0, 4 * quarter)
    fs.write(file, 6 * quarter, b"x" * quarter)


WAYS: dict[str, Way] = {
    "write in the block": Way(written(7), 7),
    "write further on": Way(written(21), 21),
    "copy in the block": Way(copied("data", 7, 3), 7),
    "copy further on": Way(copied("data", 17, 3), 17),
    "copy a hole": Way(copied("hole", SIZE, 8), SIZE + 8),
    "copy a hole in the block": Way(copied("hole", SIZE, 1), SIZE + 1),
    "truncate in the block": Way(cut(7), 7),
    "truncate further on": Way(cut(30), 30),
    "allocate in the block": Way(allocated(0, 7, 1), 8, extents=True),
    "allocate further on": Way(allocated(0, 12, 8), 20, extents=True),
    "zero in the block": Way(allocated(ZERO, 7, 1), 8, extents=True),
    "zero further on": Way(allocated(ZERO, 12, 8), 20, extents=True),
    "write after what is reserved": Way(reserved_before, 10, extents=True),
    "append by a client": Way(appended, 9, extents=True),
}


@cache
def torn(name: str) -> bytes:
    """A pool in which a file has old bytes past EOF."""
    pool = MemoryPool(image(name))
    fs = FileSystem.open(pool, QUIET)
    quarter = fs.volume.block_size // 4
    fs.tree.write_bytes("data", noise(8 * quarter, 2))
    fs.tree.write_bytes("hole", b"")
    fs.setattr(fs.tree.resolve("hole"), SetAttributes(size=100 * quarter))
    fs.tree.write_bytes("torn", noise(SIZE * quarter, 3))
    run = fs.describe(fs.tree.resolve("torn"))[0]
    fs.sync()
    content = bytearray(pool.image())
    end = run.pblk * 4 * quarter + SIZE * quarter
    content[end : end + 2 * quarter] = b"\xee" * (2 * quarter)
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "way"),
    [(name, way) for name in FORMATS for way, (_, _, extents) in WAYS.items() if not extents or name != "no-extents"],
)
def test_what_a_cut_left_behind_the_end_is_never_seen(name: str, way: str) -> None:
    with FileSystem.open(MemoryPool(torn(name)), QUIET) as fs:
        quarter = fs.volume.block_size // 4
        ino = fs.tree.resolve("torn")
        file = fs.open_file(ino, os.O_RDWR)
        WAYS[way].grow(fs, file, quarter)
        end = fs.getattr(ino).size
        start = WAYS[way].start * quarter
        assert end >= start
        content = bytes(fs.read(file, 0, end))
        fs.release(file)
        assert content[: SIZE * quarter] == noise(SIZE * quarter, 3)
        assert content[SIZE * quarter : start] == bytes(start - SIZE * quarter)
        assert b"\xee" * 8 not in content


def test_a_tail_that_was_collapsed() -> None:
    with FileSystem.open(MemoryPool(torn("1k")), QUIET) as fs:
        quarter = fs.volume.block_size // 4
        file = fs.open_file(fs.tree.resolve("torn"), os.O_RDWR)
        collapsed_before(fs, file, quarter)
        assert b"\xee" not in bytes(fs.read(file, 2 * quarter, 10 * quarter)).replace(b"x", b"")
        fs.release(file)


def test_the_tail_is_what_a_truncate_leaves() -> None:
    """The pool above is made by hand; a truncate cut in two makes the same."""
    pool = MemoryPool(image("1k"))
    fs = FileSystem.open(pool, QUIET)
    file, _ = fs.create(ROOT_INO, b"cut", 0o600)
    fs.write(file, 0, b"\xee" * 2048)
    fs.sync()
    images: list[bytes] = []
    zero = pool.zero
    pool.zero = lambda offset, length: (images.append(pool.image()), zero(offset, length))[1]  # type: ignore[method-assign]
    fs.setattr(file.ino, SetAttributes(size=1500))
    with FileSystem.open(MemoryPool(images[-1]), QUIET) as after:
        ino = after.tree.resolve("cut")
        run = after.describe(ino)[0]
        assert after.getattr(ino).size == 1500
        place = run.pblk * 1024
        assert bytes(after.volume.memory[place + 1500 : place + 2048]) == b"\xee" * 548
