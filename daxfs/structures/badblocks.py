"""The bad-blocks inode (number 1): ext4's own list of blocks that nobody may use.

Its blocks are in use by the bitmaps and mapped as the blocks of a file without names, so mke2fs, e2fsck and the kernel
keep away from them. daxfs adds blocks to the list and takes none out. The inode is block-mapped whatever the pool's
features, and has neither mode nor links. Sources: ``ext2fs_update_bb_inode`` in lib/ext2fs/bb_inode.c, ``EXT2_BAD_INO``
in e2fsck/pass1.c.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from daxfs.ext4.inode import seal_slot
from daxfs.structures import blocks, indirect, inodes
from daxfs.structures.inodes import Inode
from daxfs.structures.mapping import Extent

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View

EXT4_BAD_INO = 1
MAX_BLOCK = 0xFFFFFFFF
"""The pointers of a block-mapped inode have 32 bits."""
CREDITS = 12
"""Blocks that adding one block may change: bitmap, descriptors, superblock, the inode, and index blocks."""


def listed(view: View) -> list[Extent]:
    """Return the runs of the bad-blocks inode, by position in its map."""
    number, offset = inodes.position(view, EXT4_BAD_INO)
    inode = Inode(view.block(number), offset, view.geometry)
    inode.number = EXT4_BAD_INO
    return list(indirect.runs(view, inode, 0, None, MAX_BLOCK))


def add(tx: Handle, number: int) -> bool:
    """Put a free block on the list, in use from now on; False: the block is not free, or its number is too large."""
    if number > MAX_BLOCK or not blocks.take(tx, number):
        return False
    geometry = tx.geometry
    block, offset = inodes.position(tx, EXT4_BAD_INO)
    inode = Inode(tx.edit(block), offset, geometry)
    inode.number = EXT4_BAD_INO
    if geometry.metadata_csum:
        tx.seal_record(block, EXT4_BAD_INO, seal_slot, geometry, EXT4_BAD_INO, offset)
    count = inode.size >> geometry.block_bits
    indirect.insert(tx, inode, Extent(count, number, 1, False))
    inodes.add_blocks(inode, 1, geometry)
    inode.size = count + 1 << geometry.block_bits
    now = int(time.time()) & 0xFFFFFFFF
    inode.i_mtime = inode.i_atime = now
    inode.i_ctime = inode.i_ctime or now
    return True
