"""Indexed directories (htree): leaves of entries, found by the hashes of their names.

An index of one or two levels (three with large_dir) leads from a hash to the leaf whose range contains the hash. Leaves
look like linear blocks (`dirblocks` reads and changes them). They are never joined, not even when they are empty. Names
with one hash may fill more than one leaf: bit 0 of the hash that leads to a leaf says that the leaf before it holds
names with that hash too. Callers: `directories` and `dirlist`.

An insertion proceeds in small steps, and descends from the root again after each: first the index gets room, from the
top; then the leaf is split; then the leaf has room. Invariants, which e2fsck checks:

- The hashes of a leaf's names are not below the hash that leads to the leaf, nor above the hash that leads to the next.
- The pairs of an index block are in order. All leaves are at the same depth.

Sources: ``fs/ext4/namei.c`` (``dx_probe``, ``ext4_htree_next_block``, ``ext4_dx_find_entry``, ``ext4_dx_add_entry``,
``do_split``, ``make_indexed_dir``), Documentation/filesystems/ext4/directory.rst.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.ext4 import dirent
from daxfs.ext4 import htree as format_
from daxfs.ext4.hash import TEA, dirhash, effective_version
from daxfs.ext4.htree import BLOCK_MASK, NODE_BASE, ROOT_BASE, ROOT_INFO_SIZE
from daxfs.ext4.inode import EXT4_INDEX_FL
from daxfs.ext4.limits import EXT4_HTREE_LEVEL, EXT4_HTREE_LEVEL_COMPAT
from daxfs.structures import dirblocks
from daxfs.structures.dirhints import Hints

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode

MAX_ATTEMPTS = 8
"""The most steps until there is room for a name: one for each level and one for the leaf are enough. If more are
needed, the index contradicts itself."""


class Step:
    """One step of a path from the root: an index block and the pair that the path goes through.

    Attributes:
        number: the physical block.
        words: its content.
        base: the word where its pairs begin.
        at: the index of the pair.
    """

    __slots__ = ("at", "base", "number", "words")

    def __init__(self, number: int, words: memoryview, base: int, at: int) -> None:
        self.number = number
        self.words = words
        self.base = base
        self.at = at

    @property
    def full(self) -> bool:
        """Whether the block has no room for another pair."""
        head: int = self.words[self.base]
        return head >> 16 >= head & 0xFFFF


# Finding


def root(view: View, directory: Inode) -> tuple[int, memoryview, int]:
    """Return the root of the index: (physical block, words, hash version to use)."""
    number = dirblocks.number_of(view, directory, 0)
    w = dirblocks.index_block(view, directory, number, ROOT_BASE)
    info = w[7]
    version = info & 0xFF
    levels = EXT4_HTREE_LEVEL if view.geometry.has_large_dir else EXT4_HTREE_LEVEL_COMPAT
    if w[6] or version > TEA or info & 0x0100FF00 != ROOT_INFO_SIZE << 8 or info >> 16 & 0xFF >= levels:
        raise Corrupt(
            CorruptKind.DIRECTORY_INDEX_ROOT, f"{dirblocks.where(directory, number)}: parameters {w[6]:#x} {info:#x}"
        )
    return number, w, effective_version(version, view.geometry.hash_unsigned)


def descend(view: View, directory: Inode, number: int, w: memoryview, major: int) -> tuple[list[Step], int]:
    """Return the path from the root (``number``, ``w``) to the leaf for hash ``major``, and the leaf's block."""
    levels = w[7] >> 16 & 0xFF
    base = ROOT_BASE
    path: list[Step] = []
    while True:
        used = _used(directory, number, w, base)
        at = bisect_right(w[base + 2 : base + 2 * used : 2], major)
        path.append(Step(number, w, base, at))
        number = _child(view, directory, w[base + 2 * at + 1])
        if not levels:
            return path, number
        levels -= 1
        base = NODE_BASE
        w = dirblocks.index_block(view, directory, number, base)


def _used(directory: Inode, number: int, w: memoryview, base: int) -> int:
    """Return the pairs in use, checked again, because the block may have been accepted as something else."""
    head: int = w[base]
    used = head >> 16
    if not 0 < used <= head & 0xFFFF or base + 2 * (head & 0xFFFF) > len(w):
        where = dirblocks.where(directory, number)
        raise Corrupt(CorruptKind.DIRECTORY_INDEX, f"{where}: {used} pairs of {head & 0xFFFF}")
    return used


def _child(view: View, directory: Inode, word: int) -> int:
    """Return the physical block that a pair leads to; Corrupt if that is the root."""
    lblk = word & BLOCK_MASK
    if not lblk:
        raise Corrupt(CorruptKind.DIRECTORY_INDEX, f"inode {directory.number}: the index leads to its own root")
    return dirblocks.number_of(view, directory, lblk)


