"""File data: reading, writing, fsync.

A read returns a view of the pool. A write is one copy into the pool, flushed, and durable at the next fence. An
overwrite of written blocks changes no metadata but the times, which wait for the commit. Every other write (into holes
or unwritten blocks, or past EOF) goes through `write_pieces`: some contiguous pieces in one handle, so that a full pool
leaves a short write and nothing half-done. New blocks are filled or zeroed before the handle that maps them can commit
(ordered mode).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from daxfs.errors import BadMemory, Corrupt, FsError, MissingMemory, OnStorage
from daxfs.ext4.inode import EXT4_APPEND_FL
from daxfs.fs import appends, badmemory, datalog
from daxfs.fs.change import Change
from daxfs.fs.filemap import MAX_RUNS, UNWRITTEN, FileMap, Run
from daxfs.fs.nodes import Node
from daxfs.fs.openfile import OpenFile
from daxfs.fs.privileges import drop_privileges
from daxfs.fs.steps import Steps
from daxfs.fs.types import ROOT_INO
from daxfs.fs.volume import Volume
from daxfs.structures import extents, inodes, mapping
from daxfs.structures.inodes import Inode
from daxfs.structures.mapping import Extent

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle

    Buffer = bytes | bytearray | memoryview

MANY_RUNS = 100
"""Runs from which on a map is made of all of them together."""
CREDITS_PIECE = 32
"""Blocks one piece of a write may change: a split at each level of the tree, bitmap, descriptor, inode, superblock."""
CREDITS_PIECES = 128
"""Blocks that writing so many pieces may change: bitmaps and descriptors for each look, leaves, splits as above."""
LOOKS_PER_HANDLE = 16
"""Holes, or runs of blocks, that a write fills or overwrites in one handle."""
PIECES_PER_HANDLE = 64
"""Pieces that it writes in one handle; the blocks for one hole, however many, lie in one group."""
BYTES_PER_READ = 256 << 10
"""Bytes that one step of a long read gathers."""
BYTES_AHEAD = 1 << 20
"""Bytes of a long read that are brought from storage at once."""


def load_map(volume: Volume, node: Node) -> FileMap | None:
    """Read the node's map from the extent tree; return None if it can't be kept: many runs, bad memory, or damage."""
    if node.scattered:
        return None
    inode = inodes.read(volume.view, node.ino)
    try:
        return _whole_map(volume, node, inode)
    except Corrupt:
        if volume.faults[0]:
            raise
        node.scattered = True  # an access meets the damage only where it lies
        return None


def _whole_map(volume: Volume, node: Node, inode: Inode) -> FileMap | None:
    # A file that alternates between punching and reading comes here each time: to give up must not cost a whole map.
    if mapping.has_more_than(volume.view, inode, MAX_RUNS):
        node.scattered = True
        return None
    bad, tiers = volume.pool.bad, volume.tiers
    memory_end = volume.nodes.memory_end
    if not bad and tiers is None and mapping.has_more_than(volume.view, inode, MANY_RUNS):
        mapped = FileMap.of_columns(extents.columns(volume.view, inode), volume.block_bits)
    else:
        mapped = FileMap()
        for count, run in enumerate(mapping.walk(volume.view, inode)):
            if count >= MAX_RUNS or (bad and badmemory.overlaps(volume, run)):
                node.scattered = True
                return None
            mapped.put_blocks(run, volume.block_bits, memory_end)
    if volume.faults[0]:
        raise volume.lost_memory()
    volume.nodes.remember_map(node, mapped)
    return mapped


def read(volume: Volume, file: OpenFile, offset: int, size: int) -> memoryview | bytes:
    """Return up to ``size`` bytes from ``offset``: a view of the pool if they lie together, else gathered bytes."""
    if not file.readable:
        raise FsError(errno.EBADF)
    node = file.node
    if node.atime_due:
        node.accessed()
    rest = node.size - offset
    if rest <= 0:
        return b""
    size = min(size, rest)
    mapped = node.map or load_map(volume, node)
    if mapped is not None:
        run = mapped.find(offset)
        if run is not None and offset + size <= run[1] and not run[3]:
            start = offset + run[2]
            if volume.heat is not None:
                volume.heat.was_read(node.ino, offset, offset + size)
            return volume.memory[start : start + size]
    return gather(volume, node, offset, size)


def read_in_steps(volume: Volume, file: OpenFile, offset: int, size: int) -> Steps[memoryview | bytes]:
    """Read as `read`; bytes that do not lie together are gathered in steps of `BYTES_PER_READ`.

    What changes between two steps is read or not, as if there were several reads.
    """
    node = file.node
    size = min(size, max(node.size - offset, 0))
    if size <= BYTES_PER_READ or lie_together(volume, node, offset, size):
        return read(volume, file, offset, size)
    content = bytearray(size)
    at = 0
    while at < size:
        if at:
            yield
        if volume.tiers is not None and not at % BYTES_AHEAD:
            yield from bring_ahead(volume, node, offset + at, min(BYTES_AHEAD, size - at))
        wanted = min(BYTES_PER_READ, size - at)
        try:
            part = read(volume, file, offset + at, wanted)
        except FsError as error:
            # To the page cache fewer bytes would be the end of the file.
            if not at or not node.dax or isinstance(error, OnStorage):
                raise
            break
        content[at : at + len(part)] = part
        volume.finish_copy()
        at += len(part)
        if len(part) < wanted:
            break
    return memoryview(content)[:at].toreadonly()


def bring_ahead(volume: Volume, node: Node, offset: int, size: int) -> Steps[None]:
    """Bring what the bytes [offset, offset + size) have on storage, all of it at once."""
    tiers = volume.tiers
    assert tiers is not None
    for begin, end, delta, unwritten in pieces(volume, node, offset, offset + size):
        if not unwritten and tiers.holds(begin + delta):
            tiers.want(begin + delta, end + delta)
    yield from tiers.bringing()


def lie_together(volume: Volume, node: Node, offset: int, size: int) -> bool:
    """Return whether bytes within the file are one piece of the pool, as far as the map tells."""
    mapped = node.map or load_map(volume, node)
    run = None if mapped is None else mapped.find(offset)
    return run is not None and offset + size <= run[1] and not run[3]


def gather(volume: Volume, node: Node, offset: int, size: int) -> bytes:
    """Return the bytes [offset, offset + size), with zeros for holes and unwritten blocks; fewer before bad memory."""
    content = bytearray(size)
    memory = volume.memory
    bad, tiers = volume.pool.bad, volume.tiers
    on_storage = False
    for begin, end, delta, unwritten in pieces(volume, node, offset, offset + size):
        if unwritten:
            continue
        if tiers is not None and tiers.holds(end + delta - 1):
            border = max(tiers.begin - delta, begin)
            content[border - offset : end - offset] = tiers.content(border + delta, end + delta)
            on_storage = True
            end = border  # a run that another program has made may have blocks of both kinds
            if begin == end:
                continue
        stop = badmemory.good_end(volume, begin, end, delta) if bad else end
        content[begin - offset : stop - offset] = memory[begin + delta : stop + delta]
        if stop < end:
            if stop == offset or not node.dax:
                # To the kernel's page cache, fewer bytes than asked for would be the end of the file.
                raise badmemory.error(volume, node, offset)
            del content[stop - offset :]
            break
    if node.logged is not None:
        datalog.overlay(volume, node.logged, offset, content)
    volume.finish_copy()
    if tiers is not None:
        tiers.finish_read()
        heat = volume.heat
        assert heat is not None
        heat.was_read(node.ino, offset, offset + size)
        if on_storage:
            tiers.met(node.ino, offset, offset + size, heat)
    return bytes(content)


def pieces(volume: Volume, node: Node, begin: int, end: int) -> Iterator[Run]:
    """Yield the mapped runs of the byte range, trimmed to it, in order; the state is whether they are unwritten."""
    mapped = node.map
    if mapped is None:
        inode = inodes.read(volume.view, node.ino)
        bits = volume.block_bits
        for run in mapping.walk(volume.view, inode, begin >> bits, (end - 1) >> bits):
            first = run.lblk << bits
            last = first + (run.length << bits)
            yield max(first, begin), min(last, end), (run.pblk << bits) - first, run.unwritten
    elif node.logged is None and volume.tiers is None:
        yield from mapped.within(begin, end)
    else:
        for low, high, delta, state in mapped.within(begin, end):
            yield low, high, delta, state == UNWRITTEN


def write(volume: Volume, file: OpenFile, offset: int, data: Buffer, kill: bool | None = None) -> int:
    """Write at ``offset`` (at EOF with O_APPEND). Return how much was written; ENOSPC only if nothing was.

    ``kill`` says whether the write drops set-id bits (`takes_set_id`).
    """
    node = file.node
    if not file.writable:
        raise FsError(errno.EBADF)
    if file.append:
        offset = node.size
    size = len(data)
    if not size:
        return 0
    end = offset + size
    if not node.plain:
        datalog.settle(volume, file.ino, offset, end)
        node.settled()
        prepare(volume, file, offset, kill)
    if end <= node.size and not volume.read_only:
        mapped = node.map or load_map(volume, node)
        run = mapped.find(offset) if mapped is not None else None
        if run is not None and end <= run[1] and not run[3]:
            try:
                volume.pool.write(offset + run[2], data)
            except MissingMemory as error:
                error.of_data = True  # the map was at hand, so no metadata was read
                raise
            node.overwritten()
            if volume.heat is not None:
                volume.heat.was_used(node.ino, offset, end)
            return size
    volume.finish_copy()
    if offset == node.size and node.appends >= appends.ENOUGH and not volume.read_only and node.plain:
        done = appends.append(volume, node, offset, data, file.caller)
        if done:
            return done
    return write_slowly(volume, file, offset, data)


def is_written_run(node: Node, begin: int, end: int) -> bool:
    """Return whether the bytes [begin, end) lie in one written run of the node's map, so that a write is one copy."""
    run = node.map.find(begin) if node.map is not None and end <= node.size else None
    return run is not None and end <= run[1] and not run[3]


