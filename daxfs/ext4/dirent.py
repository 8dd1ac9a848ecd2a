"""Layer 3: the entries of a directory block.

A linear directory block, and every leaf of an index, is a chain of entries. The ``rec_len`` of each leads to the next
one. The last entry ends at the block's end or, with metadata_csum, at a 12-byte tail that looks like an empty entry.
This module has the layout, its checks and the checksum. ``structures/`` decides which block to search and where to
insert. Callers: the modules of directories in ``structures/``.

Entry: inode u32 0, rec_len u16 4, name_len u8 6, file_type u8 7, name at 8. Tail: det_reserved_zero1 u32 0,
det_rec_len u16 4 (12), det_reserved_zero2 u8 6, det_reserved_ft u8 7 (0xDE), det_checksum u32 8.

Sources: ``fs/ext4/ext4.h``, ``fs/ext4/dir.c`` (``__ext4_check_dir_entry``), ``fs/ext4/namei.c``,
Documentation/filesystems/ext4/directory.rst.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import TypeAlias

from mypy_extensions import i64

from daxfs.errors import Corrupt, CorruptKind
from daxfs.ext4.checksum import Buffer, crc32c

HEADER_SIZE = 8
MIN_REC_LEN = 12  # an entry with a name of one byte
TAIL_SIZE = 12
EXT4_FT_DIR_CSUM = 0xDE

ENTRY = struct.Struct("<IHBB")
_ZERO4 = bytes(4)
_TAIL_HEAD = ENTRY.pack(0, TAIL_SIZE, 0, EXT4_FT_DIR_CSUM)


def space_needed(name_len: int) -> int:
    """Bytes of an entry with a name of ``name_len`` bytes (EXT4_DIR_REC_LEN)."""
    return name_len + 11 & ~3


def pack_entry(ino: int, rec_len: int, name: bytes, file_type: int) -> bytes:
    """The bytes of an entry up to the end of its name (``rec_len`` may reach further)."""
    return ENTRY.pack(ino, rec_len, len(name), file_type) + name


def walk(buf: Buffer, limit: int, where: str = "directory block") -> Iterator[tuple[int, int, int, int, int]]:
    """Yield all entries of a block, unused ones (inode 0) included: (offset, ino, rec_len, name_len, file_type).

    Args:
        buf: the block.
        limit: where the entries end (the end of the block, or its checksum tail).
        where: names the block in the error.

    Raises:
        Corrupt: a ``rec_len`` is too small for the name, is no multiple of 4, or leads past ``limit``.
    """
    unpack = ENTRY.unpack_from
    offset = 0
    while offset < limit:
        if limit - offset < HEADER_SIZE:
            raise Corrupt(CorruptKind.DIRECTORY_ENTRY, f"{where}: no room for an entry at {offset}")
        ino, rec_len, name_len, file_type = unpack(buf, offset)
        if rec_len < 12 or rec_len & 3 or rec_len < name_len + 8 or rec_len > limit - offset:
            raise _bad_entry(where, offset, rec_len, name_len)
        yield offset, ino, rec_len, name_len, file_type
        offset += rec_len


Starts: TypeAlias = "array[int]"
"""The offsets of the first entries of a block, in order, beginning with 0: as many as anybody has asked for."""


def new_starts() -> Starts:
    """Return what is known of a block in which no entry was searched yet."""
    return array("H", (0,))


def index_of(buf: Buffer, limit: int, starts: Starts, offset: int, where: str = "directory block") -> int:
    """Return the index of ``offset`` in ``starts``; -1: no entry begins there.

    The chain is followed from the last known start up to the offset, and what is passed is added to ``starts``.

    Raises:
        Corrupt: a ``rec_len`` on the way is too small, is no multiple of 4, or leads past ``limit``.
    """
    at: i64 = starts[-1]
    if at < offset:
        data = bytes(buf)
        while at < offset:
            rec_len: i64 = data[at + 4] | data[at + 5] << 8
            if rec_len < MIN_REC_LEN or rec_len & 3 or rec_len > limit - at:
                raise _bad_entry(where, at, rec_len, data[at + 6])
            at += rec_len
            if at == limit:
                return -1
            starts.append(at)
    index = bisect_left(starts, offset)
    return index if starts[index] == offset else -1


def find(buf: Buffer, limit: int, name: bytes, starts: Starts | None = None, where: str = "directory block") -> int:
    """Return the offset of the used entry called ``name``, or -1.

    A memory search finds the name's bytes. They may also be in slack space or inside another name, so the offset must
    be one of the entries' (`index_of`). If the block does not contain the bytes, no entry is read.

    Args:
        buf: the block.
        limit: where the entries end.
        name: of 1 to 255 bytes.
        starts: what is known of the block's entries; None: nothing.
        where: names the block in the error.

    Raises:
        Corrupt: a ``rec_len`` up to the found entry is too small, is no multiple of 4, or leads past ``limit``.
    """
    data = bytes(buf)
    length = len(name)
    at = data.find(name, HEADER_SIZE, limit)
    while at >= 0:
        offset = at - HEADER_SIZE
        if data[offset + 6] == length and not offset & 3 and data[offset : offset + 4] != _ZERO4:
            if starts is None:
                starts = new_starts()
            if index_of(data, limit, starts, offset, where) >= 0:
                rec_len = data[offset + 4] | data[offset + 5] << 8
                if rec_len & 3 or not length + HEADER_SIZE <= rec_len <= limit - offset:
                    raise _bad_entry(where, offset, rec_len, length)
                return offset
        at = data.find(name, at + 1, limit)
    return -1


def _bad_entry(where: str, offset: int, rec_len: int, name_len: int) -> Corrupt:
    return Corrupt(
        CorruptKind.DIRECTORY_ENTRY, f"{where}: rec_len {rec_len} at {offset} with a name of {name_len} bytes"
    )


# The tail


def has_tail(buf: Buffer) -> bool:
    """Whether the block's last 12 bytes are a checksum tail."""
    return bytes(buf[-TAIL_SIZE : -TAIL_SIZE + HEADER_SIZE]) == _TAIL_HEAD


def put_tail(buf: bytearray | memoryview) -> None:
    """Store an empty tail; ``seal_block`` stores the checksum."""
    size = len(buf)
    buf[size - TAIL_SIZE : size] = _TAIL_HEAD + bytes(4)


def verify_block(buf: Buffer, seed: int, where: str) -> None:
    """Check the tail and the checksum of a block with entries; ``seed`` is the directory inode's.

    Raises:
        Corrupt: there is no tail, or its checksum is wrong.
    """
    if not has_tail(buf):
        raise Corrupt(CorruptKind.DIRECTORY_BLOCK_WITHOUT_CHECKSUM_TAIL, where)
    view = memoryview(buf)
    if crc32c(seed, view[:-TAIL_SIZE]) != int.from_bytes(view[-4:], "little"):
        raise Corrupt(CorruptKind.DIRECTORY_BLOCK_CHECKSUM, where)


def seal_block(buf: bytearray | memoryview, seed: int) -> None:
    """Store the checksum of a block with entries and a tail; ``seed`` is the directory inode's."""
    view = memoryview(buf)
    view[-4:] = crc32c(seed, view[:-TAIL_SIZE]).to_bytes(4, "little")
