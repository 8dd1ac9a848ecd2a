"""Ranges of a file: fallocate(2) in all modes that ext4 has, SEEK_DATA and SEEK_HOLE, and FIEMAP.

Work on blocks is cut into handles; between them the file is valid and holds what is done so far, as with ext4 after a
full pool or a power cut (docs/CRASH.md). Bytes at the unaligned edges of a range are zeroed in place, like an
overwrite. Errors and their order are those of ``vfs_fallocate`` (fs/open.c) and ``ext4_fallocate`` (fs/ext4/extents.c).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from daxfs.errors import FsError, MissingMemory
from daxfs.ext4.extent import EXT_UNWRITTEN_MAX_LEN, Extent
from daxfs.ext4.inode import EXT4_APPEND_FL, EXT4_EXTENTS_FL, EXT4_IMMUTABLE_FL
from daxfs.fs import appends, data, datalog, privileges, truncating
from daxfs.fs.change import Change
from daxfs.fs.nodes import END, Node
from daxfs.fs.notifiers import CREDITS_QUARANTINE
from daxfs.fs.openfile import OpenFile
from daxfs.fs.steps import Steps
from daxfs.fs.types import FileExtent
from daxfs.fs.volume import Volume
from daxfs.structures import extent_shift, extents, inodes, mapping
from daxfs.structures.blocksearch import CHUNK_BYTES
from daxfs.structures.extent_tree import MAX_BLOCKS
from daxfs.structures.inodes import Inode

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle

# include/uapi/linux/falloc.h
KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
COLLAPSE_RANGE = 0x08
ZERO_RANGE = 0x10
INSERT_RANGE = 0x20

PAGE = 4096
RUNS_PER_STEP = 8
LEAVES_PER_SEARCH = 8
"""Leaves of the extent tree that a step of a search looks at."""
BYTES_PER_STEP = 4 << 20
"""Bytes that one step zeroes or copies; a run counts as one page more."""
CREDITS_STEP = 128
"""Blocks that allocating so many runs, or converting extents of so many leaves, may change: bitmaps and descriptors,
leaves, splits up to the root, the inode. That suffices for `EXTENTS_PER_STEP` extents, since extents that are allocated
together lie in one group and fill whole leaves."""
EXTENTS_PER_STEP = 256
LOOKS_PER_STEP = 24
"""Leaves and holes that one step looks at, so that a step over blocks that need nothing ends soon, too."""
CREDITS_MOVE = 64 + CREDITS_QUARANTINE
"""Blocks that moving extents may change besides the nodes they are in: index nodes, a split at the border, a join."""
LEAVES_PER_MOVE = 64

# include/uapi/linux/fiemap.h
FIEMAP_EXTENT_LAST = 0x0001
FIEMAP_EXTENT_UNWRITTEN = 0x0800
FIEMAP_EXTENT_MERGED = 0x1000

Mode = Callable[[Volume, OpenFile, int, int], Steps[None]]


# The operations


def fallocate(volume: Volume, file: OpenFile, mode: int, offset: int, length: int) -> Steps[None]:
    """Allocate, free, zero or move the bytes [offset, offset + length), as fallocate(2) does.

    Raises:
        FsError: EINVAL (offset or length; a range to collapse or insert not of whole blocks or up to the end),
            EOPNOTSUPP (mode; a block-mapped file in any mode but PUNCH_HOLE), EBADF, EPERM, EROFS, EFBIG, EISDIR,
            ENOSPC: what was allocated until then stays.
    """
    if offset < 0 or length <= 0:
        raise FsError(errno.EINVAL)
    run = MODES.get(mode)
    if run is None:
        raise FsError(errno.EOPNOTSUPP)
    if not file.writable:
        raise FsError(errno.EBADF)
    volume.writable()
    inode = inodes.read(volume.view, file.ino)
    if inode.flags & EXT4_IMMUTABLE_FL or (inode.flags & EXT4_APPEND_FL and mode & ~KEEP_SIZE):
        raise FsError(errno.EPERM)
    require_regular(inode)
    if offset + length > volume.geometry.max_extent_file_size:
        raise FsError(errno.EFBIG)
    if not inode.flags & EXT4_EXTENTS_FL and not mode & PUNCH_HOLE:
        raise FsError(errno.EOPNOTSUPP)
    node = file.node
    if mode == COLLAPSE_RANGE:
        refuse_collapse(volume, node, offset, length)
    elif mode == INSERT_RANGE:
        refuse_insert(volume, node, offset, length)
    if node.window:
        appends.end(volume, node)
    if volume.tiers is not None:
        _bring_edges(volume, node, offset, offset + length)
    if not node.unprivileged:
        privileges.drop_privileges(volume, node, file.caller)
    yield from run(volume, file, offset, length)


def _bring_edges(volume: Volume, node: Node, begin: int, end: int) -> None:
    """Require the memory of all bytes that may be zeroed in place: of the blocks at the edges, and that EOF is in.

    Clients store to a leased file meanwhile, so all of its range is zeroed in place.

    Raises:
        OnStorage: some lie on storage.
    """
    tiers, view, ino = volume.tiers, volume.view, node.ino
    assert tiers is not None
    if node.grants is not None:
        tiers.require_memory(view, ino, begin, end)
    for offset in (begin, end - 1, node.size):
        tiers.require_memory(view, ino, offset & -volume.block_size, offset + 1)


def refuse_collapse(volume: Volume, node: Node, offset: int, length: int) -> None:
    """Refuse to collapse what is not of whole blocks, or reaches the end of the file (EINVAL)."""
    if (offset | length) & (volume.block_size - 1) or offset + length >= node.size:
        raise FsError(errno.EINVAL)


def refuse_insert(volume: Volume, node: Node, offset: int, length: int) -> None:
    """Refuse to insert what is not of whole blocks (EINVAL), makes the file too long (EFBIG) or comes past its end."""
    if (offset | length) & (volume.block_size - 1):
        raise FsError(errno.EINVAL)
    if node.size + length > volume.geometry.max_extent_file_size:
        raise FsError(errno.EFBIG)
    if offset >= node.size:
        raise FsError(errno.EINVAL)


def require_regular(inode: Inode) -> None:
    """Refuse a directory (EISDIR), the only other thing that can be open."""
    if not inode.is_regular:
        raise FsError(errno.EISDIR)


def allocate(volume: Volume, file: OpenFile, offset: int, length: int) -> Steps[None]:
    """Allocate blocks for the whole range, unwritten where there were none; the file reaches at least its end."""
    return provide(volume, file, offset, length, offset + length)


def allocate_past_eof(volume: Volume, file: OpenFile, offset: int, length: int) -> Steps[None]:
    """Allocate as `allocate` does, but keep the size, so that blocks may lie past EOF."""
    return provide(volume, file, offset, length, 0)


def zero(volume: Volume, file: OpenFile, offset: int, length: int) -> Steps[None]:
    """Make the range read as zeros and have blocks; the file reaches at least its end."""
    datalog.settle(volume, file.ino, offset, offset + length)  # as in `punch`
    yield from provide(volume, file, offset, length, offset + length)
    yield from blank(volume, file, offset, offset + length)


def zero_within(volume: Volume, file: OpenFile, offset: int, length: int) -> Steps[None]:
    """Zero as `zero` does, but keep the size."""
    datalog.settle(volume, file.ino, offset, offset + length)
    yield from provide(volume, file, offset, length, 0)
    yield from blank(volume, file, offset, offset + length)


def punch(volume: Volume, file: OpenFile, offset: int, length: int) -> Steps[None]:
    """Free the whole blocks of the range and zero the rest of it.

    A range that reaches past EOF ends with the page that EOF is in (ext4_punch_hole): the last block is freed whole,
    and what is reserved after it stays.
    """
    size = file.node.size
    end = offset + length
    if end > size:
        end = size + -size % PAGE if offset < size else offset
    first, stop = whole_blocks(volume, offset, end)
    # Before the first handle: a commit between it and the zeroing would make new times durable without the zeros.
    datalog.settle(volume, file.ino, offset, end)
    try:
        while not volume.retrying(punch_step, file.node, first, stop):
            yield
    finally:
        file.node.moved(first << volume.block_bits, stop << volume.block_bits)
    zero_edges(volume, file, offset, end)


def collapse(volume: Volume, file: OpenFile, offset: int, length: int) -> None:
    """Remove the range from the file: what follows moves down, without a copy.

    This takes one transaction if it can hold the part of the tree that moves. Otherwise it takes several, and a crash
    between them leaves the file with its old size, the range punched, and a first part of what follows moved.
    """
    node = file.node
    first, stop = whole_blocks(volume, offset, offset + length)
    volume.notifier.end_preallocation(node.ino)
    datalog.store_home(volume, node)
    try:
        if fits(volume, node, first, stop):
            volume.retrying(collapse_at_once, node, first, stop)
        else:
            collapse_in_parts(volume, node, first, stop)
    finally:
        node.moved(0, END)
        commit_moves(volume)


def collapse_at_once(volume: Volume, node: Node, first: int, stop: int) -> None:
    """Collapse in one handle."""
    with volume.handle(move_credits(volume, node, first, stop)) as tx, Change(volume, tx, node.ino) as change:
        change.unmap(first, stop - 1)
        extent_shift.shift(tx, change.inode, stop, MAX_BLOCKS, first - stop)
        close_gap(volume, tx, change, first, stop)


def collapse_in_parts(volume: Volume, node: Node, first: int, stop: int) -> None:
    """Collapse in many handles."""
    while not volume.retrying(punch_step, node, first, stop):
        pass
    position = stop
    while position < MAX_BLOCKS:
        position = move_down(volume, node, position, stop - first)
    with volume.handle(CREDITS_MOVE) as tx, Change(volume, tx, node.ino) as change:
        close_gap(volume, tx, change, first, stop)


def close_gap(volume: Volume, tx: Handle, change: Change, first: int, stop: int) -> None:
    """Finish a `collapse` after everything has moved."""
    extent_shift.join_at(tx, change.inode, first)
    change.inode.size -= stop - first << volume.block_bits
    change.remaps()


def insert(volume: Volume, file: OpenFile, offset: int, length: int) -> None:
    """Insert a hole into the file: what lies from ``offset`` on moves up, without a copy.

    This takes one transaction, or several as for `collapse`; a crash between them leaves the file longer, a hole
    somewhere after ``offset``, and what follows it moved.
    """
    node = file.node
    first, stop = whole_blocks(volume, offset, offset + length)
    volume.notifier.end_preallocation(node.ino)
    if extents.mapped_end(volume.view, inodes.read(volume.view, node.ino)) + stop - first > MAX_BLOCKS:
        raise FsError(errno.EINVAL)
    if node.size + length > volume.large_file_from:
        volume.allow_large_files()
    datalog.store_home(volume, node)
    at_once = fits(volume, node, first, first)
    try:
        volume.retrying(begin_insert, node, first, stop, at_once)
        last = first - 1 if at_once else MAX_BLOCKS - 1
        while last >= first:
            last = move_up(volume, node, first, last, stop - first)
    finally:
        node.moved(0, END)
        commit_moves(volume)


def begin_insert(volume: Volume, node: Node, first: int, stop: int, at_once: bool) -> None:
    """Do all of `insert` that may fail, and the move if it is done ``at_once``."""
    credits = move_credits(volume, node, first, first) if at_once else CREDITS_MOVE
    with volume.handle(credits) as tx, Change(volume, tx, node.ino) as change:
        extent_shift.split_at(tx, change.inode, first)
        change.inode.size += stop - first << volume.block_bits
        if at_once:
            extent_shift.shift(tx, change.inode, first, MAX_BLOCKS, stop - first)
        change.remaps()


def at_once(operation: Callable[[Volume, OpenFile, int, int], None]) -> Mode:
    """Return the mode that does its work in one step: between its handles a reader would find bytes moved half-way."""

    def steps(volume: Volume, file: OpenFile, offset: int, length: int) -> Steps[None]:
        operation(volume, file, offset, length)
        yield from ()

    return steps


MODES: dict[int, Mode] = {
    0: allocate,
    KEEP_SIZE: allocate_past_eof,
    ZERO_RANGE: zero,
    ZERO_RANGE | KEEP_SIZE: zero_within,
    PUNCH_HOLE | KEEP_SIZE: punch,
    COLLAPSE_RANGE: at_once(collapse),
    INSERT_RANGE: at_once(insert),
}


# Steps


def provide(volume: Volume, file: OpenFile, offset: int, length: int, size: int) -> Steps[None]:
    """Allocate every block of the range that has none. The file reaches ``size``, as far as there are blocks."""
    if size > volume.large_file_from:
        volume.allow_large_files()
    if size > file.node.size:
        volume.notifier.end_preallocation(file.ino)
    lblk = offset >> volume.block_bits
    stop = (offset + length - 1 >> volume.block_bits) + 1
    while (lblk := volume.retrying(provide_step, file, lblk, stop, size)) < stop:
        yield


def provide_step(volume: Volume, file: OpenFile, lblk: int, stop: int, size: int) -> int:
    """Allocate for some holes in one handle; return the next block."""
    node = file.node
    looks = made = extents_made = 0
    with volume.handle(CREDITS_STEP, file.caller) as tx, Change(volume, tx, node.ino) as change:
        inode = change.inode
        while lblk < stop and looks < LOOKS_PER_STEP and made < RUNS_PER_STEP and extents_made < EXTENTS_PER_STEP:
            looks += 1
            run = mapping.lookup(tx, inode, lblk)
            if run.pblk:
                lblk = min(extents.mapped_until(tx, inode, lblk), stop)
                continue
            room = min(run.length, stop - lblk, longest(volume, lblk))
            try:
                align = volume.alignment(lblk, room)
                most = EXTENTS_PER_STEP - extents_made
                found = mapping.allocate_runs(tx, inode, lblk, room, most, unwritten=True, align=align)
            except FsError as error:
                # Missing memory may have met the allocation half-way: only the end of the handle undoes that.
                if error.errno != errno.ENOSPC or isinstance(error, MissingMemory) or not made:
                    raise
                break
            change.preallocates(found)
            made += 1
            extents_made += len(found)
            lblk = found[-1].lblk + found[-1].length
        reached = min(lblk << volume.block_bits, size)
        if reached > inode.size:
            data.zero_tail(volume, tx, inode, inode.size)
            inode.size = reached
    return lblk


def longest(volume: Volume, lblk: int) -> int:
    """Return the length in blocks of the longest unwritten extent from ``lblk`` on whose end is on a 2 MiB boundary."""
    chunk = max(CHUNK_BYTES >> volume.block_bits, 1)
    return (lblk + EXT_UNWRITTEN_MAX_LEN) // chunk * chunk - lblk


def blank(volume: Volume, file: OpenFile, begin: int, end: int) -> Steps[None]:
    """Make a range that has blocks read as zeros: whole blocks become unwritten, a leased file's are zeroed in place.

    Clients of a leased file go on storing into its blocks.
    """
    node = file.node
    if node.grants is not None:
        yield from zero_in_place(volume, node, begin, end)
        node.zeroed(begin, end)
        return
    lblk, stop = whole_blocks(volume, begin, end)
    while lblk < stop:
        lblk = volume.retrying(blank_step, file, lblk, stop)
        yield
    zero_edges(volume, file, begin, end)


def blank_step(volume: Volume, file: OpenFile, lblk: int, stop: int) -> int:
    """Make the extents of some leaves unwritten in one handle; return the next block."""
    with volume.handle(CREDITS_STEP, file.caller) as tx, Change(volume, tx, file.ino) as change:
        inode = change.inode
        stop = min(stop, extent_shift.leaves_after(tx, inode, lblk, RUNS_PER_STEP))
        runs = mapping.runs(tx, inode, lblk, stop - 1, limit=EXTENTS_PER_STEP)
        if len(runs) == EXTENTS_PER_STEP:
            stop = runs[-1].lblk + runs[-1].length
        mapping.mark_unwritten(tx, inode, lblk, stop - lblk)
        for run in runs:
            tx.unlog_data(run.pblk, run.length)
        change.preallocates(Extent(run.lblk, run.pblk, run.length, True) for run in runs)
    return stop


def punch_step(volume: Volume, node: Node, first: int, stop: int) -> bool:
    """Free some of the blocks [first, stop), the last ones first; return whether none is left. Times always change."""
    with volume.handle(truncating.CREDITS_CUT) as tx, Change(volume, tx, node.ino) as change:
        return first == stop or change.unmap(first, stop - 1, limit=truncating.BLOCKS_PER_CUT)


def fits(volume: Volume, node: Node, first: int, stop: int) -> bool:
    """Return whether one transaction can hold the removal of blocks [first, stop) and a move of all later ones."""
    return move_credits(volume, node, first, stop) <= volume.journal.capacity


def move_credits(volume: Volume, node: Node, first: int, stop: int) -> int:
    """Return how many blocks a move may change, with the bitmaps and descriptors that the commit changes for it."""
    inode = inodes.read(volume.view, node.ino)
    freed = sum(1 for _ in mapping.walk(volume.view, inode, first, stop - 1))
    return CREDITS_MOVE + extent_shift.nodes_from(volume.view, inode, first) + 2 * freed


def move_down(volume: Volume, node: Node, position: int, count: int) -> int:
    """Move the extents of some leaves, from ``position`` on, ``count`` blocks down; return where the next begins."""
    with volume.handle(CREDITS_MOVE + LEAVES_PER_MOVE) as tx, Change(volume, tx, node.ino) as change:
        end = extent_shift.leaves_after(tx, change.inode, position, LEAVES_PER_MOVE)
        extent_shift.shift(tx, change.inode, position, end - 1, -count)
        change.remaps()
    return end


def move_up(volume: Volume, node: Node, first: int, last: int, count: int) -> int:
    """Move the extents of some leaves, up to ``last``, ``count`` blocks up; return the last one that did not move."""
    with volume.handle(CREDITS_MOVE + LEAVES_PER_MOVE) as tx, Change(volume, tx, node.ino) as change:
        begin = max(extent_shift.leaves_before(tx, change.inode, last, LEAVES_PER_MOVE), first)
        extent_shift.shift(tx, change.inode, begin, last, count)
        change.remaps()
    return begin - 1


def commit_moves(volume: Volume) -> None:
    """Commit moved extents, so that after a crash none of the following writes is found at an old place."""
    if not volume.read_only:
        volume.commit()


def whole_blocks(volume: Volume, begin: int, end: int) -> tuple[int, int]:
    """Return the first block that lies wholly in the byte range, and the one after the last (the same if none does)."""
    first = begin + volume.block_size - 1 >> volume.block_bits
    return first, max(end >> volume.block_bits, first)


def zero_edges(volume: Volume, file: OpenFile, begin: int, end: int) -> None:
    """Zero those bytes of the range, if they are written, whose blocks are not wholly in it."""
    first, stop = whole_blocks(volume, begin, end)
    for low, high in ((begin, min(first << volume.block_bits, end)), (max(stop << volume.block_bits, begin), end)):
        zero_pieces(volume, file.node, low, high)


def zero_pieces(volume: Volume, node: Node, begin: int, end: int) -> None:
    """Zero those of the bytes [begin, end) that are written."""
    datalog.settle(volume, node.ino, begin, end)
    for at, to, delta, unwritten in data.pieces(volume, node, begin, end) if begin < end else ():
        if not unwritten:
            volume.pool.zero(at + delta, to - at)


def zero_in_place(volume: Volume, node: Node, begin: int, end: int) -> Steps[None]:
    """Zero those of the bytes [begin, end) that are written, however many they are."""
    while begin < end:
        datalog.settle(volume, node.ino, begin, end)
        room, position = BYTES_PER_STEP, end
        for at, to, delta, unwritten in data.pieces(volume, node, begin, end):
            if not unwritten:
                to = min(to, at + room)
                volume.pool.zero(at + delta, to - at)
                room -= to - at
            room -= PAGE
            if room <= 0:
                position = to
                break
        begin = position
        if begin < end:
            yield


# Search


def seek(volume: Volume, file: OpenFile, offset: int, whence: int) -> Steps[int]:
    """Return where data (SEEK_DATA) or a hole (SEEK_HOLE) begins, from ``offset`` on; EOF is a hole.

    Unwritten blocks are holes, as they are in ext4 when no page of them is dirty.

    Raises:
        FsError: ENXIO at or past EOF, or when no data follows; EINVAL for another ``whence``; EISDIR.
    """
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise FsError(errno.EINVAL)
    node = file.node
    for_data = whence == os.SEEK_DATA
    run = node.map.find(offset) if node.map is not None and 0 <= offset < node.size else None
    if run is not None and not run[3] and (for_data or run[1] >= node.size):
        return offset if for_data else node.size
    require_regular(inodes.read(volume.view, file.ino))
    if not 0 <= offset < node.size:
        raise FsError(errno.ENXIO)
    bits = volume.block_bits
    lblk = offset >> bits
    while True:
        inode = inodes.read(volume.view, file.ino)
        lblk, found = mapping.search(volume.view, inode, lblk, written=for_data, limit=LEAVES_PER_SEARCH)
        if found or lblk << bits >= node.size:
            break
        yield
    position = max(lblk << bits, offset)
    if position < node.size:
        return position
    if for_data:
        raise FsError(errno.ENXIO)
    return node.size


def fiemap(volume: Volume, ino: int, start: int, length: int, limit: int) -> list[FileExtent]:
    """Return the extents from byte ``start`` on, also past EOF: ``limit`` at most.

    The last extent of the file is marked as such; those of block-mapped files as merged from blocks.

    Raises:
        FsError: EINVAL for no bytes, EFBIG past the largest file size, EOPNOTSUPP where there are no blocks to map.
    """
    inode = inodes.read(volume.view, ino)
    if not inode.is_regular and not inode.is_dir:
        raise FsError(errno.EOPNOTSUPP)
    if length <= 0 or start < 0:
        raise FsError(errno.EINVAL)
    if start > volume.max_size(ino):
        raise FsError(errno.EFBIG)
    bits = volume.block_bits
    found = mapping.runs(volume.view, inode, start >> bits, min(start + length - 1 >> bits, MAX_BLOCKS - 1), limit)
    common = 0 if inode.flags & EXT4_EXTENTS_FL else FIEMAP_EXTENT_MERGED
    listed = [
        FileExtent(
            run.lblk << bits,
            run.pblk << bits,
            run.length << bits,
            common | (FIEMAP_EXTENT_UNWRITTEN if run.unwritten else 0),
        )
        for run in found
    ]
    if found and mapping.next_mapped(volume.view, inode, found[-1].lblk + found[-1].length) is None:
        listed[-1] = listed[-1]._replace(flags=listed[-1].flags | FIEMAP_EXTENT_LAST)
    return listed
