"""Lease requests: granting a file's memory, and renewing.

An answer holds until the file's status entry shows another epoch or the open file is closed. For storing, the range
first gets zeroed blocks, and the daemon commits them, so that the client's own flush and fence make its stores durable
(what MAP_SYNC means in the kernel). Any process may request a lease that has the file open and can open the pool, which
it proves by quoting the token that lies there (`status_page.py`). `write_notifications.py` serves the reports of
stores. docs/DIRECT.md has the rules of both sides.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.ext4.inode import EXT4_EXTENTS_FL
from daxfs.fs import data, datalog, privileges, ranges
from daxfs.fs.change import Change
from daxfs.fs.grants import answers, waiting
from daxfs.fs.grants.inode_grants import InodeGrants
from daxfs.fs.steps import Steps
from daxfs.fs.types import Grant, LeaseRequest, PoolIdentity
from daxfs.pmem.persist import MSYNC
from daxfs.protocol import FURTHEST, MOST_FILLED, Flag
from daxfs.runs import ByteRange
from daxfs.structures import blocks, inodes, mapping, reserves

if TYPE_CHECKING:
    from daxfs.fs.grants.table import Grants
    from daxfs.fs.nodes import Node
    from daxfs.fs.openfile import OpenFile
    from daxfs.fs.volume import Volume

LOOKS_PER_STEP = 128
"""Runs that one step of filling looks at."""
MAX_HOLDERS = 1024
"""Holders of one open file: processes that share it, and processes that have ended without a renewal."""
MAX_ALL_HOLDERS = 4096
"""Holders of one file's grants: some requests look at all of them, while all other requests wait."""
MAX_HOLDERS_OF_ALL_FILES = 32_768
"""Holders of all grants together: some 10 MiB of DRAM."""

# Plain numbers: combining members of an IntFlag costs more than the rest of an ordinary answer.
WRITE, FILL, EXTEND, MAP, RENEW, PAGES = (int(flag) for flag in Flag)


def identity(table: Grants) -> PoolIdentity:
    """Return the identity of the pool, for a client to open the pool and to compare.

    Raises:
        FsError: EOPNOTSUPP, there is no file or device to open; ENOSPC, there is no block for the token.
    """
    if table.identity is not None:
        return table.identity
    volume = table.volume
    pool = volume.pool
    if pool.status is None:
        raise FsError(errno.EOPNOTSUPP, f"{pool.path}: nobody else can map a pool of kind {pool.kind}")
    table.page.ensure()
    pool.sync_file()
    table.identity = PoolIdentity(
        path=os.path.realpath(pool.path),
        device=pool.status.st_dev,
        inode=pool.status.st_ino,
        rdevice=pool.status.st_rdev,
        size=pool.memory_size,
        persistence=pool.persistence,
        block_size=volume.block_size,
        lock=table.epochs.lock,
        uuid=bytes(volume.view.superblock().s_uuid),
        align=pool.align,
        token=table.page.token,
    )
    return table.identity


# Granting


def grant(table: Grants, file: OpenFile, request: LeaseRequest, used: OpenFile) -> Steps[Grant]:
    """Answer a lease request.

    Args:
        table: the grants.
        file: holds the lease.
        request: what is asked for.
        used: the file as the caller uses it (`OpenFile.used_by`).

    Raises:
        FsError: EINVAL (range or flags), EOPNOTSUPP (the token is not this mount's; the file is not served from memory,
            or is synchronous by its flags), EBADF, EPERM, EROFS, EFBIG, ENOSPC, EAGAIN (too many holders; too much is
            deferred for this user; another holder extends the file; the range is being recalled).
    """
    volume = table.volume
    check(table, used, request)
    if not request.length:
        table.leave(file, request.holder)
        return Grant(request.offset, file.node.size, 0, 0, [], False)
    if table.epochs.deferred and waiting.over_limit(table, used.caller.uid):
        refuse_over_limit(table, file, request, used.caller.uid)
    grants = add_holder(table, file, request)
    if file.node.atime_due:
        file.node.accessed()
    made = False
    end = end_of_memory(volume, file.node, request)
    upto = request.offset + request.length
    if not request.flags & MAP:
        upto = min(upto, end)
    if request.flags & FILL and end > request.offset:
        first = request.offset & -volume.block_size
        if end - first > MOST_FILLED:
            end = upto = first + MOST_FILLED
        made = yield from fill(table, used, grants, first, end)
    if not volume.read_only and volume.journal.dirty:
        # Without it a crash could free blocks, for the next mount, that clients still read.
        volume.commit()
    pieces, reached = answers.compose(volume, file, grants, request, upto)
    return Grant(reached, file.node.size, grants.entry, grants.epoch, pieces, made)