def write_slowly(volume: Volume, file: OpenFile, offset: int, data: Buffer, most: int | None = None) -> int:
    """Write some pieces after the other, most with a change of metadata: ``most`` times at most (None: all)."""
    node = file.node
    size = len(data)
    if volume.exceeds_map(node.ino, offset + size):
        size = max(volume.max_size(node.ino) - offset, 0)
        if size == 0:
            raise FsError(errno.EFBIG)
    if volume.tiers is not None:
        begin = node.size if offset > node.size else offset  # the rest of the block that EOF is in is zeroed
        volume.tiers.require_memory(volume.view, node.ino, begin, offset + size)
        if volume.heat is not None:
            volume.heat.was_used(node.ino, offset, offset + size)
    datalog.settle(volume, node.ino, offset, offset + size)
    if offset + size > node.size:
        appends.end_preallocation(volume, node.ino)
    if node.map is None:
        load_map(volume, node)
    if offset + size > volume.large_file_from:
        volume.allow_large_files()
    content = memoryview(data)
    bad, hook = volume.pool.bad, volume.pool.hook
    done = written = 0
    while done < size and written != most:
        written += 1
        try:
            upto = size
            if bad:
                rest = content[done:size]
                upto = done + volume.retrying(badmemory.make_writable, node, offset + done, rest, file.caller)
            elif overwritten := overwrite(volume, node, offset + done, content[done:size]):
                done += overwritten
                continue
            if hook is not None:
                upto = min(upto, done + hook.room())
            done += volume.retrying(write_pieces, file, offset + done, content[done:upto])
        except FsError as error:
            if done and shortens(error):
                break
            raise
    return done


