"""Extent-mapped files: find, list, allocate and insert extents.

With `extent_mark` (written or unwritten) and `extent_removal`, this is the public interface of the extent tree;
`mapping` calls it for inodes with ``EXT4_EXTENTS_FL``. ``ext4.extent`` has the layout of nodes, `extent_tree` finds
nodes, and `extent_edit` splits, joins and frees them. Functions that take a ``tx`` change the tree; their ``inode``
must come from ``inodes.edit`` of the same handle. All lengths and positions are in blocks. Every extent is checked to
lie in the pool and outside the groups' metadata; otherwise ``Corrupt`` is raised.

Source: ``fs/ext4/extents.c`` (``ext4_ext_map_blocks``).
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.ext4 import extent as format_
from daxfs.ext4.extent import EXT_INIT_MAX_LEN, EXT_UNWRITTEN_MAX_LEN, Extent
from daxfs.ext4.inode import EXT4_EXTENTS_FL
from daxfs.structures import blocks, extent_edit, inodes
from daxfs.structures.extent_path import Node
from daxfs.structures.extent_tree import (
    MAX_BLOCKS,
    ROOT_WORDS,
    add_validated_root,
    check_bounds,
    descend,
    node,
    out_of_order,
    root,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Columns = NDArray[np.int64]

    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode

HUGE_PAGE = 2 << 20


# Reading


def lookup(view: View, inode: Inode, lblk: int) -> Extent:
    """Return the extent or hole (``pblk`` 0) that contains ``lblk``, trimmed to begin at ``lblk``."""
    w = root(view, inode)
    levels = w[1] >> 16
    bound = MAX_BLOCKS
    while levels:
        used = w[0] >> 16
        at = bisect_right(w[3 : 3 + 3 * used : 3], lblk) - 1
        at = max(at, 0)
        base = 3 + 3 * at
        if at + 1 < used:
            bound = w[base + 3]
        levels -= 1
        w = node(view, inode, w[base + 1] | (w[base + 2] & 0xFFFF) << 32, levels, w[base])
    used = w[0] >> 16
    at = bisect_right(w[3 : 3 + 3 * used : 3], lblk) - 1
    if at >= 0:
        base = 3 + 3 * at
        middle = w[base + 1]
        length = middle & 0xFFFF
        unwritten = length > EXT_INIT_MAX_LEN
        if unwritten:
            length -= EXT_INIT_MAX_LEN
        skipped = lblk - w[base]
        if skipped < length:
            pblk = w[base + 2] | middle >> 16 << 32
            if not pblk or pblk + length > view.geometry.blocks_count:
                check_bounds(view, inode, format_.leaf(w, at))
            return Extent(lblk, pblk + skipped, length - skipped, unwritten)
    if at + 1 < used:
        bound = w[3 * at + 6]
    if bound <= lblk:
        raise out_of_order(inode, lblk, bound)
    return Extent(lblk, 0, bound - lblk, False)


def walk(view: View, inode: Inode, first: int = 0, last: int | None = None) -> Iterator[Extent]:
    """Yield the mapped extents of the blocks ``first`` to ``last`` (included; None: all), in order, trimmed to them.

    The tree must not change while the iterator is in use.

    Raises:
        Corrupt: the tree is damaged, or the leaves are out of order.
    """
    end = MAX_BLOCKS if last is None else last + 1
    position = first
    while position < end:
        path, bound = descend(view, inode, position)
        w, at = path[-1].words, path[-1].at
        for extent in _decoded(view, inode, w, max(at, 0)):
            lblk, pblk, length, unwritten = extent
            stop = lblk + length
            if stop <= position:
                continue
            if lblk >= end:
                return
            if stop > bound:
                raise Corrupt(
                    CorruptKind.EXTENT_ENTRIES, f"inode {inode.number}: {length} blocks at {lblk} reach past {bound}"
                )
            if lblk < position or stop > end:
                begin, stop = max(lblk, position), min(stop, end)
                yield Extent(begin, pblk + begin - lblk, stop - begin, unwritten)
            else:
                yield extent
            position = stop
        position = bound


def _decoded(view: View, inode: Inode, w: memoryview, at: int) -> Iterator[Extent]:
    """Yield the leaf's entries from ``at`` on, checked, and decode the more of them at once, the more are taken."""
    limit = view.geometry.blocks_count
    used = w[0] >> 16
    count = 1
    while at < used:
        for extent in format_.leaves(w, at, min(at + count, used)):
            _, pblk, length, _ = extent
            if not pblk or not length or pblk + length > limit:
                check_bounds(view, inode, extent)
            yield extent
        at += count
        count *= 4


