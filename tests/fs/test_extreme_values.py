"""Every field of the structures that lead to all others, at its extremes and with a right checksum.

A checksum proves nothing about a hostile pool. A value joined from two halves may exceed the machine's integers:
arithmetic with it must end in a named error, also before the log is replayed, when checksums are not verified.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from tree_rig import furnish

from daxfs.ext4 import group
from daxfs.ext4.features import Incompat
from daxfs.ext4.inode import seal_slot
from daxfs.ext4.superblock import Superblock
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import Options
from daxfs.pmem.memory import MemoryPool
from daxfs.structures import inodes

MakePool = Callable[..., Path]

SUPERBLOCK = 1024
JOURNAL_INO = 8
FIRST_INO = 12


class Image:
    """A pool with files, of which one word can be changed so that every checksum is right."""

    def __init__(self, path: Path) -> None:
        with FileSystem.open(path) as fs:
            furnish(fs)
        self.content = bytearray(path.read_bytes())
        with FileSystem.open(MemoryPool(bytearray(self.content)), Options(read_only=True)) as fs:
            self.geometry = fs.volume.geometry
            view = fs.volume.view
            numbers = (ROOT_INO, JOURNAL_INO, FIRST_INO, FIRST_INO + 1)
            self.inodes = {number: inodes.position(view, number) for number in numbers}

    def dirty(self) -> None:
        """Make the pool as after a crash: what leads to the log is then believed without its checksum."""
        superblock = Superblock(memoryview(self.content)[SUPERBLOCK : 2 * SUPERBLOCK])
        superblock.s_feature_incompat |= Incompat.needs_recovery
        superblock.seal()

    def block(self, image: bytearray, number: int) -> memoryview:
        """Return one block of a copy."""
        size = self.geometry.block_size
        return memoryview(image)[number * size : (number + 1) * size]

    def descriptor(self, image: bytearray, offset: int, value: bytes) -> None:
        """Return the group descriptor of the first group."""
        number, at = self.geometry.descriptor_position(0)
        block = self.block(image, number)
        block[at + offset : at + offset + len(value)] = value
        group.descriptor(block, at, self.geometry).seal(0, self.geometry)

    def superblock(self, image: bytearray, offset: int, value: bytes) -> None:
        """Return the first superblock."""
        content = memoryview(image)[SUPERBLOCK : 2 * SUPERBLOCK]
        content[offset : offset + len(value)] = value
        Superblock(content).seal()

    def inode(self, number: int) -> Callable[[bytearray, int, bytes], None]:
        """Return the inode of this number."""

        def spoil(image: bytearray, offset: int, value: bytes) -> None:
            at, slot = self.inodes[number]
            block = self.block(image, at)
            block[slot + offset : slot + offset + len(value)] = value
            seal_slot(self.geometry, number, slot, block)

        return spoil


def use(image: bytearray) -> None:
    """Read and change everything that can be reached; only errors that daxfs raises on purpose may result."""
    with suppress(OSError), FileSystem.open(MemoryPool(image)) as fs:
        for action in (
            fs.statfs,
            lambda: [fs.getattr(entry.ino) for entry in fs.readdir(fs.opendir(ROOT_INO))],
            lambda: fs.tree.write_bytes("/new", b"x" * 100_000),
            lambda: fs.tree.mkdir("/directory"),
            lambda: [read_and_write(fs, number) for number in (FIRST_INO, FIRST_INO + 1)],
            fs.trim,
            fs.sync,
        ):
            with suppress(OSError):
                action()


def read_and_write(fs: FileSystem, number: int) -> None:
    file = fs.open_file(number)
    try:
        size = fs.getattr(number).size
        for offset in (0, max(size - 100, 0)):
            bytes(fs.read(file, offset, 1000))
            fs.write(file, offset, b"data")
    finally:
        fs.release(file)


TWO = (b"\xff\xff", b"\xff\x7f", b"\x00\x80")
FOUR = (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80")
MUCH = [False, pytest.param(True, marks=pytest.mark.full)]
"""Whether all values are tried, or the first."""


@pytest.fixture
def image(pool: MakePool) -> Image:
    """Return a clean pool."""
    return Image(pool("-b", "4096", size="16M"))


def tried(image: Image, offsets: range, values: tuple[bytes, ...], spoil: Callable[..., None], *, much: bool) -> None:
    """Use a pool that needs recovery, where few checks have run yet, and with ``much`` a clean one too."""
    for dirty in (False, True) if much else (True,):
        if dirty:
            image.dirty()
        for offset in offsets:
            for value in values if much else values[:1]:
                spoilt = bytearray(image.content)
                spoil(spoilt, offset, value)
                try:
                    use(spoilt)
                except Exception as error:
                    raise AssertionError(f"{value.hex()} at offset {offset:#x}, dirty {dirty}: {error!r}") from error


@pytest.mark.parametrize("much", MUCH)
def test_group_descriptors(image: Image, much: bool) -> None:
    tried(image, range(0, image.geometry.desc_size, 2), TWO, image.descriptor, much=much)


@pytest.mark.parametrize("much", MUCH)
def test_superblocks(image: Image, much: bool) -> None:
    tried(image, range(0, 0x280, 4), FOUR, image.superblock, much=much)


@pytest.mark.parametrize("much", MUCH)
@pytest.mark.parametrize("number", [ROOT_INO, JOURNAL_INO, FIRST_INO, FIRST_INO + 1])
def test_inodes(image: Image, number: int, much: bool) -> None:
    tried(image, range(0, 0xA0, 2), TWO, image.inode(number), much=much)
