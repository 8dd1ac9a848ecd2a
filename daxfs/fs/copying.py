"""Copies from file to file within the pool, by one copy from memory to memory.

A hole in the source takes no blocks in the target: the target has or gets a hole there. A copy is cut into pieces. A
piece is a large run of data, or small runs that follow each other in the file and are gathered, or a hole. It becomes a
write, a punched hole or an extension of the file, in handles of its own. Errors and their order are those of
``generic_copy_file_checks`` (fs/read_write.c).
"""

from __future__ import annotations

import errno
from itertools import islice

from daxfs.errors import FsError
from daxfs.ext4.inode import EXT4_IMMUTABLE_FL
from daxfs.fs import appends, badmemory, data, datalog, ranges, truncating
from daxfs.fs.change import Change
from daxfs.fs.nodes import Node
from daxfs.fs.openfile import OpenFile
from daxfs.fs.steps import Steps, finish
from daxfs.fs.volume import Volume
from daxfs.structures import inodes

HANDLES_PER_STEP = 2
"""How often a step changes the metadata of the target (`data.write_pieces`)."""
COST_OF_PIECE = 32 << 10
"""The number of bytes that are copied in the time that a piece takes besides."""
GATHERED = 1 << 20
"""The most bytes of several runs that are gathered in DRAM, so that the target gets blocks for all of them at once."""


def copy_range(
    volume: Volume, source: OpenFile, source_offset: int, target: OpenFile, target_offset: int, length: int
) -> Steps[int]:
    """Copy up to ``length`` bytes, not past the source's EOF; the target is extended. Return the number of bytes.

    Raises:
        FsError: EINVAL (negative numbers; both ranges overlap in one file), EISDIR, EBADF (not open
            for it, or for appending), EPERM, EROFS, EFBIG; ENOSPC only if nothing was copied.
    """
    for file in (source, target):
        ranges.require_regular(inodes.read(volume.view, file.ino))
    if not source.readable or not target.writable or target.append:
        raise FsError(errno.EBADF)
    if inodes.read(volume.view, target.ino).flags & EXT4_IMMUTABLE_FL:
        raise FsError(errno.EPERM)
    if min(source_offset, target_offset, length) < 0:
        raise FsError(errno.EINVAL)
    limit = volume.max_size(target.ino)
    if target_offset >= limit:
        raise FsError(errno.EFBIG)
    length = max(min(length, source.node.size - source_offset, limit - target_offset), 0)
    if source.ino == target.ino and abs(source_offset - target_offset) < length:
        raise FsError(errno.EINVAL)
    volume.writable()
    if not length:
        return 0
    data.prepare(volume, target, target_offset)
    done = yield from copy(volume, source, source_offset, target, target_offset, length)
    target.node.overwritten()
    if source.node.atime_due:
        source.node.accessed()
    return done


def copy(
    volume: Volume, source: OpenFile, source_offset: int, target: OpenFile, target_offset: int, length: int
) -> Steps[int]:
    """Copy as `copy_range`, which has made the checks. A part is done at each step, so it can be shortened."""
    if volume.tiers is not None:
        volume.tiers.require_memory(volume.view, target.ino, target_offset, target_offset + length)
    for node in (source.node, target.node):
        if node.map is None:
            data.load_map(volume, node)
    done = 0
    room = ranges.BYTES_PER_STEP
    while done < length:
        try:
            copied, cost = copy_piece(
                volume, source.node, source_offset + done, target, target_offset + done, length - done
            )
            done += copied
            room -= cost
            if room <= 0 and done < length:
                yield
                room = ranges.BYTES_PER_STEP
        except FsError as error:
            if done and data.shortens(error):
                break
            raise
    return done


def copy_piece(volume: Volume, node: Node, source: int, target: OpenFile, offset: int, length: int) -> tuple[int, int]:
    """Copy of the data or the hole that begins at ``source`` what one step can.

    Returns:
        The number of bytes, and what that cost, as the number of bytes that are copied in the same time.
    """
    datalog.store_home(volume, node)
    parts, hole = find_data(volume, node, source, length)
    if not parts:
        return put_hole(volume, target, offset, hole), ranges.BYTES_PER_STEP
    content = parts[0] if len(parts) == 1 else b"".join(parts)
    volume.finish_copy()
    cost = COST_OF_PIECE * len(parts)
    if data.is_written_run(target.node, offset, offset + len(content)):
        written = data.write(volume, target, offset, content)
        return written, written + cost
    return data.write_slowly(volume, target, offset, content, HANDLES_PER_STEP), ranges.BYTES_PER_STEP


def find_data(volume: Volume, node: Node, begin: int, length: int) -> tuple[list[memoryview], int]:
    """Return the data that begins at ``begin``, or how long the hole is that begins there.

    Returns:
        The memory of the data, which ends at ``length``, at a hole, before bad memory, or when there is enough for one
        step; the length of the hole if there is no data.
    """
    parts: list[memoryview] = []
    reached, room = begin, ranges.BYTES_PER_STEP
    for first, end, delta, unwritten in data.pieces(volume, node, begin, begin + length):
        if unwritten:
            continue
        if first > reached:
            return parts, first - begin
        if volume.tiers is not None and volume.tiers.holds(end + delta - 1):
            if parts:
                break
            parts.append(memoryview(data.gather(volume, node, first, min(end - first, room, GATHERED))))
            break
        stop = badmemory.good_end(volume, first, min(end, first + room), delta)
        if stop == first:
            if parts:
                break
            raise badmemory.error(volume, node, first)
        parts.append(volume.pool.memory[first + delta : stop + delta])
        reached, room = stop, min(room, GATHERED) - (stop - first)
        if stop < end or room <= 0:
            break
    return parts, length


def put_hole(volume: Volume, file: OpenFile, offset: int, length: int) -> int:
    """Make the range, or as much of it as one step can, read as zeros; return the length of that part.

    The file reaches at least the end of the part.
    """
    node = file.node
    end = offset + length
    inside = min(end, node.size)
    if offset < inside:
        found = list(islice(data.pieces(volume, node, offset, inside), truncating.BLOCKS_PER_CUT))
        if len(found) == truncating.BLOCKS_PER_CUT:
            end = inside = found[-1][1]
        if not all(unwritten for _, _, _, unwritten in found):
            finish(ranges.punch(volume, file, offset, inside - offset))
    if end > node.size:
        extend(volume, node, end)
    return end - offset


def extend(volume: Volume, node: Node, size: int) -> None:
    """Extend the file by a hole."""
    appends.end_preallocation(volume, node.ino)
    if size > volume.large_file_from:
        volume.allow_large_files()
    with volume.handle(data.CREDITS_PIECE) as tx, Change(volume, tx, node.ino) as change:
        data.zero_tail(volume, tx, change.inode, change.inode.size)
        change.inode.size = size
