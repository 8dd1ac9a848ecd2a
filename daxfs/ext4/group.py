"""Layer 3: group descriptors: where a group has its bitmaps and inode table, and how much of it is free.

A descriptor holds its own checksum (crc32c under metadata_csum, crc16 under uninit_bg) and those of the two
bitmaps. ``Geometry.descriptor_position`` says which block holds a descriptor. The allocators, which call this module,
interpret the bitmaps.
Source: ``struct ext4_group_desc`` in fs/ext4/ext4.h, ``ext4_group_desc_csum`` in super.c, fs/ext4/bitmap.c.
"""

from __future__ import annotations

from daxfs.errors import Corrupt, CorruptKind
from daxfs.ext4.checksum import crc16, crc32c
from daxfs.ext4.field import joined, u16, u32
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.record import Record

EXT4_BG_INODE_UNINIT = 0x0001
EXT4_BG_BLOCK_UNINIT = 0x0002
EXT4_BG_INODE_ZEROED = 0x0004

_CHECKSUM = slice(0x1E, 0x20)


class GroupDescriptor(Record):
    """The 32-byte descriptor of file systems without the 64bit feature; ``descriptor()`` chooses the class."""

    SIZE = 32
    __slots__ = ()

    bg_block_bitmap_lo = u32(0x00)
    bg_inode_bitmap_lo = u32(0x04)
    bg_inode_table_lo = u32(0x08)
    bg_free_blocks_count_lo = u16(0x0C)
    bg_free_inodes_count_lo = u16(0x0E)
    bg_used_dirs_count_lo = u16(0x10)
    bg_flags = u16(0x12)
    bg_exclude_bitmap_lo = u32(0x14)
    bg_block_bitmap_csum_lo = u16(0x18)
    bg_inode_bitmap_csum_lo = u16(0x1A)
    bg_itable_unused_lo = u16(0x1C)
    bg_checksum = u16(0x1E)

    block_bitmap = joined("bg_block_bitmap_lo")
    inode_bitmap = joined("bg_inode_bitmap_lo")
    inode_table = joined("bg_inode_table_lo")
    free_blocks_count = joined("bg_free_blocks_count_lo")
    free_inodes_count = joined("bg_free_inodes_count_lo")
    used_dirs_count = joined("bg_used_dirs_count_lo")
    itable_unused = joined("bg_itable_unused_lo")
    flags = joined("bg_flags")
    # The crc32c of a bitmap: this descriptor has its low 16 bits, the larger one all 32.
    block_bitmap_csum = joined("bg_block_bitmap_csum_lo")
    inode_bitmap_csum = joined("bg_inode_bitmap_csum_lo")

    def computed_checksum(self, group: int, geometry: Geometry) -> int:
        """Return the right value of ``bg_checksum``; the record must be bound to all ``desc_size`` bytes."""
        number = group.to_bytes(4, "little")
        if geometry.metadata_csum:
            content = bytearray(self.buffer)
            content[_CHECKSUM] = b"\0\0"
            return crc32c(crc32c(geometry.csum_seed, number), content) & 0xFFFF
        buffer = self.buffer
        head = crc16(crc16(crc16(0xFFFF, geometry.uuid), number), buffer[: _CHECKSUM.start])
        return crc16(head, buffer[_CHECKSUM.stop :])

    def verify(self, group: int, geometry: Geometry) -> None:
        """Check the checksum, if the file system has one, and every field against the geometry.

        Raises:
            Corrupt: A field is wrong; the error names it.
        """
        if geometry.metadata_csum or geometry.gdt_csum:
            expected = self.computed_checksum(group, geometry)
            if self.bg_checksum != expected:
                raise Corrupt(
                    CorruptKind.GROUP_DESCRIPTOR_CHECKSUM,
                    f"group {group}: found {self.bg_checksum:#06x}, expected {expected:#06x}",
                )
        self.check_places(group, geometry)
        self._check_counters(group, geometry)

    def check_places(self, group: int, geometry: Geometry) -> None:
        """Check that bitmaps and inode table lie in the file system: arithmetic with their numbers relies on it.

        Raises:
            Corrupt: one of them lies outside.
        """
        lowest, end = geometry.first_data_block + 1, geometry.blocks_count
        table = self.inode_table
        if not (
            lowest <= self.block_bitmap < end
            and lowest <= self.inode_bitmap < end
            and lowest <= table <= end - geometry.inode_blocks_per_group
        ):
            raise Corrupt(
                CorruptKind.GROUP_DESCRIPTOR_BLOCK_NUMBER,
                f"group {group}: bitmaps {self.block_bitmap} and {self.inode_bitmap}, table {table}, of {end} blocks",
            )

    def _check_counters(self, group: int, geometry: Geometry) -> None:
        clusters = -(-geometry.blocks_in_group(group) >> geometry.cluster_bits)
        inodes = geometry.inodes_per_group
        if not (
            self.free_blocks_count <= clusters
            and self.free_inodes_count <= inodes
            and self.used_dirs_count <= inodes
            and self.itable_unused <= inodes
        ):
            raise Corrupt(
                CorruptKind.GROUP_DESCRIPTOR_COUNTER,
                f"group {group}: {self.free_blocks_count} free of {clusters}, "
                f"{self.free_inodes_count} inodes free, {self.used_dirs_count} directories, "
                f"{self.itable_unused} unused, of {inodes}",
            )

    def seal(self, group: int, geometry: Geometry) -> None:
        """Store the descriptor's checksum. It covers the checksums of the bitmaps, so store those first."""
        if geometry.metadata_csum:
            self.bg_checksum = 0
            self.bg_checksum = crc32c(crc32c(geometry.csum_seed, group.to_bytes(4, "little")), self.buffer) & 0xFFFF
        elif geometry.gdt_csum:
            self.bg_checksum = self.computed_checksum(group, geometry)

    def verify_block_bitmap(self, bitmap: memoryview, group: int, geometry: Geometry) -> None:
        """Check a block bitmap (a whole block) against the checksum in this descriptor, under metadata_csum."""
        if geometry.metadata_csum:
            found = self._bitmap_csum(bitmap, geometry.clusters_per_group >> 3, geometry)
            if found != self.block_bitmap_csum:
                raise Corrupt(CorruptKind.BLOCK_BITMAP_CHECKSUM, _differ(group, self.block_bitmap_csum, found))

    def seal_block_bitmap(self, bitmap: memoryview, geometry: Geometry) -> None:
        """Store the checksum of a block bitmap (a whole block)."""
        if geometry.metadata_csum:
            self.block_bitmap_csum = self._bitmap_csum(bitmap, geometry.clusters_per_group >> 3, geometry)

    def verify_inode_bitmap(self, bitmap: memoryview, group: int, geometry: Geometry) -> None:
        """Check an inode bitmap (a whole block) against the checksum in this descriptor, under metadata_csum."""
        if geometry.metadata_csum:
            found = self._bitmap_csum(bitmap, geometry.inodes_per_group >> 3, geometry)
            if found != self.inode_bitmap_csum:
                raise Corrupt(CorruptKind.INODE_BITMAP_CHECKSUM, _differ(group, self.inode_bitmap_csum, found))

    def seal_inode_bitmap(self, bitmap: memoryview, geometry: Geometry) -> None:
        """Store the checksum of an inode bitmap (a whole block)."""
        if geometry.metadata_csum:
            self.inode_bitmap_csum = self._bitmap_csum(bitmap, geometry.inodes_per_group >> 3, geometry)

    def _bitmap_csum(self, bitmap: memoryview, length: int, geometry: Geometry) -> int:
        csum = crc32c(geometry.csum_seed, bitmap[:length])
        return csum if geometry.desc_size >= GroupDescriptor64.SIZE else csum & 0xFFFF


