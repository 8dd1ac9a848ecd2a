"""Group descriptors: layout, figures against dumpe2fs, checksums against mke2fs and e2fsck, hostile values."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daxfs.errors import Corrupt
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.group import (
    EXT4_BG_BLOCK_UNINIT,
    EXT4_BG_INODE_UNINIT,
    EXT4_BG_INODE_ZEROED,
    GroupDescriptor,
    GroupDescriptor64,
    descriptor,
)
from daxfs.ext4.superblock import Superblock

MakeImage = Callable[..., Path]

LAYOUT = """
bg_block_bitmap_lo 4 bg_inode_bitmap_lo 4 bg_inode_table_lo 4 bg_free_blocks_count_lo 2
bg_free_inodes_count_lo 2 bg_used_dirs_count_lo 2 bg_flags 2 bg_exclude_bitmap_lo 4 bg_block_bitmap_csum_lo 2
bg_inode_bitmap_csum_lo 2 bg_itable_unused_lo 2 bg_checksum 2 bg_block_bitmap_hi 4 bg_inode_bitmap_hi 4
bg_inode_table_hi 4 bg_free_blocks_count_hi 2 bg_free_inodes_count_hi 2 bg_used_dirs_count_hi 2
bg_itable_unused_hi 2 bg_exclude_bitmap_hi 4 bg_block_bitmap_csum_hi 2 bg_inode_bitmap_csum_hi 2 bg_reserved 4
""".split()  # noqa: SIM905 (in the order of the C declaration)

OPTIONS = [
    (),
    ("-O", "^64bit", "-b", "1024"),
    ("-O", "^metadata_csum,uninit_bg,^64bit", "-b", "1024", "-I", "128"),
    ("-O", "^metadata_csum,uninit_bg", "-b", "2048", "-g", "1024"),
    ("-O", "^metadata_csum"),
    ("-O", "metadata_csum_seed", "-U", "12345678-1234-1234-1234-123456789abc"),
    ("-E", "desc_size=128", "-b", "1024", "-g", "1024"),
    ("-O", "bigalloc", "-C", "16384"),
]


class Image:
    """An image in memory with its geometry."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.memory = memoryview(bytearray(path.read_bytes()))
        self.superblock = Superblock(self.memory, 1024)
        self.geometry = Geometry.of(self.superblock)

    def block(self, number: int) -> memoryview:
        size = self.geometry.block_size
        return self.memory[number * size : (number + 1) * size]

    def descriptors(self) -> Iterator[tuple[int, GroupDescriptor]]:
        for group in range(self.geometry.groups_count):
            number, offset = self.geometry.descriptor_position(group)
            yield group, descriptor(self.block(number), offset, self.geometry)

    def fsck(self) -> subprocess.CompletedProcess[bytes]:
        self.path.write_bytes(self.memory)
        return subprocess.run(["e2fsck", "-fn", str(self.path)], check=False, timeout=60, capture_output=True)


@pytest.mark.parametrize(("kind", "size"), [(GroupDescriptor, 32), (GroupDescriptor64, 64)])
def test_layout(kind: type[GroupDescriptor], size: int) -> None:
    offset = 0
    expected = []
    for name, length in zip(LAYOUT[::2], map(int, LAYOUT[1::2]), strict=True):
        if offset < size:
            expected.append((name, offset, length))
            offset += length
    assert offset == size
    assert [info[:3] for info in kind.FIELDS] == expected


@pytest.mark.parametrize("options", OPTIONS)
def test_figures_are_those_of_dumpe2fs(make_image: MakeImage, options: tuple[str, ...]) -> None:
    image = Image(make_image(*options, size="16M"))
    output = subprocess.run(
        ["dumpe2fs", str(image.path)], check=True, timeout=60, capture_output=True, text=True
    ).stdout
    texts = re.split(r"^Group (?=\d)", output, flags=re.MULTILINE)[1:]
    for (_, item), text in zip(image.descriptors(), texts, strict=True):
        assert f"Block bitmap at {item.block_bitmap}" in text
        assert f"Inode bitmap at {item.inode_bitmap}" in text
        assert f"Inode table at {item.inode_table}-" in text
        counts = re.search(r"(\d+) free (?:blocks|clusters), (\d+) free inodes, (\d+) directories", text)
        assert counts
        free = item.free_blocks_count
        assert counts.groups() == (str(free), str(item.free_inodes_count), str(item.used_dirs_count))
        unused = re.search(r"(\d+) unused inodes", text)
        assert item.itable_unused == (int(unused[1]) if unused else 0)
        for flag, name in (
            (EXT4_BG_INODE_UNINIT, "INODE_UNINIT"),
            (EXT4_BG_BLOCK_UNINIT, "BLOCK_UNINIT"),
            (EXT4_BG_INODE_ZEROED, "ITABLE_ZEROED"),
        ):
            assert bool(item.flags & flag) == (name in text)
        bitmap = re.search(r"Block bitmap at \d+ .*csum (0x[0-9a-f]+)", text)
        if bitmap:
            assert item.block_bitmap_csum == int(bitmap[1], 16)


