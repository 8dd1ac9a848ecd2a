"""Where the blocks of a file are: one set of functions over both kinds of map.

Dispatches by ``EXT4_EXTENTS_FL`` to `extents` or `indirect`, which have the same functions with the same meaning, and
is what the layers above and the directories call. Positions and lengths are in blocks. Functions that take a ``tx``
change the map; their ``inode`` must come from ``inodes.edit`` of the same handle. Symbolic links whose text is in the
inode, devices, FIFOs and sockets have no map: don't ask for it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.ext4.extent import Extent
from daxfs.ext4.inode import EXT4_EXTENTS_FL
from daxfs.structures import extent_tail, extents, indirect

if TYPE_CHECKING:
    from daxfs.journal.transaction import Handle
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode

__all__ = [
    "Extent",
    "allocate",
    "insert",
    "lookup",
    "mark_unwritten",
    "mark_written",
    "move_border",
    "new_inode_map",
    "next_mapped",
    "normalize_tail",
    "remove",
    "runs",
    "walk",
]


def lookup(view: View, inode: Inode, lblk: int) -> Extent:
    """The extent or hole (``pblk`` 0) at ``lblk``, trimmed to begin there. A hole may extend past the length given."""
    if inode.flags & EXT4_EXTENTS_FL:
        return extents.lookup(view, inode, lblk)
    return indirect.lookup(view, inode, lblk)


def walk(view: View, inode: Inode, first: int = 0, last: int | None = None) -> Iterator[Extent]:
    """The mapped extents of the blocks ``first`` to ``last`` (included; None: all), in order, trimmed to that range.

    The map must not change while the iterator is in use.
    """
    if inode.flags & EXT4_EXTENTS_FL:
        return extents.walk(view, inode, first, last)
    return indirect.walk(view, inode, first, last)


def runs(view: View, inode: Inode, first: int = 0, last: int | None = None, limit: int = 1024) -> list[Extent]:
    """At most ``limit`` extents of `walk` as a list."""
    if inode.flags & EXT4_EXTENTS_FL:
        return extents.runs(view, inode, first, last, limit)
    return indirect.runs(view, inode, first, last, limit)


def next_mapped(view: View, inode: Inode, lblk: int) -> Extent | None:
    """The first mapped extent that ends after ``lblk``, trimmed to begin there or later; None when there is none."""
    if inode.flags & EXT4_EXTENTS_FL:
        return extents.next_mapped(view, inode, lblk)
    return indirect.next_mapped(view, inode, lblk)


def new_inode_map(tx: Handle, inode: Inode) -> None:
    """Give a new inode an empty map of the kind that the pool's features ask for, and the flag that says so."""
    if tx.geometry.has_extents:
        extents.new_inode_map(tx, inode)
    else:
        indirect.new_inode_map(tx, inode)


def insert(tx: Handle, inode: Inode, extent: Extent) -> None:
    """Map blocks that are the caller's into a hole; ``i_blocks`` counts the map's new blocks, not the extent's own.

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
    """Allocate up to ``want`` blocks for the hole at ``lblk`` and map them: one piece, counted in ``i_blocks``.

    Args:
        tx: the handle.
        inode: from ``inodes.edit``.
        lblk: where the hole begins.
        want: blocks, at least one; a call gives no more than the hole and one extent can hold.
        unwritten: they read as zeros until `mark_written`; else the caller fills them before the commit.
        goal: physical block to begin the search at, when no neighbour decides.
        align: the physical start should be a multiple of it.

    Returns:
        What was mapped, at least one block.

    Raises:
        FsError: EEXIST when ``lblk`` is mapped, EFBIG, ENOSPC; EOPNOTSUPP as `insert`.
    """
    if inode.flags & EXT4_EXTENTS_FL:
        return extents.allocate(tx, inode, lblk, want, unwritten=unwritten, goal=goal, align=align)
    return indirect.allocate(tx, inode, lblk, want, unwritten=unwritten, goal=goal, align=align)


def mark_written(tx: Handle, inode: Inode, lblk: int, length: int) -> None:
    """Turn the unwritten blocks of the range into written ones; holes and written blocks in it stay as they are.

    Each leaf that the range lies in costs credits, so a caller with a long range gives it one extent at a time.

    Raises:
        FsError: ENOSPC, an extent must be split and the tree has no room and can get none.
    """
    if inode.flags & EXT4_EXTENTS_FL:
        extents.mark_written(tx, inode, lblk, length)
    else:
        indirect.mark_written(tx, inode, lblk, length)


def move_border(tx: Handle, inode: Inode, lblk: int, length: int) -> bool:
    """`mark_written` where an unwritten extent that begins at ``lblk`` goes on behind the range, and follows a written
    one which it lies behind in the pool too: only the border between the two moves, which is what appends come down to.

    Returns:
        False: it is not so, and nothing has changed.
    """
    return bool(inode.flags & EXT4_EXTENTS_FL) and extents.move_border(tx, inode, lblk, length)


def mark_unwritten(tx: Handle, inode: Inode, lblk: int, length: int) -> None:
    """Turn the written blocks of the range into unwritten ones, which read as zeros; costs as `mark_written`.

    Raises:
        FsError: ENOSPC as `mark_written`; EOPNOTSUPP, a block-mapped file can't have unwritten blocks.
    """
    if not inode.flags & EXT4_EXTENTS_FL:
        raise FsError(errno.EOPNOTSUPP, f"inode {inode.number} is block-mapped: it can't have unwritten blocks")
    extents.mark_unwritten(tx, inode, lblk, length)


def normalize_tail(tx: Handle, inode: Inode) -> None:
    """After the map or the size changed: give what lies past EOF the shape that e2fsck wants."""
    if inode.flags & EXT4_EXTENTS_FL:
        extent_tail.normalize(tx, inode)


def remove(
    tx: Handle, inode: Inode, first: int, last: int | None, *, metadata: bool = False, limit: int = 1 << 30
) -> bool:
    """Unmap the blocks ``first`` to ``last`` (included; None: to the end) and free them, from the end to the front.

    Args:
        tx: the handle.
        inode: from ``inodes.edit``.
        first: first logical block.
        last: last one.
        metadata: the blocks hold metadata (a directory's): the journal forgets them.
        limit: stop after about so many freed runs of blocks, blocks of the map included; at least one is freed.

    Returns:
        True when nothing is left to unmap; else call again in another handle. The map is valid in between.
    """
    if inode.flags & EXT4_EXTENTS_FL:
        return extents.remove(tx, inode, first, last, metadata=metadata, limit=limit)
    return indirect.remove(tx, inode, first, last, metadata=metadata, limit=limit)
