"""Change the shape of an extent tree: replace entries of a leaf; split, join and free nodes; add levels.

The other modules of the extent tree decide what a leaf shall hold, and call this one. A path (`extent_tree.descend`) is
valid until the first change, except that `splice` and `drop_node` use their path to the end.
Invariants, which e2fsck checks:

- the key of an index entry is the first logical block of the node below;
- no node but the root is empty, and all leaves are at the same depth;
- a tree of at most four extents has no other node: the extents are in the root.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.ext4 import extent as format_
from daxfs.ext4.extent import EXT_INIT_MAX_LEN, EXT_UNWRITTEN_MAX_LEN, MAX_DEPTH, Extent
from daxfs.structures import blocks, inodes
from daxfs.structures.extent_path import Node
from daxfs.structures.extent_tree import ROOT_ENTRIES, ROOT_WORDS, add_validated_root, descend, node, root

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.journal.handle import Handle
    from daxfs.structures.inodes import Inode

MAX_ATTEMPTS = 16
"""The most splits until there is room: one for each level and one of the root are enough. If more are needed, the tree
contradicts itself."""


def seal(geometry: Geometry, ino: int, generation: int, content: memoryview) -> None:
    """Make the checksum of an extent block of an inode."""
    if geometry.metadata_csum:
        format_.seal_block(content, geometry.inode_seed(ino, generation))


def writable(tx: Handle, inode: Inode, number: int) -> memoryview:
    """Return the words of a node for changing; ``number`` 0 is the root."""
    if not number:
        return inode.words[ROOT_WORDS]
    return tx.edit(number, seal, tx.geometry, inode.number, inode.generation).cast("I")


def fits(w: memoryview, begin: int, end: int, new: list[Extent]) -> bool:
    """Whether the leaf has room for ``new`` in place of the entries [begin, end)."""
    return (w[0] >> 16) + len(new) - (end - begin) <= (w[1] & 0xFFFF)


def coalesce(w: memoryview, begin: int, end: int, new: list[Extent]) -> tuple[int, int, list[Extent]]:
    """Extend a replacement of the entries [begin, end) by ``new`` to the neighbours that can be joined with ``new``.

    Returns:
        The extended range (begin, end), and its new entries.
    """
    if begin:
        joined = join(format_.leaf(w, begin - 1), new[0])
        if joined:
            new[0] = joined
            begin -= 1
    if end < w[0] >> 16:
        joined = join(new[-1], format_.leaf(w, end))
        if joined:
            new[-1] = joined
            end += 1
    return begin, end, new


def join(left: Extent, right: Extent) -> Extent | None:
    """Join two extents that are adjacent in the file and in the pool, both written or both unwritten, and not too long.

    Returns:
        None: they can't be joined.
    """
    lblk, pblk, length, unwritten = left
    if pblk + length != right.pblk or lblk + length != right.lblk or unwritten != right.unwritten:
        return None
    length += right.length
    if length > (EXT_UNWRITTEN_MAX_LEN if unwritten else EXT_INIT_MAX_LEN):
        return None
    return Extent(lblk, pblk, length, unwritten)


def splice(tx: Handle, inode: Inode, path: list[Node], begin: int, end: int, new: list[Extent]) -> None:
    """Replace the entries [begin, end) of the path's leaf by ``new``, for which there is room.

    The keys in the nodes above are corrected if the leaf's first block changes. A leaf that becomes empty is freed, as
    is every node above that becomes empty by this.
    """
    number = path[-1].number
    w = writable(tx, inode, number)
    growth = len(new) - (end - begin)
    if growth > 0:
        format_.open_gap(w, end, growth)
    elif growth < 0:
        format_.close_gap(w, end + growth, -growth)
    for at, extent in enumerate(new, begin):
        format_.put_leaf(w, at, *extent)
    if not number:
        add_validated_root(tx, inode, w)
    elif not w[0] >> 16:
        drop_node(tx, inode, path, len(path) - 1)
    elif begin == 0:
        set_key(tx, inode, path, len(path) - 1, w[3])


def lengthen(tx: Handle, inode: Inode, number: int, at: int, count: int) -> None:
    """Add ``count`` blocks to entry ``at`` of the leaf ``number``: the usual case of an append."""
    w = writable(tx, inode, number)
    w[3 * at + 4] += count
    if not number:
        add_validated_root(tx, inode, w)


def set_key(tx: Handle, inode: Inode, path: list[Node], level: int, lblk: int) -> None:
    """Correct the index entries above the node at ``level``, whose first block has become ``lblk``."""
    for step in reversed(path[:level]):
        base = 3 + 3 * step.at
        if step.words[base] == lblk:
            return
        w = writable(tx, inode, step.number)
        w[base] = lblk
        if not step.number:
            add_validated_root(tx, inode, w)
        if step.at:
            return


def drop_node(tx: Handle, inode: Inode, path: list[Node], level: int) -> None:
    """Free the empty node at ``level`` of the path, and remove its entry from the node above."""
    while level:
        _free_node(tx, inode, path[level].number)
        level -= 1
        number, _, at = path[level]
        w = writable(tx, inode, number)
        format_.close_gap(w, at)
        if w[0] >> 16:
            if not number:
                add_validated_root(tx, inode, w)
            if at == 0:
                set_key(tx, inode, path, level, w[3])
            return
    w = writable(tx, inode, 0)
    format_.initialize(w, 0, w[2])
    format_.set_entries(w, 0)
    add_validated_root(tx, inode, w)


def _free_node(tx: Handle, inode: Inode, number: int) -> None:
    blocks.free(tx, number, 1, metadata=True)
    inodes.add_blocks(inode, -1, tx.geometry)


def _new_node(tx: Handle, inode: Inode, goal: int, depth: int) -> tuple[int, memoryview]:
    """Allocate an empty tree block near ``goal``, and return its number and words."""
    number, _ = blocks.allocate(tx, goal, 1, tree=True)
    inodes.add_blocks(inode, 1, tx.geometry)
    w = tx.create(number, seal, tx.geometry, inode.number, inode.generation).cast("I")
    format_.initialize(w, depth)
    return number, w


# Making room


def make_room(tx: Handle, inode: Inode, path: list[Node]) -> None:
    """Make one step towards room in the path's leaf, which is full; afterwards the caller descends again.

    Raises:
        FsError: ENOSPC; EFBIG when the tree has its greatest depth and is full.
    """
    level = len(path) - 1
    while level and full(path[level - 1].words):
        level -= 1
    if level:
        split(tx, inode, path, level)
    else:
        add_level(tx, inode)


def no_room_made(inode: Inode, lblk: int) -> Corrupt:
    """Return the error of a tree in which `MAX_ATTEMPTS` calls of `make_room` made no room at ``lblk``."""
    return Corrupt(CorruptKind.EXTENT_TREE, f"inode {inode.number}: splitting makes no room at block {lblk}")


def full(w: memoryview) -> bool:
    full: bool = w[0] >> 16 >= w[1] & 0xFFFF
    return full


def add_level(tx: Handle, inode: Inode) -> None:
    """Move the root's entries into a new block below the root, so that the tree becomes one level deeper."""
    top = writable(tx, inode, 0)
    depth = format_.depth(top)
    if depth >= MAX_DEPTH:
        raise FsError(errno.EFBIG, f"inode {inode.number}: its extent tree is full")
    geometry = tx.geometry
    goal = geometry.first_block(geometry.group_of_inode(inode.number))
    number, w = _new_node(tx, inode, goal, depth)
    used = top[0] >> 16
    w[3 : 3 + 3 * used] = top[3 : 3 + 3 * used]
    format_.set_entries(w, used)
    format_.set_depth(top, depth + 1)
    format_.put_index(top, 0, w[3], number)
    format_.set_entries(top, 1)
    add_validated_root(tx, inode, top)


