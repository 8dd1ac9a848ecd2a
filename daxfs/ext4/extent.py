"""Layer 3: the blocks of an extent tree.

An extent block, and the 60 bytes of ``i_block`` that hold a tree's root, is an array of little-endian
32-bit words: a header of three, then entries of three. All functions here take that array (``words``), so a
lookup costs index operations and one C bisection. ``structures/``, the main caller, walks trees, splits nodes and adds
levels.

Word layout (offsets in bytes):

- header: eh_magic u16 0, eh_entries u16 2 | eh_max u16 4, eh_depth u16 6 | eh_generation u32 8
- leaf entry: ee_block u32 0 | ee_len u16 4, ee_start_hi u16 6 | ee_start_lo u32 8
- index entry: ei_block u32 0 | ei_leaf_lo u32 4 | ei_leaf_hi u16 8, ei_unused u16 10
- tail, after ``eh_max`` entries: et_checksum u32

Sources: ``fs/ext4/ext4_extents.h``, ``fs/ext4/extents.c``, Documentation/filesystems/ext4/ifork.rst.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from daxfs.errors import Corrupt, CorruptKind
from daxfs.ext4.checksum import Buffer, crc32c

EXT4_EXT_MAGIC = 0xF30A
HEADER_SIZE = 12
ENTRY_SIZE = 12
TAIL_SIZE = 4
HEADER_WORDS = 3
ENTRY_WORDS = 3

EXT_INIT_MAX_LEN = 1 << 15  # blocks of a written extent; exactly this many is still written
EXT_UNWRITTEN_MAX_LEN = EXT_INIT_MAX_LEN - 1
MAX_DEPTH = 5
MAX_PBLK = (1 << 48) - 1
MANY = 64
"""Entries from which on it is faster to look at all of them together, by numpy."""

Column = NDArray[np.int64]

_LEAF = struct.Struct("<IHHI")
_INDEX = struct.Struct("<IIHH")


class Extent(NamedTuple):
    """``length`` logical blocks from ``lblk``, mapped to as many physical blocks from ``pblk`` (0: a hole)."""

    lblk: int
    pblk: int
    length: int
    unwritten: bool


class Header(NamedTuple):
    """The header of an extent block."""

    eh_magic: int
    eh_entries: int
    eh_max: int
    eh_depth: int
    eh_generation: int


def words(buf: Buffer) -> memoryview:
    """Cast a block or root (a multiple of 4 bytes) to its 32-bit words; writable when ``buf`` is."""
    return memoryview(buf).cast("B").cast("I")


def capacity(size: int) -> int:
    """Return how many entries fit into a block or root of ``size`` bytes; a block always has room left for the tail."""
    return (size - HEADER_SIZE) // ENTRY_SIZE


def initialize(w: memoryview, depth: int, generation: int = 0) -> None:
    """Store the header of an empty node of ``depth`` (0: leaf); old entries are not cleared."""
    w[0] = EXT4_EXT_MAGIC
    w[1] = capacity(len(w) * 4) | depth << 16
    w[2] = generation


def header(w: memoryview) -> Header:
    """The header's fields."""
    first, second = w[0], w[1]
    return Header(first & 0xFFFF, first >> 16, second & 0xFFFF, second >> 16, w[2])


def entries(w: memoryview) -> int:
    """Return the number of entries in use."""
    count: int = w[0] >> 16
    return count


def set_entries(w: memoryview, count: int) -> None:
    """Store the number of entries in use."""
    w[0] = EXT4_EXT_MAGIC | count << 16


def depth(w: memoryview) -> int:
    """Return the number of levels below this node; 0: the node is a leaf."""
    levels: int = w[1] >> 16
    return levels


def set_depth(w: memoryview, levels: int) -> None:
    """Store the number of levels below this node."""
    w[1] = (w[1] & 0xFFFF) | levels << 16


def maximum(w: memoryview) -> int:
    """Return the number of entries for which the node has room."""
    room: int = w[1] & 0xFFFF
    return room


def find(w: memoryview, lblk: int) -> int:
    """Return the last entry (leaf or index) that begins at or before ``lblk``; -1 when all begin after it."""
    return bisect_right(w[3 : 3 + 3 * (w[0] >> 16) : 3], lblk) - 1


