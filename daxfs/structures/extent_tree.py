"""Read the extent tree of an inode: checked roots and blocks, and paths from the root to a leaf.

The root is the inode's ``i_block`` (4 entries). Every other node is a block whose tail holds a checksum seeded by the
inode. This module changes no tree (`extent_edit` does), and does not know what its callers look for (`extents` does).

A node is checked completely when its content is new: blocks through ``View.verified``, roots by comparing the 60 bytes
with those last found good. In addition each step re-checks the header and the depth. The depth decreases by one with
each step, so a walk ends even in a hostile image.

Sources: ``fs/ext4/extents.c``, Documentation/filesystems/ext4/ifork.rst.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.ext4 import extent as format_
from daxfs.ext4.extent import EXT4_EXT_MAGIC, EXT_INIT_MAX_LEN, Extent
from daxfs.ext4.inode import EXT4_RESIZE_INO
from daxfs.structures import metadata_zone
from daxfs.structures.extent_path import Node
from daxfs.structures.validated_roots import ValidatedRoots

if TYPE_CHECKING:
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode

MAX_BLOCKS = 0xFFFFFFFF
"""The number of logical blocks that a file can have (EXT_MAX_BLOCKS)."""
ROOT_ENTRIES = 4
ROOT_WORDS = slice(10, 25)
"""``i_block`` among the 32-bit words of an inode."""


class _Roots(ValidatedRoots):
    """The validated roots of extent trees."""

    __slots__ = ()


def root(view: View, inode: Inode) -> memoryview:
    """Return the words of the inode's root, checked."""
    w = inode.words[ROOT_WORDS]
    roots = view.caches[_Roots]
    if not roots.holds(inode.number, w):
        _check(view, inode, w, None, f"inode {inode.number}, extent root")
        roots.put(inode.number, w)
    return w


def add_validated_root(view: View, inode: Inode, w: memoryview) -> None:
    """Add the root's present content, which daxfs has just made, to the validated roots."""
    view.caches[_Roots].put(inode.number, w)


def node(view: View, inode: Inode, number: int, levels: int, key: int) -> memoryview:
    """Return the words of the tree block ``number``, which must have ``levels`` levels below it and begin at ``key``.

    Raises:
        Corrupt: checksum, header or entries are wrong; the message names the inode and the block.
    """
    w: memoryview = view.verified(number, _check_block, view, inode, number, levels).cast("I")
    head, second = w[0], w[1]
    used = head >> 16
    # A block may have been checked as something else or for another inode. So check again what keeps indexes in bounds.
    if (
        head & 0xFFFF != EXT4_EXT_MAGIC
        or second >> 16 != levels
        or not used <= second & 0xFFFF <= (len(w) - 3) // 3
        or (w[3] != key if used else levels)
    ):
        raise Corrupt(
            CorruptKind.EXTENT_HEADER,
            f"inode {inode.number}, extent block {number}: depth {second >> 16}, expected {levels}; {used} entries, "
            f"the first at {w[3]}, expected {key}",
        )
    return w


def _check_block(view: View, inode: Inode, number: int, levels: int, content: memoryview) -> None:
    """Check a tree block: its checksum, and as `_check`."""
    where = f"inode {inode.number}, extent block {number}"
    if view.geometry.metadata_csum:
        format_.verify_block(content, view.geometry.inode_seed(inode.number, inode.generation), where)
    _check(view, inode, content.cast("I"), levels, where)


def _check(view: View, inode: Inode, w: memoryview, levels: int | None, where: str) -> None:
    """Check a node's header, and the order, bounds and places of all its entries."""
    format_.check(w, levels, view.geometry.blocks_count, where)
    used = w[0] >> 16
    if not used or inode.number == EXT4_RESIZE_INO:
        return
    entries = np.frombuffer(w, "<u4")[3 : 3 + 3 * used].reshape(used, 3).astype(np.int64)
    if format_.depth(w):
        starts = entries[:, 1] | (entries[:, 2] & 0xFFFF) << 32
        ends = starts + 1
    else:
        starts = entries[:, 2] | entries[:, 1] >> 16 << 32
        lengths = entries[:, 1] & 0xFFFF
        ends = starts + np.where(lengths > EXT_INIT_MAX_LEN, lengths - EXT_INIT_MAX_LEN, lengths)
    at = metadata_zone.first_overlap(view, inode.number, starts, ends)
    if at is not None:
        raise Corrupt(
            CorruptKind.EXTENT_ENTRIES, f"{where}: block {entries[at, 0]} lies on {starts[at]}, over a group's metadata"
        )


def descend(view: View, inode: Inode, lblk: int) -> tuple[list[Node], int]:
    """Return the path to the leaf for ``lblk``, and the first block of the next leaf, or ``MAX_BLOCKS``."""
    w = root(view, inode)
    levels = w[1] >> 16
    number = 0
    bound = MAX_BLOCKS
    path: list[Node] = []
    while levels:
        used = w[0] >> 16
        at = bisect_right(w[3 : 3 + 3 * used : 3], lblk) - 1
        at = max(at, 0)
        path.append(Node(number, w, at))
        base = 3 + 3 * at
        if at + 1 < used:
            bound = w[base + 3]
        number = w[base + 1] | (w[base + 2] & 0xFFFF) << 32
        levels -= 1
        w = node(view, inode, number, levels, w[base])
    path.append(Node(number, w, bisect_right(w[3 : 3 + 3 * (w[0] >> 16) : 3], lblk) - 1))
    if bound <= lblk:
        raise out_of_order(inode, lblk, bound)
    return path, bound


def out_of_order(inode: Inode, lblk: int, bound: int) -> FsError:
    """Return the error for a tree in which the entry after block ``lblk`` begins at ``bound``, at or before it."""
    if lblk >= MAX_BLOCKS:
        return FsError(errno.EFBIG, f"inode {inode.number}: block {lblk} is past the last block that a file can have")
    return Corrupt(CorruptKind.EXTENT_INDEX, f"inode {inode.number}: block {bound} comes after {lblk}")


def check_bounds(view: View, inode: Inode, extent: Extent) -> Extent:
    """Return the extent after a check that it lies in the pool: its block may have been checked as something else."""
    pblk, length = extent.pblk, extent.length
    if not pblk or not length or pblk + length > view.geometry.blocks_count:
        raise Corrupt(
            CorruptKind.EXTENT_ENTRIES, f"inode {inode.number}: {length} blocks at {extent.lblk} lie on {pblk}"
        )
    return extent