def split(tx: Handle, inode: Inode, path: list[Node], level: int) -> None:
    """Split the node at ``level`` of the path in two; the node above must have room for the second one's key.

    If the path goes through the last entry, only that entry moves to the new node, so that a file that is written in
    order fills its nodes. Otherwise the node is split in the middle.
    """
    number, old, at = path[level]
    used = old[0] >> 16
    first = used - 1 if at >= used - 1 else used // 2
    right, w = _new_node(tx, inode, number, old[1] >> 16)
    w[3 : 3 + 3 * (used - first)] = old[3 + 3 * first : 3 + 3 * used]
    format_.set_entries(w, used - first)
    format_.set_entries(writable(tx, inode, number), first)
    parent, _, above = path[level - 1]
    top = writable(tx, inode, parent)
    format_.open_gap(top, above + 1)
    format_.put_index(top, above + 1, w[3], right)
    if not parent:
        add_validated_root(tx, inode, top)


# Getting smaller


def shrink(tx: Handle, inode: Inode, lblk: int) -> None:
    """Join nodes on the path to ``lblk`` with neighbours, and remove needless levels, after entries were removed."""
    if not inode.words[ROOT_WORDS][1] >> 16:
        return
    path, _ = descend(tx, inode, lblk)
    level = len(path) - 1
    while level:
        if _join_nodes(tx, inode, path, level):
            path, _ = descend(tx, inode, lblk)
            level = len(path) - 1
        else:
            level -= 1
    while _pull_up(tx, inode):
        pass


