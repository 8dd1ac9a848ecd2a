"""Geometry: it agrees with dumpe2fs on every layout that mke2fs makes, and refuses every figure that is impossible."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daxfs.errors import Corrupt, Unsupported
from daxfs.ext4.features import Compat, Incompat, RoCompat
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.group import descriptor
from daxfs.ext4.superblock import Superblock

MakeImage = Callable[..., Path]

LAYOUTS = [
    (),
    ("-b", "1024", "-g", "1024"),
    ("-b", "1024", "-g", "1024", "-O", "^flex_bg,^resize_inode,^64bit"),
    ("-b", "2048", "-g", "512", "-O", "^sparse_super,^resize_inode"),
    ("-b", "1024", "-g", "1024", "-O", "sparse_super2,^resize_inode"),
    ("-b", "1024", "-g", "256", "-O", "meta_bg,^resize_inode"),
    ("-b", "1024", "-g", "256", "-O", "meta_bg,^resize_inode,^64bit,^metadata_csum,uninit_bg", "-I", "128"),
    ("-b", "1024", "-O", "bigalloc", "-C", "8192"),
    ("-b", "4096", "-I", "1024", "-E", "desc_size=128"),
]


def load(path: Path) -> Superblock:
    with path.open("rb") as file:
        file.seek(1024)
        return Superblock(memoryview(bytearray(file.read(1024))))


@pytest.mark.parametrize("options", LAYOUTS)
def test_groups_lie_where_dumpe2fs_says(make_image: MakeImage, options: tuple[str, ...]) -> None:
    path = make_image(*options)
    geometry = Geometry.of(load(path))
    output = subprocess.run(["dumpe2fs", str(path)], check=True, timeout=60, capture_output=True, text=True).stdout
    groups = re.split(r"^Group (?=\d)", output, flags=re.MULTILINE)[1:]
    assert len(groups) == geometry.groups_count
    for number, text in enumerate(groups):
        first, last = map(int, re.search(r"\(Blocks (\d+)-(\d+)\)", text).groups())  # type: ignore[union-attr]
        # With 1 KiB blocks and bigalloc, dumpe2fs counts group 0 from the superblock's block on.
        assert geometry.first_block(number) in (first, first - (number == 0))
        assert geometry.first_block(number) + geometry.blocks_in_group(number) == last + 1
        assert geometry.group_of_block(last) == number
        assert geometry.has_super(number) == bool(re.search("superblock at", text)), number
        check_descriptors(geometry, number, text)


def test_descriptors_of_small_blocks_in_clusters(make_image: MakeImage) -> None:
    path = make_image("-b", "1024", "-O", "bigalloc", "-C", "16384", size="3G")
    geometry = Geometry.of(load(path))
    assert geometry.groups_count > geometry.desc_per_block
    with path.open("rb") as file:
        content = memoryview(file.read(1 << 20))
    for group in range(geometry.groups_count):
        block, offset = geometry.descriptor_position(group)
        descriptor(content, block * geometry.block_size + offset, geometry).verify(group, geometry)


def check_descriptors(geometry: Geometry, number: int, text: str) -> None:
    """Return the descriptor block that dumpe2fs shows in the group that holds the block's primary copy."""
    block, offset = geometry.descriptor_position(number)
    assert offset == number % geometry.desc_per_block * geometry.desc_size
    shown = re.search(r"Group descriptors? at (\d+)(?:-(\d+))?", text)
    base = 0
    if geometry.has_super(number):
        base += 1
    if shown:
        low, high = int(shown[1]), int(shown[2] or shown[1])
        base += high - low + 1
        if number == 0 or (geometry.has_meta_bg and number % geometry.desc_per_block == 0):
            assert low <= block <= high
    reserved = re.search(r"Reserved GDT blocks at (\d+)-(\d+)", text)
    if reserved:
        base += int(reserved[2]) - int(reserved[1]) + 1
    assert geometry.base_blocks(number) == base, number


def test_derived_figures(make_image: MakeImage) -> None:
    geometry = Geometry.of(load(make_image()))
    assert (geometry.block_size, geometry.block_bits) == (4096, 12)
    assert geometry.desc_size == 64
    assert geometry.is_64bit
    assert geometry.metadata_csum
    assert not geometry.gdt_csum
    assert geometry.flex_bg_size == 16
    assert geometry.want_extra_isize == 32
    assert geometry.first_ino == 11
    assert geometry.hash_version == 1
    assert not geometry.hash_unsigned
    assert geometry.read_only_features == ()
    assert geometry.max_extent_file_size == (2**32 - 1) * 4096
    # 12 + 1024 + 1024^2 + 1024^3 blocks
    assert geometry.max_indirect_file_size == 4402345721856
    assert geometry.group_of_inode(1) == 0
    assert geometry.group_of_inode(geometry.inodes_count) == geometry.groups_count - 1
    geometry.check_pool_size(64 << 20)
    with pytest.raises(Corrupt, match="pool size"):
        geometry.check_pool_size((64 << 20) - 1)