def following(path: list[Step]) -> int | None:
    """Return the hash that leads to the next leaf; None after the last leaf."""
    for step in reversed(path):
        w, base, at = step.words, step.base, step.at + 1
        if at < w[base] >> 16:
            bound: int = w[base + 2 * at]
            return bound
    return None


def first_hash(path: list[Step]) -> int:
    """Return the hash that leads to the leaf of a path."""
    for step in reversed(path):
        if step.at:
            low: int = step.words[step.base + 2 * step.at]
            return low
    return 0


def advance(view: View, directory: Inode, path: list[Step]) -> int:
    """Move the path to the next leaf, which must exist, and return the leaf's physical block."""
    level = len(path) - 1
    while path[level].at + 1 >= path[level].words[path[level].base] >> 16:
        level -= 1
    step = path[level]
    step.at += 1
    number = _child(view, directory, step.words[step.base + 2 * step.at + 1])
    for below in range(level + 1, len(path)):
        w = dirblocks.index_block(view, directory, number, NODE_BASE)
        _used(directory, number, w, NODE_BASE)
        path[below] = Step(number, w, NODE_BASE, 0)
        number = _child(view, directory, w[NODE_BASE + 1])
    return number


def locate(view: View, directory: Inode, name: bytes) -> tuple[int, int]:
    """Return the block and offset of the entry called ``name``; or the leaf to which the name belongs, and -1."""
    number, w, version = root(view, directory)
    major, _ = dirhash(name, version, view.geometry.hash_seed)
    path, leaf = descend(view, directory, number, w, major)
    number = leaf
    visited = 0
    while True:
        offset = dirblocks.find(view, directory, number, name)
        if offset >= 0:
            return number, offset
        bound = following(path)
        if bound is None or bound & ~1 != major:
            return leaf, -1
        visited += 1
        if visited >= dirblocks.count(view, directory):
            raise Corrupt(CorruptKind.DIRECTORY_INDEX, f"inode {directory.number}: more leaves than blocks")
        number = advance(view, directory, path)


# Changing


def insert(tx: Handle, directory: Inode, name: bytes, ino: int, file_type: int) -> None:
    """Put an entry into the leaf for its hash; a full leaf is split.

    Raises:
        FsError: ENOSPC: no block is free, or the index is full.
        Corrupt: the index contradicts itself.
    """
    for _ in range(MAX_ATTEMPTS):
        number, w, version = root(tx, directory)
        major, _ = dirhash(name, version, tx.geometry.hash_seed)
        path, number = descend(tx, directory, number, w, major)
        if dirblocks.place(tx, directory, number, name, ino, file_type):
            return
        if path[-1].full:
            _make_room(tx, directory, path)
        else:
            _split_leaf(tx, directory, path, number, version)
    raise Corrupt(
        CorruptKind.DIRECTORY_INDEX,
        f"inode {directory.number}: no room for hash {major:#x} after {MAX_ATTEMPTS} splits",
    )


def _words(tx: Handle, directory: Inode, number: int) -> memoryview:
    return dirblocks.writable(tx, directory, number).cast("I")


def _make_room(tx: Handle, directory: Inode, path: list[Step]) -> None:
    """Make one step towards room for a pair in the lowest index block of a path.

    The step splits the highest full block for which the block above has room; if all are full, it adds a level.
    """
    level = len(path) - 1
    while level and path[level - 1].full:
        level -= 1
    if not level:
        _add_level(tx, directory, path[0])
        return
    step, above = path[level], path[level - 1]
    lblk, _, block = dirblocks.append(tx, directory)
    w, new = _words(tx, directory, step.number), block.cast("I")
    used = w[step.base] >> 16
    half = used // 2
    bound = w[step.base + 2 * half]
    _fill_node(tx, new, w[step.base + 2 * half : step.base + 2 * used])
    format_.set_count(w, step.base, half)
    format_.insert(_words(tx, directory, above.number), above.base, above.at + 1, bound, lblk)


def _add_level(tx: Handle, directory: Inode, top: Step) -> None:
    """Move the root's pairs to a node of their own, so that the index has one more level."""
    levels = EXT4_HTREE_LEVEL if tx.geometry.has_large_dir else EXT4_HTREE_LEVEL_COMPAT
    if (top.words[7] >> 16 & 0xFF) + 1 >= levels:
        raise FsError(errno.ENOSPC, f"inode {directory.number}: the directory's index is full")
    lblk, _, block = dirblocks.append(tx, directory)
    w = _words(tx, directory, top.number)
    _fill_node(tx, block.cast("I"), w[ROOT_BASE : ROOT_BASE + 2 * (w[ROOT_BASE] >> 16)])
    w[7] += 1 << 16
    format_.set_count(w, ROOT_BASE, 1)
    format_.put_block(w, ROOT_BASE, 0, lblk)


