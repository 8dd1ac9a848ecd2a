"""Block-mapped files, as ext2 and ext3 wrote them: 12 direct pointers, then single, double and triple indirect blocks.

`mapping` calls this module for inodes without ``EXT4_EXTENTS_FL``. It has the same functions as `extents`, with the
same meaning. Block-mapped files have no unwritten blocks: EOPNOTSUPP. Pointers have 32 bits. Indirect blocks, here
called index blocks, have no checksum; so each pointer is checked to lie in the pool and outside the groups' metadata.
Index blocks are metadata, allocated with the first block below them and freed with the last. Functions that take a
``tx`` need an ``inode`` from ``inodes.edit`` of the same handle.

Sources: ``fs/ext4/indirect.c``, Documentation/filesystems/ext4/blockmap.rst.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.ext4.extent import Extent
from daxfs.ext4.inode import EXT4_EXTENTS_FL, EXT4_RESIZE_INO
from daxfs.runs import BlockRun
from daxfs.structures import blocks, inodes, metadata_zone
from daxfs.structures.extent_tree import MAX_BLOCKS, ROOT_WORDS
from daxfs.structures.validated_roots import ValidatedRoots

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View
    from daxfs.structures.blocks import GroupBound
    from daxfs.structures.inodes import Inode

    Pointers = np.ndarray[tuple[int], np.dtype[np.uint32]]

DIRECT = 12
LEVELS = 4
"""The pointer areas of an inode: direct, single, double and triple indirect."""
MAX_PBLK = 0xFFFFFFFF
UNREADABLE = 0xFFFFFFFF
"""What a reader finds in the place of a wrong pointer: it lies in no pool, so whoever follows it meets the damage. The
pointers beside it can be read."""


class _Roots(ValidatedRoots):
    """The validated roots of block maps, each the 15 pointers of an inode."""

    __slots__ = ()


def _route(view: View, lblk: int) -> tuple[int, ...]:
    """Return the slots that lead to ``lblk``: one in the inode, then one in each index block on the way.

    Raises:
        FsError: EFBIG when no pointer leads to ``lblk``.
    """
    if lblk < DIRECT:
        return (lblk,)
    bits = view.geometry.block_bits - 2
    mask = (1 << bits) - 1
    rest = lblk - DIRECT
    for depth in range(1, LEVELS):
        if rest < 1 << bits * depth:
            slots = tuple(rest >> bits * level & mask for level in range(depth - 1, -1, -1))
            return (DIRECT - 1 + depth, *slots)
        rest -= 1 << bits * depth
    raise FsError(errno.EFBIG, f"block {lblk} is past the last block that a block-mapped file can have")


def _area(view: View, depth: int) -> int:
    """Return the first logical block of the pointer area of ``depth``."""
    bits = view.geometry.block_bits - 2
    return 0 if not depth else DIRECT + sum(1 << bits * level for level in range(1, depth))


def _check_pointers(view: View, inode: Inode, pointers: Pointers, where: str) -> None:
    """Check that all pointers that are set lie in the pool and outside the groups' metadata."""
    used = pointers[pointers != 0]
    if not used.size:
        return
    if int(used.max()) >= view.geometry.blocks_count:
        raise Corrupt(
            CorruptKind.BLOCK_POINTER,
            f"inode {inode.number}, {where}: {used.max()} of {view.geometry.blocks_count} blocks",
        )
    if inode.number == EXT4_RESIZE_INO:
        return
    starts = used.astype(np.int64)
    at = metadata_zone.first_overlap(view, inode.number, starts, starts + 1)
    if at is not None:
        raise Corrupt(
            CorruptKind.BLOCK_POINTER, f"inode {inode.number}, {where}: {used[at]} lies in a group's metadata"
        )


def _top(view: View, inode: Inode) -> memoryview:
    """Return the 15 pointers in the inode, checked."""
    w = inode.words[ROOT_WORDS]
    roots = view.caches[_Roots]
    if not roots.holds(inode.number, w):
        _check_pointers(view, inode, np.frombuffer(w, "<u4"), "the inode's pointers")
        roots.put(inode.number, w)
    return w


