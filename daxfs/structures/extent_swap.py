"""Put other blocks in the place of a range of a file, whatever is mapped there: one change of one leaf as a rule.

`reallocate` allocates them itself, for new content; `replace` takes blocks that its caller has allocated, for content
that moves. Source: ``fs/ext4/extents.c`` (``ext4_swap_extents``), which swaps the extents of two files; here the new
blocks belong to no file before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.ext4 import extent as format_
from daxfs.ext4.extent import EXT_INIT_MAX_LEN, Extent
from daxfs.structures import blocks, extent_edit, extent_removal, extents, inodes
from daxfs.structures.extent_path import Node
from daxfs.structures.extent_tree import descend

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle
    from daxfs.structures.blocks import GroupBound
    from daxfs.structures.inodes import Inode

RUNS_PER_SEARCH = 64


def reallocate(tx: Handle, inode: Inode, first: int, last: int, groups: GroupBound, *, align: int = 1) -> list[Extent]:
    """Put new written blocks in the place of ``first`` to ``last``, and free what is mapped there.

    The search for them begins after the block before ``first``. Arguments and errors: `mapping.reallocate`.
    """
    path, _ = descend(tx, inode, last)
    _, w, at = path[-1]
    cut = extent_removal.entries_within(w, at, first, None) if _reaches(path, first) else []
    begin = at + 1 - len(cut)
    before = begin if cut and cut[-1].lblk < first else begin - 1
    left = format_.leaf(w, before) if before >= 0 else None
    goal = extents.near_block(tx, w, left, first) or tx.geometry.first_block(tx.geometry.group_of_inode(inode.number))
    new = _allocate(tx, inode, goal, first, last, groups, align)
    _put(tx, inode, path, first, last, new, False)
    return new


def replace(tx: Handle, inode: Inode, first: int, last: int, new: list[Extent], *, metadata: bool = False) -> None:
    """Put ``new`` in the place of ``first`` to ``last``, and free what is mapped there; see `mapping.replace`."""
    path, _ = descend(tx, inode, last)
    _put(tx, inode, path, first, last, new, metadata)


def _put(tx: Handle, inode: Inode, path: list[Node], first: int, last: int, new: list[Extent], metadata: bool) -> None:
    """Put ``new`` in the place of ``first`` to ``last``; ``path`` leads to the entry of ``last``."""
    _, w, at = path[-1]
    if _reaches(path, first):
        cut = extent_removal.entries_within(w, at, first, None)
        kept = extent_removal.remains(cut, first, last) if cut else []
        entries = [*(part for part in kept if part.lblk < first), *new, *(part for part in kept if part.lblk > last)]
        begin, end, entries = extent_edit.coalesce(w, at + 1 - len(cut), at + 1, entries)
        if extent_edit.fits(w, begin, end, entries):
            if cut:
                extent_removal.free_parts(tx, inode, cut, first, last, metadata)
            extent_edit.splice(tx, inode, path, begin, end, entries)
            if len(entries) < end - begin:
                extent_edit.shrink(tx, inode, first)
            return
    extent_removal.remove(tx, inode, first, last, metadata=metadata)
    for extent in new:
        extents.insert(tx, inode, extent)


def _reaches(path: list[Node], first: int) -> bool:
    """Return whether the path's leaf is the one for ``first`` too, which is not after the block that it leads to."""
    _, w, at = path[-1]
    return (at >= 0 and w[3] <= first) or all(step.at == 0 for step in path[:-1])


def _allocate(
    tx: Handle, inode: Inode, goal: int, first: int, last: int, groups: GroupBound, align: int
) -> list[Extent]:
    """Allocate blocks for ``first`` to ``last``, counted in ``i_blocks``, as few extents as one search finds."""
    found: list[Extent] = []
    while first <= last:
        want = min(last + 1 - first, EXT_INIT_MAX_LEN)
        for start, count in blocks.allocate_runs(tx, goal, want, RUNS_PER_SEARCH, align=align):
            found.append(Extent(first, start, count, False))
            first, goal = first + count, start + count
        groups.add(tx, found[-1].pblk)
        align = 1
    inodes.add_blocks(inode, sum(extent.length for extent in found), tx.geometry)
    return found