def _fill_node(tx: Handle, new: memoryview, pairs: memoryview) -> None:
    """Make a new block a node that holds ``pairs``."""
    format_.initialize_node(new, tx.geometry.metadata_csum)
    room = new[NODE_BASE]
    new[NODE_BASE : NODE_BASE + len(pairs)] = pairs
    new[NODE_BASE] = room | len(pairs) // 2 << 16


def _split_leaf(tx: Handle, directory: Inode, path: list[Step], number: int, version: int) -> None:
    """Move the names with the higher hashes, about half of the bytes, from a full leaf to a new one.

    Raises:
        Corrupt: a name's hash is outside the leaf's range, so that the halves would be out of order.
    """
    geometry = tx.geometry
    data = bytes(dirblocks.entries_block(tx, directory, number))
    offsets, names, _, _ = dirblocks.live(directory, number, data, 0, dirblocks.limit_of(geometry))
    seed = geometry.hash_seed
    majors = [dirhash(name, version, seed)[0] for name in names]
    order = sorted(range(len(majors)), key=majors.__getitem__)
    hashes = [majors[i] for i in order]
    check_range(directory, number, path, hashes)
    split = _split_point([len(names[i]) + 11 & ~3 for i in order], geometry.block_size)
    if not split:
        raise Corrupt(
            CorruptKind.DIRECTORY_LEAF, f"{dirblocks.where(directory, number)}: no room, and {len(names)} names"
        )
    continued = hashes[split] == hashes[split - 1]
    lblk, new_number, new = dirblocks.append(tx, directory)
    dirblocks.fill(tx, new_number, new, [_piece(data, offsets[i], len(names[i])) for i in order[split:]])
    stay = sorted(order[:split])
    old = dirblocks.writable(tx, directory, number)
    dirblocks.fill(tx, number, old, [_piece(data, offsets[i], len(names[i])) for i in stay])
    step = path[-1]
    w = _words(tx, directory, step.number)
    format_.insert(w, step.base, step.at + 1, hashes[split] + continued, lblk)


def check_range(directory: Inode, number: int, path: list[Step], hashes: list[int]) -> None:
    """Check that the sorted hashes of a leaf's names belong to the leaf that ``path`` leads to."""
    if hashes:
        bound = following(path)
        if hashes[0] < first_hash(path) & ~1 or (bound is not None and hashes[-1] >= bound):
            raise Corrupt(
                CorruptKind.DIRECTORY_LEAF,
                f"{dirblocks.where(directory, number)}: hashes {hashes[0]:#x}..{hashes[-1]:#x} are not all in "
                f"{first_hash(path):#x}..{bound or 1 << 32:#x}",
            )


def _split_point(sizes: list[int], block_size: int) -> int:
    """Return how many entries, in the order of hashes, stay in the leaf.

    The others take about half a block at most; if all entries fit into that, half of the entries stay.
    """
    half = block_size // 2
    moved = 0
    for i in range(len(sizes) - 1, -1, -1):
        if moved + sizes[i] // 2 > half:
            return i + 1
        moved += sizes[i]
    return len(sizes) // 2


def _piece(data: bytes, offset: int, name_len: int) -> bytes:
    """Return the bytes of an entry without its slack."""
    size = name_len + 11 & ~3
    return data[offset : offset + 4] + size.to_bytes(2, "little") + data[offset + 6 : offset + size]


def convert(tx: Handle, directory: Inode) -> None:
    """Convert a linear directory of one block to an indexed one.

    The names move to a leaf, and the block becomes the root.
    """
    geometry = tx.geometry
    number, content, dotdot = dirblocks.dots(tx, directory)
    data = bytes(content)
    w = memoryview(data).cast("I")
    start = dotdot + (w[dotdot // 4 + 1] & 0xFFFF)
    offsets, names, _, _ = dirblocks.live(directory, number, data, start, dirblocks.limit_of(geometry))
    lblk, leaf, block = dirblocks.append(tx, directory)
    pieces = [_piece(data, offset, len(name)) for offset, name in zip(offsets, names, strict=True)]
    dirblocks.fill(tx, leaf, block, pieces)
    first = dirblocks.writable(tx, directory, number)
    tx.caches[Hints].forget_entries(number)
    first[:] = bytes(len(first))
    first[:9] = dirent.pack_entry(w[0], 12, b".", data[7])
    first[12:22] = dirent.pack_entry(w[dotdot // 4], geometry.block_size - 12, b"..", data[dotdot + 7])
    version = geometry.hash_version
    format_.initialize_root(first.cast("I"), version if version <= TEA else version - 3, geometry.metadata_csum, lblk)
    directory.flags |= EXT4_INDEX_FL
