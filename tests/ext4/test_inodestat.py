"""Attributes that are decoded at once are those that the record reads one by one, whatever the slot holds."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from daxfs.ext4.geometry import Geometry
from daxfs.ext4.inode import EXT4_HUGE_FILE_FL, InodeRecord
from daxfs.ext4.inodestat import EXTRA_ISIZE, decode
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET, Superblock

MakeImage = Callable[..., Path]
SLOTS = 200
KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFLNK, stat.S_IFIFO)


@pytest.fixture
def geometry(make_image: MakeImage) -> Geometry:
    content = make_image().read_bytes()
    return Geometry.of(Superblock(memoryview(content), SUPERBLOCK_OFFSET))


def one_by_one(inode: InodeRecord) -> tuple[int, ...]:
    """What `decode` returns, by the record."""
    device = inode.rdev if stat.S_IFMT(inode.mode) in (stat.S_IFCHR, stat.S_IFBLK) else 0
    owner = inode.mode, inode.links_count, inode.uid, inode.gid, device
    times = inode.atime_ns, inode.mtime_ns, inode.ctime_ns, inode.crtime_ns
    return *owner, inode.size, inode.blocks, *times, inode.generation, inode.flags


@pytest.mark.parametrize("extra", [0, 4, 8, 12, 16, EXTRA_ISIZE - 4, EXTRA_ISIZE, 32, 128, 132, 0xFFFC])
@pytest.mark.parametrize("size", [128, 256, 1024])
def test_any_slot(geometry: Geometry, size: int, extra: int) -> None:
    randomness = random.Random(size + extra)
    for number in range(SLOTS):
        given = replace(
            geometry,
            inode_size=size,
            has_huge_file=randomness.random() < 0.7,
            has_large_dir=randomness.random() < 0.3,
        )
        block = memoryview(bytearray(randomness.randbytes(4 * size)))
        offset = size * (number % 4)
        inode = InodeRecord(block, offset, given)
        inode.i_mode = KINDS[number % len(KINDS)] | randomness.getrandbits(12)
        if number % 3:
            inode.i_flags &= ~EXT4_HUGE_FILE_FL
        if number % 2:
            inode.i_size_high = 0
        if size > 128:
            inode.halves[64] = extra
        assert decode(block, offset, given) == one_by_one(InodeRecord(block, offset, given))
