"""The persistent exception store of Linux's dm-snapshot: where everything lies in a store.

A store is divided into *snapshot chunks* (one or more blocks of the pool, at least 4 KiB). Chunk 0 is the header. It is
followed by metadata areas, one chunk each: area n is chunk ``1 + n * (entries + 1)`` and describes the ``entries``
chunks right after it, which hold old contents. An entry is two little-endian words of 8 bytes: the chunk of the pool
whose content was copied, and the chunk of the store that holds the copy. An entry whose second word is 0 ends the
table.

Source: drivers/md/dm-snap-persistent.c, and Documentation/admin-guide/device-mapper/snapshot.rst. The kernel uses the
first 16 bytes of the header only; what daxfs needs beside them begins at byte `OWN_AT`.
"""

from __future__ import annotations

import errno
import struct
from typing import NamedTuple

from daxfs.errors import FsError
from daxfs.ext4.checksum import crc32c

MAGIC = 0x70416E53  # "SnAp"
VERSION = 1
SMALLEST_CHUNK = 4096
"""The kernel maps chunks by pages."""
ENTRY_SIZE = 16
NEW_AT = 8
"""Of the second word in an entry."""
VALID_AT = 4
"""Of the word that says whether the snapshot is valid (1) or has lost content (0)."""
OWN_AT = 512
REASON_AT = 1024
"""Of the word that says why a snapshot is not valid, a number of the caller's."""
ROLE_AT = 1032
"""Of the word that tells other processes, which read a mounted pool, what a store is at the moment."""
MAPPED_AT, SKIPPED_AT = 1040, 1048
"""Of the words that say how many chunks clients might store to when the snapshot was made: those that were copied, and
those that were not.
"""
NEWEST, FOLLOWED, LEAVING = 0, 1, 2
"""Roles: it takes the copies; a newer one does; it is being deleted, and its blocks may get other content soon."""

_SECTOR_BITS = 9
_HEADER = struct.Struct("<4I")  # magic, valid, version, chunk size in sectors
_OWN = struct.Struct("<8s2IQQQ16s")  # magic, version, checksum, serial, nanoseconds, chunks of the pool, uuid
_OWN_MAGIC = b"daxfsnap"
_OWN_VERSION = 1
_M = 0xFFFFFFFF


class NotAStore(FsError):
    """A file is no store of a snapshot that daxfs has made, or is damaged: that snapshot is lost, and nothing else.

    Raised with EINVAL.
    """

    def __init__(self, message: str) -> None:
        super().__init__(errno.EINVAL, message)


class Header(NamedTuple):
    """What the header of a store says.

    Attributes:
        valid: False: some old content is lost.
        reason: why, a number of the caller's; 0 if it is valid.
        chunk_bits: the snapshot chunk is ``1 << chunk_bits`` bytes.
        serial: the later snapshot of two has the larger number.
        created_ns: when the snapshot was made, in nanoseconds since 1970.
        origin_chunks: snapshot chunks in the pool, the last of which may be incomplete.
        uuid: of the snapshot.
        mapped: chunks that were copied when it was made, since clients might store there.
        skipped: chunks that clients might store to then, and that were not copied.
    """

    valid: bool
    reason: int
    chunk_bits: int
    serial: int
    created_ns: int
    origin_chunks: int
    uuid: bytes
    mapped: int = 0
    skipped: int = 0

    def pack(self) -> bytes:
        """Return the first bytes of a store."""
        own = self._own(0)
        own = self._own(crc32c(_M, own))
        header = bytearray(SMALLEST_CHUNK)
        _HEADER.pack_into(header, 0, MAGIC, self.valid, VERSION, 1 << self.chunk_bits - _SECTOR_BITS)
        header[OWN_AT : OWN_AT + len(own)] = own
        for place, word in ((REASON_AT, self.reason), (MAPPED_AT, self.mapped), (SKIPPED_AT, self.skipped)):
            header[place : place + 8] = word.to_bytes(8, "little")
        return bytes(header)

    def _own(self, checksum: int) -> bytes:
        return _OWN.pack(
            _OWN_MAGIC, _OWN_VERSION, checksum, self.serial, self.created_ns, self.origin_chunks, self.uuid
        )

    @classmethod
    def unpack(cls, content: memoryview | bytes) -> Header:
        """Read a header.

        Raises:
            NotAStore: it is not one that daxfs has made.
        """
        if len(content) < SMALLEST_CHUNK:
            raise NotAStore(f"the header of a snapshot is {len(content)} bytes long")
        magic, valid, version, sectors = _HEADER.unpack_from(content)
        own = _OWN.unpack_from(content, OWN_AT)
        own_magic, own_version, checksum, serial, created_ns, origin_chunks, uuid = own
        if magic != MAGIC or version != VERSION or own_magic != _OWN_MAGIC or own_version != _OWN_VERSION:
            raise NotAStore("no header of a store that daxfs has made")
        size = sectors << _SECTOR_BITS
        header = cls(
            valid=valid == 1,
            reason=_word(content, REASON_AT),
            chunk_bits=size.bit_length() - 1,
            serial=serial,
            created_ns=created_ns,
            origin_chunks=origin_chunks,
            uuid=uuid,
            mapped=_word(content, MAPPED_AT),
            skipped=_word(content, SKIPPED_AT),
        )
        if crc32c(_M, header._own(0)) != checksum or size < SMALLEST_CHUNK or size & size - 1:
            raise NotAStore("the header of a snapshot has a wrong checksum or chunk size")
        return header


def _word(content: memoryview | bytes, place: int) -> int:
    return int.from_bytes(content[place : place + 8], "little")


def entries_per_area(chunk_size: int) -> int:
    """Return the number of entries in a metadata area."""
    return chunk_size // ENTRY_SIZE


def area_chunk(area: int, entries: int) -> int:
    """Return the chunk of the store that is the metadata area number ``area``."""
    return 1 + area * (entries + 1)


def chunks_of(size: int, bits: int) -> int:
    """Return how many chunks a pool of so many bytes has; the last one may be cut."""
    return size + (1 << bits) - 1 >> bits


def data_chunk(index: int, entries: int) -> int:
    """Return the chunk of the store that holds the content of exception number ``index``, if daxfs made it."""
    area, at = divmod(index, entries)
    return area_chunk(area, entries) + 1 + at


def capacity(chunks: int, entries: int) -> int:
    """Return how many exceptions a store of ``chunks`` chunks can hold.

    The table must end inside the store. So the last entry of an area can be used only if there is another area.
    """
    if chunks < 2:
        return 0
    areas, rest = divmod(chunks - 1, entries + 1)
    return areas * entries + rest - 1


def chunks_for(exceptions: int, entries: int) -> int:
    """Return the number of chunks that a store needs for so many exceptions."""
    return 2 + exceptions + exceptions // entries
