"""Layer 3: what stat(2) shows of an inode, decoded from its slot at once.

The kernel asks for attributes more often than for anything else but data. So this module makes no object for the slot,
and where it is compiled its arithmetic is that of machine words. `InodeRecord` has the same values one by one, and the
rules by which they are joined; slots whose extra fields do not reach to the birth time are left to it. Callers: the
attributes of the fs layer.
"""

from __future__ import annotations

import stat

from librt.strings import read_i32_le
from mypy_extensions import i64

from daxfs.ext4.geometry import Geometry
from daxfs.ext4.inode import EXT4_HUGE_FILE_FL, GOOD_OLD_SIZE, InodeRecord

Stat = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int]
"""mode, links, uid, gid, device, bytes, units of 512 bytes, times of access, change of content, change of inode and
birth in nanoseconds, generation, flags. The device is 0 where there is none."""

_END = 0x98  # of i_crtime_extra
EXTRA_ISIZE = _END - GOOD_OLD_SIZE
"""The ``i_extra_isize`` from which on a slot has everything that is decoded here."""
_SECOND = 1_000_000_000
_LAST_OF_WORDS = 9_000_000_000
"""The seconds up to which a time in nanoseconds fits into a machine word; the field ends in the year 2446."""
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)


def decode(block: memoryview, offset: int, geometry: Geometry) -> Stat:
    """Return the attributes of the inode whose checked slot is at ``offset`` of ``block``."""
    size = geometry.inode_size
    if size == GOOD_OLD_SIZE:
        return _decode_short(InodeRecord(block, offset, geometry))
    slot = bytes(block[offset : offset + _END])
    if not EXTRA_ISIZE <= _word(slot, 0x80) & 0xFFFF <= size - GOOD_OLD_SIZE:
        return _decode_short(InodeRecord(block, offset, geometry))
    start, group, owners = _word(slot, 0x00), _word(slot, 0x18), _word(slot, 0x78)
    flags, old_device = _word(slot, 0x20), _word(slot, 0x28)
    kind: int = start & 0xF000
    length: int = _word(slot, 0x04)
    high: int = _word(slot, 0x6C)
    if high and (kind == stat.S_IFREG or geometry.has_large_dir):
        length |= high << 32
    units = _word(slot, 0x1C)
    if geometry.has_huge_file:
        units |= (_word(slot, 0x74) & 0xFFFF) << 32
        if flags & EXT4_HUGE_FILE_FL:
            units <<= geometry.block_bits - 9
    return (
        start & 0xFFFF,
        group >> 16,
        start >> 16 | (owners & 0xFFFF) << 16,
        group & 0xFFFF | owners >> 16 << 16,
        old_device & 0xFFFF or _word(slot, 0x2C) if kind in _DEVICES else 0,
        length,
        units,
        _nanoseconds(_word(slot, 0x08), _word(slot, 0x8C)),
        _nanoseconds(_word(slot, 0x10), _word(slot, 0x88)),
        _nanoseconds(_word(slot, 0x0C), _word(slot, 0x84)),
        _nanoseconds(_word(slot, 0x90), _word(slot, 0x94)),
        _word(slot, 0x64),
        flags,
    )


def _word(slot: bytes, at: i64) -> i64:
    """Return the 32 bits at an offset."""
    return i64(read_i32_le(slot, at)) & 0xFFFFFFFF


def _nanoseconds(seconds: i64, extra: i64) -> int:
    """Join a time: the field of its seconds, which are signed, and the epoch and the nanoseconds of its extra field."""
    whole: i64 = (seconds ^ 0x80000000) - 0x80000000 + ((extra & 3) << 32)
    if whole > _LAST_OF_WORDS:
        late: int = whole
        rest: int = extra >> 2
        return late * _SECOND + rest
    return whole * _SECOND + (extra >> 2)


def _decode_short(inode: InodeRecord) -> Stat:
    """Return the attributes of an inode without all extra fields."""
    return (
        inode.mode,
        inode.links_count,
        inode.uid,
        inode.gid,
        inode.rdev if inode.mode & 0xF000 in _DEVICES else 0,
        inode.size,
        inode.blocks,
        inode.atime_ns,
        inode.mtime_ns,
        inode.ctime_ns,
        inode.crtime_ns,
        inode.generation,
        inode.flags,
    )
