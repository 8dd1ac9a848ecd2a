"""Layer 3: the records of ext4's fast commits (little-endian).

A fast commit is a sequence of records in the last blocks of the journal: what was done to names and files, instead of
the blocks that it changed. A record is a tag, a length and a value. This module converts values to named tuples, and
says which lengths are valid. `daxfs.journal.fast_scan` finds the records, `daxfs.fs.fast_replay` does what they say.

Source: fs/ext4/fast_commit.h, ``ext4_fc_value_len_isvalid`` in fs/ext4/fast_commit.c.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from daxfs.errors import Corrupt, CorruptKind
from daxfs.ext4.checksum import Buffer
from daxfs.ext4.extent import EXT_INIT_MAX_LEN, Extent
from daxfs.ext4.inode import GOOD_OLD_SIZE
from daxfs.ext4.limits import EXT4_NAME_LEN


class Tag(IntEnum):
    """``fc_tag``."""

    ADD_RANGE = 1
    DEL_RANGE = 2
    CREAT = 3
    LINK = 4
    UNLINK = 5
    INODE = 6
    PAD = 7
    TAIL = 8
    HEAD = 9


HEADER = struct.Struct("<HH")  # struct ext4_fc_tl: fc_tag, fc_len
HEAD = struct.Struct("<II")  # struct ext4_fc_head: fc_features, fc_tid
TAIL = struct.Struct("<II")  # struct ext4_fc_tail: fc_tid, fc_crc
ADD_RANGE = struct.Struct("<IIHHI")  # struct ext4_fc_add_range: fc_ino, and an entry of an extent tree's leaf
DEL_RANGE = struct.Struct("<III")  # struct ext4_fc_del_range: fc_ino, fc_lblk, fc_len
NAME = struct.Struct("<II")  # struct ext4_fc_dentry_info: fc_parent_ino, fc_ino; the name follows
INODE = struct.Struct("<I")  # struct ext4_fc_inode: fc_ino; the beginning of the inode's slot follows

SUPPORTED_FEATURES = 0


class AddRange(NamedTuple):
    """The file ``ino`` has this extent, whatever it had there before."""

    ino: int
    extent: Extent


class DelRange(NamedTuple):
    """The file ``ino`` has no blocks from ``lblk`` to ``last``."""

    ino: int
    lblk: int
    last: int


class NameChange(NamedTuple):
    """The directory ``parent`` has got (CREAT, LINK) or lost (UNLINK) a name of inode ``ino``."""

    tag: Tag
    parent: int
    ino: int
    name: bytes


class InodeImage(NamedTuple):
    """What the slot of inode ``ino`` begins with; its map is not up to date."""

    ino: int
    raw: bytes


Change = AddRange | DelRange | NameChange | InodeImage


def length_is_valid(tag: int, length: int, inode_size: int) -> bool:
    """Whether a value of ``length`` bytes may follow the tag."""
    if tag in (Tag.CREAT, Tag.LINK, Tag.UNLINK):
        return 0 < length - NAME.size <= EXT4_NAME_LEN
    if tag == Tag.INODE:
        return GOOD_OLD_SIZE <= length - INODE.size <= inode_size
    if tag == Tag.TAIL:
        return length >= TAIL.size
    sizes = {Tag.ADD_RANGE: ADD_RANGE.size, Tag.DEL_RANGE: DEL_RANGE.size, Tag.HEAD: HEAD.size, Tag.PAD: length}
    return sizes.get(Tag(tag)) == length if tag in sizes else False


def decode(tag: int, value: Buffer) -> Change | None:
    """Return the change that a record describes; None: it only frames others (HEAD, PAD, TAIL).

    Raises:
        Corrupt: a range has no blocks.
    """
    if tag in (Tag.CREAT, Tag.LINK, Tag.UNLINK):
        parent, ino = NAME.unpack_from(value)
        return NameChange(Tag(tag), parent, ino, bytes(value[NAME.size :]))
    if tag == Tag.INODE:
        return InodeImage(INODE.unpack_from(value)[0], bytes(value[INODE.size :]))
    if tag == Tag.ADD_RANGE:
        ino, lblk, length, high, low = ADD_RANGE.unpack(value)
        unwritten = length > EXT_INIT_MAX_LEN
        length -= EXT_INIT_MAX_LEN * unwritten
        if not length:
            raise Corrupt(CorruptKind.FAST_COMMIT, f"an extent without blocks, inode {ino}")
        return AddRange(ino, Extent(lblk, high << 32 | low, length, unwritten))
    if tag == Tag.DEL_RANGE:
        ino, lblk, length = DEL_RANGE.unpack(value)
        if not length:
            raise Corrupt(CorruptKind.FAST_COMMIT, f"a range without blocks, inode {ino}")
        return DelRange(ino, lblk, lblk + length - 1)
    return None
