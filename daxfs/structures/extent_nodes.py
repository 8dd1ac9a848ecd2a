"""Move the nodes of an extent tree to other places; the extents stay what they are.

A node's checksum has the inode's number and generation for its seed, so that a copy of the node is right elsewhere.
Only the entry that leads to the node changes. `mapping` calls this module for inodes with ``EXT4_EXTENTS_FL``;
`indirect` has the same for block-mapped files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.ext4 import extent as format_
from daxfs.structures import blocks, extent_edit
from daxfs.structures.extent_tree import MAX_BLOCKS, add_validated_root, descend

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View
    from daxfs.runs import BlockRun
    from daxfs.structures.inodes import Inode


def within(view: View, inode: Inode, lblk: int, area: BlockRun, most: int) -> tuple[list[tuple[int, int]], int]:
    """Find the nodes that lie in ``area``, in ``most`` leaves and above them; see `mapping.own_blocks`."""
    low, high = area.start, area.start + area.length
    found: dict[int, int] = {}
    for _ in range(most):
        path, bound = descend(view, inode, lblk)
        for step in path[1:]:
            if low <= step.number < high:
                found.setdefault(step.number, lblk)
        lblk = bound
        if lblk >= MAX_BLOCKS:
            break
    return [(where, number) for number, where in found.items()], lblk


def move(tx: Handle, inode: Inode, lblk: int, number: int, target: int) -> bool:
    """Move the node ``number``, on the path to ``lblk``, to the block ``target``; see `mapping.move_own`."""
    path, _ = descend(tx, inode, lblk)
    for level in range(1, len(path)):
        if path[level].number == number:
            break
    else:
        return False
    w = tx.create(target, extent_edit.seal, tx.geometry, inode.number, inode.generation).cast("I")
    w[:] = path[level].words
    parent, _, at = path[level - 1]
    above = extent_edit.writable(tx, inode, parent)
    format_.put_index(above, at, above[3 * at + 3], target)
    if not parent:
        add_validated_root(tx, inode, above)
    blocks.free(tx, number, 1, metadata=True)
    return True
