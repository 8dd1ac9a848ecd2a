"""Pools in the states that long requests need. Each is made once, as a library, and copied for each use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import rig
from benchmarks import disturbances
from benchmarks.disturbances import BLOCK, EXTENTS, MIB
from daxfs import FileSystem
from daxfs.fs.ranges import KEEP_SIZE, PUNCH_HOLE
from daxfs.fs.types import ROOT_INO

FRAGMENTS = 200_000
DEPTH = 50_000
LINKS_OF_A_FILE = 60_000
CHUNK = 64 * MIB


def fragments(fs: FileSystem, _names: int) -> None:
    """Leave free single blocks only: fill the pool, then punch every second block of a reserved file."""
    file, _ = fs.create(ROOT_INO, b"reserved only", 0o666, os.O_RDWR)
    fs.fallocate(file, 0, 0, 2 * FRAGMENTS * BLOCK)
    rest, _ = fs.create(ROOT_INO, b"rest", 0o666, os.O_RDWR)
    size, end = CHUNK, 0
    while size >= BLOCK:
        try:
            fs.fallocate(rest, 0, end, size)
            end += size
        except OSError:
            size //= 2
    for block in range(0, 2 * FRAGMENTS, 2):
        fs.fallocate(file, KEEP_SIZE | PUNCH_HOLE, block * BLOCK, BLOCK)
    fs.release(rest)
    fs.release(file)


def extents(fs: FileSystem, _names: int) -> None:
    """Make a file of single blocks, none of which follows the one before; its first 64 MiB are written."""
    both = [fs.create(ROOT_INO, name, 0o666, os.O_RDWR)[0] for name in (b"extents", b"between")]
    for block in range(EXTENTS):
        for file in both:
            fs.fallocate(file, 0, block * BLOCK, BLOCK)
    for offset in range(0, disturbances.COPIED, MIB):
        fs.write(both[0], offset, b"x" * MIB)
    for file in both:
        fs.release(file)


def deep(fs: FileSystem, _names: int) -> None:
    """Make directories, each in the one before."""
    ino = ROOT_INO
    for _ in range(DEPTH):
        ino = fs.mkdir(ino, b"d", 0o777).ino


def large(fs: FileSystem, names: int) -> None:
    """Make a directory of many names, of as few files as may have them."""
    folder = fs.mkdir(ROOT_INO, b"large", 0o777).ino
    ino = 0
    for number in range(names):
        if number % LINKS_OF_A_FILE:
            fs.link(ino, folder, b"name-%08d" % number)
        else:
            ino = fs.mknod(folder, b"name-%08d" % number, 0o666).ino


def full(fs: FileSystem, _names: int) -> None:
    """Leave memory that was used and is free: write a file and remove it."""
    file, _ = fs.create(ROOT_INO, b"removed", 0o666, os.O_RDWR)
    for offset in range(0, 1024 * MIB, MIB):
        fs.write(file, offset, b"x" * MIB)
    fs.release(file)
    fs.unlink(ROOT_INO, b"removed")


def plain(_fs: FileSystem, _names: int) -> None:
    """Leave the pool as mkfs made it."""


POOLS: dict[str, tuple[str, Callable[[FileSystem, int], None]]] = {
    "plain": ("1G --sparse", plain),
    "fragments": ("1800M --sparse", fragments),
    "extents": ("1800M --sparse", extents),
    "deep": ("1G --sparse", deep),
    "full": ("1100M --sparse", full),
    "large": ("1G --sparse", large),
}
"""By name: the size, with the options of mkfs, and what makes the content."""


def make(path: Path, name: str, names: int) -> None:
    """Make the pool of a name, with a file of the probe's own that any user may read.

    Args:
        path: where to make it.
        name: of `POOLS`.
        names: entries of the large directory.
    """
    options, fill = POOLS[name]
    rig.run(rig.tool("daxfs"), "mkfs", path, "-m", "0", "--size", *options.split())
    with FileSystem.open(path) as fs:
        file, _ = fs.create(ROOT_INO, b"probed", 0o644, os.O_RDWR)
        fs.write(file, 0, bytes(16 * MIB))
        fs.release(file)
        fill(fs, names)


def copy(made: Path, to: Path) -> None:
    """Copy a pool; memory that it has never used stays a hole."""
    rig.run("cp", "--sparse=auto", made, to)