def _index(view: View, inode: Inode, number: int) -> memoryview:
    """Return the pointers in an index block; they are checked if the block's content is new."""
    return view.verified(number, _check_index, view, inode, number).cast("I")


def _check_index(view: View, inode: Inode, number: int, content: memoryview) -> None:
    _check_pointers(view, inode, np.frombuffer(content, "<u4"), f"index block {number}")


def _readable_top(view: View, inode: Inode) -> memoryview:
    """Return the 15 pointers in the inode for a reader: `_top`, with `UNREADABLE` in the place of wrong pointers."""
    try:
        return _top(view, inode)
    except Corrupt:
        return _marked(view, inode, inode.words[ROOT_WORDS])


def _readable_index(view: View, inode: Inode, number: int) -> memoryview:
    """Return the pointers in an index block as `_readable_top` does."""
    try:
        return _index(view, inode, number)
    except Corrupt:
        return _marked(view, inode, view.block(number).cast("I"))


def _marked(view: View, inode: Inode, w: memoryview) -> memoryview:
    """Return a copy of pointers with `UNREADABLE` in the place of those that lie outside the pool or over metadata."""
    pointers = np.frombuffer(w, "<u4").astype(np.uint32)
    pointers[pointers >= view.geometry.blocks_count] = UNREADABLE
    for slot in np.flatnonzero((pointers != 0) & (pointers != UNREADABLE)).tolist():
        start = pointers[slot : slot + 1].astype(np.int64)
        if metadata_zone.first_overlap(view, inode.number, start, start + 1) is not None:
            pointers[slot] = UNREADABLE
    return memoryview(pointers.tobytes()).cast("I")


def _run_length(w: memoryview, slot: int, end: int) -> int:
    """Return how many slots from ``slot`` on, before ``end``, hold consecutive blocks; or zeros, if the first does."""
    first = w[slot]
    step = 1 if first else 0
    if slot + 1 >= end or w[slot + 1] != first + step:
        return 1
    part = np.frombuffer(w, "<u4")[slot:end].astype(np.int64)
    breaks = np.flatnonzero(np.diff(part) != step)
    return int(breaks[0]) + 1 if breaks.size else end - slot


# Reading


def lookup(view: View, inode: Inode, lblk: int) -> Extent:
    """Return the run or hole (``pblk`` 0) at ``lblk``, up to its end or to the end of the pointers' index block."""
    route = _route(view, lblk)
    w, missing = _follow(view, inode, route)
    if missing:
        depth = len(route) - 1
        span = 1 << (view.geometry.block_bits - 2) * missing
        return Extent(lblk, 0, span - ((lblk - _area(view, depth)) & (span - 1)), False)
    slot = route[-1]
    length = _run_length(w, slot, len(w) if len(route) > 1 else DIRECT)
    pblk = w[slot]
    if pblk and pblk + length > view.geometry.blocks_count:
        raise Corrupt(CorruptKind.BLOCK_POINTER, f"inode {inode.number}, block {lblk}: {length} blocks on {pblk}")
    return Extent(lblk, pblk, length, False)


def _follow(view: View, inode: Inode, route: tuple[int, ...]) -> tuple[memoryview, int]:
    """Follow a route, and return the pointers that its last slot belongs to, and 0.

    If an index block is missing: return the pointers where the route breaks off, and how many index blocks are missing.
    """
    w = _readable_top(view, inode)
    for level, slot in enumerate(route[:-1]):
        number = w[slot]
        if not number:
            return w, len(route) - 1 - level
        w = _readable_index(view, inode, number)
    return w, 0


def _pointer(view: View, inode: Inode, lblk: int) -> int:
    """Return the physical block of ``lblk``; 0 if it is not mapped."""
    route = _route(view, lblk)
    w, missing = _follow(view, inode, route)
    return 0 if missing else w[route[-1]]


