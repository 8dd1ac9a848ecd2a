"""Layer 3: the inode, a slot of 128 bytes or more in a group's inode table, and its checksum.

The fields have the kernel's names. Sizes, owners, times and block counts are joined under plain names, by the kernel's
rules for the features that change them. Fields past byte 128 exist only as far as ``i_extra_isize`` reaches. Other
modules read what ``i_block`` maps and the extended attributes after the extra fields. ``structures.inodes``, the main
caller, finds the slots. Source: ``struct ext4_inode`` in fs/ext4/ext4.h, ``__ext4_iget`` and ``ext4_fill_raw_inode`` in
inode.c.
"""

from __future__ import annotations

import errno
import stat

from mypy_extensions import i64

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.ext4.checksum import crc32c
from daxfs.ext4.field import joined, u16, u32
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.record import Record

# Inode numbers with a fixed meaning
EXT4_ROOT_INO = 2
EXT4_RESIZE_INO = 7  # its map covers the reserved descriptor blocks on purpose

# i_flags
EXT4_SECRM_FL = 0x00000001
EXT4_UNRM_FL = 0x00000002
EXT4_COMPR_FL = 0x00000004
EXT4_SYNC_FL = 0x00000008
EXT4_IMMUTABLE_FL = 0x00000010
EXT4_APPEND_FL = 0x00000020
EXT4_NODUMP_FL = 0x00000040
EXT4_NOATIME_FL = 0x00000080
EXT4_ENCRYPT_FL = 0x00000800
EXT4_INDEX_FL = 0x00001000
EXT4_JOURNAL_DATA_FL = 0x00004000
EXT4_NOTAIL_FL = 0x00008000
EXT4_DIRSYNC_FL = 0x00010000
EXT4_TOPDIR_FL = 0x00020000
EXT4_HUGE_FILE_FL = 0x00040000
EXT4_EXTENTS_FL = 0x00080000
EXT4_VERITY_FL = 0x00100000
EXT4_EA_INODE_FL = 0x00200000
EXT4_DAX_FL = 0x02000000
EXT4_INLINE_DATA_FL = 0x10000000
EXT4_PROJINHERIT_FL = 0x20000000
EXT4_CASEFOLD_FL = 0x40000000

# The flags that lsattr shows, chattr may change, a new inode inherits from its directory, and each file type may have
EXT4_FL_USER_VISIBLE = 0x725BDFFF
EXT4_FL_USER_MODIFIABLE = 0x624BC0FF
EXT4_FL_INHERITED = (
    EXT4_SECRM_FL
    | EXT4_UNRM_FL
    | EXT4_COMPR_FL
    | EXT4_SYNC_FL
    | EXT4_NODUMP_FL
    | EXT4_NOATIME_FL
    | 0x00000400  # EXT4_NOCOMPR_FL
    | EXT4_JOURNAL_DATA_FL
    | EXT4_NOTAIL_FL
    | EXT4_DIRSYNC_FL
    | EXT4_PROJINHERIT_FL
    | EXT4_DAX_FL
)
EXT4_REG_FLMASK = ~(EXT4_DIRSYNC_FL | EXT4_TOPDIR_FL | EXT4_CASEFOLD_FL | EXT4_PROJINHERIT_FL) & 0xFFFFFFFF
EXT4_OTHER_FLMASK = EXT4_NODUMP_FL | EXT4_NOATIME_FL

# File types of directory entries
FT_UNKNOWN = 0
FT_REG_FILE = 1
FT_DIR = 2
FT_CHRDEV = 3
FT_BLKDEV = 4
FT_FIFO = 5
FT_SOCK = 6
FT_SYMLINK = 7
FT_MAX = 8

# Indexed by mode >> 12; 0 marks a type that no file can have.
FILE_TYPE_OF_MODE = (
    0,
    FT_FIFO,
    FT_CHRDEV,
    0,
    FT_DIR,
    0,
    FT_BLKDEV,
    0,
    FT_REG_FILE,
    0,
    FT_SYMLINK,
    0,
    FT_SOCK,
    0,
    0,
    0,
)
# Indexed by file type
MODE_OF_FILE_TYPE = (
    0,
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFCHR,
    stat.S_IFBLK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
    stat.S_IFLNK,
)

