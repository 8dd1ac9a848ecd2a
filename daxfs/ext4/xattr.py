"""Layer 3: extended attributes as stored, in an inode's spare bytes or in a block of their own.

In both places entries begin at the start and values end at the end. The places differ in their header and in the origin
of value offsets; only blocks have hashes and an order. This module reads, makes and checks a whole area.
``structures/xattrs.py``, the caller, decides which attribute goes where and shares blocks; the fs layer decides who may
see which name.

- slot of an inode: h_magic u32 0, entries at 4; value offsets count from the first entry
- block: h_magic u32 0, h_refcount u32 4, h_blocks u32 8 (1), h_hash u32 12, h_checksum u32 16, zeros,
  entries at 32; value offsets count from the block's start
- entry: e_name_len u8 0, e_name_index u8 1, e_value_offs u16 2, e_value_inum u32 4, e_value_size u32 8,
  e_hash u32 12, name at 16, padded to a multiple of 4 bytes; 4 zero bytes end the entries

Sources: ``fs/ext4/xattr.c``, ``fs/ext4/xattr.h``, Documentation/filesystems/ext4/attributes.rst.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.ext4.checksum import Buffer, crc32c
from daxfs.ext4.limits import EXT4_XATTR_REFCOUNT_MAX, XATTR_NAME_MAX

EXT4_XATTR_MAGIC = 0xEA020000
IBODY_HEADER_SIZE = 4
BLOCK_HEADER_SIZE = 32
ENTRY_SIZE = 16
TERMINATOR_SIZE = 4

INDEX_USER = 1
INDEX_POSIX_ACL_ACCESS = 2
INDEX_POSIX_ACL_DEFAULT = 3
INDEX_TRUSTED = 4
INDEX_LUSTRE = 5
INDEX_SECURITY = 6
INDEX_SYSTEM = 7
INDEX_RICHACL = 8
INDEX_ENCRYPTION = 9
INDEX_HURD = 10

# A prefix that ends in a dot is followed by a name; the others are whole names.
PREFIXES: dict[int, bytes] = {
    INDEX_USER: b"user.",
    INDEX_POSIX_ACL_ACCESS: b"system.posix_acl_access",
    INDEX_POSIX_ACL_DEFAULT: b"system.posix_acl_default",
    INDEX_TRUSTED: b"trusted.",
    INDEX_SECURITY: b"security.",
    INDEX_RICHACL: b"system.richacl",
    INDEX_SYSTEM: b"system.",
    INDEX_HURD: b"gnu.",
}
# The names that callers may use. The kernel's ext4 has no handler for other names in system., and would not show them.
_WHOLE_NAMES = {PREFIXES[index]: index for index in (INDEX_POSIX_ACL_ACCESS, INDEX_POSIX_ACL_DEFAULT)}
_FAMILIES = {PREFIXES[index]: index for index in (INDEX_USER, INDEX_TRUSTED, INDEX_SECURITY, INDEX_HURD)}

_M = 0xFFFFFFFF
_ZERO4 = bytes(4)
_ENTRY = struct.Struct("<BBHIII")
_WORD = struct.Struct("<I")
_BLOCK_HEADER = struct.Struct("<IIIII12x")
_CHECKSUM_OFFSET = 16


class Attribute(NamedTuple):
    """One attribute: the number of its prefix, the rest of its name, its value."""

    prefix: int
    name: bytes
    value: bytes


class BlockHeader(NamedTuple):
    """The header of an attribute block."""

    h_magic: int
    h_refcount: int
    h_blocks: int
    h_hash: int
    h_checksum: int


def split_name(full: bytes) -> tuple[int, bytes]:
    """Split a full name such as ``b"user.comment"`` into the index of its prefix and the rest.

    Raises:
        FsError: EOPNOTSUPP for an unknown prefix and for names in ``system.`` other than the ACLs, EINVAL for a
            prefix without a name, ERANGE for a name that is too long.
    """
    if len(full) > XATTR_NAME_MAX:
        raise FsError(errno.ERANGE, f"attribute name of {len(full)} bytes")
    index = _WHOLE_NAMES.get(full)
    if index is not None:
        return index, b""
    family, dot, rest = full.partition(b".")
    index = _FAMILIES.get(family + dot)
    if index is None:
        raise FsError(errno.EOPNOTSUPP, f"{full!r} is not the name of an attribute that ext4 stores")
    if not rest:
        raise FsError(errno.EINVAL, f"no name after {full!r}")
    return index, rest


def full_name(index: int, name: bytes) -> bytes | None:
    """Return the full name of an attribute; None if its index has no prefix (encryption contexts, unknown indexes)."""
    prefix = PREFIXES.get(index)
    return None if prefix is None else prefix + name


# Room


def _padded(length: int) -> int:
    return length + 3 & ~3


def entry_size(name: bytes) -> int:
    """Return the size of an entry with its name, in bytes."""
    return _padded(ENTRY_SIZE + len(name))


def space_needed(attributes: Iterable[Attribute]) -> int:
    """Return the bytes that entries, values and terminator need, without the header."""
    return TERMINATOR_SIZE + sum([entry_size(name) + _padded(len(value)) for _, name, value in attributes])


def ibody_room(area_size: int) -> int:
    """Return the largest ``space_needed`` that fits into an inode with ``area_size`` bytes after its fields."""
    return max(area_size - IBODY_HEADER_SIZE, 0)


def block_room(block_size: int) -> int:
    """Return the largest ``space_needed`` that fits into a block."""
    return block_size - BLOCK_HEADER_SIZE


# Hashes


def entry_hash(name: bytes, value: Buffer, *, signed: bool = False) -> int:
    """Return ``e_hash`` of an attribute in a block.

    Args:
        name: without its prefix.
        value: as stored in the block (kernel and e2fsprogs hash it in words, padded with zeros).
        signed: compute the variant of old kernels on platforms where ``char`` is signed. The result differs only for
            names with bytes of 0x80 and above.
    """
    result = 0
    for char in name:
        if signed and char > 127:
            char |= 0xFFFFFF00
        result = (result << 5 | result >> 27) & _M ^ char
    if not len(value):
        return result
    words = np.frombuffer(bytes(value).ljust(_padded(len(value)), b"\0"), dtype="<u4")[::-1]
    # Each word swaps the halves of the hash so far, so every other word contributes unswapped.
    kept = int(np.bitwise_xor.reduce(words[::2]))
    swapped = int(np.bitwise_xor.reduce(words[1::2])) ^ (result if len(words) & 1 else 0)
    return kept ^ _swap_halves(swapped) ^ (0 if len(words) & 1 else result)


def block_hash(hashes: Iterable[int]) -> int:
    """Return ``h_hash``, from the ``e_hash`` of all entries in order; 0 (don't share the block) if one of them is 0."""
    result = 0
    for value in hashes:
        if not value:
            return 0
        result = _swap_halves(result) ^ value
    return result


def _swap_halves(value: int) -> int:
    return (value << 16 | value >> 16) & _M


# Reading


def parse_ibody(area: Buffer, where: str) -> list[Attribute]:
    """Return the attributes in an inode's slot; ``area`` begins where the fields end (``i_extra_isize``).

    Raises:
        Corrupt: an entry lies outside the area, or a value lies outside it or over the entries.
    """
    if len(area) < IBODY_HEADER_SIZE + TERMINATOR_SIZE or _WORD.unpack_from(area)[0] != EXT4_XATTR_MAGIC:
        return []
    return _parse(bytes(area), IBODY_HEADER_SIZE, IBODY_HEADER_SIZE, where)


def parse_block(buf: Buffer, where: str) -> list[Attribute]:
    """Return the attributes in a block, after a check of its header.

    Raises:
        Corrupt: the header is wrong, an entry lies outside the block, or a value lies outside it or over the entries.
    """
    block_header(buf, where)
    return _parse(bytes(buf), BLOCK_HEADER_SIZE, 0, where)


def block_header(buf: Buffer, where: str) -> BlockHeader:
    """Return the header of an attribute block, checked.

    Raises:
        Corrupt: magic, number of blocks or reference count are impossible.
    """
    fields = BlockHeader._make(_BLOCK_HEADER.unpack_from(buf))
    if fields.h_magic != EXT4_XATTR_MAGIC or fields.h_blocks != 1:
        raise Corrupt(CorruptKind.ATTRIBUTE_BLOCK, f"{where}: magic {fields.h_magic:#x}, {fields.h_blocks} blocks")
    if not 0 < fields.h_refcount <= EXT4_XATTR_REFCOUNT_MAX:
        raise Corrupt(CorruptKind.ATTRIBUTE_BLOCK, f"{where}: {fields.h_refcount} references")
    return fields


def set_refcount(buf: bytearray | memoryview, count: int) -> None:
    """Store the number of inodes that share a block."""
    memoryview(buf).cast("B").cast("I")[1] = count


def _parse(data: bytes, first: int, base: int, where: str) -> list[Attribute]:
    found: list[tuple[int, bytes, int, int]] = []
    end = len(data)
    at = first
    while data[at : at + TERMINATOR_SIZE] != _ZERO4:
        if at + ENTRY_SIZE > end:
            raise Corrupt(CorruptKind.EXTENDED_ATTRIBUTES, f"{where}: entries run out of the {end} bytes")
        name_len, index, offset, inum, size, _ = _ENTRY.unpack_from(data, at)
        name = data[at + ENTRY_SIZE : at + ENTRY_SIZE + name_len]
        at += _padded(ENTRY_SIZE + name_len)
        if at + TERMINATOR_SIZE > end or b"\0" in name:
            raise Corrupt(CorruptKind.EXTENDED_ATTRIBUTES, f"{where}: bad name of {name_len} bytes before {at}")
        if inum:
            raise Corrupt(CorruptKind.EXTENDED_ATTRIBUTES, f"{where}: {name!r} has its value in inode {inum}")
        found.append((index, name, base + offset, size))
    lowest = at + TERMINATOR_SIZE
    for _, name, start, size in found:
        if size and (start < lowest or start + _padded(size) > end):
            raise Corrupt(CorruptKind.EXTENDED_ATTRIBUTES, f"{where}: value of {name!r}: {size} bytes at {start}")
    return [Attribute(index, name, data[start : start + size]) for index, name, start, size in found]


# Making


def build_ibody(attributes: Sequence[Attribute], area_size: int) -> bytes:
    """Make the ``area_size`` bytes for an inode's slot, attributes in the given order; all zeros without attributes.

    Raises:
        FsError: ENOSPC: the attributes do not fit.
    """
    if not attributes:
        return bytes(area_size)
    header = _WORD.pack(EXT4_XATTR_MAGIC)
    return header + _build(attributes, [0] * len(attributes), ibody_room(area_size), 0)


def build_block(attributes: Sequence[Attribute], block_size: int, refcount: int = 1) -> bytes:
    """Make a whole attribute block, attributes in the kernel's order; ``seal_block`` stores its checksum.

    Raises:
        FsError: ENOSPC: the attributes do not fit.
    """
    ordered = sorted(attributes, key=_block_order)
    hashes = [entry_hash(name, value) for _, name, value in ordered]
    body = _build(ordered, hashes, block_room(block_size), BLOCK_HEADER_SIZE)
    return _BLOCK_HEADER.pack(EXT4_XATTR_MAGIC, refcount, 1, block_hash(hashes), 0) + body


def _block_order(attribute: Attribute) -> tuple[int, int, bytes]:
    """Return the sort key of the kernel's order: ``ext4_xattr_find_entry`` stops at the first greater entry."""
    return attribute.prefix, len(attribute.name), attribute.name


def _build(attributes: Sequence[Attribute], hashes: Sequence[int], room: int, base: int) -> bytes:
    """Make ``room`` bytes: entries from the start, values from the end; ``base`` is added to the values' offsets."""
    if space_needed(attributes) > room:
        raise FsError(errno.ENOSPC, f"{len(attributes)} attributes do not fit {room} bytes")
    entries, values = [], []
    top = room
    for (index, name, value), digest in zip(attributes, hashes, strict=True):
        size = _padded(len(value))
        top -= size
        offset = base + top if size else 0
        entry = _ENTRY.pack(len(name), index, offset, 0, len(value), digest) + name
        entries.append(entry.ljust(entry_size(name), b"\0"))
        values.append(value.ljust(size, b"\0"))
    return b"".join(entries).ljust(top, b"\0") + b"".join(reversed(values))


# The checksum of a block


def _checksum(view: memoryview, csum_seed: int, block: int) -> int:
    start = crc32c(csum_seed, block.to_bytes(8, "little"))
    start = crc32c(crc32c(start, view[:_CHECKSUM_OFFSET]), _ZERO4)
    return crc32c(start, view[_CHECKSUM_OFFSET + 4 :])


def verify_block(buf: Buffer, csum_seed: int, block: int, where: str) -> None:
    """Check the checksum of the attribute block at physical ``block``; the seed is the file system's.

    Raises:
        Corrupt: the checksum is wrong.
    """
    view = memoryview(buf)
    if _checksum(view, csum_seed, block) != _WORD.unpack_from(view, _CHECKSUM_OFFSET)[0]:
        raise Corrupt(CorruptKind.ATTRIBUTE_BLOCK_CHECKSUM, where)


def seal_block(buf: bytearray | memoryview, csum_seed: int, block: int) -> None:
    """Store the checksum of the attribute block at physical ``block``; the seed is the file system's."""
    view = memoryview(buf)
    view[_CHECKSUM_OFFSET : _CHECKSUM_OFFSET + 4] = _WORD.pack(_checksum(view, csum_seed, block))
