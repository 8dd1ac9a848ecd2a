"""Encode answers: attributes, entries, statx, names of a directory. Pure functions of the core's plain values.

The kernel may cache names and attributes for a day: nobody else changes a mounted pool, and the kernel itself drops
what an operation changes.
"""

from __future__ import annotations

import os
from struct import Struct

from mypy_extensions import i64

from daxfs.ext4.inode import EXT4_APPEND_FL, EXT4_IMMUTABLE_FL, EXT4_NODUMP_FL
from daxfs.fs.types import Attributes, StatFs
from daxfs.fuse.kernel import abi, nodeid

CACHE_SECONDS = 3600 * 24
BILLION = 10**9
_SECOND = 1_000_000_000
_LARGEST_WORD = 9_000_000_000_000_000_000
"""Times up to this are taken apart in machine words."""
WORD = 0xFFFFFFFF

STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800
STATX_ATTR_IMMUTABLE = 0x10
STATX_ATTR_APPEND = 0x20
STATX_ATTR_NODUMP = 0x40
STATX_ATTR_DAX = 0x00200000
SHOWN_FLAGS = EXT4_IMMUTABLE_FL | EXT4_APPEND_FL | EXT4_NODUMP_FL
"""The flags that have the same bits in an inode and in statx(2) (fs/ext4/inode.c: ext4_getattr)."""

ATTR_VALID = abi.ATTR_OUT.pack(CACHE_SECONDS, *[0] * 17)[: -abi.ATTR.size]
"""The bytes before the attributes in every fuse_attr_out."""
ABSENT = abi.ENTRY_OUT.pack(0, 0, CACHE_SECONDS, 0, *[0] * 18)
"""The answer that lets the kernel cache the absence of a name."""
_nameless = Struct(f"={abi.ENTRY_HEAD.size}xQ52xI24x").pack  # ino mode


def kernel_device(rdev: int) -> int:
    """Encode a device number in the kernel's 32 bits (new_encode_dev in include/linux/kdev_t.h)."""
    major, minor = os.major(rdev), os.minor(rdev)
    return (minor & 0xFF | major << 8 | (minor & ~0xFF) << 12) & WORD


def device_of_kernel(encoded: int) -> int:
    """Decode a device number from the kernel's 32 bits; the inverse of `kernel_device`."""
    return os.makedev((encoded >> 8) & 0xFFF, (encoded & 0xFF) | (encoded >> 12) & 0xFFF00)


def seconds(when: int) -> tuple[i64, i64]:
    """Take a time in nanoseconds apart into seconds and the rest."""
    if 0 <= when <= _LARGEST_WORD:
        time: i64 = when
        whole: i64 = time // _SECOND
        return whole, time - whole * _SECOND
    return when // BILLION, when % BILLION


def attr(found: Attributes, block_size: int) -> bytes:
    """Encode fuse_attr."""
    ino, mode, nlink, uid, gid, rdev, size, blocks, atime, mtime, ctime, _, _, _ = found
    asec, ansec = seconds(atime)
    msec, mnsec = seconds(mtime)
    csec, cnsec = seconds(ctime)
    return abi.ATTR.pack(
        ino, size, blocks, asec, msec, csec, ansec, mnsec, cnsec,
        mode, nlink, uid, gid, kernel_device(rdev) if rdev else 0, block_size, 0,
    )  # fmt: skip


def attr_out(found: Attributes, block_size: int) -> bytes:
    """Encode fuse_attr_out, the answer to GETATTR and SETATTR."""
    return ATTR_VALID + attr(found, block_size)


def entry_out(found: Attributes, block_size: int) -> bytes:
    """Encode fuse_entry_out, a name's node and attributes. The caller pins the inode."""
    head = abi.ENTRY_HEAD.pack(
        nodeid.encode(found.ino, found.generation), found.generation, CACHE_SECONDS, CACHE_SECONDS, 0, 0
    )
    return head + attr(found, block_size)


def nameless_entry(ino: int, d_type: int) -> bytes:
    """Encode an entry without a node, which does not count as a lookup; a LOOKUP of the name returns the rest."""
    return _nameless(ino, d_type << 12)


def statx_out(found: Attributes, block_size: int, *, dax: bool) -> bytes:
    """Encode fuse_statx_out, with the birth time and the attributes that statx(2) knows."""
    attributes = found.flags & SHOWN_FLAGS | (STATX_ATTR_DAX if dax else 0)
    supported = STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND | STATX_ATTR_NODUMP | STATX_ATTR_DAX
    times = [
        part
        for when in (found.atime_ns, found.crtime_ns, found.ctime_ns, found.mtime_ns)
        for part in divmod(when, BILLION)
    ]
    return abi.STATX_OUT.pack(
        CACHE_SECONDS, 0, 0, STATX_BASIC_STATS | STATX_BTIME, block_size, attributes,
        found.nlink, found.uid, found.gid, found.mode & 0xFFFF, found.ino, found.size, found.blocks, supported,
        *times, os.major(found.rdev), os.minor(found.rdev), 0, 0,
    )  # fmt: skip


def statfs_out(found: StatFs) -> bytes:
    """Encode fuse_statfs_out."""
    return abi.STATFS_OUT.pack(
        found.blocks, found.free, found.available, found.files, found.files_free,
        found.block_size, found.name_max, found.block_size,
    )  # fmt: skip
