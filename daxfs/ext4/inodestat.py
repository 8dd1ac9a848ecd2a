"""Layer 3: what stat(2) shows of an inode, decoded from its slot at once.

The kernel asks for attributes more often than for anything else but data. So this module reads all of them with one
unpack and makes no object for the slot. `InodeRecord` has the same values one by one, and the rules by which they are
joined; slots whose extra fields do not reach to the birth time are left to it. Callers: the attributes of the fs layer.
"""

from __future__ import annotations

import stat
from struct import Struct

from daxfs.ext4.geometry import Geometry
from daxfs.ext4.inode import EXT4_HUGE_FILE_FL, GOOD_OLD_SIZE, InodeRecord

Stat = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int]
"""mode, links, uid, gid, device, bytes, units of 512 bytes, times of access, change of content, change of inode and
birth in nanoseconds, generation, flags. The device is 0 where there is none."""

_SLOT = Struct("<HHIiii4xHHII4xII52xI4xI4xH2xHH4xH2xIIIiI")  # up to i_crtime_extra
EXTRA_ISIZE = _SLOT.size - GOOD_OLD_SIZE
"""The ``i_extra_isize`` from which on a slot has everything that is decoded here."""
_EPOCH = 3
"""The bits of an extra field that extend the seconds; the others are nanoseconds."""
_SECOND = 1_000_000_000
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)


def decode(block: memoryview, offset: int, geometry: Geometry) -> Stat:
    """Return the attributes of the inode whose checked slot is at ``offset`` of ``block``."""
    size = geometry.inode_size
    if size == GOOD_OLD_SIZE:
        return _decode_short(InodeRecord(block, offset, geometry))
    (
        mode, uid_lo, size_lo, atime, ctime, mtime, gid_lo, links, blocks_lo, flags, old_device, device, generation,
        size_high, blocks_high, uid_high, gid_high, extra, ctime_extra, mtime_extra, atime_extra, crtime, crtime_extra,
    ) = _SLOT.unpack_from(block, offset)  # fmt: skip
    if not EXTRA_ISIZE <= extra <= size - GOOD_OLD_SIZE:
        return _decode_short(InodeRecord(block, offset, geometry))
    kind = mode & 0xF000
    if size_high and (kind == stat.S_IFREG or geometry.has_large_dir):
        size_lo |= size_high << 32
    if geometry.has_huge_file:
        blocks_lo |= blocks_high << 32
        if flags & EXT4_HUGE_FILE_FL:
            blocks_lo <<= geometry.block_bits - 9
    return (
        mode,
        links,
        uid_lo | uid_high << 16,
        gid_lo | gid_high << 16,
        old_device & 0xFFFF or device if kind in _DEVICES else 0,
        size_lo,
        blocks_lo,
        (atime + ((atime_extra & _EPOCH) << 32)) * _SECOND + (atime_extra >> 2),
        (mtime + ((mtime_extra & _EPOCH) << 32)) * _SECOND + (mtime_extra >> 2),
        (ctime + ((ctime_extra & _EPOCH) << 32)) * _SECOND + (ctime_extra >> 2),
        (crtime + ((crtime_extra & _EPOCH) << 32)) * _SECOND + (crtime_extra >> 2),
        generation,
        flags,
    )


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
