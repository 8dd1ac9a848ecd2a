"""The right edge of a deep extent tree, where blocks past EOF may lie (fallocate with KEEP_SIZE).

The format has no rule for them, but e2fsck 1.47 has: for the last entry of each index node it takes the end of the
file for the end of what lies below, and then calls index entries further right an error ("end of extent exceeds
allowed value", ``scan_extent_node`` in e2fsck/pass1.c) - whoever made them, the kernel's ext4 included. Only unwritten
extents are excused, not the index entries above them. The root itself is not measured, and neither is what begins
past EOF. So a tree with two levels of index nodes is fine exactly if, below the last entry of its
root,

- everything begins past EOF, or
- no index entry begins past EOF.

`normalize` brings any other tree into this shape: it gives the last leaf an entry of the root of its own, with nothing
else below. The shape stays valid when the file grows into it, and costs one block for each level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, CorruptKind
from daxfs.ext4 import extent as format_
from daxfs.structures import extent_edit
from daxfs.structures.extent_path import Node
from daxfs.structures.extent_tree import MAX_BLOCKS, ROOT_WORDS, descend

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle
    from daxfs.structures.inodes import Inode

MAX_STEPS = 32
"""The most steps of `normalize`. Each brings the last leaf one level nearer to the root, or makes room for that; each
level takes a few steps."""


def normalize(tx: Handle, inode: Inode) -> None:
    """Bring the tree into the shape that the module describes; up to six credits for each level of index nodes.

    Raises:
        FsError: ENOSPC.
    """
    if inode.words[ROOT_WORDS][1] >> 16 < 2:
        return
    end = inode.size + tx.block_size - 1 >> tx.geometry.block_bits
    for _ in range(MAX_STEPS):
        path, _ = descend(tx, inode, MAX_BLOCKS - 1)
        if _key(path[0]) > end or all(_key(step) <= end for step in path[1:-1]):
            return
        _separate(tx, inode, path)
    raise Corrupt(CorruptKind.EXTENT_TREE, f"inode {inode.number}: its last leaf can't be moved up to the root")


def _key(step: Node) -> int:
    """Return the first logical block below the entry that the path goes through."""
    key: int = step.words[3 + 3 * step.at]
    return key


def _separate(tx: Handle, inode: Inode, path: list[Node]) -> None:
    """Make one step: find the lowest index node on the right edge with several entries, and keep only its last entry.

    The others move to the left neighbour if it has room; else a node is split or a level is added.
    """
    level = max(at for at in range(1, len(path) - 1) if path[at].words[0] >> 16 > 1)
    while level:
        if _hand_left(tx, inode, path, level):
            return
        if not extent_edit.full(path[level - 1].words):
            extent_edit.split(tx, inode, path, level)
            return
        level -= 1
    extent_edit.add_level(tx, inode)


def _hand_left(tx: Handle, inode: Inode, path: list[Node], level: int) -> bool:
    """Give all entries but the last of the node at ``level`` to its left neighbour, if there is one with room."""
    if not any(step.at for step in path[:level]):
        return False
    number, w, _ = path[level]
    left, _ = descend(tx, inode, w[3] - 1)
    neighbour, near, _ = left[level]
    have, more = near[0] >> 16, (w[0] >> 16) - 1
    if have + more > near[1] & 0xFFFF:
        return False
    target = extent_edit.writable(tx, inode, neighbour)
    target[3 + 3 * have : 3 + 3 * (have + more)] = w[3 : 3 + 3 * more]
    format_.set_entries(target, have + more)
    source = extent_edit.writable(tx, inode, number)
    format_.close_gap(source, 0, more)
    extent_edit.set_key(tx, inode, path, level, source[3])
    return True
