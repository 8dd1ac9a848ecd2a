"""Where inodes lie in the pool, for tests of what moves."""

from __future__ import annotations

import random

from range_rig import make

from daxfs.fs import removal
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.openfile import OpenFile
from daxfs.fs.types import SetAttributes
from daxfs.runs import BlockRun, ByteRange
from daxfs.structures import inodes, mapping

ALL = 1 << 40


def owned(fs: FileSystem, ino: int) -> set[int]:
    """All blocks of an inode: of its content, its map and its attributes."""
    inode = inodes.read(fs.volume.view, ino)
    found = {inode.file_acl} - {0}
    if removal.holds_blocks(inode):
        found |= used_places(fs, ino)
        found |= {number for _, number in mapping.own_blocks(fs.volume.view, inode, 0, BlockRun(0, ALL), ALL)[0]}
    return found


def used_places(fs: FileSystem, ino: int) -> set[int]:
    """The blocks of an inode's content."""
    return {number for run in fs.describe(ino) for number in range(run.pblk, run.pblk + run.length)}


def place_of(fs: FileSystem, numbers: set[int]) -> ByteRange:
    """The part of the pool from the first to the last of some blocks."""
    bits = fs.volume.block_bits
    return ByteRange(min(numbers) << bits, max(numbers) + 1 << bits)


def fragmented(fs: FileSystem, pieces: int, name: bytes = b"f") -> OpenFile:
    """A file of pieces with holes between them: each has an entry of its own in the map."""
    file = make(fs, name)
    size = fs.volume.block_size
    fs.setattr(file.ino, SetAttributes(size=2 * pieces * size))
    chance = random.Random(pieces)
    for piece in range(pieces):
        fs.write(file, 2 * piece * size, chance.randbytes(size))
    return file
