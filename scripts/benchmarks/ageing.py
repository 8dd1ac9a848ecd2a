"""An aged pool: files of a published distribution of sizes are made and removed until ten times its size was written.

Section ``ageing``, as a library. Sizes are the body of the distribution that Agrawal, Arpaci-Dusseau and Arpaci-Dusseau
fitted to the file systems of desktops (Generating Realistic Impressions for File-System Benchmarking, FAST 2009, table
2): a lognormal with mu 9.48 and sigma 2.46, of the natural logarithm of bytes. Its tail above 512 MiB is left out. Half
of the bytes are in files of more than 5 MiB. Removed files are chosen at random. The pool commits after each 50 files,
since blocks are free only then.

Then new large files are made in half of the free space, and the share of them is counted that 2 MiB pages can map.
"""

from __future__ import annotations

import math
import os
import random
from pathlib import Path

import rig
from benchmarks.report import Report
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import FileExtent
from daxfs.tools.mapview import huge_bytes
from daxfs.tools.poolmap import Kind, examine

MU, SIGMA = 9.48, 2.46
LARGEST_PART = 16
"""No file is larger than this part of the pool."""
FULL = 0.75
TIMES, QUICK_TIMES = 10, 1
SIZE = "1G"
DIRECTORIES = 64
TOGETHER = 50
PIECE = 128 << 10
"""Files are written in pieces of this size, as by cp(1)."""
LARGE = 32 << 20
LARGE_PIECES = (1 << 20, PIECE)
LEAST = 0.90
"""The share of new large files, written in pieces of 1 MiB, that 2 MiB pages can map."""
ZEROS = bytes(1 << 20)


def ageing(base: Path, report: Report) -> None:
    """Age a pool, and measure what is left of its free chunks."""
    quick = report.scale.rounds == 1
    pool = base / "aged.pool"
    rig.run(rig.tool("daxfs"), "mkfs", pool, "--size", SIZE)
    rows = [("new", *free_space(pool))]
    with FileSystem.open(pool) as fs:
        Population(fs).age(QUICK_TIMES if quick else TIMES)
    rows.append(("aged", *free_space(pool)))
    report.table("free space", ("pool", "free MiB", "in whole chunks of 2 MiB"), rows)
    shares = []
    with FileSystem.open(pool) as fs:
        for piece in LARGE_PIECES:
            what = f"new files of {LARGE >> 20} MiB, written in pieces of {piece >> 10} KiB"
            share = share_in_large_pages(fs, piece)
            shares.append((what, report.bound(what, share, least=LEAST if piece == LARGE_PIECES[0] else None)))
    report.table("what 2 MiB pages can map, on the aged pool", ("what", "share"), shares)
    report.say(f"e2fsck -fn: {rig.check(pool)}")


def free_space(pool: Path) -> tuple[str, str]:
    """Return the free space of a pool in MiB, and the share of it that lies in whole chunks."""
    found = examine(str(pool))
    free = found.bytes_of(Kind.FREE)
    return f"{free / (1 << 20):.0f}", f"{found.whole * (2 << 20) / free:.2f}"


class Population:
    """The files of an ageing pool."""

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        self._chance = random.Random(19)
        space = fs.statfs()
        self._size = space.blocks * space.block_size
        self._directories = [fs.mkdir(ROOT_INO, b"%d" % number, 0o755).ino for number in range(DIRECTORIES)]
        self._files: list[tuple[int, bytes]] = []
        self._made = self._written = 0

    def age(self, times: float) -> None:
        """Fill the pool to `FULL`, then make and remove files until ``times`` its size was written."""
        while self._share() < FULL:
            self._make_some()
        self._written = 0
        while self._written < times * self._size:
            while self._share() > FULL:
                self._remove()
            self._fs.sync()
            self._make_some()

    def _share(self) -> float:
        space = self._fs.statfs()
        return 1 - space.free / space.blocks

    def _make_some(self) -> None:
        for _ in range(TOGETHER):
            size = 0
            while not 0 < size <= self._size // LARGEST_PART:
                size = int(math.exp(self._chance.gauss(MU, SIGMA)))
            directory, name = self._chance.choice(self._directories), b"%d" % self._made
            write(self._fs, directory, name, size, PIECE)
            self._files.append((directory, name))
            self._made += 1
            self._written += size

    def _remove(self) -> None:
        at = self._chance.randrange(len(self._files))
        self._files[at], self._files[-1] = self._files[-1], self._files[at]
        self._fs.unlink(*self._files.pop())


def write(fs: FileSystem, directory: int, name: bytes, size: int, piece: int) -> int:
    """Make a file of zeros in pieces; return its inode number."""
    file, made = fs.create(directory, name, 0o644, os.O_RDWR)
    offset = 0
    while offset < size:
        offset += fs.write(file, offset, ZEROS[: min(piece, size - offset)])
    fs.release(file)
    return made.ino


def share_in_large_pages(fs: FileSystem, piece: int) -> float:
    """Make large files in half of the free space; return the share that 2 MiB pages can map, and remove them."""
    space = fs.statfs()
    count = max(space.free * space.block_size // 2 // LARGE, 1)
    names = [b"large-%d" % number for number in range(count)]
    huge = 0
    for name in names:
        ino = write(fs, ROOT_INO, name, LARGE, piece)
        shift = space.block_size.bit_length() - 1
        runs = [FileExtent(run.lblk << shift, run.pblk << shift, run.length << shift, 0) for run in fs.describe(ino)]
        huge += huge_bytes(runs)
    for name in names:
        fs.unlink(ROOT_INO, name)
    fs.sync()
    return huge / (count * LARGE)