def check(table: Grants, file: OpenFile, request: LeaseRequest) -> None:
    """Check a request against the open file, the token and the volume.

    Raises:
        FsError: as `grant`.
    """
    volume, node, flags = table.volume, file.node, request.flags
    if request.offset < 0 or request.length < 0 or request.offset + request.length > FURTHEST:
        raise FsError(errno.EINVAL)
    if flags & (FILL | EXTEND) and not flags & WRITE:
        raise FsError(errno.EINVAL)
    if flags & EXTEND and not flags & FILL:
        raise FsError(errno.EINVAL)
    if flags & PAGES and not flags & MAP:
        raise FsError(errno.EINVAL)
    if not request.length and not flags & RENEW:
        raise FsError(errno.EINVAL)
    if not table.page.token_matches(request.token):
        raise FsError(errno.EOPNOTSUPP, "the request does not quote this mount's token")
    if not node.dax:
        raise FsError(errno.EOPNOTSUPP)
    if not flags & WRITE:
        if not file.readable:
            raise FsError(errno.EBADF)
        return
    if not file.writable:
        raise FsError(errno.EBADF)
    volume.writable()
    if not node.plain:
        datalog.settle(volume, node.ino)
        node.settled()
        if not node.unprivileged:
            privileges.drop_privileges(volume, node, file.caller)
    if not node.plain:
        # A write to this file is more than a store.
        raise FsError(errno.EOPNOTSUPP)
    if flags & EXTEND:
        if request.offset + request.length > volume.max_size(node.ino):
            raise FsError(errno.EFBIG)
        if not inodes.read(volume.view, node.ino).flags & EXT4_EXTENTS_FL:
            raise FsError(errno.EOPNOTSUPP)


def refuse_over_limit(table: Grants, file: OpenFile, request: LeaseRequest, uid: int) -> None:
    """Raise EAGAIN for a user for whom too much is deferred, unless the renewal in this request frees enough."""
    if request.flags & RENEW:
        table.leave(file, request.holder)
        if not waiting.over_limit(table, uid):
            return
    raise FsError(errno.EAGAIN, f"user {uid}: too much waits to be freed")


def add_holder(table: Grants, file: OpenFile, request: LeaseRequest) -> InodeGrants:
    """Return the file's grants with this holder in them; a holder that renews leaves them first."""
    node, holder, flags = file.node, request.holder, request.flags
    grants = table.by_ino.get(node.ino)
    recalled = table.recalls.refuse(node.ino, request.offset, request.offset + request.length)
    staged = table.volume.staging.by_ino.get(node.ino)
    if staged is not None and (flags & WRITE or staged.opened is file):
        recalled = True  # until the batch ends
    if grants is not None and flags & RENEW:
        table.renew(grants, file, holder, extends=bool(flags & EXTEND) and not recalled)
    if recalled:
        if grants is not None:
            table.end_if_unheld(grants)
        raise FsError(errno.EAGAIN, f"inode {node.ino}: these bytes are being recalled")
    if grants is None:
        if table.holders >= MAX_HOLDERS_OF_ALL_FILES:
            raise FsError(errno.EAGAIN, "too many holders of leases")
        grants = table.add_inode(node)
    if flags & EXTEND and grants.extender not in {None, (file, holder)}:
        raise FsError(errno.EAGAIN, f"inode {node.ino}: another holder makes it longer by itself")
    holders = grants.holders.get(file, {})
    if holder not in holders:
        if (
            len(holders) >= MAX_HOLDERS
            or grants.all_holders >= MAX_ALL_HOLDERS
            or table.holders >= MAX_HOLDERS_OF_ALL_FILES
        ):
            raise FsError(errno.EAGAIN, f"inode {node.ino}: too many holders of its lease")
        grants.add_holder(file, holder)
        table.holders += 1
    if flags & EXTEND:
        grants.extender = file, holder
    return grants


def end_of_memory(volume: Volume, node: Node, request: LeaseRequest) -> int:
    """Return where memory can end: with the block that EOF is in, or with the range if the request extends the file."""
    end = request.offset + request.length
    if not request.flags & EXTEND:
        end = min(end, node.size)
    return end + -end % volume.block_size


# Filling


def fill(table: Grants, file: OpenFile, grants: InodeGrants, begin: int, end: int) -> Steps[bool]:
    """Give every block of the range zeroed memory, written within the file; return whether any block lacked it."""
    volume, node = table.volume, file.node
    if end > node.size:
        table.detach_past_eof(node.ino)
    if node.map is None:
        data.load_map(volume, node)
    if end > node.size:
        zero_granted_tail(volume, grants, node)
    if is_filled(volume, grants, node, begin, end):
        return False
    missing = end - begin - sum(high - low for low, high, _, _ in data.pieces(volume, node, begin, end))
    volume.retrying(refuse_without_room, file, missing >> volume.block_bits)
    lblk, stop = begin >> volume.block_bits, end >> volume.block_bits
    while (lblk := volume.retrying(fill_step, file, grants, lblk, stop)) < stop:
        yield
    return True