BLOCK_AREA = slice(0x28, 0x64)
BLOCK_AREA_SIZE = 60
GOOD_OLD_SIZE = 128

TIMESTAMP_MIN = -(1 << 31)
TIMESTAMP_MAX = (1 << 34) - 1 - (1 << 31)
TIMESTAMP_MAX_SMALL = (1 << 31) - 1

_SECOND = 1_000_000_000
_LARGEST_WORD = 9_000_000_000_000_000_000
"""Times up to this are taken apart in machine words."""
_MAX_SIZE = (1 << 63) - 1
_NEEDS_FEATURE = EXT4_INLINE_DATA_FL | EXT4_ENCRYPT_FL | EXT4_CASEFOLD_FL
_ATIME, _CTIME, _MTIME = 2, 3, 4
_CTIME_EXTRA, _MTIME_EXTRA, _ATIME_EXTRA, _CRTIME, _CRTIME_EXTRA = 33, 34, 35, 36, 37


def file_type_of_mode(mode: int) -> int:
    """Return the ``FT_*`` type in directory entries for an inode with ``mode``."""
    return FILE_TYPE_OF_MODE[mode >> 12 & 15]


class InodeRecord(Record):
    """An inode slot bound to memory.

    Attributes:
        geometry: The geometry of the file system; it decides how halves are joined.
        slot_size: Bytes of the slot.
        extra_end: The byte where the extra fields end (128 when there are none). If ``i_extra_isize`` exceeds the slot,
            there are none, and ``verify`` reports it.
    """

    SIZE = 160
    __slots__ = ("extra_end", "geometry", "slot_size")

    i_mode = u16(0x00)
    i_uid_lo = u16(0x02)
    i_size_lo = u32(0x04)
    i_atime = u32(0x08)
    i_ctime = u32(0x0C)
    i_mtime = u32(0x10)
    i_dtime = u32(0x14)
    i_gid_lo = u16(0x18)
    i_links_count = u16(0x1A)
    i_blocks_lo = u32(0x1C)
    i_flags = u32(0x20)
    i_version_lo = u32(0x24)
    i_generation = u32(0x64)
    i_file_acl_lo = u32(0x68)
    i_size_high = u32(0x6C)
    i_obso_faddr = u32(0x70)
    i_blocks_high = u16(0x74)
    i_file_acl_high = u16(0x76)
    i_uid_high = u16(0x78)
    i_gid_high = u16(0x7A)
    i_checksum_lo = u16(0x7C)
    i_reserved = u16(0x7E)
    i_extra_isize = u16(0x80, within="slot_size", through="set_extra_isize")
    i_checksum_hi = u16(0x82, within="extra_end")
    i_ctime_extra = u32(0x84, within="extra_end")
    i_mtime_extra = u32(0x88, within="extra_end")
    i_atime_extra = u32(0x8C, within="extra_end")
    i_crtime = u32(0x90, within="extra_end")
    i_crtime_extra = u32(0x94, within="extra_end")
    i_version_hi = u32(0x98, within="extra_end")
    i_projid = u32(0x9C, within="extra_end")

    mode = joined("i_mode")
    uid = joined("i_uid_lo", "i_uid_high")
    gid = joined("i_gid_lo", "i_gid_high")
    links_count = joined("i_links_count")
    flags = joined("i_flags")
    generation = joined("i_generation")

    def __init__(self, buf: memoryview, offset: int, geometry: Geometry) -> None:
        """Bind to the slot at ``offset`` of a block or of the table; only the bounds are checked.

        Raises:
            ValueError: ``offset`` is not aligned, or the buffer ends before the slot does.
        """
        size = geometry.inode_size
        self.buffer = buffer = buf[offset : offset + size]
        if offset & 3 or len(buffer) != size:
            raise ValueError(f"an inode of {size} bytes cannot be bound at offset {offset} of {len(buf)} bytes")
        self.halves = halves = buffer.cast("H")
        self.words = buffer.cast("I")
        self.geometry = geometry
        self.slot_size = size
        extra = halves[64] if size > GOOD_OLD_SIZE else 0
        self.extra_end = GOOD_OLD_SIZE + extra if extra <= size - GOOD_OLD_SIZE else GOOD_OLD_SIZE

    def fill(self, raw: bytes | bytearray) -> None:
        """Store the first bytes of the slot, up to all of them; ``extra_end`` follows."""
        self.buffer[: len(raw)] = raw
        extra = self.i_extra_isize
        self.extra_end = GOOD_OLD_SIZE + extra if extra <= self.slot_size - GOOD_OLD_SIZE else GOOD_OLD_SIZE

    def set_extra_isize(self, size: int) -> None:
        """Set ``i_extra_isize``; does nothing in slots of 128 bytes.

        Newly covered fields show the bytes that the slot held; new slots are zeroed before.
        """
        if self.slot_size > GOOD_OLD_SIZE:
            if size & 3 or not 0 <= size <= self.slot_size - GOOD_OLD_SIZE:
                raise ValueError(f"i_extra_isize {size} in a slot of {self.slot_size} bytes")
            self.halves[64] = size
            self.extra_end = GOOD_OLD_SIZE + size

    @property
    def block_area(self) -> memoryview:
        """``i_block``: 60 bytes that hold an extent root, block pointers, a device number or a short symlink target."""
        return self.buffer[BLOCK_AREA]

    @property
    def size(self) -> int:
        """Bytes of the file; the high half is valid in regular files, and under large_dir in directories."""
        words = self.words
        high = words[27]
        if high and (words[0] & 0xF000 == stat.S_IFREG or self.geometry.has_large_dir):
            return words[1] | high << 32
        return words[1]

    @size.setter
    def size(self, value: int) -> None:
        words = self.words
        if value >> 32 and words[0] & 0xF000 != stat.S_IFREG and not self.geometry.has_large_dir:
            raise FsError(errno.EFBIG, f"a size of {value} bytes does not fit in this kind of inode")
        words[27] = value >> 32
        words[1] = value & 0xFFFFFFFF

    @property
    def blocks(self) -> int:
        """Space taken, in units of 512 bytes (``ext4_inode_blocks``); with huge_file the slot may count in blocks."""
        low = self.words[7]
        geometry = self.geometry
        if not geometry.has_huge_file:
            return low
        count = low | self.halves[58] << 32
        return count << (geometry.block_bits - 9) if self.words[8] & EXT4_HUGE_FILE_FL else count

    @blocks.setter
    def blocks(self, value: int) -> None:
        words, geometry = self.words, self.geometry
        if value > 0xFFFFFFFF and not geometry.has_huge_file:
            raise FsError(errno.EFBIG, "more than 2 TiB in one file needs the huge_file feature")
        flags = words[8] & ~EXT4_HUGE_FILE_FL
        if value >> 48:
            flags |= EXT4_HUGE_FILE_FL
            value >>= geometry.block_bits - 9
        self.halves[58] = value >> 32
        words[7] = value & 0xFFFFFFFF
        words[8] = flags

    @property
    def file_acl(self) -> int:
        """The block that holds extended attributes, or 0."""
        low = self.words[26]
        return low | self.halves[59] << 32 if self.geometry.is_64bit else low

    @file_acl.setter
    def file_acl(self, block: int) -> None:
        if self.geometry.is_64bit:
            self.halves[59] = block >> 32
            self.words[26] = block & 0xFFFFFFFF
        else:
            self.words[26] = block

    @property
    def version(self) -> int:
        """The change counter (``i_version``)."""
        return self.words[9] | self.i_version_hi << 32

    @version.setter
    def version(self, value: int) -> None:
        self.words[9] = value & 0xFFFFFFFF
        self.i_version_hi = value >> 32 & 0xFFFFFFFF

    @property
    def atime_ns(self) -> int:
        """Last access, in nanoseconds since the epoch; assigned values are clamped to the range of the field."""
        return self._time(_ATIME, _ATIME_EXTRA)

    @atime_ns.setter
    def atime_ns(self, value: int) -> None:
        self._set_time(_ATIME, _ATIME_EXTRA, value)

    @property
    def mtime_ns(self) -> int:
        """Last change of the content, in nanoseconds since the epoch."""
        return self._time(_MTIME, _MTIME_EXTRA)

    @mtime_ns.setter
    def mtime_ns(self, value: int) -> None:
        self._set_time(_MTIME, _MTIME_EXTRA, value)

    @property
    def ctime_ns(self) -> int:
        """Last change of the inode, in nanoseconds since the epoch."""
        return self._time(_CTIME, _CTIME_EXTRA)

    @ctime_ns.setter
    def ctime_ns(self, value: int) -> None:
        self._set_time(_CTIME, _CTIME_EXTRA, value)

    @property
    def crtime_ns(self) -> int:
        """Creation, in nanoseconds since the epoch; 0 where the slot has no room for it."""
        return self._time(_CRTIME, _CRTIME_EXTRA) if self.extra_end >= 0x94 else 0

    @crtime_ns.setter
    def crtime_ns(self, value: int) -> None:
        if self.extra_end >= 0x94:
            self._set_time(_CRTIME, _CRTIME_EXTRA, value)

    def set_times(self, value: int) -> None:
        """Set all four times, as those of a new inode are set."""
        self.atime_ns = value
        if self.extra_end <= _CRTIME_EXTRA << 2:
            self.mtime_ns = self.ctime_ns = self.crtime_ns = value
            return
        words = self.words
        words[_MTIME] = words[_CTIME] = words[_CRTIME] = words[_ATIME]
        words[_MTIME_EXTRA] = words[_CTIME_EXTRA] = words[_CRTIME_EXTRA] = words[_ATIME_EXTRA]

    def set_changed(self, value: int) -> None:
        """Set the times of change of the content and of the inode, as every change of the content does."""
        self._set_time(_MTIME, _MTIME_EXTRA, value)
        if self.extra_end <= _MTIME_EXTRA << 2:
            self._set_time(_CTIME, _CTIME_EXTRA, value)
            return
        words = self.words
        words[_CTIME] = words[_MTIME]
        words[_CTIME_EXTRA] = words[_MTIME_EXTRA]

    def _time(self, index: int, extra_index: int) -> int:
        """Join a time: 32 signed bits of seconds, and, if the slot has them, 2 bits of epoch and 30 of nanoseconds."""
        words = self.words
        seconds = (words[index] ^ 0x80000000) - 0x80000000
        if self.extra_end <= extra_index << 2:
            return seconds * _SECOND
        extra = words[extra_index]
        seconds += (extra & 3) << 32
        if seconds > _LARGEST_WORD // _SECOND:
            return seconds * _SECOND + (extra >> 2)
        whole: i64 = seconds
        return whole * _SECOND + (extra >> 2)

    def _set_time(self, index: int, extra_index: int, value: int) -> None:
        if 0 <= value <= _LARGEST_WORD:
            whole: i64 = value
            upper: i64 = whole // _SECOND
            seconds: int = upper
            nanoseconds: int = whole - upper * _SECOND
        else:
            seconds, nanoseconds = divmod(value, _SECOND)
        words = self.words
        covered = self.extra_end > extra_index << 2
        largest = TIMESTAMP_MAX if covered else TIMESTAMP_MAX_SMALL
        if seconds >= largest:
            seconds, nanoseconds = largest, 0
        elif seconds <= TIMESTAMP_MIN:
            seconds, nanoseconds = TIMESTAMP_MIN, 0
        words[index] = seconds & 0xFFFFFFFF
        if covered:
            # The field for seconds is signed. So the epoch bits hold (true seconds - field) / 2^32.
            words[extra_index] = (seconds + 0x80000000) >> 32 | nanoseconds << 2

    @property
    def rdev(self) -> int:
        """The device number of a device node, encoded as by ``os.makedev`` (up to 32 bits).

        ``i_block[0]`` holds the old encoding (8 bits each for major and minor), ``i_block[1]`` the new one. Both have
        the bits at the positions that ``os.makedev`` uses.
        """
        return self.words[10] & 0xFFFF or self.words[11]

    @rdev.setter
    def rdev(self, device: int) -> None:
        if not 0 <= device <= 0xFFFFFFFF:
            raise FsError(errno.EINVAL, f"device number {device:#x} needs more than 32 bits")
        words = self.words
        old = device <= 0xFFFF
        words[10] = device if old else 0
        words[11] = 0 if old else device
        words[12] = 0

    @property
    def is_dir(self) -> bool:
        """Whether the inode is a directory."""
        return self.words[0] & 0xF000 == stat.S_IFDIR

    @property
    def is_regular(self) -> bool:
        """Whether the inode is a regular file."""
        return self.words[0] & 0xF000 == stat.S_IFREG

    @property
    def is_symlink(self) -> bool:
        """Whether the inode is a symbolic link."""
        return self.words[0] & 0xF000 == stat.S_IFLNK

    @property
    def is_fast_symlink(self) -> bool:
        """Whether the inode is a symbolic link whose target lies in ``block_area``."""
        words = self.words
        if words[0] & 0xF000 != stat.S_IFLNK or words[1] >= BLOCK_AREA_SIZE:
            return False
        # A wrong flag does not make a tree of a target: a link without blocks has none (ext4_inode_is_fast_symlink).
        attribute_block = 1 << self.geometry.block_bits - 9 if self.file_acl else 0
        return not words[8] & EXT4_EXTENTS_FL or self.blocks == attribute_block

    @property
    def has_extents(self) -> bool:
        """Whether ``block_area`` holds an extent tree's root rather than block pointers."""
        return bool(self.words[8] & EXT4_EXTENTS_FL)

    @property
    def file_type(self) -> int:
        """The ``FT_*`` type for directory entries."""
        return FILE_TYPE_OF_MODE[self.words[0] >> 12 & 15]

    @property
    def stored_checksum(self) -> int:
        """The checksum in the slot: 32 bits when the extra fields include the high half, else 16."""
        return self.halves[62] | self.i_checksum_hi << 16

    def computed_checksum(self, ino: int, geometry: Geometry) -> int:
        """Return the right value of ``stored_checksum`` (``ext4_inode_csum``)."""
        content = bytearray(self.buffer)
        content[0x7C:0x7E] = b"\0\0"
        wide = self.extra_end >= 0x84
        if wide:
            content[0x82:0x84] = b"\0\0"
        csum = crc32c(geometry.inode_seed(ino, self.words[25]), content)
        return csum if wide else csum & 0xFFFF

    def verify(self, ino: int, geometry: Geometry) -> None:
        """Check an inode in use: its checksum under metadata_csum, then the fields that later code relies on.

        Raises:
            Corrupt: The error names what is wrong and the inode's number.
        """
        if geometry.metadata_csum:
            expected = self.computed_checksum(ino, geometry)
            if self.stored_checksum != expected:
                raise Corrupt(
                    CorruptKind.INODE_CHECKSUM, f"inode {ino}: found {self.stored_checksum:#x}, expected {expected:#x}"
                )
        if self.slot_size > GOOD_OLD_SIZE:
            extra = self.halves[64]
            if extra & 3 or extra > self.slot_size - GOOD_OLD_SIZE:
                raise Corrupt(CorruptKind.INODE_EXTRA_SIZE, f"inode {ino}: {extra} bytes in a slot of {self.slot_size}")
        words = self.words
        mode = words[0] & 0xFFFF
        if mode and not FILE_TYPE_OF_MODE[mode >> 12]:
            raise Corrupt(CorruptKind.INODE_MODE, f"inode {ino}: {mode:#o}")
        if words[8] & _NEEDS_FEATURE:
            raise Corrupt(
                CorruptKind.INODE_FLAGS, f"inode {ino}: {words[8]:#x} needs features that the superblock lacks"
            )
        if words[27] >> 31 and self.size > _MAX_SIZE:
            raise Corrupt(CorruptKind.INODE_SIZE, f"inode {ino}: {self.size} bytes")
        acl = self.file_acl
        if acl and not geometry.first_data_block < acl < geometry.blocks_count:
            raise Corrupt(CorruptKind.INODE_XATTR_BLOCK, f"inode {ino}: {acl}, of {geometry.blocks_count}")

    def seal(self, ino: int, geometry: Geometry) -> None:
        """Store the checksum, if the file system has metadata_csum."""
        if geometry.metadata_csum:
            halves, room = self.halves, self.slot_size - GOOD_OLD_SIZE
            wide = room > 0 and 4 <= halves[64] <= room
            halves[62] = 0
            if wide:
                halves[65] = 0
            csum = crc32c(geometry.inode_seed(ino, self.words[25]), self.buffer)
            halves[62] = csum & 0xFFFF
            if wide:
                halves[65] = csum >> 16


def seal_slot(geometry: Geometry, ino: int, offset: int, block: memoryview) -> None:
    """Store the checksum of the slot at ``offset`` of ``block``, as `InodeRecord.seal` does."""
    InodeRecord(block, offset, geometry).seal(ino, geometry)