# Leaf entries


def leaf(w: memoryview, i: int) -> Extent:
    """Return leaf entry ``i``."""
    at = 3 + 3 * i
    middle = w[at + 1]
    length = middle & 0xFFFF
    pblk = w[at + 2] | middle >> 16 << 32
    if length > EXT_INIT_MAX_LEN:
        return Extent(w[at], pblk, length - EXT_INIT_MAX_LEN, True)
    return Extent(w[at], pblk, length, False)


def put_leaf(w: memoryview, i: int, lblk: int, pblk: int, length: int, unwritten: bool) -> None:
    """Store leaf entry ``i``; the number of entries stays as it is."""
    at = 3 + 3 * i
    w[at] = lblk
    w[at + 1] = (length + EXT_INIT_MAX_LEN if unwritten else length) | pblk >> 32 << 16
    w[at + 2] = pblk & 0xFFFFFFFF


def leaves(w: memoryview, begin: int = 0, end: int | None = None) -> list[Extent]:
    """Return the entries [begin, end) of a leaf; by default all of them."""
    if end is None:
        end = w[0] >> 16
    data = w.cast("B")[HEADER_SIZE + ENTRY_SIZE * begin : HEADER_SIZE + ENTRY_SIZE * end]
    new = tuple.__new__  # half the time of calling the class, and a leaf has hundreds
    return [
        new(Extent, (lblk, low | high << 32, length - 32768, True))
        if length > 32768
        else new(Extent, (lblk, low | high << 32, length, False))
        for lblk, length, high, low in _LEAF.iter_unpack(data)
    ]


def columns(w: memoryview, begin: int = 0) -> tuple[Column, Column, Column, NDArray[np.bool_]]:
    """Return the entries of a leaf from ``begin`` on in columns: lblk, pblk, length, whether unwritten."""
    words = np.frombuffer(w, "<u4")[3 + 3 * begin : 3 + 3 * (w[0] >> 16)].reshape(-1, 3)
    lblks, middles, lows = words.T.astype(np.int64)
    lengths = middles & 0xFFFF
    unwritten = lengths > EXT_INIT_MAX_LEN
    return lblks, lows | middles >> 16 << 32, lengths - EXT_INIT_MAX_LEN * unwritten, unwritten


# Index entries


def index(w: memoryview, i: int) -> tuple[int, int]:
    """Index entry ``i``: (first logical block, physical block of the node below)."""
    at = 3 + 3 * i
    return w[at], w[at + 1] | (w[at + 2] & 0xFFFF) << 32


def put_index(w: memoryview, i: int, lblk: int, pblk: int) -> None:
    """Store index entry ``i``; the number of entries stays as it is."""
    at = 3 + 3 * i
    w[at] = lblk
    w[at + 1] = pblk & 0xFFFFFFFF
    w[at + 2] = pblk >> 32


def indexes(w: memoryview) -> list[tuple[int, int]]:
    """All entries of an index node."""
    data = w.cast("B")[HEADER_SIZE : HEADER_SIZE + ENTRY_SIZE * (w[0] >> 16)]
    return [(lblk, low | high << 32) for lblk, low, high, _ in _INDEX.iter_unpack(data)]


# Moving entries


def open_gap(w: memoryview, i: int, count: int = 1) -> None:
    """Move the entries from ``i`` on up by ``count``; the header then counts the entries in the gap as used."""
    used = w[0] >> 16
    start, end = 3 + 3 * i, 3 + 3 * used
    w[start + 3 * count : end + 3 * count] = w[start:end]
    w[0] = EXT4_EXT_MAGIC | used + count << 16


def close_gap(w: memoryview, i: int, count: int = 1) -> None:
    """Remove ``count`` entries, beginning with entry ``i``."""
    used = w[0] >> 16
    start, end = 3 + 3 * i, 3 + 3 * used
    w[start : end - 3 * count] = w[start + 3 * count : end]
    w[0] = EXT4_EXT_MAGIC | used - count << 16


# Checks


