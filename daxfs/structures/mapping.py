"""The map of a file, from logical to physical blocks: one set of functions over both kinds of map.

Each function dispatches by ``EXT4_EXTENTS_FL`` to `extents` or `indirect`, which have the same functions with the same
meaning. The layers above and the directories call this module. Positions and lengths are in blocks. Functions that take
a ``tx`` change the map; their ``inode`` must come from ``inodes.edit`` of the same handle. Symbolic links whose target
is in the inode, devices, FIFOs and sockets have no map; the functions must not be called for them.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.ext4.extent import Extent
from daxfs.ext4.inode import EXT4_EXTENTS_FL
from daxfs.structures import extent_mark, extent_nodes, extent_removal, extent_swap, extent_tail, extents, indirect
from daxfs.structures.extent_tree import ROOT_WORDS

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View
    from daxfs.runs import BlockRun
    from daxfs.structures.blocks import GroupBound
    from daxfs.structures.inodes import Inode

__all__ = [
    "Extent",
    "allocate",
    "allocate_runs",
    "has_more_than",
    "insert",
    "lookup",
    "mark_unwritten",
    "mark_written",
    "move_border",
    "move_own",
    "new_inode_map",
    "next_mapped",
    "nodes_within",
    "normalize_tail",
    "own_blocks",
    "reallocate",
    "remove",
    "replace",
    "runs",
    "search",
    "walk",
]


def lookup(view: View, inode: Inode, lblk: int) -> Extent:
    """Return the extent or hole (``pblk`` 0) at ``lblk``, trimmed to begin there. A hole may continue after its end."""
    if inode.flags & EXT4_EXTENTS_FL:
        return extents.lookup(view, inode, lblk)
    return indirect.lookup(view, inode, lblk)


def walk(view: View, inode: Inode, first: int = 0, last: int | None = None) -> Iterator[Extent]:
    """Yield the mapped extents of the blocks ``first`` to ``last`` (included; None: all), in order, trimmed to them.

    The map must not change while the iterator is in use.
    """
    if inode.flags & EXT4_EXTENTS_FL:
        return extents.walk(view, inode, first, last)
    return indirect.walk(view, inode, first, last)


def runs(view: View, inode: Inode, first: int = 0, last: int | None = None, limit: int = 1024) -> list[Extent]:
    """Return at most ``limit`` extents of `walk` as a list."""
    if inode.flags & EXT4_EXTENTS_FL:
        return extents.runs(view, inode, first, last, limit)
    return indirect.runs(view, inode, first, last, limit)


def has_more_than(view: View, inode: Inode, count: int) -> bool:
    """Return whether the map is known to have more than ``count`` extents: True only for an extent tree."""
    return bool(inode.flags & EXT4_EXTENTS_FL) and extents.has_more_than(view, inode, count)


def next_mapped(view: View, inode: Inode, lblk: int) -> Extent | None:
    """Return the first mapped extent at or after ``lblk``, trimmed to begin there or later; None if there is none."""
    if inode.flags & EXT4_EXTENTS_FL:
        return extents.next_mapped(view, inode, lblk)
    return indirect.next_mapped(view, inode, lblk)


def search(view: View, inode: Inode, lblk: int, *, written: bool, limit: int) -> tuple[int, bool]:
    """Search the first block from ``lblk`` on that is written, or the first one that is not.

    Args:
        view: what to read.
        inode: of the file.
        lblk: where the search begins.
        written: whether to search a written block. One that is not written is a hole or an unwritten one.
        limit: leaves of the tree (runs, in a block-mapped file) to look at before giving up.

    Returns:
        The block, and True; or False, and the block at which to go on, which may be the end of all files (2^32 - 1).
    """
    if inode.flags & EXT4_EXTENTS_FL:
        return extents.search(view, inode, lblk, written=written, leaves=limit)
    return indirect.search(view, inode, lblk, written=written, limit=limit)


def nodes_within(view: View, inode: Inode, ranges: Sequence[tuple[int, int]]) -> int:
    """Return the number of blocks of the map that hold the entries of the ranges, at most.

    The ranges (first block, last block) are in order and do not overlap.
    """
    if inode.flags & EXT4_EXTENTS_FL:
        return extents.nodes_within(view, inode, ranges)
    return indirect.nodes_within(view, ranges)


def new_inode_map(tx: Handle, inode: Inode) -> None:
    """Give a new inode an empty map of the kind that the pool's features require, and set the inode's flag for it."""
    if tx.geometry.has_extents:
        extents.new_inode_map(tx, inode)
    else:
        indirect.new_inode_map(tx, inode)


def insert(tx: Handle, inode: Inode, extent: Extent) -> None:
    """Map blocks that the caller owns into a hole.

    The function adds new blocks of the map to ``i_blocks``; the caller adds the extent's own blocks.

    Raises:
        FsError: EEXIST when a block of the range is mapped, EFBIG, ENOSPC; EOPNOTSUPP for unwritten blocks of a
            block-mapped file.
    """
    if inode.flags & EXT4_EXTENTS_FL:
        extents.insert(tx, inode, extent)
    else:
        indirect.insert(tx, inode, extent)


def allocate(
    tx: Handle, inode: Inode, lblk: int, want: int, *, unwritten: bool = False, goal: int = 0, align: int = 1
) -> Extent:
    """Allocate up to ``want`` blocks for the hole at ``lblk`` and map them as one extent, counted in ``i_blocks``.

    Args:
        tx: the handle.
        inode: from ``inodes.edit``.
        lblk: where the hole begins.
        want: the number of blocks, at least one; a call maps no more than the hole and one extent can hold.
        unwritten: the blocks read as zeros until `mark_written`; otherwise the caller fills them before the commit.
        goal: the physical block at which the search begins, if there is no neighbour.
        align: the physical start should be a multiple of this number of blocks.

    Returns:
        The extent that was mapped, at least one block.

    Raises:
        FsError: EEXIST when ``lblk`` is mapped, EFBIG, ENOSPC; EOPNOTSUPP as `insert`.
    """
    if inode.flags & EXT4_EXTENTS_FL:
        return extents.allocate(tx, inode, lblk, want, unwritten=unwritten, goal=goal, align=align)
    return indirect.allocate(tx, inode, lblk, want, unwritten=unwritten, goal=goal, align=align)


def allocate_runs(
    tx: Handle, inode: Inode, lblk: int, want: int, most: int, *, unwritten: bool = False, align: int = 1
) -> list[Extent]:
    """Allocate and map as `allocate` does, but as at most ``most`` extents, which follow each other.

    In a fragmented pool this costs one search instead of one for each extent. Block-mapped files get one run.

    Raises:
        FsError: as `allocate`; ENOSPC only if nothing could be mapped.
    """
    if inode.flags & EXT4_EXTENTS_FL:
        return extents.allocate_runs(tx, inode, lblk, want, most, unwritten=unwritten, align=align)
    return [indirect.allocate(tx, inode, lblk, want, unwritten=unwritten, align=align)]


def reallocate(tx: Handle, inode: Inode, first: int, last: int, groups: GroupBound, *, align: int = 1) -> list[Extent]:
    """Put new written blocks in the place of ``first`` to ``last``, and free what is mapped there.

    Args:
        tx: the handle.
        inode: from ``inodes.edit``.
        first: the first logical block.
        last: the last logical block.
        groups: bounds the groups that the handle takes blocks from.
        align: as in `allocate`, for the first of them.

    Returns:
        The new extents, which the caller fills before the commit.

    Raises:
        FsError: ENOSPC, EFBIG: the handle must be undone. ENOSPC also if the free blocks lie in too many groups.
    """
    if inode.flags & EXT4_EXTENTS_FL:
        return extent_swap.reallocate(tx, inode, first, last, groups, align=align)
    return indirect.reallocate(tx, inode, first, last, groups, align=align)


def replace(tx: Handle, inode: Inode, first: int, last: int, new: list[Extent], *, metadata: bool = False) -> None:
    """Put blocks that the caller owns in the place of ``first`` to ``last``, and free what is mapped there.

    The function adds new blocks of the map to ``i_blocks``, and subtracts what it frees; the caller adds the blocks of
    ``new``.

    Args:
        tx: the handle.
        inode: from ``inodes.edit``.
        first: the first logical block.
        last: the last logical block.
        new: not empty, within the range, in order.
        metadata: what is freed holds metadata (a directory's): the journal revokes it.

    Raises:
        FsError: ENOSPC: the map needs room; EFBIG: a block-mapped file can't have blocks of such numbers. The handle
            must be undone.
    """
    if inode.flags & EXT4_EXTENTS_FL:
        extent_swap.replace(tx, inode, first, last, new, metadata=metadata)
    else:
        indirect.replace(tx, inode, first, last, new, metadata=metadata)


def mark_written(tx: Handle, inode: Inode, lblk: int, length: int) -> None:
    """Turn the unwritten blocks of the range into written ones; holes and written blocks in it stay as they are.

    Each leaf that the range touches costs credits, so a caller with a long range passes one extent at a time.

    Raises:
        FsError: ENOSPC: an extent must be split, and the tree has no room and can get none.
    """
    if inode.flags & EXT4_EXTENTS_FL:
        extent_mark.mark_written(tx, inode, lblk, length)
    else:
        indirect.mark_written(tx, inode, lblk, length)


def is_empty(inode: Inode) -> bool:
    """Return whether a file's extent tree is a root without entries; False for a file with another kind of map."""
    return bool(inode.flags & EXT4_EXTENTS_FL) and not inode.words[ROOT_WORDS][0] >> 16


def move_border(tx: Handle, inode: Inode, lblk: int, length: int) -> bool:
    """Mark the first blocks of an unwritten extent as written by moving its border with the written extent before it.

    This is the usual case of an append. It needs an unwritten extent that begins at ``lblk`` and is longer than
    ``length``, right after a written extent, in the file and in the pool.

    Returns:
        False: the extents are not of this kind, and nothing has changed. Use `mark_written`.
    """
    return bool(inode.flags & EXT4_EXTENTS_FL) and extent_mark.move_border(tx, inode, lblk, length)


def move_border_of_copy(inode: Inode, lblk: int, length: int) -> bool:
    """Do what `move_border` does to a copy of an inode that is in no transaction; False also if its tree is deep."""
    return bool(inode.flags & EXT4_EXTENTS_FL) and extent_mark.move_border_of_copy(inode, lblk, length)


def mark_unwritten(tx: Handle, inode: Inode, lblk: int, length: int) -> None:
    """Turn the written blocks of the range into unwritten ones, which read as zeros.

    Each leaf that the range touches costs credits, as in `mark_written`.

    Raises:
        FsError: ENOSPC as `mark_written`; EOPNOTSUPP: a block-mapped file can't have unwritten blocks.
    """
    if not inode.flags & EXT4_EXTENTS_FL:
        raise FsError(errno.EOPNOTSUPP, f"inode {inode.number} is block-mapped: it can't have unwritten blocks")
    extent_mark.mark_unwritten(tx, inode, lblk, length)


def normalize_tail(tx: Handle, inode: Inode) -> None:
    """Give the map past EOF the shape that e2fsck accepts, after the map or the size changed (`extent_tail`)."""
    if inode.flags & EXT4_EXTENTS_FL:
        extent_tail.normalize(tx, inode)


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
        limit: stop after about this many freed runs of blocks, blocks of the map included, or when they lie in so many
            groups that `blocks.RESERVED_PER_CALL` credits are reserved; at least one is freed. None: no bound.

    Returns:
        True: nothing is left to unmap. False: call again in another handle; the map is valid in between.
    """
    if inode.flags & EXT4_EXTENTS_FL:
        return extent_removal.remove(tx, inode, first, last, metadata=metadata, limit=limit)
    return indirect.remove(tx, inode, first, last, metadata=metadata, limit=limit)


# The blocks that a map itself consists of


def own_blocks(view: View, inode: Inode, lblk: int, area: BlockRun, most: int) -> tuple[list[tuple[int, int]], int]:
    """Find the blocks of the map itself that lie in a part of the pool.

    Args:
        view: what to read.
        inode: of the file.
        lblk: the logical block to begin at.
        area: the part of the pool.
        most: how many of the blocks that hold entries of the file's own blocks to look at.

    Returns:
        For each block that was found, the logical block that leads to it and its number; and where to go on, which may
        be the end of all files (2^32 - 1).
    """
    if inode.flags & EXT4_EXTENTS_FL:
        return extent_nodes.within(view, inode, lblk, area, most)
    return indirect.own_blocks(view, inode, lblk, area, most)


def move_own(tx: Handle, inode: Inode, lblk: int, number: int, target: int) -> bool:
    """Move a block of the map to a block that the caller owns, and free the old one.

    Args:
        tx: the handle: four credits.
        inode: from ``inodes.edit``.
        lblk: the logical block that leads to it, from `own_blocks`.
        number: the block that moves.
        target: the new one.

    Returns:
        False: it is not the map's, or no longer; nothing has changed.

    Raises:
        FsError: ENOSPC: a block-mapped file can't name ``target``.
    """
    if inode.flags & EXT4_EXTENTS_FL:
        return extent_nodes.move(tx, inode, lblk, number, target)
    return indirect.move_own(tx, inode, lblk, number, target)