def refuse_without_room(volume: Volume, file: OpenFile, missing: int) -> None:
    """Raise ENOSPC unless ``missing`` blocks are free for the file's opener: a part of the range is of no use."""
    kept = reserves.must_stay_free(volume.geometry, volume.view.superblock(), privileged=volume.privileged(file.caller))
    if missing > blocks.free_blocks(volume.view) - kept:
        raise FsError(errno.ENOSPC, "no room for all of the range, so it stays as it is")


def is_filled(volume: Volume, grants: InodeGrants, node: Node, begin: int, end: int) -> bool:
    """Return whether [begin, end) can be granted as it is: written within the file, in ``preallocated`` past EOF."""
    position, eof = begin, node.size + -node.size % volume.block_size
    for low, high, _, unwritten in data.pieces(volume, node, begin, end):
        if low > position or (unwritten and low < eof):
            return False
        if high > eof and any(True for _ in grants.preallocated.gaps(max(low, eof), high)):
            return False
        position = high
    return position >= end


def fill_step(volume: Volume, file: OpenFile, grants: InodeGrants, lblk: int, stop: int) -> int:
    """Give some runs of holes and unwritten blocks zeroed memory, in one handle; return the next logical block to fill.

    Past EOF blocks stay unwritten, as in ext4, until a write notification moves EOF. Written blocks past EOF, which a
    damaged or foreign pool may have, are zeroed as unwritten ones are.
    """
    node, bits = file.node, volume.block_bits
    inside = node.size + volume.block_size - 1 >> bits
    looks = made = 0
    stop = min(stop, lblk + (ranges.BYTES_PER_STEP >> bits))
    preallocated: list[ByteRange] = []
    if volume.pool.hook is not None:
        volume.pool.hook.expect(stop - lblk << bits)
    with volume.handle(ranges.CREDITS_STEP, file.caller) as tx, Change(volume, tx, node.ino) as change:
        inode = change.inode
        while lblk < stop and made < ranges.RUNS_PER_STEP and looks < LOOKS_PER_STEP:
            looks += 1
            border = min(stop, inside) if lblk < inside else stop
            run = mapping.lookup(tx, inode, lblk)
            room = min(run.length, border - lblk)
            if not run.pblk:
                room = min(room, ranges.longest(volume, lblk))
                align = volume.alignment(lblk, room)
                run = mapping.allocate(tx, inode, lblk, room, unwritten=lblk >= inside, align=align)
                fresh = True
            else:
                fresh = run.unwritten or lblk >= inside
                run = run._replace(length=room)
            begin, end, delta = lblk << bits, lblk + run.length << bits, run.pblk - lblk << bits
            if fresh:
                for low, high in grants.preallocated.gaps(begin, end):
                    volume.pool.zero(low + delta, high - low)
                if lblk < inside:
                    if run.unwritten:
                        mapping.mark_written(tx, inode, lblk, run.length)
                    run = run._replace(unwritten=False)
                if end > node.size:
                    preallocated.append(ByteRange(max(begin, node.size), end))
                change.maps(run)
                made += 1
            lblk += run.length
    for begin, end in preallocated:
        grants.preallocated.put(begin, end, 0, False)
    return lblk


def zero_granted_tail(volume: Volume, grants: InodeGrants, node: Node) -> None:
    """Zero the bytes past EOF in the file's last block before they are granted, once.

    If that block is unwritten, `fill_step` zeroes it. On storage, it is not granted.
    """
    end = node.size + -node.size % volume.block_size
    for begin, stop, delta, unwritten in data.pieces(volume, node, node.size, end) if end > node.size else ():
        if volume.tiers is not None and volume.tiers.holds(begin + delta):
            continue
        for low, high in () if unwritten else tuple(grants.preallocated.gaps(begin, stop)):
            volume.pool.zero(low + delta, high - low)
            grants.preallocated.put(low, high, 0, False)


def flush_stores(volume: Volume) -> None:
    """Have the next fence write back what clients have stored, including clients that have ended.

    msync(2) writes all dirty pages of the pool's file, this process's and those of other processes. With libpmem
    clients flush their cache lines themselves.
    """
    if volume.was_writable and volume.pool.persistence == MSYNC:
        volume.pool.flush(0, volume.pool.memory_size)
