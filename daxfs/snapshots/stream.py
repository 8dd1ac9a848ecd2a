"""The stream of ``daxfs snapshot send``: a snapshot, or what has changed since another one, as a sequence of records.

A record is a header of 32 bytes and its payload; all numbers are little-endian::

    0x00  4s   magic
    0x04  u16  kind: BEGIN, DATA or END
    0x08  u32  number of the record, from 0 on
    0x0c  u32  length of the payload in bytes
    0x10  u64  offset in the image, of DATA
    0x18  u32  checksum

The first record is BEGIN (`Begin`), the last one END (how many bytes of DATA there were). DATA is whole chunks; that of
the superblock comes last, so that an image gets it when everything else is there. The checksum is the CRC-32C of the
header, whose own checksum is 0 for it, and of the payload; it continues the checksum of the record before. So each one
covers the stream up to there: a record that is altered, left out or out of its order is found at once.

The same snapshot and base give the same bytes each time. So a transfer can go on at any record: who receives keeps its
`Position`. This module knows bytes only; nothing is stored here.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from daxfs.errors import FsError
from daxfs.ext4.checksum import crc32c

MAGIC = b"dxsn"
VERSION = 1
BEGIN, DATA, END = 1, 2, 3
NO_BASE = bytes(16)
MOST_PAYLOAD = 1 << 24
SMALLEST_CHUNK_BITS, LARGEST_CHUNK_BITS = 12, 16
LARGEST_SIZE = 1 << 63
"""No file can have this size."""

_RECORD = struct.Struct("<4sHxxIIQI4x")
_SUM_AT = 0x18
_BEGIN = struct.Struct("<IIQQ16s16s")  # version, bits of a chunk, bytes of the image and of all DATA, both uuids
_END = struct.Struct("<Q")
_M = 0xFFFFFFFF


class DamagedStream(FsError):
    """A stream is none of daxfs, or is altered, cut short or out of order. Raised with EBADMSG."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EBADMSG, message)


class Begin(NamedTuple):
    """What a stream holds.

    ``size``: bytes of the image. ``data``: bytes of all DATA. ``uuid``: of the snapshot. ``base``: of the snapshot that
    the image must hold before; `NO_BASE`: it need not hold any.
    """

    chunk_bits: int
    size: int
    data: int
    uuid: bytes
    base: bytes


class Position(NamedTuple):
    """A place between two records: bytes and records before it, their checksum, and their bytes of DATA."""

    offset: int = 0
    number: int = 0
    checksum: int = _M
    data: int = 0


class Record(NamedTuple):
    """A record that was read, and the position after it."""

    kind: int
    offset: int
    payload: bytes
    after: Position


def written(begin: Begin, parts: Iterable[tuple[int, bytes]]) -> Iterator[bytes]:
    """Yield the bytes of a stream.

    Args:
        begin: what it holds.
        parts: offsets and contents of its DATA.
    """
    fields = _BEGIN.pack(VERSION, begin.chunk_bits, begin.size, begin.data, begin.uuid, begin.base)
    made, position = _made(Position(), BEGIN, 0, fields)
    yield made
    for offset, content in parts:
        made, position = _made(position, DATA, offset, content)
        yield made
    yield _made(position, END, 0, _END.pack(position.data))[0]


def _made(before: Position, kind: int, offset: int, payload: bytes) -> tuple[bytes, Position]:
    header = _RECORD.pack(MAGIC, kind, before.number, len(payload), offset, 0)
    checksum = crc32c(crc32c(before.checksum, header), payload)
    made = header[:_SUM_AT] + checksum.to_bytes(4, "little") + header[_SUM_AT + 4 :] + payload
    return made, _after(before, kind, payload, checksum)


def _after(before: Position, kind: int, payload: bytes, checksum: int) -> Position:
    data = before.data + (len(payload) if kind == DATA else 0)
    return Position(before.offset + _RECORD.size + len(payload), before.number + 1, checksum, data)


def first_number(header: bytes) -> int:
    """Return the number of the record that begins with these bytes.

    Raises:
        DamagedStream: it is no record.
    """
    if len(header) < _RECORD.size or header[:4] != MAGIC:
        raise DamagedStream("this is no stream of daxfs snapshot send")
    number: int = _RECORD.unpack_from(header)[2]
    return number


HEADER_BYTES = _RECORD.size


def records(read: Callable[[int], bytes], position: Position) -> Iterator[Record]:
    """Yield the records of a stream from a position on, each verified, up to its END.

    Args:
        read: returns so many bytes, fewer only at the end.
        position: where ``read`` begins.

    Raises:
        DamagedStream: the stream is not what was sent.
    """
    while True:
        header = read(_RECORD.size)
        if len(header) < _RECORD.size:
            raise DamagedStream(f"the stream ends after {position.offset + len(header)} bytes, before its end")
        magic, kind, number, length, offset, checksum = _RECORD.unpack(header)
        if magic != MAGIC or number != position.number or length > MOST_PAYLOAD:
            raise DamagedStream(f"the stream has no record {position.number} at its byte {position.offset}")
        payload = read(length)
        if len(payload) < length:
            raise DamagedStream(f"the stream ends within its record {number}")
        blank = header[:_SUM_AT] + bytes(4) + header[_SUM_AT + 4 :]
        if crc32c(crc32c(position.checksum, blank), payload) != checksum:
            raise DamagedStream(f"record {number} of the stream has a wrong checksum")
        position = _after(position, kind, payload, checksum)
        if kind == END and (len(payload) != _END.size or _END.unpack(payload)[0] != position.data):
            raise DamagedStream("the end of the stream names another number of bytes")
        yield Record(kind, offset, payload, position)
        if kind == END:
            return


def begin_of(record: Record) -> Begin:
    """Return what a stream holds, by its first record.

    Raises:
        DamagedStream: it is no BEGIN, or of another version.
    """
    if record.kind != BEGIN or len(record.payload) != _BEGIN.size:
        raise DamagedStream("the stream does not begin with what it holds")
    version, chunk_bits, size, data, uuid, base = _BEGIN.unpack(record.payload)
    if version != VERSION:
        raise DamagedStream(f"the stream has version {version}; this program reads {VERSION}")
    if not SMALLEST_CHUNK_BITS <= chunk_bits <= LARGEST_CHUNK_BITS or not 1 << chunk_bits < size < LARGEST_SIZE:
        raise DamagedStream("the stream has an impossible size of the image or of its chunks")
    return Begin(chunk_bits, size, data, uuid, base)
