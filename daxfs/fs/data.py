"""File data: opening, reading, writing, truncating, fsync.

A read returns a view of the pool. A write is one copy into the pool, flushed, and durable at the next fence. An
overwrite of written blocks changes no metadata but the times, which wait for the commit. Every other write (into holes
or unwritten blocks, or past EOF) goes through `write_pieces`: some contiguous pieces in one handle, so that a full pool
leaves a short write and nothing half-done. New blocks are filled or zeroed before the handle that maps them can commit
(ordered mode).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from daxfs.errors import BadMemory, Corrupt, FsError, MissingMemory, OnStorage
from daxfs.ext4.inode import EXT4_APPEND_FL, EXT4_IMMUTABLE_FL
from daxfs.fs import badmemory, datalog
from daxfs.fs.change import Change
from daxfs.fs.filemap import LOGGED, MAX_RUNS, FileMap, Run
from daxfs.fs.nodes import END, SET_ID, Node
from daxfs.fs.notifiers import CREDITS_QUARANTINE
from daxfs.fs.steps import Steps
from daxfs.fs.types import ROOT_INO, Caller
from daxfs.fs.volume import Volume
from daxfs.structures import extents, inodes, mapping, xattrs
from daxfs.structures.inodes import Inode
from daxfs.structures.mapping import Extent

if TYPE_CHECKING:
    from daxfs.journal.transaction import Handle

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
CREDITS_CUT = 64 + CREDITS_QUARANTINE
BLOCKS_PER_CUT = 256
"""Runs that one step of cutting a file frees: 32 of the credits are for the commit (`blocks.RESERVED_PER_CALL`), and
the leaves between the first and the last are freed, not changed."""
BYTES_PER_READ = 256 << 10
"""Bytes that one step of a long read gathers."""
CREDITS_XATTR = 12
CAPABILITY = b"security.capability"


class OpenFile:
    """An open file: its node, how it was opened and by whom; ``durable``: with O_SYNC or O_DSYNC."""

    __slots__ = ("append", "caller", "durable", "flags", "node", "readable", "writable")

    def __init__(self, node: Node, flags: int, caller: Caller) -> None:
        access = flags & os.O_ACCMODE
        self.node = node
        self.flags = flags
        self.caller = caller
        self.append = bool(flags & os.O_APPEND)
        self.durable = bool(flags & os.O_DSYNC)
        self.readable = access != os.O_WRONLY
        self.writable = access != os.O_RDONLY

    def used_by(self, caller: Caller | None) -> OpenFile:
        """Return the same open file as ``caller`` uses it, who need not have opened it; None: the opener."""
        if caller is None:
            return self
        used = OpenFile(self.node, self.flags, caller)
        used.append = self.append
        return used

    @property
    def ino(self) -> int:
        """The inode number, which may change while the file is open (`daxfs.fs.renumbering`)."""
        return self.node.ino

    @property
    def size(self) -> int:
        """The file size in bytes."""
        return self.node.size

    @property
    def keeps_privileges(self) -> bool:
        """Whether a change of content is known to drop no set-id bit and no capability, whoever makes it."""
        return self.node.unprivileged


def open_file(volume: Volume, ino: int, flags: int, caller: Caller, kill: bool | None = None) -> Steps[OpenFile]:
    """Open an inode by number, as `open_whole`; O_TRUNC truncates it to 0 bytes.

    ``kill`` says whether O_TRUNC drops set-id bits (`truncate`).
    """
    file = open_whole(volume, ino, flags, caller)
    if flags & os.O_TRUNC:
        try:
            yield from truncate(volume, ino, 0, caller, kill)
            volume.finish()
        except BaseException:
            volume.nodes.closed(file.node)
            raise
    return file


def open_whole(volume: Volume, ino: int, flags: int, caller: Caller) -> OpenFile:
    """Open an inode by number, without truncating it; EISDIR, EROFS, EPERM as open(2), O_TRUNC included.

    A symbolic link (ELOOP), a device, a FIFO or a socket (ENXIO) has no block map to read or write.
    """
    inode = inodes.read(volume.view, ino)
    if not (inode.is_regular or inode.is_dir):
        raise FsError(errno.ELOOP if inode.is_symlink else errno.ENXIO)
    wants_write = flags & os.O_ACCMODE != os.O_RDONLY
    if wants_write or flags & os.O_TRUNC:
        if stat.S_ISDIR(inode.mode):
            raise FsError(errno.EISDIR)
        volume.writable()
        if inode.flags & EXT4_IMMUTABLE_FL:
            raise FsError(errno.EPERM)
        if inode.flags & EXT4_APPEND_FL and (flags & os.O_TRUNC or not flags & os.O_APPEND):
            raise FsError(errno.EPERM)
    return OpenFile(volume.nodes.opened(inode), flags, caller)


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
    if not bad and tiers is None and mapping.has_more_than(volume.view, inode, MANY_RUNS):
        mapped = FileMap.of_columns(extents.columns(volume.view, inode), volume.block_bits)
    else:
        mapped = FileMap()
        for count, run in enumerate(mapping.walk(volume.view, inode)):
            apart = tiers is not None and tiers.holds((run.pblk + run.length << volume.block_bits) - 1)
            if count >= MAX_RUNS or apart or (bad and badmemory.overlaps(volume, run)):
                node.scattered = True
                return None
            mapped.put_blocks(run, volume.block_bits)
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
    for begin, end, delta, unwritten in pieces(volume, node, offset, offset + size):
        if unwritten:
            continue
        if tiers is not None and tiers.holds(end + delta - 1):
            border = max(tiers.begin - delta, begin)
            content[border - offset : end - offset] = tiers.content(border + delta, end + delta)
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
    return bytes(content)


def pieces(volume: Volume, node: Node, begin: int, end: int) -> Iterator[Run]:
    """Yield the mapped runs of the byte range, trimmed to it, in order: as they lie in the pool (never `LOGGED`)."""
    mapped = node.map
    if mapped is None:
        inode = inodes.read(volume.view, node.ino)
        bits = volume.block_bits
        for run in mapping.walk(volume.view, inode, begin >> bits, (end - 1) >> bits):
            first = run.lblk << bits
            last = first + (run.length << bits)
            yield max(first, begin), min(last, end), (run.pblk << bits) - first, run.unwritten
    elif node.logged is None:
        yield from mapped.within(begin, end)
    else:
        for low, high, delta, state in mapped.within(begin, end):
            yield low, high, delta, state != LOGGED and state


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
            return size
    volume.finish_copy()
    return write_slowly(volume, file, offset, data)


def is_written_run(node: Node, begin: int, end: int) -> bool:
    """Return whether the bytes [begin, end) lie in one written run of the node's map, so that a write is one copy."""
    run = node.map.find(begin) if node.map is not None and end <= node.size else None
    return run is not None and end <= run[1] and not run[3]