def test_without_huge_file_the_sector_count_limits_the_size(make_image: MakeImage) -> None:
    geometry = Geometry.of(load(make_image("-O", "^huge_file")))
    assert geometry.max_extent_file_size == (2**32 - 1) // 8 * 4096
    # As in the kernel, the indirect blocks are computed for all of the 2^32 - 1 sectors.
    limit = (2**32 - 1) // 8
    rest = limit - 12 - 1024 - 1024**2
    meta = 1 + (1 + 1024) + (1 + -(-rest // 1024**2) + -(-rest // 1024))
    assert geometry.max_indirect_file_size == (limit - meta) * 4096


@pytest.mark.parametrize("number", [0, -1, 1 << 32])
def test_numbers_out_of_range(make_image: MakeImage, number: int) -> None:
    geometry = Geometry.of(load(make_image("-b", "1024")))
    with pytest.raises(Corrupt, match="inode number"):
        geometry.group_of_inode(number)
    with pytest.raises(Corrupt, match="block number"):
        geometry.group_of_block(number)
    with pytest.raises(Corrupt, match="group number"):
        geometry.descriptor_position(number or geometry.groups_count)


@pytest.mark.parametrize(
    ("feature", "name"),
    [
        (Incompat.inline_data, "inline_data"),
        (Incompat.encrypt, "encrypt"),
        (Incompat.casefold, "casefold"),
        (Incompat.mmp, "mmp"),
        (Incompat.journal_dev, "journal_dev"),
        (Incompat.compression, "compression"),
        (Incompat.dirdata, "dirdata"),
        (Incompat.ea_inode, "ea_inode"),
        (Incompat(1 << 20), "FEATURE_I20"),
    ],
)
def test_unknown_incompat_features_are_refused_by_name(make_image: MakeImage, feature: Incompat, name: str) -> None:
    sb = load(make_image())
    sb.s_feature_incompat |= feature
    with pytest.raises(Unsupported, match=name) as caught:
        Geometry.of(sb)
    assert caught.value.features == (name,)


def test_unknown_ro_compat_features_are_named(make_image: MakeImage) -> None:
    sb = load(make_image())
    sb.s_feature_ro_compat |= RoCompat.quota | RoCompat.verity | RoCompat.shared_blocks | RoCompat.read_only
    assert Geometry.of(sb).read_only_features == ("quota", "read-only", "shared_blocks", "verity")
    sb.s_feature_compat |= Compat.fast_commit | Compat.stable_inodes
    Geometry.of(sb)


NONSENSE = [
    ("s_magic", 0),
    ("s_rev_level", 2),
    ("s_log_block_size", 7),
    ("s_log_block_size", 1),
    ("s_log_cluster_size", 3),
    ("s_log_cluster_size", 0xFFFFFFFF),
    ("s_inode_size", 0),
    ("s_inode_size", 64),
    ("s_inode_size", 8192),
    ("s_inode_size", 384),
    ("s_desc_size", 0),
    ("s_desc_size", 32),
    ("s_desc_size", 96),
    ("s_desc_size", 2048),
    ("s_first_data_block", 1),
    ("s_first_data_block", 0xFFFFFFFF),
    ("blocks_count", 0),
    ("blocks_count", 1 << 49),
    ("blocks_count", 1 << 40),
    ("s_blocks_per_group", 0),
    ("s_blocks_per_group", 32769),
    ("s_blocks_per_group", 65536),
    ("s_blocks_per_group", 12345),
    ("s_inodes_per_group", 0),
    ("s_inodes_per_group", 32776),
    ("s_inodes_per_group", 4095),
    ("s_inodes_count", 1),
    ("s_first_ino", 2),
    ("s_first_ino", 0xFFFFFFFF),
    ("s_reserved_gdt_blocks", 1025),
    ("s_log_groups_per_flex", 32),
    ("s_checksum_type", 2),
    ("s_def_hash_version", 6),
]


@pytest.mark.parametrize(("name", "value"), NONSENSE)
def test_nonsense_is_corrupt(make_image: MakeImage, name: str, value: int) -> None:
    sb = load(make_image())
    Geometry.of(sb)
    setattr(sb, name, value)
    with pytest.raises(Corrupt, match="superblock"):
        Geometry.of(sb)


def test_large_blocks_are_unsupported_rather_than_corrupt(make_image: MakeImage) -> None:
    sb = load(make_image())
    sb.s_log_block_size = sb.s_log_cluster_size = 4
    with pytest.raises(Unsupported, match="block_size_16384"):
        Geometry.of(sb)


def test_an_odd_extra_size_falls_back(make_image: MakeImage) -> None:
    sb = load(make_image())
    for wanted, used in ((40, 40), (129, 32), (33, 32), (132, 32), (0, 32)):
        sb.s_want_extra_isize = wanted
        assert Geometry.of(sb).want_extra_isize == used
    assert Geometry.of(load(make_image("-I", "128"))).want_extra_isize == 0


def test_the_first_revision_has_fixed_sizes(make_image: MakeImage) -> None:
    sb = load(make_image("-r", "0", "-O", "none"))
    sb.s_inode_size = sb.s_first_ino = 0
    geometry = Geometry.of(sb)
    assert (geometry.inode_size, geometry.first_ino, geometry.desc_size) == (128, 11, 32)


@pytest.fixture(scope="module")
def good_superblock(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("geometry") / "pool.img"
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", str(path), "64M"], check=True, timeout=60, capture_output=True)
    return path.read_bytes()[1024:2048]


@settings(max_examples=400, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 0x283), st.integers(0, 255)), min_size=1, max_size=6))
def test_whatever_is_accepted_can_be_computed_with(good_superblock: bytes, changes: list[tuple[int, int]]) -> None:
    content = bytearray(good_superblock)
    for offset, value in changes:
        content[offset] = value
    try:
        geometry = Geometry.of(Superblock(memoryview(content)))
    except (Corrupt, Unsupported):
        return
    last = geometry.groups_count - 1
    assert 0 < geometry.blocks_in_group(last) <= geometry.blocks_per_group
    assert geometry.group_of_block(geometry.blocks_count - 1) == last
    assert geometry.group_of_inode(geometry.inodes_count) == last
    for group in (0, last // 2, last):
        block, offset = geometry.descriptor_position(group)
        assert block >= 1
        assert offset + geometry.desc_size <= geometry.block_size
        assert geometry.base_blocks(group) >= 0
