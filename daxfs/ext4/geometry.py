"""Layer 3: the geometry of a file system: all figures that change only with its size, checked before they are used.

``Geometry.of`` validates an untrusted superblock: arithmetic may use its result without further checks. It reads no
block but the superblock, and holds no counter that changes. Every layer above may use it. One object belongs to one
mount: a new size changes it in place (`Geometry.follow`), so that everybody who holds it follows.
Source: ``ext4_fill_super`` and its helpers in fs/ext4/super.c, lib/ext2fs/openfs.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Any

from daxfs.errors import Corrupt, CorruptKind, Unsupported
from daxfs.ext4 import features
from daxfs.ext4.checksum import crc32c
from daxfs.ext4.features import Compat, Incompat, RoCompat
from daxfs.ext4.superblock import (
    EXT2_FLAGS_UNSIGNED_HASH,
    EXT4_CRC32C_CHKSUM,
    EXT4_DYNAMIC_REV,
    EXT4_GOOD_OLD_FIRST_INO,
    EXT4_GOOD_OLD_INODE_SIZE,
    EXT4_SUPER_MAGIC,
    Superblock,
)

SUPPORTED_BLOCK_SIZES = (1024, 2048, 4096)
MAX_BLOCKS = 1 << 48
MAX_LFS_FILESIZE = (1 << 63) - 1

_DIRECT_BLOCKS = 12
_MAX_DESC_SIZE = 1024
_MAX_HASH_VERSION = 5
_EXTRA_ISIZE = 32
_PAIR = Struct("<II")
_MAX_INODES = _MAX_NARROW = 0xFFFFFFFF
_CHANGING = (
    *("blocks_count", "inodes_count", "groups_count", "desc_blocks", "first_meta_bg", "reserved_gdt_blocks"),
    *("compat", "incompat", "has_meta_bg", "backup_groups"),
)
"""The figures that a new size changes."""


@dataclass(slots=True, eq=False)
class Geometry:
    """The figures of one file system. Only `follow` changes them.

    ``*_size`` is in bytes, ``*_blocks`` in blocks; ``*_count`` and ``*_per_*`` are plain numbers. ``border``: the block
    at which the storage of a tiered pool begins, 0: all blocks are memory. ``inode_border``: the first group whose
    inode table lies on storage, so that it has no inodes for daxfs; 0: there is none.
    """

    block_size: int
    block_bits: int
    blocks_count: int
    border: int
    inode_border: int
    first_data_block: int
    blocks_per_group: int
    clusters_per_group: int
    cluster_bits: int
    inodes_per_group: int
    inodes_count: int
    groups_count: int
    inode_size: int
    inodes_per_block: int
    inode_blocks_per_group: int
    desc_size: int
    desc_per_block: int
    desc_blocks: int
    first_meta_bg: int
    reserved_gdt_blocks: int
    backup_groups: tuple[int, int]
    compat: Compat
    incompat: Incompat
    ro_compat: RoCompat
    metadata_csum: bool
    gdt_csum: bool
    csum_seed: int
    uuid: bytes
    is_64bit: bool
    has_extents: bool
    has_filetype: bool
    has_journal: bool
    has_dir_index: bool
    has_dir_nlink: bool
    has_huge_file: bool
    has_large_dir: bool
    has_meta_bg: bool
    has_orphan_file: bool
    has_project: bool
    has_sparse_super: bool
    has_sparse_super2: bool
    flex_bg_size: int
    first_ino: int
    hash_version: int
    hash_unsigned: bool
    hash_seed: tuple[int, int, int, int]
    want_extra_isize: int
    max_extent_file_size: int
    max_indirect_file_size: int
    read_only_features: tuple[str, ...]

    @classmethod
    def of(cls, sb: Superblock) -> Geometry:
        """Read the geometry of a file system from its superblock, and check it.

        ``sb.verify()`` is a separate step: it checks the checksum, this method checks the values.

        Raises:
            Corrupt: A value is outside what the format allows.
            Unsupported: The superblock has features or a block size that daxfs doesn't know. Unknown ro_compat features
                raise nothing: ``read_only_features`` names them, and the file system must not be written to if there
                are any.
        """
        _check_features(sb)
        sizes = _sizes(sb)
        groups = _groups(sb, sizes)
        compat = Compat(sb.s_feature_compat)
        incompat = Incompat(sb.s_feature_incompat)
        ro_compat = RoCompat(sb.s_feature_ro_compat)
        metadata_csum = bool(ro_compat & RoCompat.metadata_csum)
        uuid = sb.s_uuid
        seeded = bool(incompat & Incompat.metadata_csum_seed)
        huge_file = bool(ro_compat & RoCompat.huge_file)
        flex_bits = sb.s_log_groups_per_flex if incompat & Incompat.flex_bg else 0
        return cls(
            block_size=sizes.block_size,
            block_bits=sizes.block_bits,
            blocks_count=sb.blocks_count,
            border=0,
            inode_border=0,
            first_data_block=sb.s_first_data_block,
            blocks_per_group=groups.blocks_per_group,
            clusters_per_group=sb.s_clusters_per_group if sizes.cluster_bits else groups.blocks_per_group,
            cluster_bits=sizes.cluster_bits,
            inodes_per_group=groups.inodes_per_group,
            inodes_count=sb.s_inodes_count,
            groups_count=groups.count,
            inode_size=sizes.inode_size,
            inodes_per_block=sizes.block_size // sizes.inode_size,
            inode_blocks_per_group=groups.inode_blocks,
            desc_size=sizes.desc_size,
            desc_per_block=sizes.block_size // sizes.desc_size,
            desc_blocks=groups.desc_blocks,
            first_meta_bg=groups.first_meta_bg,
            reserved_gdt_blocks=sb.s_reserved_gdt_blocks,
            backup_groups=(sb.s_backup_bgs_0, sb.s_backup_bgs_1),
            compat=compat,
            incompat=incompat,
            ro_compat=ro_compat,
            metadata_csum=metadata_csum,
            gdt_csum=bool(ro_compat & RoCompat.uninit_bg) and not metadata_csum,
            csum_seed=sb.s_checksum_seed if seeded else crc32c(0xFFFFFFFF, uuid),
            uuid=uuid,
            is_64bit=bool(incompat & Incompat.bit64),
            has_extents=bool(incompat & Incompat.extent),
            has_filetype=bool(incompat & Incompat.filetype),
            has_journal=bool(compat & Compat.has_journal),
            has_dir_index=bool(compat & Compat.dir_index),
            has_dir_nlink=bool(ro_compat & RoCompat.dir_nlink),
            has_huge_file=huge_file,
            has_large_dir=bool(incompat & Incompat.large_dir),
            has_meta_bg=bool(incompat & Incompat.meta_bg),
            has_orphan_file=bool(compat & Compat.orphan_file),
            has_project=bool(ro_compat & RoCompat.project),
            has_sparse_super=bool(ro_compat & RoCompat.sparse_super),
            has_sparse_super2=bool(compat & Compat.sparse_super2),
            flex_bg_size=1 << flex_bits,
            first_ino=sb.first_ino,
            hash_version=sb.s_def_hash_version,
            hash_unsigned=bool(sb.s_flags & EXT2_FLAGS_UNSIGNED_HASH),
            hash_seed=sb.hash_seed,
            want_extra_isize=_want_extra_isize(sb, sizes.inode_size),
            max_extent_file_size=_max_extent_file_size(sizes.block_bits, huge_file),
            max_indirect_file_size=_max_indirect_file_size(sizes.block_bits, huge_file),
            read_only_features=features.unsupported_ro_compat(sb.s_feature_ro_compat),
        )

    @classmethod
    def of_torn(cls, sb: Superblock, size: int) -> Geometry:
        """Return a geometry that finds the log of a pool of ``size`` bytes whose superblock a power cut may have torn.

        What growth changes may be old in one word and new in another. So the geometry takes the whole pool for the file
        system, whose group 0 and what it leads to are where they are in each of its sizes.

        Raises:
            Corrupt, Unsupported: as `of`.
        """
        content = memoryview(bytearray(sb.buffer[: Superblock.SIZE]))
        whole, per_group, inodes = Superblock(content), sb.s_blocks_per_group, sb.s_inodes_per_group
        if per_group and inodes:
            most = _MAX_INODES // inodes * per_group
            if not sb.s_feature_incompat & Incompat.bit64:
                most = min(most, _MAX_NARROW)
            whole.blocks_count = min(size // sb.block_size, most)
            in_groups = max(whole.blocks_count - sb.s_first_data_block, 0)
            whole.s_inodes_count = -(-in_groups // per_group) * inodes
        whole.s_feature_incompat &= ~int(Incompat.meta_bg)
        return cls.of(whole)

    def follow(self, sb: Superblock) -> Callable[[], None]:
        """Follow the superblock of this file system, which has become larger or smaller.

        Returns:
            A function that undoes it.

        Raises:
            Corrupt: as `of`; nothing has changed.
        """
        new = Geometry.of(sb)
        before = [getattr(self, name) for name in _CHANGING]
        self._set([getattr(new, name) for name in _CHANGING])
        return lambda: self._set(before)

    def _set(self, values: list[Any]) -> None:
        for name, value in zip(_CHANGING, values, strict=True):
            setattr(self, name, value)

    def inode_seed(self, ino: int, generation: int) -> int:
        """Return the crc32c seed of everything that belongs to one inode: its slot, extent blocks and directory blocks.

        Source: ``ei->i_csum_seed`` in fs/ext4/inode.c.
        """
        return crc32c(self.csum_seed, _PAIR.pack(ino, generation))

    def check_pool_size(self, size: int) -> None:
        """Raise Corrupt when a pool of ``size`` bytes is too small for the file system (it was truncated)."""
        needed = self.blocks_count << self.block_bits
        if size < needed:
            raise Corrupt(CorruptKind.POOL_SIZE, f"the file system needs {needed} bytes, the pool has {size}")

    def bound(self, memory: int) -> None:
        """Have the allocators take no block past the first ``memory`` bytes of the pool, whole groups; 0: take all."""
        self.border = memory >> self.block_bits

    @property
    def memory_blocks(self) -> int:
        """How many blocks the allocators may take from: those of the memory of a tiered pool, else all."""
        return min(self.border or self.blocks_count, self.blocks_count)

    @property
    def inode_groups(self) -> int:
        """The number of groups whose inodes can be used."""
        return min(self.inode_border or self.groups_count, self.groups_count)

    @property
    def memory_groups(self) -> int:
        """The number of groups that the allocators may take blocks from."""
        return -(-(self.memory_blocks - self.first_data_block) // self.blocks_per_group)

    def group_of_inode(self, ino: int) -> int:
        """Return the group whose table holds inode ``ino``; Corrupt when the number is out of range."""
        if not 0 < ino <= self.inodes_count:
            raise Corrupt(CorruptKind.INODE_NUMBER, f"{ino}, of {self.inodes_count}")
        return (ino - 1) // self.inodes_per_group

    def group_of_block(self, block: int) -> int:
        """Return the group that contains block ``block``; Corrupt when the number is out of range."""
        if not self.first_data_block <= block < self.blocks_count:
            raise Corrupt(CorruptKind.BLOCK_NUMBER, f"{block}, of {self.blocks_count}")
        return (block - self.first_data_block) // self.blocks_per_group

    def first_block(self, group: int) -> int:
        """Return the first block of ``group``."""
        return self.first_data_block + group * self.blocks_per_group

    def blocks_in_group(self, group: int) -> int:
        """Return the number of blocks of ``group``; the last group may be shorter than the others."""
        first = self.first_data_block + group * self.blocks_per_group
        return min(self.blocks_per_group, self.blocks_count - first)

    def has_super(self, group: int) -> bool:
        """Whether ``group`` starts with a copy of the superblock (``ext4_bg_has_super``)."""
        if group == 0:
            return True
        if self.has_sparse_super2:
            return group in self.backup_groups
        if group == 1 or not self.has_sparse_super:
            return True
        return group % 2 == 1 and (_is_power(group, 3) or _is_power(group, 5) or _is_power(group, 7))

    def backups(self, end: int) -> list[int]:
        """Return the groups before ``end`` that start with a backup of the superblock, in order."""
        if self.has_sparse_super2:
            return sorted({group for group in self.backup_groups if 0 < group < end})
        if not self.has_sparse_super:
            return list(range(1, end))
        found = {1} if end > 1 else set()
        for base in (3, 5, 7):
            power = base
            while power < end:
                found.add(power)
                power *= base
        return sorted(found)

    def descriptor_position(self, group: int) -> tuple[int, int]:
        """Return the block that holds the primary descriptor of ``group``, and the byte in the block (meta_bg too)."""
        if not 0 <= group < self.groups_count:
            raise Corrupt(CorruptKind.GROUP_NUMBER, f"{group}, of {self.groups_count}")
        index, slot = divmod(group, self.desc_per_block)
        offset = slot * self.desc_size
        # With 1 KiB blocks under bigalloc the first data block is 0, although the superblock is in block 1.
        shift = 1 if self.cluster_bits and self.block_size == 1024 else 0
        if not self.has_meta_bg or index < self.first_meta_bg:
            return self.first_data_block + 1 + index + shift, offset
        home = index * self.desc_per_block
        return self.first_block(home) + self.has_super(home) + (shift if index == 0 else 0), offset

    def base_blocks(self, group: int) -> int:
        """Return how many blocks at the start of ``group`` hold, or are reserved for, the superblock and descriptors.

        Bitmaps and inode tables are not counted: flex_bg may place them anywhere. Source:
        ``ext4_num_base_meta_blocks``.
        """
        has_super = self.has_super(group)
        if not self.has_meta_bg or group < self.first_meta_bg * self.desc_per_block:
            blocks = self.first_meta_bg if self.has_meta_bg else self.desc_blocks
            return 1 + blocks + self.reserved_gdt_blocks if has_super else 0
        slot = group % self.desc_per_block
        return has_super + (slot in (0, 1, self.desc_per_block - 1))


@dataclass(frozen=True, slots=True)
class _Sizes:
    block_size: int
    block_bits: int
    cluster_bits: int
    inode_size: int
    desc_size: int


@dataclass(frozen=True, slots=True)
class _Groups:
    count: int
    blocks_per_group: int
    inodes_per_group: int
    inode_blocks: int
    desc_blocks: int
    first_meta_bg: int


def _require(condition: bool, kind: CorruptKind, found: object) -> None:
    if not condition:
        raise Corrupt(kind, str(found))


def _is_power(number: int, base: int) -> bool:
    """Whether ``number`` is ``base`` to some power of at least 1; ``number`` is positive."""
    power = base
    while power < number:
        power *= base
    return power == number


def _check_features(sb: Superblock) -> None:
    _require(
        sb.s_magic == EXT4_SUPER_MAGIC,
        CorruptKind.SUPERBLOCK_MAGIC,
        f"{sb.s_magic:#06x}, expected {EXT4_SUPER_MAGIC:#06x}",
    )
    _require(
        sb.s_rev_level <= EXT4_DYNAMIC_REV,
        CorruptKind.SUPERBLOCK_REVISION,
        f"{sb.s_rev_level}, at most {EXT4_DYNAMIC_REV}",
    )
    refused = features.unsupported_incompat(sb.s_feature_incompat)
    if refused:
        raise Unsupported(refused)
    if sb.s_feature_ro_compat & RoCompat.metadata_csum:
        _require(sb.s_checksum_type == EXT4_CRC32C_CHKSUM, CorruptKind.SUPERBLOCK_CHECKSUM_TYPE, sb.s_checksum_type)
    if sb.s_feature_compat & Compat.dir_index:
        _require(sb.s_def_hash_version <= _MAX_HASH_VERSION, CorruptKind.SUPERBLOCK_HASH_VERSION, sb.s_def_hash_version)


def _sizes(sb: Superblock) -> _Sizes:
    block_size = sb.block_size
    log_cluster = sb.s_log_cluster_size
    _require(log_cluster <= 20, CorruptKind.SUPERBLOCK_CLUSTER_SIZE, f"s_log_cluster_size {log_cluster}")
    cluster_bits = log_cluster - sb.s_log_block_size
    bigalloc = bool(sb.s_feature_ro_compat & RoCompat.bigalloc)
    _require(
        cluster_bits >= 0 if bigalloc else cluster_bits == 0,
        CorruptKind.SUPERBLOCK_CLUSTER_SIZE,
        f"{1024 << log_cluster} bytes",
    )
    if block_size not in SUPPORTED_BLOCK_SIZES:
        raise Unsupported([f"block_size_{block_size}"])
    inode_size = sb.inode_size
    _require(
        EXT4_GOOD_OLD_INODE_SIZE <= inode_size <= block_size and inode_size & (inode_size - 1) == 0,
        CorruptKind.SUPERBLOCK_INODE_SIZE,
        f"{inode_size} bytes, expected a power of two from 128 to {block_size}",
    )
    desc_size = sb.desc_size
    smallest = 64 if sb.s_feature_incompat & Incompat.bit64 else 32
    _require(
        smallest <= desc_size <= _MAX_DESC_SIZE and desc_size & (desc_size - 1) == 0,
        CorruptKind.SUPERBLOCK_DESCRIPTOR_SIZE,
        f"{desc_size} bytes, expected a power of two from {smallest} to {_MAX_DESC_SIZE}",
    )
    return _Sizes(block_size, block_size.bit_length() - 1, cluster_bits, inode_size, desc_size)


def _groups(sb: Superblock, sizes: _Sizes) -> _Groups:
    block_size, blocks, first = sizes.block_size, sb.blocks_count, sb.s_first_data_block
    expected = 1 if block_size == 1024 and not sizes.cluster_bits else 0
    _require(first == expected, CorruptKind.SUPERBLOCK_FIRST_DATA_BLOCK, f"{first}, expected {expected}")
    _require(first < blocks <= MAX_BLOCKS, CorruptKind.SUPERBLOCK_BLOCK_COUNT, blocks)

    per_group, clusters = sb.s_blocks_per_group, sb.s_clusters_per_group
    _require(
        8 <= per_group >> sizes.cluster_bits <= 8 * block_size and per_group % 8 == 0,
        CorruptKind.SUPERBLOCK_BLOCKS_PER_GROUP,
        f"{per_group}, a bitmap block covers {8 * block_size}",
    )
    if sizes.cluster_bits:
        _require(per_group == clusters << sizes.cluster_bits, CorruptKind.SUPERBLOCK_CLUSTERS_PER_GROUP, clusters)
    inodes, per_block = sb.s_inodes_per_group, block_size // sizes.inode_size
    _require(
        per_block <= inodes <= 8 * block_size and inodes % 8 == 0,
        CorruptKind.SUPERBLOCK_INODES_PER_GROUP,
        f"{inodes}, a bitmap block covers {8 * block_size}",
    )
    count = -(-(blocks - first) // per_group)
    _require(
        count * inodes == sb.s_inodes_count,
        CorruptKind.SUPERBLOCK_INODE_COUNT,
        f"{sb.s_inodes_count}, expected {count} groups of {inodes}",
    )
    _require(
        EXT4_GOOD_OLD_FIRST_INO <= sb.first_ino <= sb.s_inodes_count, CorruptKind.SUPERBLOCK_FIRST_INODE, sb.first_ino
    )
    inode_blocks = -(-inodes // per_block)
    _require(
        inode_blocks < min(per_group, blocks),
        CorruptKind.SUPERBLOCK_INODE_TABLE,
        f"{inode_blocks} blocks in each group",
    )
    desc_per_block = block_size // sizes.desc_size
    desc_blocks = -(-count // desc_per_block)
    _require(desc_blocks < blocks, CorruptKind.SUPERBLOCK_DESCRIPTOR_BLOCKS, desc_blocks)
    _require(
        sb.s_reserved_gdt_blocks <= block_size // 4,
        CorruptKind.SUPERBLOCK_RESERVED_GDT_BLOCKS,
        sb.s_reserved_gdt_blocks,
    )
    meta_bg = bool(sb.s_feature_incompat & Incompat.meta_bg)
    _require(
        not meta_bg or sb.s_first_meta_bg <= desc_blocks, CorruptKind.SUPERBLOCK_FIRST_META_GROUP, sb.s_first_meta_bg
    )
    _require(
        sb.s_log_groups_per_flex <= 31,
        CorruptKind.SUPERBLOCK_FLEX_GROUP_SIZE,
        f"s_log_groups_per_flex {sb.s_log_groups_per_flex}",
    )
    return _Groups(count, per_group, inodes, inode_blocks, desc_blocks, sb.s_first_meta_bg if meta_bg else desc_blocks)


def _want_extra_isize(sb: Superblock, inode_size: int) -> int:
    """Return the bytes of extra fields in new inodes (``s_want_extra_isize`` of ``ext4_fill_super``)."""
    room = inode_size - EXT4_GOOD_OLD_INODE_SIZE
    if not room:
        return 0
    want = _EXTRA_ISIZE
    if sb.s_feature_ro_compat & RoCompat.extra_isize:
        want = max(want, sb.s_want_extra_isize, sb.s_min_extra_isize)
    return want if want <= room and want % 4 == 0 else _EXTRA_ISIZE


def _max_extent_file_size(block_bits: int, huge_file: bool) -> int:
    """Return the largest size of an extent-mapped file, in bytes (``ext4_max_size``)."""
    size = 0xFFFFFFFF << block_bits
    if not huge_file:
        size = min(size, 0xFFFFFFFF >> (block_bits - 9) << block_bits)
    return min(size, MAX_LFS_FILESIZE)


def _max_indirect_file_size(block_bits: int, huge_file: bool) -> int:
    """Return the largest size of a block-mapped file without holes, in bytes (``ext4_max_bitmap_size``).

    The indirect blocks of such a file count towards the limit of ``i_blocks``.
    """
    pointers = 1 << (block_bits - 2)
    limit = (1 << 48) - 1 if huge_file else 0xFFFFFFFF >> (block_bits - 9)
    data = _DIRECT_BLOCKS + pointers + pointers**2 + pointers**3
    meta = 3 + 2 * pointers + pointers**2
    if data + meta > limit:
        rest = limit - _DIRECT_BLOCKS - pointers
        if rest < pointers**2:
            meta = 2 + -(-rest // pointers)
        else:
            rest -= pointers**2
            meta = 3 + pointers + -(-rest // pointers) + -(-rest // pointers**2)
        data = limit - meta
    return min(data << block_bits, MAX_LFS_FILESIZE)
