"""Layer 3: the index blocks of a hashed directory (htree).

Block 0 of an indexed directory looks like a block that has only "." and ".."; the index lies in the slack space of
"..". An interior block looks like one empty entry. Both contain an array of (hash, block) pairs. The array's limit and
count take the place of the first pair's hash. With metadata_csum an 8-byte tail follows the last possible pair. The
functions take the block as 32-bit little-endian words, and ``base``, the word where the array starts. The modules of
directories in ``structures/``, the callers, descend, split and choose the hash.

Sources: ``fs/ext4/namei.c`` (``dx_root``, ``dx_node``, ``dx_probe``, ``ext4_dx_csum``),
Documentation/filesystems/ext4/directory.rst (hash tree directories).
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from daxfs.errors import Corrupt, CorruptKind
from daxfs.ext4.checksum import Buffer, crc32c
from daxfs.ext4.limits import EXT4_HTREE_LEVEL, EXT4_HTREE_LEVEL_COMPAT

ROOT_INFO_SIZE = 8
ROOT_BASE = 8  # word where the array of a root starts (byte 32)
NODE_BASE = 2  # word where the array of a node starts (byte 8)
ENTRY_SIZE = 8
TAIL_SIZE = 8
BLOCK_MASK = 0x0FFFFFFF

_ZERO4 = bytes(4)


class RootInfo(NamedTuple):
    """``struct dx_root_info``."""

    reserved_zero: int
    hash_version: int
    info_length: int
    indirect_levels: int
    unused_flags: int


def words(buf: Buffer) -> memoryview:
    """Cast a block to its 32-bit words; writable when ``buf`` is."""
    return memoryview(buf).cast("B").cast("I")


def root_limit(block_size: int, metadata_csum: bool) -> int:
    """Return the number of pairs for which a root has room."""
    return (block_size - 4 * ROOT_BASE - (TAIL_SIZE if metadata_csum else 0)) // ENTRY_SIZE


def node_limit(block_size: int, metadata_csum: bool) -> int:
    """Return the number of pairs for which an interior node has room."""
    return (block_size - 4 * NODE_BASE - (TAIL_SIZE if metadata_csum else 0)) // ENTRY_SIZE


def root_info(w: memoryview, where: str, *, large_dir: bool = False) -> RootInfo:
    """Return the parameters of a root, checked.

    Raises:
        Corrupt: "." and ".." are not at their places, or a parameter is out of range.
    """
    size = len(w) * 4
    if w[1] & 0xFFFF != 12 or w[4] & 0xFFFF != size - 12:
        raise Corrupt(CorruptKind.DIRECTORY_INDEX_ROOT, f"{where}: rec_len {w[1] & 0xFFFF} and {w[4] & 0xFFFF}")
    packed = w[7]
    info = RootInfo(w[6], packed & 0xFF, packed >> 8 & 0xFF, packed >> 16 & 0xFF, packed >> 24)
    levels = EXT4_HTREE_LEVEL if large_dir else EXT4_HTREE_LEVEL_COMPAT
    if info.reserved_zero or info.info_length != ROOT_INFO_SIZE or info.unused_flags & 1:
        raise Corrupt(CorruptKind.DIRECTORY_INDEX_ROOT, f"{where}: {info}")
    if info.indirect_levels >= levels:
        raise Corrupt(CorruptKind.DIRECTORY_INDEX_ROOT, f"{where}: {info.indirect_levels} levels")
    return info


def put_root_info(w: memoryview, hash_version: int, indirect_levels: int) -> None:
    """Store the parameters of a root."""
    w[6] = 0
    w[7] = hash_version | ROOT_INFO_SIZE << 8 | indirect_levels << 16


def initialize_node(w: memoryview, metadata_csum: bool) -> None:
    """Make an interior node without pairs (count 0); the caller must add the first pair at once."""
    size = len(w) * 4
    w[0] = 0
    w[1] = size if size < 65536 else 65535
    w[NODE_BASE] = node_limit(size, metadata_csum)


def initialize_root(w: memoryview, hash_version: int, metadata_csum: bool, block: int) -> None:
    """Make the index of a root that has "." and ".." already: no levels, and one pair for ``block``."""
    put_root_info(w, hash_version, 0)
    w[ROOT_BASE] = root_limit(len(w) * 4, metadata_csum) | 1 << 16
    w[ROOT_BASE + 1] = block


def is_root(w: memoryview) -> bool:
    """Whether the block has a root's two entries, followed by its parameters (the checksum depends on it)."""
    size = len(w) * 4
    return w[1] & 0xFFFF == 12 and w[4] & 0xFFFF == size - 12 and not w[6] and w[7] >> 8 & 0xFF == ROOT_INFO_SIZE


