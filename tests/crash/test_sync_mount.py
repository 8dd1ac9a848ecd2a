"""With the mount option ``sync`` every operation is durable when it returns: each one, not only the first.

A cut right after an operation, with nothing but what is durable by then, must leave the tree as it was. The same holds
for files opened with O_SYNC and for inodes with the flag that chattr +S sets.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from crash_rig import NEEDS, OPERATIONS, SINGLE, Workbench, differing, image, recover, take_picture
from recorder import RecordingPool

from daxfs.errors import FsError
from daxfs.ext4.inode import EXT4_SYNC_FL
from daxfs.fs.filesystem import ROOT_INO, FileSystem, OpenFile
from daxfs.fs.types import Options
from support import wait_a_tick

SYNC = Options(sync=True, atime="noatime")
PLAIN = Options(atime="noatime")


def durable(pool: RecordingPool) -> bytearray:
    """The bytes that are left when the power goes now and takes all that need not stay."""
    images = pool.crash_images(random.Random(0), start=len(pool.events), prefixes=0, subsets=0)
    return next(images).image


@pytest.mark.parametrize("name", ["1k", "no-extents"])
def test_each_operation_is_durable_when_it_returns(name: str) -> None:
    """One after the other, in an order that leaves most of them something to do."""
    pool = RecordingPool(bytearray(image(name)))
    fs = FileSystem.open(pool, SYNC)
    bench = Workbench(fs)
    seen = 0
    for operation in (*(need for needs in NEEDS.values() for need in needs), *SINGLE):
        before = take_picture(fs)
        try:
            OPERATIONS[operation](bench)
        except (FsError, IndexError):
            continue
        now = take_picture(fs, bench.opened)
        left = recover(durable(pool))
        assert not differing(left.facts, now.facts), operation
        assert all(now.contents[ino] == content for ino, content in left.contents.items()), operation
        assert left.times == now.times, operation
        seen += now != before
        pool.restart()
    assert seen > len(SINGLE) / 3


def with_flag(fs: FileSystem) -> OpenFile:
    fs.set_flags(fs.tree.resolve("f"), fs.get_flags(fs.tree.resolve("f")) | EXT4_SYNC_FL)
    return fs.open_file(fs.tree.resolve("f"), os.O_RDWR)


OPENINGS: dict[str, Callable[[FileSystem], OpenFile]] = {
    "O_SYNC": lambda fs: fs.open_file(fs.tree.resolve("f"), os.O_RDWR | os.O_SYNC),
    "O_DSYNC": lambda fs: fs.open_file(fs.tree.resolve("f"), os.O_RDWR | os.O_DSYNC),
    "chattr +S": with_flag,
}


@pytest.mark.parametrize("how", OPENINGS)
def test_each_write_to_a_synchronous_file_is_durable(how: str) -> None:
    """Overwrites, appends, ranges and copies."""
    pool = RecordingPool(bytearray(image("1k")))
    fs = FileSystem.open(pool, PLAIN)
    file = OPENINGS[how](fs)
    other = fs.open_file(fs.tree.resolve("big"))
    writes: list[Callable[[], object]] = [
        lambda: fs.write(file, 100, b"first"),
        lambda: fs.write(file, 200, b"second"),
        lambda: fs.write(file, 3000, b"third" * 400),
        lambda: fs.write(file, 5000, b"fourth" * 400),
        lambda: fs.write(file, 20_000, b"fifth"),
        lambda: fs.fallocate(file, 0, 30_000, 3000),
        lambda: fs.copy_range(other, 0, file, 1000, 3000),
        lambda: fs.write(file, 64, b"last"),
    ]
    for number, write in enumerate(writes):
        write()
        content = bytes(fs.read(file, 0, 1 << 20))
        assert recover(durable(pool)).contents[file.ino] == content, f"write {number}"


ON_F = (
    *(
        "overwrite",
        "append",
        "overwrite",
        "chmod",
        "set xattr",
        "overwrite and append",
        "overwrite",
        "truncate up a hole",
    ),
    *("truncate f unaligned", "append far", "overwrite", "set large xattr", "truncate to nothing", "append"),
)
"""Operations on the file ``f``, one after the other."""


@pytest.mark.parametrize("data_only", [False, True])
def test_each_fsync_is_durable(data_only: bool) -> None:
    """Content and attributes; times too, but for fdatasync."""
    pool = RecordingPool(bytearray(image("1k")))
    fs = FileSystem.open(pool, PLAIN)
    bench = Workbench(fs)
    ino = bench.ino("f")
    for number, operation in enumerate(ON_F):
        OPERATIONS[operation](bench)
        fs.fsync(ino, data_only)
        now, left = take_picture(fs), recover(durable(pool))
        assert left.contents[ino] == now.contents[ino], (number, operation)
        assert left.facts[b"f"] == now.facts[b"f"], (number, operation)
        assert data_only or left.times[ino] == now.times[ino], (number, operation)
        wait_a_tick()


def test_a_directory_with_the_flag() -> None:
    """chattr +D: names are durable, one after the other."""
    pool = RecordingPool(bytearray(image("1k")))
    fs = FileSystem.open(pool, PLAIN)
    fs.set_flags(ROOT_INO, fs.get_flags(ROOT_INO) | EXT4_SYNC_FL)
    names = [b"one", b"two", b"three"]
    for old, new in pairwise([b"f", *names]):
        fs.rename(ROOT_INO, old, ROOT_INO, new)
        assert new in recover(durable(pool)).facts