def check(w: memoryview, levels: int | None, blocks_count: int, where: str) -> None:
    """Check a node's header and all its entries.

    Args:
        w: the node's words.
        levels: the depth that the node must have; None for a root, which may have any up to ``MAX_DEPTH``.
        blocks_count: of the file system; every block number in the node must be below it.
        where: names the node in the error.

    Raises:
        Corrupt: the header is out of bounds, entries are empty, out of order or overlap, or blocks lie outside the
            file system.
    """
    first, second = w[0], w[1]
    magic, used, room, found = first & 0xFFFF, first >> 16, second & 0xFFFF, second >> 16
    if magic != EXT4_EXT_MAGIC:
        raise Corrupt(CorruptKind.EXTENT_HEADER, f"{where}: magic {magic:#x}")
    if found > MAX_DEPTH or (levels is not None and found != levels):
        raise Corrupt(CorruptKind.EXTENT_HEADER, f"{where}: depth {found}, expected {levels}")
    if not 0 < room <= capacity(len(w) * 4) or used > room:
        raise Corrupt(CorruptKind.EXTENT_HEADER, f"{where}: {used} entries of {room}, {capacity(len(w) * 4)} fit")
    if found:
        _check_index(w, blocks_count, where)
    else:
        _check_leaf(w, blocks_count, where)


def _check_leaf(w: memoryview, blocks_count: int, where: str) -> None:
    used = w[0] >> 16
    if used >= MANY and _is_good_leaf(w, blocks_count):
        return
    free = 0  # the first logical block after the entries checked so far
    data = w.cast("B")[HEADER_SIZE : HEADER_SIZE + ENTRY_SIZE * used]
    for lblk, length, high, low in _LEAF.iter_unpack(data):
        pblk = low | high << 32
        if length > 32768:
            length -= 32768
        if not length or lblk < free or lblk + length > 0xFFFFFFFF:
            raise Corrupt(CorruptKind.EXTENT_ENTRIES, f"{where}: {length} blocks at {lblk}, {free} was free")
        if not pblk or pblk + length > blocks_count:
            raise Corrupt(CorruptKind.EXTENT_ENTRIES, f"{where}: {length} blocks on {pblk} of {blocks_count}")
        free = lblk + length


def _is_good_leaf(w: memoryview, blocks_count: int) -> bool:
    """Whether `_check_leaf` would find nothing wrong; all entries are looked at together."""
    lblks, pblks, lengths, _ = columns(w)
    ends = lblks + lengths
    good = (lengths > 0) & (ends <= 0xFFFFFFFF) & (pblks > 0) & (pblks + lengths <= blocks_count)
    return bool(good.all() and (lblks[1:] >= ends[:-1]).all())


def _check_index(w: memoryview, blocks_count: int, where: str) -> None:
    previous = -1
    for lblk, pblk in indexes(w):
        if lblk <= previous:
            raise Corrupt(CorruptKind.EXTENT_INDEX, f"{where}: block {lblk} comes after {previous}")
        if not 0 < pblk < blocks_count:
            raise Corrupt(CorruptKind.EXTENT_INDEX, f"{where}: node on {pblk} of {blocks_count}")
        previous = lblk
    if previous < 0:
        raise Corrupt(CorruptKind.EXTENT_INDEX, f"{where}: a node with nodes below it has no entries")


# The checksum of a block (a root has none: the inode's checksum covers it)


def _tail(w: memoryview, where: str) -> int:
    """Return the index of the word that holds the checksum."""
    at: int = HEADER_WORDS + ENTRY_WORDS * (w[1] & 0xFFFF)
    if at >= len(w):
        raise Corrupt(CorruptKind.EXTENT_HEADER, f"{where}: {w[1] & 0xFFFF} entries leave no room for the checksum")
    return at


def verify_block(buf: Buffer, seed: int, where: str) -> None:
    """Check the checksum of an extent block; ``seed`` is the inode's.

    Raises:
        Corrupt: the checksum is wrong, or ``eh_max`` leaves no room for it.
    """
    w = words(buf)
    at = _tail(w, where)
    if crc32c(seed, w[:at]) != w[at]:
        raise Corrupt(CorruptKind.EXTENT_BLOCK_CHECKSUM, where)


def seal_block(buf: Buffer, seed: int) -> None:
    """Store the checksum of an extent block; ``seed`` is the inode's."""
    w = words(buf)
    at = _tail(w, "block to be sealed")
    w[at] = crc32c(seed, w[:at])
