"""Shift extents to other logical blocks, for inserting and collapsing ranges of a file.

The physical blocks stay where they are. Only the logical block numbers in the tree change: those of extents, and the
keys of index entries, since a key is the first block below the entry. The caller makes sure that shifted extents don't
meet others. It shifts a whole tree in one handle if a transaction can hold the nodes (`nodes_from`). Otherwise it
shifts some leaves at a time (`leaves_after`, `leaves_before`), beginning at the end that moves into free room.

Sources: ``fs/ext4/extents.c`` (``ext4_ext_shift_extents``).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

import numpy as np

from daxfs.ext4 import extent as format_
from daxfs.ext4.extent import Extent
from daxfs.structures import extent_edit
from daxfs.structures.extent_tree import MAX_BLOCKS, add_validated_root, descend, node, root

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode


def shift(tx: Handle, inode: Inode, first: int, last: int, by: int) -> None:
    """Add ``by`` to the logical blocks of all extents that begin in ``first`` to ``last``; one credit for each node."""
    _shift(tx, inode, 0, root(tx, inode), first, last, by)


def _shift(tx: Handle, inode: Inode, number: int, w: memoryview, first: int, last: int, by: int) -> None:
    """Shift the extents of the node ``number`` and of the nodes below it.

    Lower nodes come first, because they are checked against the keys that the nodes above still have.
    """
    keys = w[3 : 3 + 3 * (w[0] >> 16) : 3]
    begin, end = bisect_left(keys, first), bisect_right(keys, last)
    levels = w[1] >> 16
    if levels:
        for at in range(max(begin - 1, 0), end):
            lblk, below = format_.index(w, at)
            _shift(tx, inode, below, node(tx, inode, below, levels - 1, lblk), first, last, by)
    if begin < end:
        w = extent_edit.writable(tx, inode, number)
        words = np.frombuffer(w, "<u4")
        words[3 + 3 * begin : 3 + 3 * end : 3] += np.uint32(by & 0xFFFFFFFF)
        if not number:
            add_validated_root(tx, inode, w)


def nodes_from(view: View, inode: Inode, first: int) -> int:
    """Return how many nodes, the root included, a shift of everything from ``first`` on may change."""
    return _nodes_from(view, inode, root(view, inode), first)


def _nodes_from(view: View, inode: Inode, w: memoryview, first: int) -> int:
    used, levels = w[0] >> 16, w[1] >> 16
    if not levels:
        return 1
    begin = max(bisect_right(w[3 : 3 + 3 * used : 3], first) - 1, 0)
    if levels == 1:
        return 1 + used - begin
    below = [format_.index(w, at) for at in range(begin, used)]
    return 1 + sum(
        _nodes_from(view, inode, node(view, inode, number, levels - 1, lblk), first) for lblk, number in below
    )


def leaves_after(view: View, inode: Inode, first: int, count: int) -> int:
    """Return the end of ``count`` leaves, the first of which is that of ``first``; ``MAX_BLOCKS`` at the last leaf."""
    for _ in range(count):
        if first < MAX_BLOCKS:
            _, first = descend(view, inode, first)
    return first


def leaves_before(view: View, inode: Inode, last: int, count: int) -> int:
    """Return the beginning of ``count`` leaves, the last of which is that of ``last``; 0 at the first leaf."""
    for _ in range(count):
        path, _ = descend(view, inode, last)
        if len(path) == 1:
            return 0
        _, above, at = path[-2]
        first: int = above[3 + 3 * at]
        if not 0 < first <= last:
            return 0
        last = first - 1
    return last + 1


def split_at(tx: Handle, inode: Inode, lblk: int) -> None:
    """Split the extent that contains ``lblk`` and begins before it, so that an extent begins at ``lblk``.

    Raises:
        FsError: ENOSPC: the tree has no room and can get none.
    """
    for _ in range(extent_edit.MAX_ATTEMPTS):
        path, _ = descend(tx, inode, lblk)
        _, w, at = path[-1]
        if at < 0:
            return
        begin, pblk, length, unwritten = format_.leaf(w, at)
        left = lblk - begin
        if not 0 < left < length:
            return
        pieces = [Extent(begin, pblk, left, unwritten), Extent(lblk, pblk + left, length - left, unwritten)]
        if extent_edit.fits(w, at, at + 1, pieces):
            extent_edit.splice(tx, inode, path, at, at + 1, pieces)
            return
        extent_edit.make_room(tx, inode, path)
    raise extent_edit.no_room_made(inode, lblk)


def join_at(tx: Handle, inode: Inode, lblk: int) -> None:
    """Join the extent that begins at ``lblk`` with its left neighbour, if both are in one leaf and can be joined."""
    path, _ = descend(tx, inode, lblk)
    _, w, at = path[-1]
    if at < 1 or format_.leaf(w, at).lblk != lblk:
        return
    begin, end, new = extent_edit.coalesce(w, at, at + 1, [format_.leaf(w, at)])
    if begin < at:
        extent_edit.splice(tx, inode, path, begin, end, new)
    extent_edit.shrink(tx, inode, lblk)