@pytest.mark.parametrize("options", OPTIONS)
def test_checksums_of_mke2fs_verify_and_seal_identically(make_image: MakeImage, options: tuple[str, ...]) -> None:
    image = Image(make_image(*options, size="16M"))
    before = bytes(image.memory)
    geometry = image.geometry
    for group, item in image.descriptors():
        item.verify(group, geometry)
        if not item.flags & EXT4_BG_BLOCK_UNINIT:
            item.verify_block_bitmap(image.block(item.block_bitmap), group, geometry)
            item.seal_block_bitmap(image.block(item.block_bitmap), geometry)
        if not item.flags & EXT4_BG_INODE_UNINIT:
            item.verify_inode_bitmap(image.block(item.inode_bitmap), group, geometry)
            item.seal_inode_bitmap(image.block(item.inode_bitmap), geometry)
        item.seal(group, geometry)
    assert image.memory == before


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[1], OPTIONS[2], OPTIONS[6]])
def test_any_damaged_byte_is_noticed(make_image: MakeImage, options: tuple[str, ...]) -> None:
    image = Image(make_image(*options, size="16M"))
    for group, item in list(image.descriptors())[:2]:
        for offset in range(len(item.buffer)):
            item.buffer[offset] ^= 1
            with pytest.raises(Corrupt, match="group descriptor checksum"):
                item.verify(group, image.geometry)
            item.buffer[offset] ^= 1
        with pytest.raises(Corrupt, match="checksum"):
            item.verify(group + 1, image.geometry)


def test_damaged_bitmaps_are_noticed(make_image: MakeImage) -> None:
    for options in (OPTIONS[0], OPTIONS[1]):
        image = Image(make_image(*options, size="16M"))
        _, item = next(image.descriptors())
        blocks, inodes = image.block(item.block_bitmap), image.block(item.inode_bitmap)
        for offset in range(0, image.geometry.inodes_per_group // 8, 37):
            blocks[offset] ^= 0x10
            inodes[offset] ^= 0x10
            with pytest.raises(Corrupt, match="block bitmap checksum"):
                item.verify_block_bitmap(blocks, 0, image.geometry)
            with pytest.raises(Corrupt, match="inode bitmap checksum"):
                item.verify_inode_bitmap(inodes, 0, image.geometry)
            blocks[offset] ^= 0x10
            inodes[offset] ^= 0x10


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[1], OPTIONS[2]])
def test_e2fsck_accepts_what_is_sealed_here(make_image: MakeImage, options: tuple[str, ...]) -> None:
    image = Image(make_image(*options, size="16M"))
    group, item = next(image.descriptors())
    item.bg_checksum = 0
    item.block_bitmap_csum = item.inode_bitmap_csum = 0
    assert b"checksum" in image.fsck().stderr + image.fsck().stdout
    item.seal_block_bitmap(image.block(item.block_bitmap), image.geometry)
    item.seal_inode_bitmap(image.block(item.inode_bitmap), image.geometry)
    item.seal(group, image.geometry)
    assert image.fsck().returncode == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_bitmap", 0),
        ("block_bitmap", 1 << 40),
        ("inode_bitmap", 4096),
        ("inode_table", 4095),
        ("inode_table", 0),
        ("free_blocks_count", 4097),
        ("free_inodes_count", 1 << 20),
        ("used_dirs_count", 1 << 20),
        ("itable_unused", 1 << 20),
    ],
)
def test_hostile_values_under_a_right_checksum(make_image: MakeImage, name: str, value: int) -> None:
    image = Image(make_image(size="16M"))
    group, item = next(image.descriptors())
    setattr(item, name, value)
    item.seal(group, image.geometry)
    with pytest.raises(Corrupt, match=f"group descriptor .*group {group}"):
        item.verify(group, image.geometry)


def test_joined_fields_of_the_small_descriptor_refuse_what_they_cannot_hold(make_image: MakeImage) -> None:
    image = Image(make_image(*OPTIONS[1], size="16M"))
    _, item = next(image.descriptors())
    assert type(item) is GroupDescriptor
    with pytest.raises(ValueError, match="invalid value"):
        item.inode_table = 1 << 32
    large = GroupDescriptor64(memoryview(bytearray(64)))
    large.inode_table = 5 << 32 | 6
    assert (large.bg_inode_table_hi, large.bg_inode_table_lo, large.inode_table) == (5, 6, 5 << 32 | 6)
