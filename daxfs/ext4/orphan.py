"""Layer 3: the blocks of the orphan file (feature orphan_file).

Each block is an array of little-endian 32-bit inode numbers, 0 for a free place, and an 8-byte tail. Finding
a place and replaying the orphans belongs to ``structures/``; callers are that layer and the tools.

Tail: ob_magic u32 0, ob_checksum u32 4.

Sources: ``fs/ext4/orphan.c``, Documentation/filesystems/ext4/orphan.rst.
"""

from __future__ import annotations

from daxfs.errors import Corrupt, CorruptKind
from daxfs.ext4.checksum import Buffer, crc32c

EXT4_ORPHAN_BLOCK_MAGIC = 0x0B10CA04
TAIL_SIZE = 8


def words(buf: Buffer) -> memoryview:
    """The 32-bit words of a block; the last two are its tail. Writable when ``buf`` is."""
    return memoryview(buf).cast("B").cast("I")


def inodes_per_block(block_size: int) -> int:
    """Places for inode numbers in one block."""
    return (block_size - TAIL_SIZE) // 4


def initialize(buf: bytearray | memoryview) -> None:
    """Make an empty block (the checksum comes with ``seal_block``)."""
    w = words(buf)
    w.cast("B")[:] = bytes(len(w) * 4)
    w[-2] = EXT4_ORPHAN_BLOCK_MAGIC


def verify_magic(buf: Buffer, where: str) -> None:
    """Check the tail's magic, all there is to check without metadata_csum.

    Raises:
        Corrupt: it is wrong.
    """
    magic = words(buf)[-2]
    if magic != EXT4_ORPHAN_BLOCK_MAGIC:
        raise Corrupt(CorruptKind.ORPHAN_FILE_BLOCK, f"{where}: magic {magic:#x}")


def verify_block(buf: Buffer, seed: int, block: int, where: str) -> None:
    """Check magic and checksum of the block at physical ``block``; ``seed`` is the orphan file inode's.

    Raises:
        Corrupt: one of them is wrong.
    """
    verify_magic(buf, where)
    w = words(buf)
    if _checksum(w, seed, block) != w[-1]:
        raise Corrupt(CorruptKind.ORPHAN_FILE_BLOCK_CHECKSUM, where)


def seal_block(buf: bytearray | memoryview, seed: int, block: int) -> None:
    """Store the checksum of the block at physical ``block``; ``seed`` is the orphan file inode's."""
    w = words(buf)
    w[-1] = _checksum(w, seed, block)


def _checksum(w: memoryview, seed: int, block: int) -> int:
    return crc32c(crc32c(seed, block.to_bytes(8, "little")), w[:-2])