def write_slowly(volume: Volume, file: OpenFile, offset: int, data: Buffer, most: int | None = None) -> int:
    """Write some pieces after the other, most with a change of metadata: ``most`` times at most (None: all)."""
    node = file.node
    size = len(data)
    if volume.tiers is not None:
        begin = node.size if offset > node.size else offset  # the rest of the block that EOF is in is zeroed
        volume.tiers.require_memory(volume.view, node.ino, begin, offset + size)
    datalog.settle(volume, node.ino, offset, offset + size)
    if offset + size > node.size:
        volume.notifier.end_preallocation(node.ino)
    if volume.exceeds_map(node.ino, offset + size):
        size = max(volume.max_size(node.ino) - offset, 0)
        if size == 0:
            raise FsError(errno.EFBIG)
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


def drop_privileges(volume: Volume, node: Node, caller: Caller, kill: bool | None = None) -> None:
    """Drop set-id bits and file capabilities before the content changes (file_remove_privs in fs/inode.c).

    Set-id bits stay if the caller may keep them (`takes_set_id`); capabilities are always dropped. EPERM: the file is
    immutable, even if it was opened before it became so (ext4_generic_write_checks in fs/ext4/file.c).
    """
    volume.writable()
    inode = inodes.read(volume.view, node.ino)
    if inode.flags & EXT4_IMMUTABLE_FL:
        raise FsError(errno.EPERM)
    volume.note_sync(inode)
    kept = inode.mode
    if kept & SET_ID and takes_set_id(caller, kill):
        kept = without_set_id(inode, caller)
    capable = xattrs.holds(volume.view, inode, CAPABILITY)
    if capable or kept != inode.mode:
        with volume.handle(CREDITS_XATTR) as tx:
            inode = inodes.edit(tx, node.ino)
            inode.mode = kept
            if capable:
                xattrs.remove(tx, inode, CAPABILITY)
    node.privileges_dropped(kept, inode.flags)


def takes_set_id(caller: Caller, kill: bool | None) -> bool:
    """Return whether a change of content drops set-id bits: as ``kill`` says; None: unless the superuser makes it."""
    return caller.uid != 0 if kill is None else kill


def without_set_id(inode: Inode, caller: Caller) -> int:
    """Return the mode without S_ISUID and S_ISGID (setattr_should_drop_sgid in fs/attr.c).

    If the group may not execute, S_ISGID means mandatory locking: it stays for members of the group and the superuser.
    """
    mode = inode.mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP or not in_group(inode, caller):
        mode &= ~stat.S_ISGID
    return mode


def in_group(inode: Inode, caller: Caller) -> bool:
    """Return whether the caller is in the inode's group or the superuser (in_group_or_capable in fs/inode.c)."""
    return caller.uid == 0 or inode.gid == caller.gid or inode.gid in caller.groups


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