def search(view: View, inode: Inode, lblk: int, *, written: bool, leaves: int) -> tuple[int, bool]:
    """Search the first block from ``lblk`` on that is written, or one that is not; see `mapping.search`."""
    for _ in range(leaves):
        if lblk >= MAX_BLOCKS:
            break
        path, bound = descend(view, inode, lblk)
        begins, _, lengths, unwritten = format_.columns(path[-1].words, max(path[-1].at, 0))
        states, ends = ~unwritten, begins + lengths
        if written:
            found = np.flatnonzero(states & (ends > lblk))
            if found.size:
                return max(int(begins[found[0]]), lblk), True
        elif not (begins.size and states[0] and begins[0] <= lblk < ends[0]):
            return lblk, True
        else:
            found = np.flatnonzero(~states[1:] | (begins[1:] != ends[:-1]))
            reached = int(ends[found[0] if found.size else -1])
            if reached < bound:
                return reached, True
        lblk = bound
    return lblk, False


def columns(view: View, inode: Inode) -> Columns:
    """Return all mapped extents in order, as four rows: logical block, physical block, length, whether unwritten.

    If there are many, this takes a fifth of the time of `walk`.
    """
    leaves: list[Columns] = []
    position = 0
    while position < MAX_BLOCKS:
        path, bound = descend(view, inode, position)
        leaf = format_.columns(path[-1].words)
        begins, pblks, lengths, _ = leaf
        if begins.size:
            if (pblks == 0).any() or (pblks + lengths > view.geometry.blocks_count).any():
                for extent in format_.leaves(path[-1].words):
                    check_bounds(view, inode, extent)
            if begins[0] < position or begins[-1] + lengths[-1] > bound:
                raise Corrupt(
                    CorruptKind.EXTENT_ENTRIES, f"inode {inode.number}: a leaf from {begins[0]} on reaches past {bound}"
                )
        leaves.append(np.stack(leaf))
        position = bound
    return np.concatenate(leaves, axis=1)


def runs(view: View, inode: Inode, first: int = 0, last: int | None = None, limit: int = 1024) -> list[Extent]:
    """Return at most ``limit`` extents of `walk` as a list."""
    return list(islice(walk(view, inode, first, last), limit))


def has_more_than(view: View, inode: Inode, count: int) -> bool:
    """Return whether the tree has more than ``count`` extents; only the headers of leaves are read."""
    return _count(view, inode, root(view, inode), count) > count


def _count(view: View, inode: Inode, w: memoryview, enough: int) -> int:
    """Return the number of extents in and below a node, or a number greater than ``enough``."""
    used: int = w[0] >> 16
    levels = w[1] >> 16
    if not levels:
        return used
    found = 0
    for lblk, number in format_.indexes(w):
        found += _count(view, inode, node(view, inode, number, levels - 1, lblk), enough - found)
        if found > enough:
            break
    return found


def next_mapped(view: View, inode: Inode, lblk: int) -> Extent | None:
    """Return the first mapped extent at or after ``lblk``, trimmed to begin there or later; None if there is none."""
    return next(walk(view, inode, lblk), None)


def mapped_until(view: View, inode: Inode, lblk: int) -> int:
    """Return the first block after ``lblk``, which is mapped, that is not mapped or has its entry in another leaf."""
    path, _ = descend(view, inode, lblk)
    _, w, at = path[-1]
    lblk, _, length, _ = format_.leaf(w, at)
    end, used = lblk + length, w[0] >> 16
    at += 1
    while at < used and w[3 * at + 3] == end:
        length = w[3 * at + 4] & 0xFFFF
        end += length - EXT_INIT_MAX_LEN if length > EXT_INIT_MAX_LEN else length
        at += 1
    return end


def nodes_within(view: View, inode: Inode, ranges: Sequence[tuple[int, int]]) -> int:
    """Return the number of leaves that the ranges (first block, last block), which are in order, belong to."""
    count = counted = 0
    for first, last in ranges:
        counted = max(counted, first)
        while counted <= last:
            _, counted = descend(view, inode, counted)
            count += 1
    return count


def mapped_end(view: View, inode: Inode) -> int:
    """Return the logical block after the last mapped one."""
    path, _ = descend(view, inode, MAX_BLOCKS - 1)
    _, w, at = path[-1]
    if at < 0:
        return 0
    last = format_.leaf(w, at)
    return last.lblk + last.length


# Changing


