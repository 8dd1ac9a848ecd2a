"""Linear directories: blocks of entries in no order.

Every directory begins so. With dir_index, the first block that is full makes an index of it (`htree.convert`, called by
`directories`); without, or when it has more blocks already, it goes on growing. Called by `directories` alone.

Source: ``fs/ext4/namei.c`` (``__ext4_find_entry``, ``ext4_add_entry``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.ext4 import dirent
from daxfs.structures import dirblocks

if TYPE_CHECKING:
    from daxfs.journal.transaction import Handle
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode


def locate(view: View, directory: Inode, name: bytes) -> tuple[int, int]:
    """The block and offset of the entry called ``name``; or the directory's only block (0: it has more), and -1."""
    number = 0
    blocks = dirblocks.count(view, directory)
    for lblk in range(blocks):
        number = dirblocks.number_of(view, directory, lblk)
        offset = dirblocks.find(view, directory, number, name)
        if offset >= 0:
            return number, offset
    return number if blocks == 1 else 0, -1


def place(tx: Handle, directory: Inode, name: bytes, ino: int, file_type: int) -> bool:
    """Put an entry where there is room; False when no block has any."""
    for lblk in range(dirblocks.count(tx, directory)):
        number = dirblocks.number_of(tx, directory, lblk)
        if dirblocks.place(tx, directory, number, name, ino, file_type):
            return True
    return False


def append(tx: Handle, directory: Inode, name: bytes, ino: int, file_type: int) -> None:
    """Put an entry into a new block at the end (ENOSPC, EFBIG)."""
    _, number, block = dirblocks.append(tx, directory)
    entry = dirent.pack_entry(ino, 0, name, file_type if tx.geometry.has_filetype else 0)
    dirblocks.fill(tx, number, block, [entry])