def truncate(volume: Volume, ino: int, size: int, caller: Caller, kill: bool | None = None) -> Steps[None]:
    """Set the file size in bytes (EFBIG, EINVAL, EISDIR, EPERM). Blocks past it are freed; an extension is a hole.

    Set-id bits are dropped as `takes_set_id` says, file capabilities always.
    """
    if size < 0:
        raise FsError(errno.EINVAL)
    inode = inodes.read(volume.view, ino)
    if not stat.S_ISREG(inode.mode):
        raise FsError(errno.EISDIR if stat.S_ISDIR(inode.mode) else errno.EINVAL)
    if inode.flags & (EXT4_IMMUTABLE_FL | EXT4_APPEND_FL):
        raise FsError(errno.EPERM)
    if volume.exceeds_map(ino, size):
        raise FsError(errno.EFBIG)
    if size > volume.large_file_from:
        volume.allow_large_files()
    if volume.tiers is not None:
        last = min(size, inode.size)
        volume.tiers.require_memory(volume.view, ino, last & -volume.block_size, last)
    volume.note_sync(inode)
    shrinks = size <= inode.size
    drop_capability(volume, inode)
    whole = True
    volume.notifier.end_preallocation(ino)
    with volume.handle(CREDITS_CUT) as tx, Change(volume, tx, ino) as change:
        inode = change.inode
        if takes_set_id(caller, kill):
            inode.mode = without_set_id(inode, caller)
        if size > inode.size:
            zero_tail(volume, tx, inode, inode.size)
        inode.size = size
        if shrinks:
            first = (size + volume.block_size - 1) >> volume.block_bits
            whole = change.unmap(first, None, limit=BLOCKS_PER_CUT)
            if not whole:
                volume.lives.being_cut(tx, ino)
    volume.nodes.reloaded(inode)
    if shrinks:
        yield from finish_cut(volume, ino, size, whole=whole)


def finish_cut(volume: Volume, ino: int, size: int, *, whole: bool) -> Steps[None]:
    """Finish a `truncate` that made the file shorter: free the rest of its blocks, zero the last block past EOF."""
    try:
        if not whole:
            yield from cut_rest(volume, ino)
    finally:
        node = volume.nodes.open.get(ino)
        if node is not None:
            node.moved(size, END)
    if size & (volume.block_size - 1):
        # The old bytes past the new EOF are zeroed only when the new size is durable: a crash before that needs them.
        volume.journal.commit()
        inode = inodes.read(volume.view, ino)
        if inode.size == size:
            with volume.handle(1) as tx:
                zero_tail(volume, tx, inode, size)


def drop_capability(volume: Volume, inode: Inode) -> None:
    """Remove a file capability in a handle of its own, since the cut that follows may need a whole transaction."""
    if xattrs.holds(volume.view, inode, CAPABILITY):
        with volume.handle(CREDITS_XATTR) as tx:
            xattrs.remove(tx, inodes.edit(tx, inode.number), CAPABILITY)


def cut_rest(volume: Volume, ino: int) -> Steps[None]:
    """Free the rest of the blocks past EOF, of an inode that `Lifetimes.being_cut` has noted.

    The inode stays open meanwhile, so that it outlives its last name. A caller that abandons these steps leaves the
    rest to `removal.freeing`.
    """
    node = volume.nodes.opened(inodes.read(volume.view, ino))
    try:
        yield
        while not cut_step(volume, ino):
            yield
    except GeneratorExit:
        volume.lives.ending[ino] = None
        raise
    except Corrupt:
        give_up_cut(volume, ino)
        raise
    finally:
        volume.nodes.closed(node)


def give_up_cut(volume: Volume, ino: int) -> bool:
    """Take an inode whose cut met damage off the orphan list; False: that meets damage as well.

    Each mount would meet the damage again. The file keeps the blocks past EOF that are left, until e2fsck has run
    (``ext4_truncate`` does the same).
    """
    try:
        with volume.pool.faults.checked(), volume.handle(CREDITS_CUT) as tx:
            volume.lives.cut(tx, ino)
    except FsError:
        return False
    return True


def cut_step(volume: Volume, ino: int) -> bool:
    """Free some of the blocks past EOF in one handle; return whether none is left. Then recovery has nothing to do."""
    with volume.handle(CREDITS_CUT) as tx, Change(volume, tx, ino, dated=False) as change:
        first = (change.inode.size + volume.block_size - 1) >> volume.block_bits
        finished = change.unmap(first, None, limit=BLOCKS_PER_CUT)
        if finished:
            volume.lives.cut(tx, ino)
    return finished


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


def make_durable(volume: Volume, file: OpenFile) -> None:
    """Make a change through a file opened with O_SYNC or O_DSYNC durable (generic_write_sync in linux/fs.h)."""
    fsync(volume, file.ino, data_only=file.flags & os.O_SYNC != os.O_SYNC)


def describe(volume: Volume, ino: int) -> list[Extent]:
    """Return all extents of the file, in order (bounded by the tree)."""
    return list(mapping.walk(volume.view, inodes.read(volume.view, ino)))