def new_inode_map(tx: Handle, inode: Inode) -> None:
    """Give a new inode, whose slot is zeros but for a few fields, an empty extent tree."""
    w = inode.words[ROOT_WORDS]
    format_.initialize(w, 0)
    inode.flags |= EXT4_EXTENTS_FL
    add_validated_root(tx, inode, w)


def insert(tx: Handle, inode: Inode, extent: Extent) -> None:
    """Map blocks that the caller owns into a hole; the extent is joined with neighbours in its leaf where possible.

    The function adds new tree blocks to ``i_blocks``; the caller adds the extent's own blocks.

    Raises:
        FsError: EEXIST when a block of the range is mapped, EFBIG past the last logical block, ENOSPC.
    """
    if not 0 < extent.length <= (EXT_UNWRITTEN_MAX_LEN if extent.unwritten else EXT_INIT_MAX_LEN):
        raise ValueError(f"an extent of {extent.length} blocks")
    if extent.lblk + extent.length > MAX_BLOCKS:
        raise FsError(
            errno.EFBIG, f"inode {inode.number}: block {extent.lblk} is past the last block that a file can have"
        )
    path, bound = descend(tx, inode, extent.lblk)
    _, w, at = path[-1]
    following = w[3 * at + 6] if at + 1 < w[0] >> 16 else bound
    if extent.lblk + extent.length > following:
        raise FsError(errno.EEXIST, f"inode {inode.number}: block {following} is mapped")
    if at >= 0:
        left = format_.leaf(w, at)
        if left.lblk + left.length > extent.lblk:
            raise FsError(errno.EEXIST, f"inode {inode.number}: block {extent.lblk} is mapped")
    _insert_at(tx, inode, path, extent)


def _insert_at(tx: Handle, inode: Inode, path: list[Node], extent: Extent) -> None:
    """Insert an extent, as `insert` does, into a hole that was examined; ``path`` leads to its leaf."""
    for _ in range(extent_edit.MAX_ATTEMPTS):
        _, w, at = path[-1]
        begin, end, new = extent_edit.coalesce(w, at + 1, at + 1, [extent])
        if extent_edit.fits(w, begin, end, new):
            extent_edit.splice(tx, inode, path, begin, end, new)
            return
        extent_edit.make_room(tx, inode, path)
        path, _ = descend(tx, inode, extent.lblk)
    raise extent_edit.no_room_made(inode, extent.lblk)


def allocate(
    tx: Handle, inode: Inode, lblk: int, want: int, *, unwritten: bool = False, goal: int = 0, align: int = 1
) -> Extent:
    """Allocate up to ``want`` blocks for the hole at ``lblk`` and map them as one extent, counted in ``i_blocks``.

    The search begins after the left neighbour, else before the right one, else at ``goal``, else in the inode's group.
    If ``lblk`` begins a huge page (2 MiB) of the file and all of the page is wanted, the extent begins on a 2 MiB
    boundary of the pool if possible.

    Returns:
        The extent that was mapped, at least one block.

    Raises:
        FsError: EEXIST when ``lblk`` is mapped, EFBIG, ENOSPC.
    """
    geometry = tx.geometry
    path, bound, left, want, near, align = _hole(tx, inode, lblk, want, unwritten, goal, align)
    start, count = blocks.allocate(tx, near, want, align=align)
    extent = Extent(lblk, start, count, unwritten)
    inodes.add_blocks(inode, count, geometry)
    _map_one(tx, inode, path, bound, left, extent)
    return extent


def allocate_runs(
    tx: Handle,
    inode: Inode,
    lblk: int,
    want: int,
    most: int,
    *,
    unwritten: bool = False,
    goal: int = 0,
    align: int = 1,
) -> list[Extent]:
    """Allocate as `allocate` does, but as at most ``most`` extents, which follow each other.

    Where the pool is fragmented, the extents are found together and inserted together, leaf by leaf.

    Raises:
        FsError: as `allocate`; ENOSPC only if nothing could be mapped.
    """
    geometry = tx.geometry
    path, bound, left, want, near, align = _hole(tx, inode, lblk, want, unwritten, goal, align)
    found = []
    for start, count in blocks.allocate_runs(tx, near, want, most, align=align):
        found.append(Extent(lblk, start, count, unwritten))
        lblk += count
    inodes.add_blocks(inode, lblk - found[0].lblk, geometry)
    if len(found) == 1:
        _map_one(tx, inode, path, bound, left, found[0])
        return found
    try:
        mapped = _insert_all(tx, inode, path, found)
    except FsError:
        _give_back(tx, inode, found)
        raise
    _give_back(tx, inode, found[mapped:])
    return found[:mapped]