def is_node(w: memoryview) -> bool:
    """Whether the block begins with a node's one empty entry."""
    size = len(w) * 4
    return w[0] == 0 and w[1] == (size if size < 65536 else 65535)


def limit(w: memoryview, base: int) -> int:
    """Return the number of pairs for which the array has room."""
    room: int = w[base] & 0xFFFF
    return room


def count(w: memoryview, base: int) -> int:
    """Return the number of pairs in use, the first one included."""
    used: int = w[base] >> 16
    return used


def set_count(w: memoryview, base: int, used: int) -> None:
    """Store the number of pairs in use."""
    w[base] = (w[base] & 0xFFFF) | used << 16


def check(w: memoryview, base: int, metadata_csum: bool, where: str) -> None:
    """Check that limit and count of a root's or node's array fit the block, and that the hashes are in order.

    Raises:
        Corrupt: one of these conditions does not hold.
    """
    size = len(w) * 4
    expected = root_limit(size, metadata_csum) if base == ROOT_BASE else node_limit(size, metadata_csum)
    room, used = w[base] & 0xFFFF, w[base] >> 16
    if room != expected or not 0 < used <= room:
        raise Corrupt(CorruptKind.DIRECTORY_INDEX, f"{where}: {used} pairs of {room}, {expected} fit")
    hashes = w[base + 2 : base + 2 * used : 2].tolist()
    if hashes != sorted(hashes):
        raise Corrupt(CorruptKind.DIRECTORY_INDEX, f"{where}: hashes are out of order")


def find(w: memoryview, base: int, major: int) -> int:
    """Return the index of the pair whose block covers hash ``major``: the last one with a hash up to ``major``."""
    return bisect_right(w[base + 2 : base + 2 * (w[base] >> 16) : 2], major)


def entry(w: memoryview, base: int, i: int) -> tuple[int, int]:
    """Return pair ``i``: (hash, logical block). The first pair covers all hashes from 0."""
    at = base + 2 * i
    return (w[at] if i else 0), w[at + 1] & BLOCK_MASK


def put_block(w: memoryview, base: int, i: int, block: int) -> None:
    """Store the block of pair ``i``."""
    w[base + 2 * i + 1] = block


def insert(w: memoryview, base: int, i: int, major: int, block: int) -> None:
    """Insert a pair at index ``i`` > 0; the caller has checked that there is room."""
    used = w[base] >> 16
    start, end = base + 2 * i, base + 2 * used
    w[start + 2 : end + 2] = w[start:end]
    w[start] = major
    w[start + 1] = block
    set_count(w, base, used + 1)


# The checksum


def _base(w: memoryview, where: str) -> int:
    if is_node(w):
        return NODE_BASE
    if is_root(w):
        return ROOT_BASE
    raise Corrupt(CorruptKind.DIRECTORY_INDEX, f"{where}: neither root nor node")


def _checksum(w: memoryview, seed: int, where: str) -> tuple[int, int]:
    """Return the index of the checksum's word, and the checksum's right value."""
    base = _base(w, where)
    room, used = w[base] & 0xFFFF, w[base] >> 16
    tail = base + 2 * room
    if tail + 2 > len(w) or used > room:
        raise Corrupt(CorruptKind.DIRECTORY_INDEX, f"{where}: {used} pairs of {room} leave no room for the checksum")
    value = crc32c(seed, w[: base + 2 * used])
    return tail + 1, crc32c(crc32c(value, w[tail : tail + 1]), _ZERO4)


def verify_block(buf: Buffer, seed: int, where: str) -> None:
    """Check the checksum of a root or node; ``seed`` is the directory inode's.

    Raises:
        Corrupt: the checksum is wrong, or the block is no index block.
    """
    w = words(buf)
    at, value = _checksum(w, seed, where)
    if w[at] != value:
        raise Corrupt(CorruptKind.DIRECTORY_INDEX_CHECKSUM, where)


def seal_block(buf: Buffer, seed: int) -> None:
    """Store the checksum of a root or node; ``seed`` is the directory inode's."""
    w = words(buf)
    at, value = _checksum(w, seed, "block to be sealed")
    w[at] = value