def shortens(error: FsError) -> bool:
    """Return whether an operation that met this error, after a part was done, ends with that part as its result."""
    return error.errno in (errno.ENOSPC, errno.EINTR) or isinstance(error, (BadMemory, OnStorage))


def prepare(volume: Volume, file: OpenFile, offset: int, kill: bool | None = None) -> None:
    """Do what a write at ``offset`` does besides storing: refuse it, or drop privileges (`drop_privileges`)."""
    if not file.node.unprivileged:
        refuse_overwrite(volume, file, offset)
        drop_privileges(volume, file.node, file.caller, kill)


def refuse_overwrite(volume: Volume, file: OpenFile, offset: int) -> None:
    """Refuse to overwrite an append-only file that was opened for appending (EPERM).

    For its own ext4 the kernel refuses to clear O_APPEND and to map such a file for writing; for FUSE it does not know
    the inode's flag. A file that was open before it became append-only may still be overwritten.
    """
    overwrites = file.flags & os.O_APPEND and offset < file.node.size
    if overwrites and inodes.read(volume.view, file.ino).flags & EXT4_APPEND_FL:
        raise FsError(errno.EPERM)


def overwrite(volume: Volume, node: Node, offset: int, data: memoryview) -> int:
    """Write into the written runs that follow each other from ``offset`` on, within EOF; return the length in bytes.

    This changes no metadata but the times, which wait for the commit. If nothing may be stored, the length is 0.
    """
    if volume.read_only or offset >= node.size:
        return 0
    reached = offset
    for begin, end, delta, unwritten in pieces(volume, node, offset, min(offset + len(data), node.size)):
        if unwritten or begin != reached:
            break
        volume.pool.write(begin + delta, data[begin - offset : end - offset])
        reached = end
    if reached > offset:
        node.overwritten()
    return reached - offset


