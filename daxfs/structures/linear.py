"""Linear directories: blocks of entries in no order.

Every directory begins as a linear one. With dir_index, it becomes an indexed directory when its first block is full
(`htree.convert`, called by `directories`). Without dir_index, or if it has more blocks already, it gets further blocks.
Only `directories` calls this module.

Source: ``fs/ext4/namei.c`` (``__ext4_find_entry``, ``ext4_add_entry``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.ext4 import dirent
from daxfs.structures import dirblocks

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode


def locate(view: View, directory: Inode, name: bytes) -> tuple[int, int]:
    """Return the block and offset of the entry called ``name``.

    If there is no such entry: return the directory's only block (0 if it has several), and -1.
    """
    number = 0
    blocks = dirblocks.count(view, directory)
    for lblk in range(blocks):
        number = dirblocks.number_of(view, directory, lblk)
        offset = dirblocks.find(view, directory, number, name)
        if offset >= 0:
            return number, offset
    return number if blocks == 1 else 0, -1


def place(tx: Handle, directory: Inode, name: bytes, ino: int, file_type: int) -> bool:
    """Put an entry into the first block that has room; return False if no block has."""
    for lblk in range(dirblocks.count(tx, directory)):
        number = dirblocks.number_of(tx, directory, lblk)
        if dirblocks.place(tx, directory, number, name, ino, file_type):
            return True
    return False


def append(tx: Handle, directory: Inode, name: bytes, ino: int, file_type: int) -> None:
    """Put an entry into a new block at the directory's end. Raises FsError: ENOSPC, EFBIG."""
    _, number, block = dirblocks.append(tx, directory)
    entry = dirent.pack_entry(ino, 0, name, file_type if tx.geometry.has_filetype else 0)
    dirblocks.fill(tx, number, block, [entry])
