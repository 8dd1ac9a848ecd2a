"""Layer 3: the jbd2 log format (big-endian).

This module converts log blocks to named tuples and back: the journal superblock, the block header, descriptor tags in
their layouts, revoke lists, commit records, and every checksum over them. It reads and makes plain byte strings. It
does not know where the log is, in what order blocks are written, or what a transaction is: ``journal/`` does. Callers:
the journal layer and the tools.

Sources: ``include/linux/jbd2.h``, ``fs/jbd2/{journal,commit,recovery,revoke}.c``,
Documentation/filesystems/ext4/journal.rst.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from enum import IntFlag
from functools import lru_cache
from typing import NamedTuple

from daxfs.errors import Corrupt, CorruptKind, Unsupported
from daxfs.ext4.checksum import Buffer, crc32c

MAGIC = 0xC03B3998
MAGIC_BYTES = MAGIC.to_bytes(4, "big")

DESCRIPTOR_BLOCK = 1
COMMIT_BLOCK = 2
SUPERBLOCK_V1 = 3
SUPERBLOCK_V2 = 4
REVOKE_BLOCK = 5

FLAG_ESCAPE = 1  # the block begins with the magic, in whose place the log holds zeros
FLAG_SAME_UUID = 2  # no UUID follows this tag
FLAG_DELETED = 4
FLAG_LAST_TAG = 8
_GIVEN_FLAGS = FLAG_ESCAPE | FLAG_DELETED  # the other flags follow from the tag's position

CRC32_CHKSUM = 1
CRC32C_CHKSUM = 4
CRC32_CHKSUM_SIZE = 4

HEADER_SIZE = 12
TAIL_SIZE = 4
UUID_SIZE = 16
REVOKE_HEADER_SIZE = 16
SUPERBLOCK_SIZE = 1024
SEQUENCE_OFFSET = 8  # of h_sequence; storing this word makes a commit record valid
DEFAULT_FAST_COMMIT_BLOCKS = 256
MIN_JOURNAL_BLOCKS = 1024

_M = 0xFFFFFFFF
_HEADER = struct.Struct(">III")
_SUPERBLOCK = struct.Struct(">III III II i III 16s II II B3x II 160s I 768s")
_REVOKE_HEADER = struct.Struct(">IIII")
_COMMIT = struct.Struct(">IIIBB2xI28xQI")  # of the eight words of h_chksum, jbd2 uses only the first
_TAG = struct.Struct(">IHH")  # t_blocknr, t_checksum, t_flags
_TAG_HIGH = struct.Struct(">IHHI")  # ... t_blocknr_high
_TAG3 = struct.Struct(">IIII")  # t_blocknr, t_flags, t_blocknr_high, t_checksum
_TAG_CODES = {8: "IHH", 10: "IHH2x", 12: "IHHI", 14: "IHHI2x", 16: "IIII"}  # the layouts of tags by `tag_bytes`
_BE32 = struct.Struct(">I")
_CHKSUM_OFFSET = 16  # of h_chksum[0] in a commit record
_SB_CHECKSUM_OFFSET = 0xFC
_ZERO4 = bytes(4)
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Compat(IntFlag):
    """``s_feature_compat``."""

    CHECKSUM = 0x1


class Incompat(IntFlag):
    """``s_feature_incompat``."""

    REVOKE = 0x01
    BIT64 = 0x02
    ASYNC_COMMIT = 0x04
    CSUM_V2 = 0x08
    CSUM_V3 = 0x10
    FAST_COMMIT = 0x20


INCOMPAT_NAMES = {
    Incompat.REVOKE: "journal_incompat_revoke",
    Incompat.BIT64: "journal_64bit",
    Incompat.ASYNC_COMMIT: "journal_async_commit",
    Incompat.CSUM_V2: "journal_checksum_v2",
    Incompat.CSUM_V3: "journal_checksum_v3",
    Incompat.FAST_COMMIT: "journal_fast_commit",
}
_KNOWN_INCOMPAT = 0x3F


def journal_seed(uuid: bytes) -> int:
    """Return the seed of every v2 and v3 checksum of a journal: crc32c(~0, s_uuid)."""
    return crc32c(_M, uuid)


def tag_bytes(incompat: int) -> int:
    """Return the size of one descriptor tag without its UUID, in bytes (jbd2's ``journal_tag_bytes``)."""
    if incompat & Incompat.CSUM_V3:
        return 16
    size = 12
    if incompat & Incompat.CSUM_V2:
        size += 2
    return size if incompat & Incompat.BIT64 else size - 4


class Format(NamedTuple):
    """The figures that determine the layout of a journal's blocks; computed once when the journal is loaded."""

    block_size: int
    uuid: bytes
    tag_bytes: int
    is_64bit: bool
    csum_version: int  # 0, 2 or 3
    seed: int

    @classmethod
    def of(cls, superblock: JournalSuperblock) -> Format:
        """Return the layout for the features in ``superblock``."""
        incompat = superblock.incompat
        version = 3 if incompat & Incompat.CSUM_V3 else 2 if incompat & Incompat.CSUM_V2 else 0
        return cls(
            block_size=superblock.s_blocksize,
            uuid=superblock.s_uuid,
            tag_bytes=tag_bytes(incompat),
            is_64bit=bool(incompat & Incompat.BIT64),
            csum_version=version,
            seed=journal_seed(superblock.s_uuid),
        )

    @property
    def tail_size(self) -> int:
        """Bytes of the checksum tail of descriptor and revoke blocks."""
        return TAIL_SIZE if self.csum_version else 0

    @property
    def tags_per_descriptor(self) -> int:
        """Tags in one descriptor block; like jbd2, the count leaves room for a second UUID."""
        room = self.block_size - HEADER_SIZE - 2 * UUID_SIZE - self.tail_size
        return room // self.tag_bytes

    @property
    def revokes_per_block(self) -> int:
        """Block numbers in one revoke block."""
        return (self.block_size - REVOKE_HEADER_SIZE - self.tail_size) // (8 if self.is_64bit else 4)


class JournalSuperblock(NamedTuple):
    """The journal's superblock (1024 bytes), fields in the order of the disk; change it with ``_replace``."""

    h_magic: int
    h_blocktype: int
    h_sequence: int
    s_blocksize: int
    s_maxlen: int  # blocks of the journal, this one included
    s_first: int  # first block of the log
    s_sequence: int  # first commit id expected in the log
    s_start: int  # block where the log begins; 0: nothing to replay
    s_errno: int
    s_feature_compat: int
    s_feature_incompat: int
    s_feature_ro_compat: int
    s_uuid: bytes
    s_nr_users: int
    s_dynsuper: int
    s_max_transaction: int
    s_max_trans_data: int
    s_checksum_type: int
    s_num_fc_blks: int
    s_head: int
    s_padding: bytes
    s_checksum: int
    s_users: bytes

    @classmethod
    def unpack(cls, buf: Buffer) -> JournalSuperblock:
        """Read the fields without checks; ``verify_superblock`` checks them."""
        if len(buf) < SUPERBLOCK_SIZE:
            raise Corrupt(CorruptKind.JOURNAL_SUPERBLOCK, f"{len(buf)} bytes are too few")
        return cls._make(_SUPERBLOCK.unpack_from(buf))

    @classmethod
    def new(cls, block_size: int, blocks: int, uuid: bytes, incompat: int = 0) -> JournalSuperblock:
        """Make the superblock of an empty version 2 journal of ``blocks`` blocks."""
        checksum_type = CRC32C_CHKSUM if incompat & (Incompat.CSUM_V2 | Incompat.CSUM_V3) else 0
        empty = cls._make(_SUPERBLOCK.unpack(bytes(SUPERBLOCK_SIZE)))
        return empty._replace(
            h_magic=MAGIC,
            h_blocktype=SUPERBLOCK_V2,
            s_blocksize=block_size,
            s_maxlen=blocks,
            s_first=1,
            s_sequence=1,
            s_feature_incompat=int(incompat),
            s_uuid=uuid,
            s_nr_users=1,
            s_checksum_type=checksum_type,
        )

    def pack(self) -> bytes:
        """Return the 1024 bytes to store, with a new checksum if the features ask for one."""
        fields = self._replace(s_checksum=0) if self.has_checksum else self
        data = _SUPERBLOCK.pack(*fields)
        if not self.has_checksum:
            return data
        checksum = _BE32.pack(crc32c(_M, data))
        return data[:_SB_CHECKSUM_OFFSET] + checksum + data[_SB_CHECKSUM_OFFSET + 4 :]

    @property
    def compat(self) -> int:
        """Compatible features; a version 1 superblock has none, whatever its bytes hold."""
        return self.s_feature_compat if self.h_blocktype == SUPERBLOCK_V2 else 0

    @property
    def incompat(self) -> int:
        """Incompatible features; a version 1 superblock has none, whatever its bytes hold."""
        return self.s_feature_incompat if self.h_blocktype == SUPERBLOCK_V2 else 0

    @property
    def feature_names(self) -> list[str]:
        """The names that e2fsprogs has for the features that are set."""
        names = ["journal_checksum"] if self.compat & Compat.CHECKSUM else []
        return names + [name for bit, name in INCOMPAT_NAMES.items() if self.incompat & bit]

    @property
    def has_checksum(self) -> bool:
        """Whether ``s_checksum`` is in use (csum v2 or v3)."""
        return bool(self.incompat & (Incompat.CSUM_V2 | Incompat.CSUM_V3))

    @property
    def fast_commit_blocks(self) -> int:
        """Blocks at the journal's end that belong to fast commits."""
        if not self.incompat & Incompat.FAST_COMMIT:
            return 0
        return self.s_num_fc_blks or DEFAULT_FAST_COMMIT_BLOCKS

    @property
    def log_end(self) -> int:
        """The block after the last one of the log proper."""
        return self.s_maxlen - self.fast_commit_blocks


def verify_superblock(buf: Buffer, block_size: int, blocks: int) -> JournalSuperblock:
    """Read and check a journal superblock.

    Args:
        buf: at least its 1024 bytes.
        block_size: of the file system, in bytes; the journal's must be the same.
        blocks: the number of blocks of the journal's inode.

    Raises:
        Corrupt: magic, checksum, sizes or log bounds are wrong, or features exclude one another.
        Unsupported: the journal has features that daxfs does not know.
    """
    sb = JournalSuperblock.unpack(buf)
    if sb.h_magic != MAGIC or sb.h_blocktype not in (SUPERBLOCK_V1, SUPERBLOCK_V2):
        raise Corrupt(CorruptKind.JOURNAL_SUPERBLOCK, f"magic {sb.h_magic:#x}, block type {sb.h_blocktype}")
    _check_features(sb)
    if sb.has_checksum:
        if sb.s_checksum_type != CRC32C_CHKSUM:
            raise Corrupt(CorruptKind.JOURNAL_SUPERBLOCK, f"checksum type {sb.s_checksum_type} is not crc32c")
        data = bytes(buf[:SUPERBLOCK_SIZE])
        data = data[:_SB_CHECKSUM_OFFSET] + _ZERO4 + data[_SB_CHECKSUM_OFFSET + 4 :]
        if crc32c(_M, data) != sb.s_checksum:
            raise Corrupt(CorruptKind.JOURNAL_SUPERBLOCK_CHECKSUM, f"{sb.s_checksum:#x} stored")
    if sb.s_blocksize != block_size:
        raise Corrupt(CorruptKind.JOURNAL_SUPERBLOCK, f"block size {sb.s_blocksize}, the file system's is {block_size}")
    if sb.s_maxlen > blocks:
        raise Corrupt(CorruptKind.JOURNAL_SUPERBLOCK, f"{sb.s_maxlen} blocks claimed, the inode has {blocks}")
    if not 0 < sb.s_first < sb.log_end:
        raise Corrupt(CorruptKind.JOURNAL_SUPERBLOCK, f"log from block {sb.s_first} to {sb.log_end}")
    if sb.s_start and not sb.s_first <= sb.s_start < sb.log_end:
        raise Corrupt(CorruptKind.JOURNAL_SUPERBLOCK, f"log starts at {sb.s_start}, outside {sb.s_first}..{sb.log_end}")
    return sb


def _check_features(sb: JournalSuperblock) -> None:
    incompat = sb.incompat
    unknown = incompat & ~_KNOWN_INCOMPAT
    if sb.h_blocktype == SUPERBLOCK_V2 and (unknown or sb.s_feature_ro_compat):
        raise Unsupported(
            [f"journal_incompat_{unknown:#x}"] * bool(unknown)
            + [f"journal_ro_compat_{sb.s_feature_ro_compat:#x}"] * bool(sb.s_feature_ro_compat)
        )
    checksums = (
        bool(sb.compat & Compat.CHECKSUM) + bool(incompat & Incompat.CSUM_V2) + bool(incompat & Incompat.CSUM_V3)
    )
    if checksums > 1:
        raise Corrupt(CorruptKind.JOURNAL_SUPERBLOCK, "more than one kind of checksum is enabled")


# Blocks of the log


class Header(NamedTuple):
    """The first 12 bytes of every block of the log that is not a copy of a metadata block."""

    h_magic: int
    h_blocktype: int
    h_sequence: int


def header(buf: Buffer) -> Header | None:
    """Return the block's header, or None if the block does not begin with the magic."""
    fields = Header._make(_HEADER.unpack_from(buf))
    return fields if fields.h_magic == MAGIC else None


class Tag(NamedTuple):
    """One entry of a descriptor: the home location of one of the blocks that follow the descriptor in the log."""

    blocknr: int
    flags: int
    checksum: int = 0  # of the block's content in the log; 16 bits in v2


def unpack_tags(buf: Buffer, form: Format) -> list[Tag]:
    """Return the tags of a descriptor block, in the order of the blocks that follow it.

    Like jbd2, the function stops at ``LAST_TAG`` or where the block has no room for another tag.
    """
    size, version, is_64bit = form.tag_bytes, form.csum_version, form.is_64bit
    end = form.block_size - form.tail_size
    at = HEADER_SIZE
    tags: list[Tag] = []
    high = 0
    while at + size <= end:
        if version == 3:
            low, flags, high, checksum = _TAG3.unpack_from(buf, at)
            flags &= 0xFFFF
        elif is_64bit:
            low, checksum, flags, high = _TAG_HIGH.unpack_from(buf, at)
        else:
            low, checksum, flags = _TAG.unpack_from(buf, at)
        tags.append(Tag(low | high << 32 if is_64bit else low, flags, checksum))
        if flags & FLAG_LAST_TAG:
            break
        at += size if flags & FLAG_SAME_UUID else size + UUID_SIZE
    return tags


def fill_descriptor(
    form: Format, block: bytearray | memoryview, sequence: int, tags: Sequence[tuple[int, int, int]]
) -> None:
    """Make ``block`` a descriptor block, with its tail checksum; all its bytes are overwritten.

    Args:
        form: the journal's layout.
        block: ``form.block_size`` writable bytes.
        sequence: the transaction's id.
        tags: 1 to ``form.tags_per_descriptor`` tags as in `Tag`. The caller supplies the checksums (``block_checksum``)
            and all flags but ``SAME_UUID`` and ``LAST_TAG``, which this function sets.
    """
    fields: list[int | bytes] = [MAGIC, DESCRIPTOR_BLOCK, sequence & _M]
    version, is_64bit = form.csum_version, form.is_64bit
    last = len(tags) - 1
    for i, (blocknr, flags, checksum) in enumerate(tags):
        flags &= _GIVEN_FLAGS
        if i:
            flags |= FLAG_SAME_UUID
        if i == last:
            flags |= FLAG_LAST_TAG
        high = blocknr >> 32
        if high and not is_64bit:
            raise ValueError(f"block {blocknr} does not fit a 32-bit journal")
        if version == 3:
            fields += blocknr & _M, flags, high, checksum
        elif is_64bit:
            fields += blocknr & _M, checksum, flags, high
        else:
            fields += blocknr, checksum, flags
        if not i:
            fields.append(form.uuid)
    _descriptor_layout(form.block_size, form.tag_bytes, last).pack_into(block, 0, *fields)
    _seal_tail(form, block)


@lru_cache(maxsize=64)
def _descriptor_layout(block_size: int, tag_size: int, more: int) -> struct.Struct:
    """Return the layout of a whole descriptor block with ``more`` tags after the first, and zeros after the tags."""
    tag = _TAG_CODES[tag_size]
    used = HEADER_SIZE + UUID_SIZE + tag_size * (1 + more)
    return struct.Struct(f">III{tag}{UUID_SIZE}s{tag * more}{block_size - used}x")


def block_checksum(form: Format, sequence: int, block: Buffer) -> int:
    """Return the checksum for a block's tag: 16 bits in csum v2, 32 in v3, 0 without checksums.

    ``block`` is the content in the log, after escaping. A commit, which tags many blocks, saves time by calling
    ``crc32c(sequence_seed(...), block)`` directly.
    """
    if not form.csum_version:
        return 0
    checksum = crc32c(sequence_seed(form, sequence), block)
    return checksum if form.csum_version == 3 else checksum & 0xFFFF


def sequence_seed(form: Format, sequence: int) -> int:
    """Return the seed of the checksums of all blocks of one transaction."""
    return crc32c(form.seed, _BE32.pack(sequence & _M))


def _seal_tail(form: Format, block: bytearray | memoryview) -> None:
    """Store the checksum of a descriptor or revoke block in its tail, which must hold zeros."""
    if form.csum_version:
        _BE32.pack_into(block, form.block_size - TAIL_SIZE, crc32c(form.seed, block))


def tail_is_valid(form: Format, block: Buffer) -> bool:
    """Whether the tail checksum of a descriptor or revoke block is right; always true without checksums."""
    if not form.csum_version:
        return True
    end = form.block_size - TAIL_SIZE
    checksum: int = _BE32.unpack_from(block, end)[0]
    return crc32c(crc32c(form.seed, memoryview(block)[:end]), _ZERO4) == checksum


def escapes(block: Buffer) -> bool:
    """Whether a block begins with the magic, so that it must be escaped in the log."""
    return block[:4] == MAGIC_BYTES


# Revoke blocks


def fill_revoke(form: Format, block: bytearray | memoryview, sequence: int, blocks: Sequence[int]) -> None:
    """Make ``block`` a revoke block for 1 to ``form.revokes_per_block`` numbers; all its bytes are overwritten."""
    if not 0 < len(blocks) <= form.revokes_per_block:
        raise ValueError(f"{len(blocks)} revoked blocks, the limit is {form.revokes_per_block}")
    width, code = (8, "Q") if form.is_64bit else (4, "I")
    used = REVOKE_HEADER_SIZE + width * len(blocks)
    _REVOKE_HEADER.pack_into(block, 0, MAGIC, REVOKE_BLOCK, sequence & _M, used)
    struct.pack_into(f">{len(blocks)}{code}{form.block_size - used}x", block, REVOKE_HEADER_SIZE, *blocks)
    _seal_tail(form, block)


def unpack_revoke(buf: Buffer, form: Format) -> list[int]:
    """Return the block numbers of a revoke block.

    Raises:
        Corrupt: ``r_count`` exceeds the block.
    """
    used = _REVOKE_HEADER.unpack_from(buf)[3]
    if used > form.block_size - form.tail_size:
        raise Corrupt(CorruptKind.JOURNAL_REVOKE_BLOCK, f"{used} bytes used of {form.block_size}")
    width, code = (8, "Q") if form.is_64bit else (4, "I")
    count = max(used - REVOKE_HEADER_SIZE, 0) // width
    return list(struct.unpack_from(f">{count}{code}", buf, REVOKE_HEADER_SIZE))


# Commit records


class Commit(NamedTuple):
    """A commit record (``struct commit_header``)."""

    h_sequence: int
    h_chksum_type: int
    h_chksum_size: int
    h_chksum: int  # h_chksum[0]
    h_commit_sec: int
    h_commit_nsec: int

    def checksum_matches(self, running: int) -> bool:
        """Whether a COMPAT_CHECKSUM record has the checksum ``running``, or has none, which jbd2 accepts too."""
        if (self.h_chksum_type, self.h_chksum_size) == (CRC32_CHKSUM, CRC32_CHKSUM_SIZE):
            return self.h_chksum == running
        return not (self.h_chksum_type or self.h_chksum_size or self.h_chksum)


def fill_commit(
    form: Format,
    block: bytearray | memoryview,
    sequence: int,
    seconds: int,
    nanoseconds: int,
    transaction_checksum: int | None = None,
) -> None:
    """Make ``block`` a commit block, with its checksum; all its bytes are overwritten.

    Args:
        form: the journal's layout.
        block: ``form.block_size`` writable bytes.
        sequence: the transaction's id.
        seconds: the time of the commit, in seconds since 1970.
        nanoseconds: the rest of that time.
        transaction_checksum: the ``crc32_be`` over the transaction, for COMPAT_CHECKSUM journals.
    """
    kind, size, checksum = 0, 0, 0
    if transaction_checksum is not None:
        kind, size, checksum = CRC32_CHKSUM, CRC32_CHKSUM_SIZE, transaction_checksum
    layout = _commit_layout(form.block_size)
    layout.pack_into(block, 0, MAGIC, COMMIT_BLOCK, sequence & _M, kind, size, checksum, seconds, nanoseconds)
    if form.csum_version:
        _BE32.pack_into(block, _CHKSUM_OFFSET, crc32c(form.seed, block))


@lru_cache
def _commit_layout(block_size: int) -> struct.Struct:
    """Return the layout of a commit record and the zeros that follow it."""
    return struct.Struct(f"{_COMMIT.format}{block_size - _COMMIT.size}x")


def unpack_commit(buf: Buffer) -> Commit:
    """Read the fields of a commit block; ``commit_is_valid`` verifies its checksum."""
    return Commit._make(_COMMIT.unpack_from(buf)[2:])


def commit_is_valid(form: Format, block: Buffer) -> bool:
    """Whether a commit block's own checksum is right; always true without csum v2 or v3."""
    if not form.csum_version:
        return True
    view = memoryview(block)
    checksum = crc32c(crc32c(form.seed, view[:_CHKSUM_OFFSET]), _ZERO4)
    stored: int = _BE32.unpack_from(block, _CHKSUM_OFFSET)[0]
    return crc32c(checksum, view[_CHKSUM_OFFSET + 4 : form.block_size]) == stored


def crc32_be(seed: int, data: Buffer) -> int:
    """Return the kernel's big-endian CRC-32, for COMPAT_CHECKSUM commits; it is zlib's CRC-32 of bit-reversed bytes."""
    start = _reverse32(seed) ^ _M
    return _reverse32(zlib.crc32(bytes(data).translate(_REVERSED_BITS), start) ^ _M)


def _reverse32(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, "little").translate(_REVERSED_BITS), "big")
