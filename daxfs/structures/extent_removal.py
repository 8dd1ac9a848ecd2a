"""Unmap a range of an extent-mapped file and free its blocks, from the end to the front.

Source: ``fs/ext4/extents.c`` (``ext4_ext_remove_space``).
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from daxfs.ext4 import extent as format_
from daxfs.ext4.extent import Extent
from daxfs.runs import BlockRun
from daxfs.structures import blocks, extent_edit, inodes
from daxfs.structures.extent_tree import MAX_BLOCKS, check_bounds, descend

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle
    from daxfs.structures.inodes import Inode


def remove(
    tx: Handle, inode: Inode, first: int, last: int | None, *, metadata: bool = False, limit: int | None = None
) -> bool:
    """Unmap the blocks ``first`` to ``last`` (included; None: to the end) and free them, from the end to the front.

    Args:
        tx: the handle.
        inode: from ``inodes.edit``.
        first: the first logical block.
        last: the last logical block.
        metadata: the blocks hold metadata (a directory's): the journal revokes them.
        limit: stop after about this many freed runs of blocks, blocks of the tree included, or when
            `blocks.RESERVED_PER_CALL` credits are reserved; at least one is freed. None: no bound.

    Returns:
        True: nothing is left to unmap. False: call again in another handle; the tree is valid in between.
    """
    last = MAX_BLOCKS - 1 if last is None else last
    near = last
    work = attempts = 0
    done = last < first
    reserved = tx.reserved_credits + blocks.RESERVED_PER_CALL
    while not done and (limit is None or (work < limit and tx.reserved_credits < reserved)):
        path, _ = descend(tx, inode, last)
        number, w, at = path[-1]
        if number and not w[0] >> 16:  # other drivers may leave an empty leaf; daxfs frees one at once
            extent_edit.drop_node(tx, inode, path, len(path) - 1)
            work += 1
            continue
        cut = entries_within(w, at, first, None if limit is None else limit - work)
        if limit is not None and len(cut) > 1:
            cut = _few_groups(tx, cut, reserved - tx.reserved_credits)
        if not cut:
            done = True
            break
        begin = at + 1 - len(cut)
        new = remains(cut, first, last)
        if not extent_edit.fits(w, begin, at + 1, new):
            extent_edit.make_room(tx, inode, path)
            attempts += 1
            if attempts > extent_edit.MAX_ATTEMPTS:
                raise extent_edit.no_room_made(inode, last)
            continue
        free_parts(tx, inode, cut, first, last, metadata)
        near = cut[-1].lblk
        done = near <= first
        work += len(cut) + (not new and len(cut) == w[0] >> 16)
        extent_edit.splice(tx, inode, path, begin, at + 1, new)
    if work:
        extent_edit.shrink(tx, inode, near)
    return done


def entries_within(w: memoryview, at: int, first: int, limit: int | None) -> list[Extent]:
    """Return the leaf's entries from ``at`` down that have blocks from ``first`` on: up to ``limit``, at least one."""
    if at < 0:
        return []
    if w[3 * at + 3] <= first:
        only = format_.leaf(w, at)
        return [only] if only.lblk + only.length > first else []
    end = at + 1
    begin = max(bisect_right(w[3 : 3 + 3 * end : 3], first) - 1, 0)
    if limit is not None:
        begin = max(begin, end - max(limit, 1))
    found = format_.leaves(w, begin, end)
    found.reverse()
    if found and found[-1].lblk + found[-1].length <= first:
        found.pop()
    return found


def _few_groups(tx: Handle, cut: list[Extent], credits: int) -> list[Extent]:
    """Return the first of the extents, whose freeing reserves about ``credits``: two for each group."""
    geometry = tx.geometry
    numbers = {extent.pblk // geometry.blocks_per_group for extent in cut}
    if 2 * len(numbers) <= credits:
        return cut
    numbers.clear()
    for at, extent in enumerate(cut):
        numbers.add(extent.pblk // geometry.blocks_per_group)
        if 2 * len(numbers) >= credits:
            return cut[: at + 1]
    return cut


def remains(cut: list[Extent], first: int, last: int) -> list[Extent]:
    """Return what remains of extents (in descending order) without the blocks ``first`` to ``last``."""
    remains = []
    lblk, pblk, length, unwritten = cut[-1]
    if lblk < first:
        remains.append(Extent(lblk, pblk, first - lblk, unwritten))
    lblk, pblk, length, unwritten = cut[0]
    if lblk + length > last + 1:
        remains.append(Extent(last + 1, pblk + last + 1 - lblk, lblk + length - last - 1, unwritten))
    return remains


def free_parts(tx: Handle, inode: Inode, cut: list[Extent], first: int, last: int, metadata: bool) -> None:
    """Free the blocks of extents (in descending order) that lie in ``first`` to ``last``."""
    if len(cut) == 1:
        lblk, pblk, length, _ = check_bounds(tx, inode, cut[0])
        begin, end = max(lblk, first), min(lblk + length, last + 1)
        blocks.free(tx, pblk + begin - lblk, end - begin, metadata=metadata)
        inodes.add_blocks(inode, begin - end, tx.geometry)
        return
    limit = tx.geometry.blocks_count
    runs = []
    new = tuple.__new__  # as in `extent.leaves`
    for extent in cut:
        _, pblk, length, _ = extent
        if not pblk or not length or pblk + length > limit:
            check_bounds(tx, inode, extent)
        runs.append(new(BlockRun, (pblk, length)))
    # Only the outermost extents can reach out of the range.
    end = cut[0].lblk + cut[0].length
    if end > last + 1:
        runs[0] = BlockRun(runs[0].start, runs[0].length - (end - last - 1))
    if cut[-1].lblk < first:
        skipped = first - cut[-1].lblk
        runs[-1] = BlockRun(runs[-1].start + skipped, runs[-1].length - skipped)
    blocks.free_all(tx, runs, metadata=metadata)
    inodes.add_blocks(inode, -sum([length for _, length in runs]), tx.geometry)