class GroupDescriptor64(GroupDescriptor):
    """The 64-byte descriptor of the 64bit feature; bytes of a larger ``s_desc_size`` matter to the checksum only."""

    SIZE = 64
    __slots__ = ()

    bg_block_bitmap_hi = u32(0x20)
    bg_inode_bitmap_hi = u32(0x24)
    bg_inode_table_hi = u32(0x28)
    bg_free_blocks_count_hi = u16(0x2C)
    bg_free_inodes_count_hi = u16(0x2E)
    bg_used_dirs_count_hi = u16(0x30)
    bg_itable_unused_hi = u16(0x32)
    bg_exclude_bitmap_hi = u32(0x34)
    bg_block_bitmap_csum_hi = u16(0x38)
    bg_inode_bitmap_csum_hi = u16(0x3A)
    bg_reserved = u32(0x3C)

    block_bitmap = joined("bg_block_bitmap_lo", "bg_block_bitmap_hi")
    inode_bitmap = joined("bg_inode_bitmap_lo", "bg_inode_bitmap_hi")
    inode_table = joined("bg_inode_table_lo", "bg_inode_table_hi")
    free_blocks_count = joined("bg_free_blocks_count_lo", "bg_free_blocks_count_hi")
    free_inodes_count = joined("bg_free_inodes_count_lo", "bg_free_inodes_count_hi")
    used_dirs_count = joined("bg_used_dirs_count_lo", "bg_used_dirs_count_hi")
    itable_unused = joined("bg_itable_unused_lo", "bg_itable_unused_hi")
    block_bitmap_csum = joined("bg_block_bitmap_csum_lo", "bg_block_bitmap_csum_hi")
    inode_bitmap_csum = joined("bg_inode_bitmap_csum_lo", "bg_inode_bitmap_csum_hi")


def descriptor(buf: memoryview, offset: int, geometry: Geometry) -> GroupDescriptor:
    """Bind the descriptor at ``offset`` of a descriptor block, in the size that the file system uses."""
    size = geometry.desc_size
    return GroupDescriptor64(buf, offset, size) if size >= 64 else GroupDescriptor(buf, offset)


def _differ(group: int, found: int, expected: int) -> str:
    return f"group {group}: found {found:#x}, expected {expected:#x}"