def _join_nodes(tx: Handle, inode: Inode, path: list[Node], level: int) -> bool:
    """Join the node at ``level`` with its right or left neighbour, if one node holds both with room to spare."""
    _, w, _ = path[level]
    used, room = w[0] >> 16, w[1] & 0xFFFF
    room -= room // 8  # so that the next insertion doesn't split what was joined
    if used * 2 > room:
        return False
    _, above, at = path[level - 1]
    for left in (at, at - 1):
        if not 0 <= left < (above[0] >> 16) - 1:
            continue
        lblk, number = format_.index(above, left + 1)
        near = node(tx, inode, number, w[1] >> 16, lblk) if left == at else w
        first, target = format_.index(above, left)
        far = w if left == at else node(tx, inode, target, w[1] >> 16, first)
        more, have = near[0] >> 16, far[0] >> 16
        if not have or more + have > room:
            continue
        joined = writable(tx, inode, target)
        joined[3 + 3 * have : 3 + 3 * (have + more)] = near[3 : 3 + 3 * more]
        format_.set_entries(joined, have + more)
        if not w[1] >> 16:
            whole = join(format_.leaf(joined, have - 1), format_.leaf(joined, have))
            if whole:
                format_.put_leaf(joined, have - 1, *whole)
                format_.close_gap(joined, have)
        drop = [*path[: level - 1], Node(path[level - 1].number, above, left + 1), Node(number, near, 0)]
        drop_node(tx, inode, drop, level)
        return True
    return False


def _pull_up(tx: Handle, inode: Inode) -> bool:
    """Move the entries of the root's only child into the root, if they fit."""
    top = root(tx, inode)
    depth = top[1] >> 16
    if not depth or top[0] >> 16 != 1:
        return False
    lblk, number = format_.index(top, 0)
    w = node(tx, inode, number, depth - 1, lblk)
    used = w[0] >> 16
    if used > ROOT_ENTRIES or used > top[1] & 0xFFFF:
        return False
    top = writable(tx, inode, 0)
    top[3 : 3 + 3 * used] = w[3 : 3 + 3 * used]
    format_.set_entries(top, used)
    format_.set_depth(top, depth - 1)
    add_validated_root(tx, inode, top)
    _free_node(tx, inode, number)
    return True
