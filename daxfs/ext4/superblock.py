"""Layer 3: the superblock, 1,024 bytes at byte 1,024 of the pool, and its checksum.

The fields have the kernel's names; halves are joined under plain names. This module reads the fields;
``Geometry.of`` decides whether they make sense. Callers: geometry, the journal's views, mounting and the tools.
Source: ``struct ext4_super_block`` in fs/ext4/ext4.h.
"""

from __future__ import annotations

from typing import NamedTuple

from daxfs.errors import Corrupt, CorruptKind
from daxfs.ext4.checksum import crc32c
from daxfs.ext4.features import Compat, Incompat, RoCompat, names
from daxfs.ext4.field import i16, joined, raw, u8, u16, u32, u64
from daxfs.ext4.record import Record

SUPERBLOCK_OFFSET = 1024
EXT4_SUPER_MAGIC = 0xEF53

# s_state
EXT4_VALID_FS = 0x0001
EXT4_ERROR_FS = 0x0002

# s_flags
EXT2_FLAGS_UNSIGNED_HASH = 0x0002

# s_errors
EXT4_ERRORS_CONTINUE = 1
EXT4_ERRORS_RO = 2
EXT4_ERRORS_PANIC = 3

# s_default_mount_opts
EXT4_DEFM_DEBUG = 0x0001
EXT4_DEFM_BSDGROUPS = 0x0002
EXT4_DEFM_XATTR_USER = 0x0004
EXT4_DEFM_ACL = 0x0008
EXT4_DEFM_UID16 = 0x0010
EXT4_DEFM_JMODE = 0x0060
EXT4_DEFM_JMODE_DATA = 0x0020
EXT4_DEFM_JMODE_ORDERED = 0x0040
EXT4_DEFM_JMODE_WBACK = 0x0060
EXT4_DEFM_NOBARRIER = 0x0100
EXT4_DEFM_BLOCK_VALIDITY = 0x0200
EXT4_DEFM_DISCARD = 0x0400
EXT4_DEFM_NODELALLOC = 0x0800

# s_first_error_errcode, s_last_error_errcode
EXT4_ERR_UNKNOWN = 1
EXT4_ERR_EIO = 2
EXT4_ERR_EFSCORRUPTED = 5

DEFAULT_MOUNT_OPTIONS = {
    EXT4_DEFM_DEBUG: "debug",
    EXT4_DEFM_BSDGROUPS: "bsdgroups",
    EXT4_DEFM_XATTR_USER: "user_xattr",
    EXT4_DEFM_ACL: "acl",
    EXT4_DEFM_UID16: "uid16",
    EXT4_DEFM_NOBARRIER: "nobarrier",
    EXT4_DEFM_BLOCK_VALIDITY: "block_validity",
    EXT4_DEFM_DISCARD: "discard",
    EXT4_DEFM_NODELALLOC: "nodelalloc",
}
"""The single bits of s_default_mount_opts, with the names that tune2fs -o has for them."""
JOURNAL_MODES = {
    EXT4_DEFM_JMODE_DATA: "journal_data",
    EXT4_DEFM_JMODE_ORDERED: "journal_data_ordered",
    EXT4_DEFM_JMODE_WBACK: "journal_data_writeback",
}
"""The values of EXT4_DEFM_JMODE, two bits of s_default_mount_opts, with the names that tune2fs -o has for them."""

EXT4_GOOD_OLD_REV = 0
EXT4_DYNAMIC_REV = 1
EXT4_GOOD_OLD_INODE_SIZE = 128
EXT4_GOOD_OLD_FIRST_INO = 11
EXT4_CRC32C_CHKSUM = 1

_MAX_LOG_BLOCK_SIZE = 6
INCOMPAT_AT = 0x60
CHECKSUM_AT = 0x3FC
"""The offsets of two words that are stored one by one, ``s_feature_incompat`` and ``s_checksum``."""
_64BIT = int(Incompat.bit64)
_METADATA_CSUM = int(RoCompat.metadata_csum)


