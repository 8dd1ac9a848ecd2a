"""The map of the journal's inode, of which the superblock has a copy: where the log is, and how it is told to move.

e2fsck takes the copy where the inode can't be read. A mount does so if only the inode's checksum is wrong, and the file
system is marked as one with errors: then a move of the log was cut off, and nothing else was damaged. Only a map that
fits into its inode has a copy that suffices. Callers: the mount, and the move of the log. Source:
``fix_sb_journal_backup`` in resize/resize2fs.c, ``e2fsck_get_journal`` in e2fsck/journal.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.ext4 import extent as format_
from daxfs.ext4.inode import EXT4_EXTENTS_FL
from daxfs.ext4.superblock import EXT4_ERROR_FS
from daxfs.runs import BlockRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daxfs.ext4.superblock import Superblock
    from daxfs.structures.inodes import Inode

EXT3_JNL_BACKUP_BLOCKS = 1
"""The copy is one of a map and a size."""
MOST_EXTENTS = 4
"""What an inode has room for."""
_MAP = 60
"""Bytes of ``i_block``."""


def fits(inode: Inode, pieces: int) -> bool:
    """Return whether the map of the journal's inode is one of so many extents, in the inode alone."""
    words = inode.block_area.cast("B").cast("I")
    return bool(inode.flags & EXT4_EXTENTS_FL) and not words[1] >> 16 and words[0] >> 16 == pieces


def move(inode: Inode, starts: Sequence[int]) -> None:
    """Have the extents of a map that `fits` begin at other blocks; lengths stay."""
    words = inode.block_area.cast("B").cast("I")
    for number, start in enumerate(starts):
        lblk, _, length, unwritten = format_.leaf(words, number)
        format_.put_leaf(words, number, lblk, start, length, unwritten)


def copy(sb: Superblock, inode: Inode) -> None:
    """Store the superblock's copy of the map."""
    size = (inode.size >> 32, inode.size & 0xFFFFFFFF)
    sb.s_jnl_blocks = bytes(inode.block_area) + b"".join(part.to_bytes(4, "little") for part in size)
    sb.s_jnl_backup_type = EXT3_JNL_BACKUP_BLOCKS


def restore(sb: Superblock, inode: Inode) -> None:
    """Give the inode the map of the superblock's copy."""
    inode.block_area[:] = sb.s_jnl_blocks[:_MAP]


def copied(sb: Superblock) -> list[BlockRun] | None:
    """Return the blocks of the journal by the superblock's copy, unchecked; None: there is none to be believed."""
    if sb.is_torn() or not sb.s_state & EXT4_ERROR_FS or sb.s_jnl_backup_type != EXT3_JNL_BACKUP_BLOCKS:
        return None
    words = memoryview(bytes(sb.s_jnl_blocks)[:_MAP]).cast("I")
    magic, count, depth = words[0] & 0xFFFF, words[0] >> 16, words[1] >> 16
    if magic != format_.EXT4_EXT_MAGIC or depth or not 0 < count <= MOST_EXTENTS:
        return None
    runs: list[BlockRun] = []
    end = 0
    for number in range(count):
        found = format_.leaf(words, number)
        if found.lblk != end or found.unwritten:
            return None
        end += found.length
        runs.append(BlockRun(found.pblk, found.length))
    return runs