def _map_one(tx: Handle, inode: Inode, path: list[Node], bound: int, left: Extent | None, extent: Extent) -> None:
    """Map one extent into the hole that `_hole` has examined; free its blocks if that fails."""
    number, w, at = path[-1]
    following = w[3 * at + 6] if at + 1 < w[0] >> 16 else bound
    lblk, start, count, unwritten = extent
    limit = EXT_UNWRITTEN_MAX_LEN if unwritten else EXT_INIT_MAX_LEN
    if (
        left is not None
        and start - left.pblk == lblk - left.lblk == left.length <= limit - count
        and left.unwritten == unwritten
        and lblk + count < following
    ):
        extent_edit.lengthen(tx, inode, number, at, count)
        return
    try:
        _insert_at(tx, inode, path, extent)
    except FsError:
        _give_back(tx, inode, [extent])
        raise


def _give_back(tx: Handle, inode: Inode, found: list[Extent]) -> None:
    """Free blocks that were allocated for the inode and could not be mapped."""
    for extent in found:
        blocks.free(tx, extent.pblk, extent.length)
        inodes.add_blocks(inode, -extent.length, tx.geometry)


def _insert_all(tx: Handle, inode: Inode, path: list[Node], extents: list[Extent]) -> int:
    """Insert extents that follow each other into the hole at the end of ``path``, and fill one leaf after the other.

    Returns:
        How many extents were inserted: at least one, all of them if the tree gets the blocks that it needs.

    Raises:
        FsError: ENOSPC, EFBIG: the first one does not fit.
    """
    done = attempts = 0
    while True:
        _, w, at = path[-1]
        room = (w[1] & 0xFFFF) - (w[0] >> 16)
        if room > 0:
            begin, end, new = extent_edit.coalesce(w, at + 1, at + 1, extents[done : done + room])
            extent_edit.splice(tx, inode, path, begin, end, new)
            done += room
            attempts = 0
            if done >= len(extents):
                return len(extents)
        elif attempts < extent_edit.MAX_ATTEMPTS:
            attempts += 1
            try:
                extent_edit.make_room(tx, inode, path)
            except FsError as error:
                if done and error.errno in (errno.ENOSPC, errno.EFBIG):
                    return done
                raise
        else:
            raise extent_edit.no_room_made(inode, extents[done].lblk)
        path, _ = descend(tx, inode, extents[done].lblk)


def _hole(
    tx: Handle, inode: Inode, lblk: int, want: int, unwritten: bool, goal: int, align: int
) -> tuple[list[Node], int, Extent | None, int, int, int]:
    """Examine the hole at ``lblk``, for which ``want`` blocks are to be allocated.

    Returns:
        The path to its leaf; the first block of the next leaf; the entry before the hole; how many blocks one extent
        can map; the goal of their search; their alignment.

    Raises:
        FsError: EEXIST when ``lblk`` is mapped, EFBIG.
    """
    if lblk >= MAX_BLOCKS:
        raise FsError(errno.EFBIG, f"inode {inode.number}: block {lblk} is past the last block that a file can have")
    geometry = tx.geometry
    path, bound = descend(tx, inode, lblk)
    _, w, at = path[-1]
    following = w[3 * at + 6] if at + 1 < w[0] >> 16 else bound
    left = format_.leaf(w, at) if at >= 0 else None
    if left is not None and lblk < left.lblk + left.length:
        raise FsError(errno.EEXIST, f"inode {inode.number}: block {lblk} is mapped")
    near = near_block(tx, w, left, lblk) or goal or geometry.first_block(geometry.group_of_inode(inode.number))
    want = min(want, following - lblk, EXT_UNWRITTEN_MAX_LEN if unwritten else EXT_INIT_MAX_LEN)
    huge = HUGE_PAGE >> geometry.block_bits
    if align == 1 and want >= huge and not lblk % huge:
        align = huge
    return path, bound, left, want, near, align


def near_block(tx: Handle, w: memoryview, left: Extent | None, lblk: int) -> int:
    """Return the physical block that suits ``lblk`` best by its neighbours in the leaf; 0 if there are none."""
    if left is not None:
        near = left.pblk + lblk - left.lblk
        return near if near < tx.geometry.blocks_count else left.pblk + left.length - 1
    if not w[0] >> 16:
        return 0
    right = format_.leaf(w, 0)
    return max(right.pblk - (right.lblk - lblk), 0)