class _Walk:
    """A walk over the pointers of the blocks ``first`` to ``last``, in order. A run ends where an index block ends."""

    def __init__(self, view: View, inode: Inode, first: int, last: int) -> None:
        self.view = view
        self.inode = inode
        self.first = first
        self.last = last
        self.budget = view.geometry.blocks_count  # no file has more; so a walk through blocks used twice ends

    def runs(self) -> Iterator[Extent]:
        w = _readable_top(self.view, self.inode)
        yield from self._slots(w, 0, DIRECT, 0, 0)
        for depth in range(1, LEVELS):
            slot = DIRECT - 1 + depth
            yield from self._slots(w, slot, slot + 1, depth, _area(self.view, depth))

    def _slots(self, w: memoryview, slot: int, end: int, depth: int, origin: int) -> Iterator[Extent]:
        """Walk the slots [slot, end) of one block.

        The first slot leads to logical block ``origin``; ``depth`` index blocks lie between.
        """
        shift = (self.view.geometry.block_bits - 2) * depth
        origin -= slot << shift
        slot = max(slot, self.first - origin >> shift)
        while slot < end:
            lblk = origin + (slot << shift)
            if lblk > self.last:
                return
            number = w[slot]
            length = 1 if number and depth else _run_length(w, slot, end)
            if number:
                self._count(number, length, lblk)
                if depth:
                    below = _readable_index(self.view, self.inode, number)
                    yield from self._slots(below, 0, len(below), depth - 1, lblk)
                else:
                    yield Extent(lblk, number, length, False)
            slot += length

    def _count(self, number: int, length: int, lblk: int) -> None:
        if number + length > self.view.geometry.blocks_count:
            raise Corrupt(
                CorruptKind.BLOCK_POINTER, f"inode {self.inode.number}, block {lblk}: {length} blocks on {number}"
            )
        self.budget -= length
        if self.budget < 0:
            raise Corrupt(CorruptKind.BLOCK_POINTERS, f"inode {self.inode.number} maps more blocks than there are")


def walk(view: View, inode: Inode, first: int = 0, last: int | None = None) -> Iterator[Extent]:
    """Yield the mapped runs of the blocks ``first`` to ``last`` (included; None: all), in order, trimmed to them."""
    last = 0xFFFFFFFF if last is None else last
    held: Extent | None = None
    for lblk, pblk, length, _ in _Walk(view, inode, first, last).runs():
        begin, end = max(lblk, first), min(lblk + length, last + 1)
        pblk += begin - lblk
        if held is not None and held.lblk + held.length == begin and held.pblk + held.length == pblk:
            held = Extent(held.lblk, held.pblk, held.length + end - begin, False)
            continue
        if held is not None:
            yield held
        held = Extent(begin, pblk, end - begin, False)
    if held is not None:
        yield held


def runs(view: View, inode: Inode, first: int = 0, last: int | None = None, limit: int = 1024) -> list[Extent]:
    """Return at most ``limit`` runs of `walk` as a list."""
    return list(islice(walk(view, inode, first, last), limit))


def next_mapped(view: View, inode: Inode, lblk: int) -> Extent | None:
    """Return the first mapped run at or after ``lblk``, trimmed to begin there or later; None if there is none."""
    return next(walk(view, inode, lblk), None)


def search(view: View, inode: Inode, lblk: int, *, written: bool, limit: int) -> tuple[int, bool]:
    """Search the first block from ``lblk`` on that is mapped, or one that is not; see `mapping.search`."""
    if written:
        found = next_mapped(view, inode, lblk)
        return (MAX_BLOCKS, False) if found is None else (found.lblk, True)
    for count, run in enumerate(walk(view, inode, lblk)):
        if run.lblk > lblk:
            break
        if count == limit:
            return lblk, False
        lblk = run.lblk + run.length
    return lblk, True


# Changing


def nodes_within(view: View, ranges: Sequence[tuple[int, int]]) -> int:
    """Return the most pointer blocks that the ranges (first block, last block), which are in order, belong to."""
    per_block = view.block_size // 4
    count, reached = 2 * LEVELS, (ranges[0][0] - DIRECT) // per_block
    for first, last in ranges:
        low, high = (first - DIRECT) // per_block, (last - DIRECT) // per_block
        if low > reached:
            count += LEVELS
        count += high - max(low, reached)
        reached = high
    return count


def new_inode_map(tx: Handle, inode: Inode) -> None:  # noqa: ARG001
    """Give a new inode a map without blocks."""
    w = inode.words[ROOT_WORDS]
    for at in range(len(w)):
        w[at] = 0
    inode.flags &= ~EXT4_EXTENTS_FL