def write_pieces(volume: Volume, file: OpenFile, offset: int, data: memoryview) -> int:
    """Write the first contiguous pieces of ``data`` in one handle, one at least; return their length in bytes."""
    node = file.node
    bits = volume.block_bits
    begin, end = offset, offset + len(data)
    last = end - 1 >> bits
    looks = made = 0
    credits = CREDITS_PIECE if last == begin >> bits else CREDITS_PIECES
    with volume.handle(credits, file.caller) as tx, Change(volume, tx, node.ino) as change:
        inode = change.inode
        while offset < end and looks < LOOKS_PER_HANDLE and made < PIECES_PER_HANDLE:
            looks += 1
            lblk = offset >> bits
            run = mapping.lookup(tx, inode, lblk)
            room = min(run.length, last - lblk + 1)
            fresh = not run.pblk
            try:
                if fresh:
                    if inode.size <= offset:
                        room, align = volume.grown(lblk, room)
                    else:
                        align = volume.alignment(lblk, room)
                    runs = mapping.allocate_runs(tx, inode, lblk, room, PIECES_PER_HANDLE - made, align=align)
                else:
                    runs = [run]
                    if run.unwritten:
                        mapping.mark_written(tx, inode, lblk, room)
            except FsError as error:
                # Missing memory may have met the change half-way: only the end of the handle undoes that.
                if error.errno != errno.ENOSPC or isinstance(error, MissingMemory) or offset == begin:
                    raise
                break
            if begin == offset > node.size:
                zero_tail(volume, tx, inode, node.size)
            made += len(runs)
            for run in runs:
                first, pblk, length, unwritten = run
                length = min(length, last - first + 1)
                stop = min(first + length << bits, end)
                delta = pblk - first << bits
                if fresh or unwritten:
                    zero_edges(volume, delta, first << bits, first + length << bits, offset, stop)
                    change.maps(run if fresh else Extent(first, pblk, length, False))
                volume.pool.write(offset + delta, data[offset - begin : stop - begin])
                offset = stop
        inode.size = max(inode.size, offset)
    return offset - begin


def zero_edges(volume: Volume, delta: int, first: int, last: int, begin: int, end: int) -> None:
    """Zero what a write to new blocks [first, last) leaves untouched before ``begin`` and from ``end`` on."""
    if begin > first:
        volume.pool.zero(first + delta, begin - first)
    if end < last:
        volume.pool.zero(end + delta, last - end)


def zero_tail(volume: Volume, tx: Handle, inode: Inode, size: int) -> None:
    """Zero the bytes past EOF in the last block, before the file is extended past ``size``."""
    rest = -size & (volume.block_size - 1)
    if not rest:
        return
    run = mapping.lookup(tx, inode, size >> volume.block_bits)
    if not run.pblk or run.unwritten:
        return
    if run.pblk in tx.logged and volume.journal.holds((run.pblk,)):
        tx.log_data(run.pblk, inode.number)[-rest:] = bytes(rest)
    else:
        tx.unlog_data(run.pblk, 1)
        volume.pool.zero((run.pblk << volume.block_bits) + volume.block_size - rest, rest)


def fsync(volume: Volume, ino: int, *, data_only: bool = False) -> None:
    """Make the file's data and metadata durable; with ``data_only`` without its times (fdatasync)."""
    if not volume.was_writable:
        return
    volume.still_durable()
    journal = volume.journal
    waiting = volume.nodes.lazy
    # fsync of the root directory makes everything durable, with other files' times, which wait outside the journal.
    if journal.dirty or (not data_only and (ino in waiting or (ino == ROOT_INO and waiting))):
        journal.commit()
    else:
        journal.fence()
    node = volume.nodes.open.get(ino)
    if node is not None:
        node.synchronised()


def make_durable(volume: Volume, file: OpenFile) -> None:
    """Make a change through a file opened with O_SYNC or O_DSYNC durable (generic_write_sync in linux/fs.h)."""
    fsync(volume, file.ino, data_only=file.flags & os.O_SYNC != os.O_SYNC)


def describe(volume: Volume, ino: int) -> list[Extent]:
    """Return all extents of the file, in order (bounded by the tree)."""
    return list(mapping.walk(volume.view, inodes.read(volume.view, ino)))
