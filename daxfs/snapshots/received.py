"""What an image that was received holds: a record in its boot block, which ext4 leaves to others.

There are two copies, each with a generation and a checksum, which are stored in turns: a power cut leaves one of them.
An image is one of three things. It has no record: nothing was received. It is `INCOMPLETE`: some of a stream is in it,
and it has no superblock. Or it is `WHOLE`: it holds a snapshot, unless something has stored to it since, which its
superblock tells.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from daxfs.ext4.checksum import crc32c
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET, Superblock
from daxfs.snapshots.stream import Begin, Position

if TYPE_CHECKING:
    from daxfs.pmem.pool import Pool

INCOMPLETE, WHOLE = 1, 2
PLACES = (512, 768)
"""Of the two copies."""
END = 1024

_MAGIC = b"daxfsrcv"
_FIELDS = struct.Struct("<8sIIQIIQQ16s16sQIIQII")
# magic, version, state, generation; the stream: bits of a chunk, 0, bytes of the image and of DATA, both uuids;
# position: bytes, records, checksum, bytes of DATA; checksum of the superblock; checksum of this
_VERSION = 1
_M = 0xFFFFFFFF
_CHECKSUM_SIZE = 4


class Received(NamedTuple):
    """A record.

    ``superblock``: the checksum of a whole image's superblock.
    """

    state: int
    generation: int
    begin: Begin
    position: Position
    superblock: int = 0

    def pack(self) -> bytes:
        """Return the bytes of the record."""
        content = self._packed(0)
        return self._packed(crc32c(_M, content))

    def _packed(self, checksum: int) -> bytes:
        begin, at = self.begin, self.position
        return _FIELDS.pack(
            *(_MAGIC, _VERSION, self.state, self.generation),
            *(begin.chunk_bits, 0, begin.size, begin.data, begin.uuid, begin.base),
            *(at.offset, at.number, at.checksum, at.data),
            *(self.superblock, checksum),
        )


def found(pool: Pool) -> Received | None:
    """Return the record of an image; None: it has none."""
    copies = [each for each in (_read(bytes(pool.memory[at : at + _FIELDS.size])) for at in PLACES) if each]
    return max(copies, key=lambda each: each.generation, default=None)


def _read(content: bytes) -> Received | None:
    magic, version, state, generation, bits, _, size, data, uuid, base, *rest = _FIELDS.unpack(content)
    offset, number, checksum, stored, superblock, _ = rest
    record = Received(
        state, generation, Begin(bits, size, data, uuid, base), Position(offset, number, checksum, stored), superblock
    )
    return record if magic == _MAGIC and version == _VERSION and record.pack() == content else None


def store(pool: Pool, record: Received) -> None:
    """Store a record, durably, after all that was stored before."""
    pool.fence()
    pool.write(PLACES[record.generation % 2], record.pack())
    pool.fence()


def superblock_of(pool: Pool) -> int:
    """Return a checksum of the superblock as it is; without its own, with which every superblock has the same one."""
    return crc32c(_M, bytes(pool.memory[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + Superblock.SIZE - _CHECKSUM_SIZE]))