def _writable(tx: Handle, inode: Inode, number: int) -> memoryview:
    """Return the pointers in an index block, or in the inode (0), for changing."""
    return tx.edit(number).cast("I") if number else inode.words[ROOT_WORDS]


def _reach(tx: Handle, inode: Inode, route: tuple[int, ...], goal: int) -> int:
    """Return the index block (0: the inode) that holds the route's last slot; allocate the missing ones on the way."""
    number = 0
    w = _top(tx, inode)
    for slot in route[:-1]:
        below = w[slot]
        if not below:
            below, _ = _allocate(tx, inode, goal, 1)
            tx.create(below)
            _writable(tx, inode, number)[slot] = below
        number = below
        w = _index(tx, inode, number)
    return number


def _allocate(tx: Handle, inode: Inode, goal: int, want: int, align: int = 1) -> BlockRun:
    """Allocate blocks that a 32-bit pointer can name, and count them in ``i_blocks``."""
    run = blocks.allocate(tx, goal, want, align=align)
    if run.start + run.length - 1 > MAX_PBLK:
        blocks.free(tx, *run)
        raise FsError(errno.ENOSPC, f"inode {inode.number} is block-mapped: no free block has a number of 32 bits")
    inodes.add_blocks(inode, run.length, tx.geometry)
    return run


def insert(tx: Handle, inode: Inode, extent: Extent) -> None:
    """Map blocks that the caller owns into a hole.

    The function adds new index blocks to ``i_blocks``; the caller adds the extent's own blocks.

    Raises:
        FsError: EEXIST when a block of the range is mapped, EOPNOTSUPP for unwritten ones, EFBIG, ENOSPC.
    """
    lblk, pblk, length, unwritten = extent
    if unwritten:
        raise FsError(errno.EOPNOTSUPP, f"inode {inode.number} is block-mapped: it can't have unwritten blocks")
    if pblk + length - 1 > MAX_PBLK:
        raise FsError(errno.EFBIG, f"inode {inode.number} is block-mapped: block {pblk} does not fit in its pointers")
    while length:
        route = _route(tx, lblk)
        number = _reach(tx, inode, route, pblk)
        w = _writable(tx, inode, number)
        slot = route[-1]
        count = min(length, (len(w) if number else DIRECT) - slot)
        for at in range(count):
            if w[slot + at]:
                raise FsError(errno.EEXIST, f"inode {inode.number}: block {lblk + at} is mapped")
            w[slot + at] = pblk + at
        lblk, pblk, length = lblk + count, pblk + count, length - count


def allocate(
    tx: Handle, inode: Inode, lblk: int, want: int, *, unwritten: bool = False, goal: int = 0, align: int = 1
) -> Extent:
    """Allocate up to ``want`` blocks for the hole at ``lblk`` and map them as one run; see `mapping.allocate`."""
    if unwritten:
        raise FsError(errno.EOPNOTSUPP, f"inode {inode.number} is block-mapped: it can't have unwritten blocks")
    geometry = tx.geometry
    route = _route(tx, lblk)
    slot = route[-1]
    before = _pointer(tx, inode, lblk - 1) if lblk else 0
    near = before + 1 if before else goal or geometry.first_block(geometry.group_of_inode(inode.number))
    near = min(near, geometry.blocks_count - 1)
    number = _reach(tx, inode, route, near)
    w = _writable(tx, inode, number)
    if w[slot]:
        raise FsError(errno.EEXIST, f"inode {inode.number}: block {lblk} is mapped")
    want = min(want, _run_length(w, slot, len(w) if number else DIRECT))
    start, count = _allocate(tx, inode, near, want, align)
    for at in range(count):
        w[slot + at] = start + at
    if not number:
        tx.caches[_Roots].put(inode.number, w)
    return Extent(lblk, start, count, False)


def reallocate(tx: Handle, inode: Inode, first: int, last: int, groups: GroupBound, *, align: int = 1) -> list[Extent]:
    """Put new blocks in the place of ``first`` to ``last``, and free what is mapped there; see `mapping.reallocate`."""
    remove(tx, inode, first, last)
    found: list[Extent] = []
    while first <= last:
        found.append(allocate(tx, inode, first, last + 1 - first, align=align))
        groups.add(tx, found[-1].pblk)
        first += found[-1].length
        align = 1
    return found


