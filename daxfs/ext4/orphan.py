"""Layer 3: the blocks of the orphan file (feature orphan_file).

Each block is an array of little-endian 32-bit inode numbers (0: a free entry) and an 8-byte tail.
``structures/orphans.py``, the caller, finds free entries and lists the orphans.

Tail: ob_magic u32 0, ob_checksum u32 4.

Sources: ``fs/ext4/orphan.c``, Documentation/filesystems/ext4/orphan.rst.
"""

from __future__ import annotations

from daxfs.errors import Corrupt, CorruptKind
from daxfs.ext4.checksum import Buffer, crc32c

EXT4_ORPHAN_BLOCK_MAGIC = 0x0B10CA04
TAIL_SIZE = 8


def words(buf: Buffer) -> memoryview:
    """Cast a block to its 32-bit words; the last two are the tail. Writable when ``buf`` is."""
    return memoryview(buf).cast("B").cast("I")


def inodes_per_block(block_size: int) -> int:
    """Return the number of inode numbers that fit into one block."""
    return (block_size - TAIL_SIZE) // 4


def initialize(buf: bytearray | memoryview) -> None:
    """Make an empty block; ``seal_block`` stores the checksum."""
    w = words(buf)
    w.cast("B")[:] = bytes(len(w) * 4)
    w[-2] = EXT4_ORPHAN_BLOCK_MAGIC


def verify_magic(buf: Buffer, where: str) -> None:
    """Check the tail's magic; without metadata_csum there is nothing else to check.

    Raises:
        Corrupt: the magic is wrong.
    """
    magic = words(buf)[-2]
    if magic != EXT4_ORPHAN_BLOCK_MAGIC:
        raise Corrupt(CorruptKind.ORPHAN_FILE_BLOCK, f"{where}: magic {magic:#x}")


def verify_block(buf: Buffer, seed: int, block: int, where: str) -> None:
    """Check magic and checksum of the orphan file's block on physical ``block``; ``seed`` is the inode's.

    Raises:
        Corrupt: the magic or the checksum is wrong.
    """
    verify_magic(buf, where)
    w = words(buf)
    if _checksum(w, seed, block) != w[-1]:
        raise Corrupt(CorruptKind.ORPHAN_FILE_BLOCK_CHECKSUM, where)


def seal_block(buf: bytearray | memoryview, seed: int, block: int) -> None:
    """Store the checksum of the orphan file's block on physical ``block``; ``seed`` is the inode's."""
    w = words(buf)
    w[-1] = _checksum(w, seed, block)


def _checksum(w: memoryview, seed: int, block: int) -> int:
    return crc32c(crc32c(seed, block.to_bytes(8, "little")), w[:-2])
