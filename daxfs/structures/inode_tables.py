"""The inode table of a group moves: with flex_bg it may lie anywhere (``ext4_check_descriptors`` in fs/ext4/super.c).

The caller has copied the table: inodes have no checksum of their place. One handle then has the descriptor name the
copy, and frees the old blocks. Callers: the fs layer, for tables that lie on storage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.ext4.group import EXT4_BG_BLOCK_UNINIT
from daxfs.structures import blocks, groupmaps, groups, inodes, metadata_zone

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View
    from daxfs.runs import BlockRun

CREDITS = 6
"""Blocks that `move` may change: descriptors and bitmaps of two groups, and the superblock."""


def place_of(view: View, group: int) -> int:
    """Return the first block of a group's inode table. Raises Corrupt: its descriptor is damaged."""
    return groups.descriptor(view, group).inode_table


def move(tx: Handle, group: int, target: BlockRun) -> bool:
    """Take the blocks of ``target``, where the copy of a group's table is, and free those that the table has now.

    Returns:
        False: a block of ``target`` is in use; nothing has changed.

    Raises:
        FsError: ENOSPC, Corrupt: as `blocks.take_run` and `blocks.free`.
    """
    if not blocks.take_run(tx, target):
        return False
    geometry, desc = tx.geometry, groups.edit_descriptor(tx, group)
    if groups.blocks_uninit(geometry, desc):  # the bitmap follows from where the table is
        content = bytes(groupmaps.stored(tx, group, desc))
        desc.bg_flags &= ~EXT4_BG_BLOCK_UNINIT
        tx.create(desc.block_bitmap, groupmaps.seal, geometry, desc)[:] = content
        groupmaps.first_written(tx, group)
    before, desc.inode_table = desc.inode_table, target.start
    tx.on_rollback(lambda: _forget(tx))
    _forget(tx)
    blocks.free(tx, before, target.length)
    return True


def _forget(view: View) -> None:
    """Forget where inode tables lie."""
    inodes.forget(view)
    metadata_zone.forget(view)
    groupmaps.forget(view)