def replace(tx: Handle, inode: Inode, first: int, last: int, new: list[Extent], *, metadata: bool = False) -> None:
    """Put ``new`` in the place of ``first`` to ``last``, and free what is mapped there; see `mapping.replace`.

    If just the blocks of ``new`` are mapped there, their pointers change in place, and no index block comes or goes.
    """
    old = runs(tx, inode, first, last, last + 1 - first)
    if _positions(old) != _positions(new):
        remove(tx, inode, first, last, metadata=metadata)
        for run in new:
            insert(tx, inode, run)
        return
    for lblk, pblk, length, _ in new:
        if pblk + length - 1 > MAX_PBLK:
            raise FsError(errno.EFBIG, f"inode {inode.number} is block-mapped: {pblk} does not fit in its pointers")
        _overwrite(tx, inode, lblk, pblk, length)
    for _, pblk, length, _ in old:
        blocks.free(tx, pblk, length, metadata=metadata)
        inodes.add_blocks(inode, -length, tx.geometry)


def _positions(found: list[Extent]) -> list[tuple[int, int]]:
    """Return the logical blocks of runs as few ranges [first, end)."""
    ranges: list[tuple[int, int]] = []
    for lblk, _, length, _ in found:
        if ranges and ranges[-1][1] == lblk:
            ranges[-1] = ranges[-1][0], lblk + length
        else:
            ranges.append((lblk, lblk + length))
    return ranges


def _overwrite(tx: Handle, inode: Inode, lblk: int, pblk: int, length: int) -> None:
    """Have the mapped blocks from ``lblk`` on lie at ``pblk``."""
    while length:
        route = _route(tx, lblk)
        number = 0
        w = _top(tx, inode)
        for slot in route[:-1]:
            number = w[slot]
            w = _index(tx, inode, number)
        w = _writable(tx, inode, number)
        slot = route[-1]
        count = min(length, (len(w) if number else DIRECT) - slot)
        for at in range(count):
            w[slot + at] = pblk + at
        lblk, pblk, length = lblk + count, pblk + count, length - count


def mark_written(tx: Handle, inode: Inode, lblk: int, length: int) -> None:
    """Do nothing: block-mapped files have no unwritten blocks."""


def remove(
    tx: Handle, inode: Inode, first: int, last: int | None, *, metadata: bool = False, limit: int | None = None
) -> bool:
    """Unmap the blocks ``first`` to ``last`` (included; None: to the end) and free them, from the end to the front.

    Arguments and result are those of `mapping.remove`. An index block is freed with the last block below it.
    """
    last = 0xFFFFFFFF if last is None else last
    return _Cut(tx, inode, first, last, metadata, limit).run()