class RecordedError(NamedTuple):
    """The first or the last fault that a mount has recorded (``s_first_error_*``, ``s_last_error_*``).

    Attributes:
        when: seconds since the epoch.
        errcode: one of ``EXT4_ERR_*``; 0: the kernel did not say.
        where: the function that found the fault; from daxfs the kind of damage, or ``missing memory``.
        line: the line in that function's file, or 0.
        ino: the inode that has the fault, or 0.
        block: the block that has the fault, or 0.
    """

    when: int
    errcode: int
    where: str
    line: int
    ino: int
    block: int


class Superblock(Record):
    """The superblock, or one of its backups."""

    SIZE = 1024
    __slots__ = ()

    s_inodes_count = u32(0x000)
    s_blocks_count_lo = u32(0x004)
    s_r_blocks_count_lo = u32(0x008)
    s_free_blocks_count_lo = u32(0x00C)
    s_free_inodes_count = u32(0x010)
    s_first_data_block = u32(0x014)
    s_log_block_size = u32(0x018)
    s_log_cluster_size = u32(0x01C)
    s_blocks_per_group = u32(0x020)
    s_clusters_per_group = u32(0x024)
    s_inodes_per_group = u32(0x028)
    s_mtime = u32(0x02C)
    s_wtime = u32(0x030)
    s_mnt_count = u16(0x034)
    s_max_mnt_count = i16(0x036)
    s_magic = u16(0x038)
    s_state = u16(0x03A)
    s_errors = u16(0x03C)
    s_minor_rev_level = u16(0x03E)
    s_lastcheck = u32(0x040)
    s_checkinterval = u32(0x044)
    s_creator_os = u32(0x048)
    s_rev_level = u32(0x04C)
    s_def_resuid = u16(0x050)
    s_def_resgid = u16(0x052)
    s_first_ino = u32(0x054)
    s_inode_size = u16(0x058)
    s_block_group_nr = u16(0x05A)
    s_feature_compat = u32(0x05C)
    s_feature_incompat = u32(INCOMPAT_AT)
    s_feature_ro_compat = u32(0x064)
    s_uuid = raw(0x068, 16)
    s_volume_name = raw(0x078, 16)
    s_last_mounted = raw(0x088, 64)
    s_algorithm_usage_bitmap = u32(0x0C8)
    s_prealloc_blocks = u8(0x0CC)
    s_prealloc_dir_blocks = u8(0x0CD)
    s_reserved_gdt_blocks = u16(0x0CE)
    s_journal_uuid = raw(0x0D0, 16)
    s_journal_inum = u32(0x0E0)
    s_journal_dev = u32(0x0E4)
    s_last_orphan = u32(0x0E8)
    s_hash_seed = raw(0x0EC, 16)
    s_def_hash_version = u8(0x0FC)
    s_jnl_backup_type = u8(0x0FD)
    s_desc_size = u16(0x0FE)
    s_default_mount_opts = u32(0x100)
    s_first_meta_bg = u32(0x104)
    s_mkfs_time = u32(0x108)
    s_jnl_blocks = raw(0x10C, 68)
    s_blocks_count_hi = u32(0x150)
    s_r_blocks_count_hi = u32(0x154)
    s_free_blocks_count_hi = u32(0x158)
    s_min_extra_isize = u16(0x15C)
    s_want_extra_isize = u16(0x15E)
    s_flags = u32(0x160)
    s_raid_stride = u16(0x164)
    s_mmp_update_interval = u16(0x166)
    s_mmp_block = u64(0x168)
    s_raid_stripe_width = u32(0x170)
    s_log_groups_per_flex = u8(0x174)
    s_checksum_type = u8(0x175)
    s_encryption_level = u8(0x176)
    s_reserved_pad = u8(0x177)
    s_kbytes_written = u64(0x178)
    s_snapshot_inum = u32(0x180)
    s_snapshot_id = u32(0x184)
    s_snapshot_r_blocks_count = u64(0x188)
    s_snapshot_list = u32(0x190)
    s_error_count = u32(0x194)
    s_first_error_time = u32(0x198)
    s_first_error_ino = u32(0x19C)
    s_first_error_block = u64(0x1A0)
    s_first_error_func = raw(0x1A8, 32)
    s_first_error_line = u32(0x1C8)
    s_last_error_time = u32(0x1CC)
    s_last_error_ino = u32(0x1D0)
    s_last_error_line = u32(0x1D4)
    s_last_error_block = u64(0x1D8)
    s_last_error_func = raw(0x1E0, 32)
    s_mount_opts = raw(0x200, 64)
    s_usr_quota_inum = u32(0x240)
    s_grp_quota_inum = u32(0x244)
    s_overhead_clusters = u32(0x248)
    s_backup_bgs_0 = u32(0x24C)
    s_backup_bgs_1 = u32(0x250)
    s_encrypt_algos = raw(0x254, 4)
    s_encrypt_pw_salt = raw(0x258, 16)
    s_lpf_ino = u32(0x268)
    s_prj_quota_inum = u32(0x26C)
    s_checksum_seed = u32(0x270)
    s_wtime_hi = u8(0x274)
    s_mtime_hi = u8(0x275)
    s_mkfs_time_hi = u8(0x276)
    s_lastcheck_hi = u8(0x277)
    s_first_error_time_hi = u8(0x278)
    s_last_error_time_hi = u8(0x279)
    s_first_error_errcode = u8(0x27A)
    s_last_error_errcode = u8(0x27B)
    s_encoding = u16(0x27C)
    s_encoding_flags = u16(0x27E)
    s_orphan_file_inum = u32(0x280)
    s_reserved = raw(0x284, 376)
    s_checksum = u32(CHECKSUM_AT)

    # Seconds since the epoch, 40 bits.
    first_error_time = joined("s_first_error_time", "s_first_error_time_hi")
    last_error_time = joined("s_last_error_time", "s_last_error_time_hi")

    def _count(self, low: int, high: int) -> int:
        """Join a block count from the words ``low`` and ``high``; without the 64bit feature ``high`` does not count."""
        words = self.words
        return words[low] | words[high] << 32 if words[0x18] & _64BIT else words[low]

    def _set_count(self, low: int, high: int, value: int) -> None:
        words = self.words
        if words[0x18] & _64BIT:
            words[high] = value >> 32
            words[low] = value & 0xFFFFFFFF
        else:
            words[low] = value

    @property
    def blocks_count(self) -> int:
        """Blocks of the file system."""
        return self._count(0x01, 0x54)

    @blocks_count.setter
    def blocks_count(self, value: int) -> None:
        self._set_count(0x01, 0x54, value)

    @property
    def reserved_blocks_count(self) -> int:
        """Blocks that only privileged callers may take."""
        return self._count(0x02, 0x55)

    @reserved_blocks_count.setter
    def reserved_blocks_count(self, value: int) -> None:
        self._set_count(0x02, 0x55, value)

    @property
    def free_blocks_count(self) -> int:
        """Free blocks at the last commit that updated the superblock."""
        return self._count(0x03, 0x56)

    @free_blocks_count.setter
    def free_blocks_count(self, value: int) -> None:
        self._set_count(0x03, 0x56, value)

    @property
    def block_size(self) -> int:
        """Bytes of a block.

        Raises:
            Corrupt: ``s_log_block_size`` exceeds the format's 64 KiB.
        """
        log = self.s_log_block_size
        if log > _MAX_LOG_BLOCK_SIZE:
            raise Corrupt(CorruptKind.SUPERBLOCK_BLOCK_SIZE, f"s_log_block_size {log}, at most {_MAX_LOG_BLOCK_SIZE}")
        return 1024 << log

    @property
    def inode_size(self) -> int:
        """Bytes of an inode slot (unchecked)."""
        return EXT4_GOOD_OLD_INODE_SIZE if self.s_rev_level == EXT4_GOOD_OLD_REV else self.s_inode_size

    @property
    def first_ino(self) -> int:
        """The first inode number that is not reserved."""
        return EXT4_GOOD_OLD_FIRST_INO if self.s_rev_level == EXT4_GOOD_OLD_REV else self.s_first_ino

    @property
    def desc_size(self) -> int:
        """Bytes of a group descriptor (unchecked)."""
        return self.s_desc_size if self.words[0x18] & _64BIT else 32

    @property
    def hash_seed(self) -> tuple[int, int, int, int]:
        """The four words that seed the directory hash."""
        words = self.words
        return words[0x3B], words[0x3C], words[0x3D], words[0x3E]

    @property
    def label(self) -> str:
        """The volume name."""
        return self.s_volume_name.partition(b"\0")[0].decode("utf-8", "surrogateescape")

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of all features of the file system: the compat, the incompat and the ro_compat ones."""
        return (
            *names(Compat(self.s_feature_compat)),
            *names(Incompat(self.s_feature_incompat)),
            *names(RoCompat(self.s_feature_ro_compat)),
        )

    @property
    def default_options(self) -> list[str]:
        """The default mount options, by the names that tune2fs -o has for them."""
        bits = self.s_default_mount_opts
        mode = JOURNAL_MODES.get(bits & EXT4_DEFM_JMODE)
        return [name for bit, name in DEFAULT_MOUNT_OPTIONS.items() if bits & bit] + ([mode] if mode else [])

    def computed_checksum(self) -> int:
        """Return the right value of ``s_checksum`` (``ext4_superblock_csum``)."""
        return crc32c(0xFFFFFFFF, self.buffer[:CHECKSUM_AT])

    def verify(self) -> None:
        """Check the magic number and, under metadata_csum, the checksum.

        Raises:
            Corrupt: This is no ext4 superblock, or a damaged one.
        """
        if self.s_magic != EXT4_SUPER_MAGIC:
            raise Corrupt(CorruptKind.SUPERBLOCK_MAGIC, f"found {self.s_magic:#06x}, expected {EXT4_SUPER_MAGIC:#06x}")
        if self.s_feature_ro_compat & _METADATA_CSUM:
            if self.s_checksum_type != EXT4_CRC32C_CHKSUM:
                raise Corrupt(
                    CorruptKind.SUPERBLOCK_CHECKSUM_TYPE, f"found {self.s_checksum_type}, expected crc32c (1)"
                )
            expected = self.computed_checksum()
            if self.s_checksum != expected:
                raise Corrupt(
                    CorruptKind.SUPERBLOCK_CHECKSUM, f"found {self.s_checksum:#010x}, expected {expected:#010x}"
                )

    def is_torn(self) -> bool:
        """Whether `verify` refuses the superblock, as it does after a power cut during a store."""
        try:
            self.verify()
        except Corrupt:
            return True
        return False

    def seal(self) -> None:
        """Store the checksum, if the file system has metadata_csum."""
        if self.s_feature_ro_compat & _METADATA_CSUM:
            self.s_checksum = self.computed_checksum()

    @property
    def first_error(self) -> RecordedError | None:
        """The first fault since e2fsck has cleared the record; None: there was none."""
        return self._recorded("first")

    @property
    def last_error(self) -> RecordedError | None:
        """The last fault, as `first_error`."""
        return self._recorded("last")

    def _recorded(self, which: str) -> RecordedError | None:
        when = getattr(self, f"{which}_error_time")
        if not when:
            return None
        errcode, function, line, ino, block = [
            getattr(self, f"s_{which}_error_{name}") for name in ("errcode", "func", "line", "ino", "block")
        ]
        where = bytes(function).split(b"\0", 1)[0].decode(errors="replace")
        return RecordedError(when, errcode, where, line, ino, block)

    def record_error(self, when: int, errcode: int, where: str, *, line: int = 0, ino: int = 0, block: int = 0) -> None:
        """Record a fault as the kernel does (``ext4_update_super``), so that e2fsck runs and dumpe2fs shows the fault.

        Args:
            when: Seconds since the epoch.
            errcode: One of ``EXT4_ERR_*``.
            where: The function that found the fault; cut to 32 bytes.
            line: The line in that function's file.
            ino: The inode that has the fault, or 0.
            block: The block that has the fault, or 0.
        """
        function = where.encode("ascii", "replace")[:32].ljust(32, b"\0")
        self.s_state |= EXT4_ERROR_FS
        if not self.s_first_error_time and not self.s_first_error_time_hi:
            self.first_error_time = when
            self.s_first_error_errcode = errcode
            self.s_first_error_func = function
            self.s_first_error_line = line
            self.s_first_error_ino = ino
            self.s_first_error_block = block
        self.last_error_time = when
        self.s_last_error_errcode = errcode
        self.s_last_error_func = function
        self.s_last_error_line = line
        self.s_last_error_ino = ino
        self.s_last_error_block = block
        self.s_error_count = min(self.s_error_count + 1, 0xFFFFFFFF)
