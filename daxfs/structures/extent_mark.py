"""Mark blocks of an extent-mapped file as written, or as unwritten, which read as zeros; no block moves.

Functions take the handle, an ``inode`` from ``inodes.edit`` of the same handle, and blocks. Source:
``fs/ext4/extents.c`` (``ext4_ext_convert_to_initialized``).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from daxfs.ext4 import extent as format_
from daxfs.ext4.extent import EXT_INIT_MAX_LEN, EXT_UNWRITTEN_MAX_LEN, Extent
from daxfs.structures import extent_edit
from daxfs.structures.extent_tree import ROOT_WORDS, add_validated_root, descend

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle
    from daxfs.structures.inodes import Inode


def mark_written(tx: Handle, inode: Inode, lblk: int, length: int) -> None:
    """Turn the unwritten blocks of the range into written ones; holes and written blocks in it stay as they are."""
    _mark(tx, inode, lblk, length, False)


def move_border(tx: Handle, inode: Inode, lblk: int, length: int) -> bool:
    """Move the first blocks of an unwritten extent to the written one before it; see `mapping.move_border`."""
    path, _ = descend(tx, inode, lblk)
    number, w, at = path[-1]
    if at < 1:
        return False
    if not _is_border(w, at, lblk, length):
        return False
    w = extent_edit.writable(tx, inode, number)
    _move(w, at, length)
    if not number:
        add_validated_root(tx, inode, w)
    return True


def move_border_of_copy(inode: Inode, lblk: int, length: int) -> bool:
    """Do what `move_border` does, without a handle, to a copy of an inode; False also if its tree has more than a root.

    Args:
        inode: on a buffer that is no block of the pool.
        lblk: where the unwritten extent begins.
        length: blocks.
    """
    w = inode.words[ROOT_WORDS]
    if w[1] >> 16:
        return False
    for at in range(1, w[0] >> 16):
        if w[3 * at + 3] == lblk:
            if not _is_border(w, at, lblk, length):
                return False
            _move(w, at, length)
            return True
    return False


def _is_border(w: memoryview, at: int, lblk: int, length: int) -> bool:
    """Return whether the entry ``at`` is an unwritten extent from ``lblk`` on, longer than ``length``, that continues
    the written one before it, which has room for as many blocks.
    """
    begin, pblk, have, unwritten = format_.leaf(w, at)
    before = format_.leaf(w, at - 1)
    if begin != lblk or not unwritten or have <= length or before.unwritten:
        return False
    if before.lblk + before.length != lblk or before.pblk + before.length != pblk:
        return False
    return before.length + length <= EXT_INIT_MAX_LEN


def _move(w: memoryview, at: int, length: int) -> None:
    """Give the first blocks of the entry ``at`` to the one before it."""
    begin, pblk, have, _ = format_.leaf(w, at)
    before = format_.leaf(w, at - 1)
    format_.put_leaf(w, at - 1, before.lblk, before.pblk, before.length + length, False)
    format_.put_leaf(w, at, begin + length, pblk + length, have - length, True)


def mark_unwritten(tx: Handle, inode: Inode, lblk: int, length: int) -> None:
    """Turn the written blocks of the range into unwritten ones, which read as zeros."""
    _mark(tx, inode, lblk, length, True)


def _mark(tx: Handle, inode: Inode, lblk: int, length: int, unwritten: bool) -> None:
    """Mark all mapped blocks of the range as unwritten, or as written."""
    position, end = lblk, lblk + length
    attempts = 0
    shrunk = False
    while position < end:
        path, bound = descend(tx, inode, position)
        _, w, at = path[-1]
        extent = format_.leaf(w, at) if at >= 0 else None
        if extent is None or extent.lblk + extent.length <= position:
            position = w[3 * at + 6] if at + 1 < w[0] >> 16 else bound
            continue
        stop = extent.lblk + extent.length
        if extent.unwritten == unwritten:
            position = _next_unlike(w, at, bound)
            continue
        if stop < end:
            after = bisect_left(w[3 : 3 + 3 * (w[0] >> 16) : 3], end)
            pieces, stop = _converted(w, at, after, position, end, unwritten)
        else:
            after, pieces, stop = at + 1, _pieces(extent, position, end), end
        begin, last, new = extent_edit.coalesce(w, at, after, pieces)
        if extent_edit.fits(w, begin, last, new):
            shrunk |= len(new) < last - begin
            extent_edit.splice(tx, inode, path, begin, last, new)
            position = stop
            attempts = 0
            continue
        extent_edit.make_room(tx, inode, path)
        attempts += 1
        if attempts > extent_edit.MAX_ATTEMPTS:
            raise extent_edit.no_room_made(inode, position)
    if shrunk:
        extent_edit.shrink(tx, inode, lblk)


def _next_unlike(w: memoryview, at: int, bound: int) -> int:
    """Return where the first entry after ``at`` begins that is written if ``at`` is unwritten, or the other way.

    If the leaf has none, the result is ``bound``, where the next leaf begins.
    """
    used = w[0] >> 16
    state = w[3 * at + 4] & 0xFFFF > EXT_INIT_MAX_LEN
    at += 1
    while at < used and (w[3 * at + 4] & 0xFFFF > EXT_INIT_MAX_LEN) == state:
        at += 1
    return w[3 * at + 3] if at < used else bound


def _converted(w: memoryview, at: int, after: int, first: int, end: int, unwritten: bool) -> tuple[list[Extent], int]:
    """Return the leaf's entries [at, after) with the blocks [first, end) in the other state, and where that ends."""
    limit = EXT_UNWRITTEN_MAX_LEN if unwritten else EXT_INIT_MAX_LEN
    new: list[Extent] = []
    for i in range(at, after):
        extent = format_.leaf(w, i)
        lblk, pblk, length, state = extent
        stop = lblk + length
        if state == unwritten:
            parts = [extent]
        elif first <= lblk and stop <= end and length <= limit:
            parts = [Extent(lblk, pblk, length, unwritten)]
        else:
            parts = _pieces(extent, max(lblk, first), min(stop, end))
        for part in parts:
            joined = extent_edit.join(new[-1], part) if new else None
            if joined:
                new[-1] = joined
            else:
                new.append(part)
    return new, min(stop, end)


def _pieces(extent: Extent, begin: int, end: int) -> list[Extent]:
    """Split an extent so that the blocks [begin, end) become written if it is unwritten, unwritten if it is written."""
    lblk, pblk, length, unwritten = extent
    limit = EXT_INIT_MAX_LEN if unwritten else EXT_UNWRITTEN_MAX_LEN
    pieces = []
    if lblk < begin:
        pieces.append(Extent(lblk, pblk, begin - lblk, unwritten))
    for at in range(begin, end, limit):
        pieces.append(Extent(at, pblk + at - lblk, min(end - at, limit), not unwritten))
    if end < lblk + length:
        pieces.append(Extent(end, pblk + end - lblk, lblk + length - end, unwritten))
    return pieces