class _Cut:
    """One step of removing the blocks ``first`` to ``last``; it ends when ``left`` runs and index blocks were freed."""

    def __init__(self, tx: Handle, inode: Inode, first: int, last: int, metadata: bool, limit: int | None) -> None:
        self.tx = tx
        self.inode = inode
        self.first = first
        self.last = last
        self.metadata = metadata
        self.left = tx.geometry.blocks_count if limit is None else max(limit, 1)
        self.reserved = tx.reserved_credits + blocks.RESERVED_PER_CALL if limit is not None else 1 << 62
        self.budget = tx.geometry.blocks_count

    def run(self) -> bool:
        w = _top(self.tx, self.inode)
        for depth in range(LEVELS - 1, 0, -1):
            slot = DIRECT - 1 + depth
            for at in self._slots(w, slot, slot + 1, depth, _area(self.tx, depth)):
                w[at] = 0
        for at in self._slots(w, 0, DIRECT, 0, 0):
            w[at] = 0
        return self.left > 0

    def _slots(self, w: memoryview, slot: int, end: int, depth: int, origin: int) -> list[int]:
        """Free the blocks that the slots [slot, end) lead to; return the slots that must be cleared."""
        shift = (self.tx.geometry.block_bits - 2) * depth
        origin -= slot << shift
        slot = max(slot, self.first - origin >> shift)
        end = min(end, (self.last - origin >> shift) + 1)
        if slot >= end:
            return []
        used = np.flatnonzero(np.frombuffer(w, "<u4")[slot:end]) + slot
        if not depth:
            return self._free_runs(w, used.tolist())
        cleared = []
        for at in reversed(used.tolist()):
            if self.left <= 0:
                break
            if self._below(w[at], depth, origin + (at << shift)):
                self._free(w[at], 1, metadata=True)
                cleared.append(at)
        return cleared

    def _below(self, number: int, depth: int, origin: int) -> bool:
        """Free the blocks in range that an index block leads to.

        Returns:
            True: no pointer is left, so the index block is freed by the caller and was not changed.
        """
        self.budget -= 1
        if self.budget < 0:
            raise Corrupt(CorruptKind.BLOCK_POINTERS, f"inode {self.inode.number} maps more blocks than there are")
        w = _index(self.tx, self.inode, number)
        cleared = self._slots(w, 0, len(w), depth - 1, origin)
        if len(cleared) == int(np.count_nonzero(np.frombuffer(w, "<u4"))):
            return True
        if cleared:
            w = _writable(self.tx, self.inode, number)
            for at in cleared:
                w[at] = 0
        return False

    def _free_runs(self, w: memoryview, used: list[int]) -> list[int]:
        """Free the blocks of the slots ``used``, run by run from the last; return the slots that must be cleared."""
        cleared: list[int] = []
        while used and self.left > 0:
            at = used.pop()
            start, count = w[at], 1
            cleared.append(at)
            while used and used[-1] == at - 1 and w[used[-1]] == start - 1:
                at = used.pop()
                start, count = start - 1, count + 1
                cleared.append(at)
            self._free(start, count, metadata=self.metadata)
        return cleared

    def _free(self, start: int, count: int, *, metadata: bool) -> None:
        if start + count > self.tx.geometry.blocks_count:
            raise Corrupt(CorruptKind.BLOCK_POINTER, f"inode {self.inode.number}: {count} blocks on {start}")
        blocks.free(self.tx, start, count, metadata=metadata)
        inodes.add_blocks(self.inode, -count, self.tx.geometry)
        self.left -= 1
        if self.tx.reserved_credits >= self.reserved:
            self.left = 0


# The index blocks


def own_blocks(view: View, inode: Inode, lblk: int, area: BlockRun, most: int) -> tuple[list[tuple[int, int]], int]:
    """Find the index blocks that lie in ``area``, on the way to ``most`` of the lowest; see `mapping.own_blocks`."""
    low, high = area.start, area.start + area.length
    bits = view.geometry.block_bits - 2
    found: dict[int, int] = {}
    lblk = max(lblk, DIRECT)
    end = _area(view, LEVELS)
    for _ in range(most):
        if lblk >= end:
            return [(where, number) for number, where in found.items()], MAX_BLOCKS
        route = _route(view, lblk)
        missing = len(route) - 1
        w = _top(view, inode)
        for slot in route[:-1]:
            number = w[slot]
            if not number:
                break
            if low <= number < high:
                found.setdefault(number, lblk)
            missing -= 1
            w = _index(view, inode, number)
        first = _area(view, len(route) - 1)
        shift = bits * max(missing, 1)
        lblk = first + ((lblk - first >> shift) + 1 << shift)
    return [(where, number) for number, where in found.items()], min(lblk, MAX_BLOCKS)


def move_own(tx: Handle, inode: Inode, lblk: int, number: int, target: int) -> bool:
    """Move the index block ``number``, on the way to ``lblk``, to the block ``target``; see `mapping.move_own`."""
    if target > MAX_PBLK:
        raise FsError(errno.ENOSPC, f"inode {inode.number} is block-mapped: no free block has a number of 32 bits")
    parent = 0
    w = _top(tx, inode)
    for slot in _route(tx, lblk)[:-1]:
        below = w[slot]
        if not below:
            return False
        content = _index(tx, inode, below)
        if below == number:
            tx.create(target).cast("I")[:] = content
            _writable(tx, inode, parent)[slot] = target
            blocks.free(tx, number, 1, metadata=True)
            return True
        parent, w = below, content
    return False
