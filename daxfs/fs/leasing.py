"""Asking for a file's memory: what a client is told, how it gives it back, and what it says that it has stored.

An answer holds until the slot on the board shows another epoch or the open file is closed. For storing, the range gets
blocks of zeros first and all of it is committed, so that the client's own flush and fence make its stores durable
(what MAP_SYNC means in the kernel). Who may ask is who has the file open; the memory itself is for those who may open
the pool. docs/DIRECT.md has the rules of both sides.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.ext4.inode import EXT4_EXTENTS_FL
from daxfs.fs import data, parking, ranges, removal
from daxfs.fs.leases import MAX_HOLDERS, KernelRange, Lease
from daxfs.fs.types import Grant, LeaseFlags, LeaseKind, LeaseRequest, Piece, PoolIdentity, Stored
from daxfs.structures import blocks, inodes, mapping

if TYPE_CHECKING:
    from daxfs.fs.data import OpenFile
    from daxfs.fs.nodes import Node
    from daxfs.fs.volume import Volume

MAX_FILL = 64 << 20
"""So many bytes one request provides with blocks, in some ten milliseconds; the client asks on from there."""
RUNS_PER_STEP = 8

Range = tuple[int, int]


def identity(volume: Volume) -> PoolIdentity:
    """Which pool it is, for a client to find and to compare; EOPNOTSUPP when there is no file or device to open."""
    pool, books = volume.pool, volume.leases
    if books.identity is not None:
        return books.identity
    if pool.status is None:
        raise FsError(errno.EOPNOTSUPP, f"{pool.path}: nobody else can map a pool of kind {pool.kind}")
    books.identity = PoolIdentity(
        path=os.path.realpath(pool.path),
        device=pool.status.st_dev,
        inode=pool.status.st_ino,
        rdevice=pool.status.st_rdev,
        size=pool.size,
        persistence=pool.persistence,
        block_size=volume.block_size,
        lock=books.lock,
        uuid=bytes(volume.view.superblock().s_uuid),
    )
    return books.identity


# Asking


def grant(volume: Volume, file: OpenFile, request: LeaseRequest) -> Grant:
    """Answer a request.

    Raises:
        FsError: EINVAL (range), EOPNOTSUPP (not served from memory, or synchronous by its flags), EBADF, EPERM, EROFS,
            ENOSPC, EAGAIN (too many holders; set-id bits that a write takes away).
    """
    check(volume, file, request)
    if not request.length:
        give_back(volume, file, request.holder)
        return Grant(request.offset, file.node.size, 0, 0, [], False)
    lease = join(volume, file, request)
    if file.node.atime_due:
        volume.touch_atime(file.node)
    made = False
    end = reach(volume, file.node, request)
    upto = request.offset + request.length
    if not request.flags & LeaseFlags.MAP:
        upto = min(upto, end)
    if request.flags & LeaseFlags.FILL and end > request.offset:
        first = request.offset & -volume.block_size
        if end - first > MAX_FILL:
            end = upto = first + MAX_FILL
        made = fill(volume, file, lease, first, end)
    if not volume.read_only and volume.journal.dirty:
        # Else a crash could make free, for the next mount, what programs go on reading.
        volume.commit()
    pieces, told_to = tell(volume, file, lease, request, upto)
    return Grant(told_to, file.node.size, lease.slot, lease.epoch, pieces, made)


def check(volume: Volume, file: OpenFile, request: LeaseRequest) -> None:
    """Refuse what can't be granted."""
    node, flags = file.node, request.flags
    if request.offset < 0 or request.length < 0 or request.offset + request.length > 1 << 62:
        raise FsError(errno.EINVAL)
    if flags & (LeaseFlags.FILL | LeaseFlags.GROW) and not flags & LeaseFlags.WRITE:
        raise FsError(errno.EINVAL)
    if flags & LeaseFlags.GROW and not flags & LeaseFlags.FILL:
        raise FsError(errno.EINVAL)
    if not request.length and not flags & LeaseFlags.RENEW:
        raise FsError(errno.EINVAL)
    if not node.dax:
        raise FsError(errno.EOPNOTSUPP)
    if not flags & LeaseFlags.WRITE:
        if not file.readable:
            raise FsError(errno.EBADF)
        return
    if not file.writable:
        raise FsError(errno.EBADF)
    volume.writable()
    if not node.plain:
        data.drop_privileges(volume, node, file.caller)
    if not node.plain:
        # Each of its writes means more than a store.
        raise FsError(errno.EOPNOTSUPP)
    limit = volume.max_size(node.ino)
    if flags & LeaseFlags.GROW:
        if request.offset + request.length > limit:
            raise FsError(errno.EFBIG)
        if not inodes.read(volume.view, node.ino).flags & EXT4_EXTENTS_FL:
            raise FsError(errno.EOPNOTSUPP)


def join(volume: Volume, file: OpenFile, request: LeaseRequest) -> Lease:
    """The file's lease, with this holder in it."""
    node = file.node
    lease = node.lease
    if lease is None:
        slot = volume.board.take(node.ino, node.size) if not volume.read_only else 0
        lease = node.lease = volume.leases.begin(node.ino, slot, volume.pool)
    elif request.flags & LeaseFlags.RENEW:
        grower = lease.grower
        lease.drop(file, request.holder)
        if lease.grower != grower and not request.flags & LeaseFlags.GROW and not volume.read_only:
            parking.end_growth(volume, node)
        if not lease.holders:
            lease.told.cut(0, volume.pool.size)
        let_go(volume, lease)
    if request.flags & LeaseFlags.GROW:
        if lease.grower not in {None, (file, request.holder)}:
            raise FsError(errno.EAGAIN, f"inode {node.ino}: somebody else makes it longer by itself")
        lease.grower = file, request.holder
    holders = lease.holders.setdefault(file, {})
    if request.holder not in holders:
        if len(holders) >= MAX_HOLDERS:
            raise FsError(errno.EAGAIN, f"inode {node.ino}: an open file with {MAX_HOLDERS} holders of its lease")
        holders[request.holder] = lease.epoch
    return lease


def reach(volume: Volume, node: Node, request: LeaseRequest) -> int:
    """Where what can be memory ends: with the block that the end of the file is in, or where a growing file asks."""
    end = request.offset + request.length
    if not request.flags & LeaseFlags.GROW:
        end = min(end, node.size)
    return end + -end % volume.block_size


# Providing


def fill(volume: Volume, file: OpenFile, lease: Lease, begin: int, end: int) -> bool:
    """Give every block of the range memory that is zeroed and, within the file, written; whether any had none."""
    node = file.node
    if node.map is None:
        data.load_map(volume, node)
    if end > node.size:
        blank_tail(volume, lease, node)
    if provided(volume, lease, node, begin, end):
        return False
    missing = end - begin - sum(high - low for low, high, _, _ in data.pieces(volume, node, begin, end))
    if missing >> volume.block_bits > blocks.free_blocks(volume.view) + volume.pending_frees():
        raise FsError(errno.ENOSPC, "no room for all of the range, so it stays as it is")
    lblk, stop = begin >> volume.block_bits, end >> volume.block_bits
    try:
        while lblk < stop:
            lblk = volume.retrying(fill_step, file, lease, lblk, stop)
    finally:
        if begin < node.size:
            lease.moved()
    return True


def provided(volume: Volume, lease: Lease, node: Node, begin: int, end: int) -> bool:
    """Whether all of [begin, end) is memory that may be told."""
    position = begin
    for low, high, _, unwritten in data.pieces(volume, node, begin, end):
        if low > position or (unwritten and any(True for _ in lease.grown.gaps(low, high))):
            return False
        position = high
    return position >= end


def fill_step(volume: Volume, file: OpenFile, lease: Lease, lblk: int, stop: int) -> int:
    """Provide some runs in one handle; returns the block to go on with.

    Behind the end of the file blocks stay unwritten, which is what ext4 has there, until `stored` moves the end.
    """
    node, bits = file.node, volume.block_bits
    inside = node.size + volume.block_size - 1 >> bits
    made: list[mapping.Extent] = []
    grown: list[Range] = []
    with volume.handle(ranges.CREDITS_STEP, file.caller) as tx:
        inode = inodes.edit(tx, node.ino)
        while lblk < stop and len(made) < RUNS_PER_STEP:
            border = min(stop, inside) if lblk < inside else stop
            run = mapping.lookup(tx, inode, lblk)
            room = min(run.length, border - lblk)
            if not run.pblk:
                room = min(room, ranges.longest(volume, lblk))
                align = volume.alignment(lblk, room)
                run = mapping.allocate(tx, inode, lblk, room, unwritten=lblk >= inside, align=align)
                fresh = True
            else:
                fresh = run.unwritten
                run = run._replace(length=room)
            begin, end, delta = lblk << bits, lblk + run.length << bits, run.pblk - lblk << bits
            if fresh:
                for low, high in lease.grown.gaps(begin, end):
                    volume.pool.zero(low + delta, high - low)
                if lblk < inside:
                    if run.unwritten:
                        mapping.mark_written(tx, inode, lblk, run.length)
                    run = run._replace(unwritten=False)
                if end > node.size:
                    grown.append((max(begin, node.size), end))
                made.append(run)
            lblk += run.length
        ranges.finish(tx, inode)
    ranges.note(volume, node, made)
    for begin, end in grown:
        lease.grown.put(begin, end, 0, False)
    return lblk


def blank_tail(volume: Volume, lease: Lease, node: Node) -> None:
    """The bytes behind the end of the file in its last block are about to be told: they must be zeros, once.

    Where that block is not written, `fill_step` sees to it.
    """
    end = node.size + -node.size % volume.block_size
    for begin, stop, delta, unwritten in data.pieces(volume, node, node.size, end) if end > node.size else ():
        for low, high in () if unwritten else tuple(lease.grown.gaps(begin, stop)):
            volume.pool.zero(low + delta, high - low)
            lease.grown.put(low, high, 0, False)


# Telling


def tell(volume: Volume, file: OpenFile, lease: Lease, request: LeaseRequest, upto: int) -> tuple[list[Piece], int]:
    """The pieces of the answer, up to there at most, and where they end.

    What a holder maps through the kernel is for all others out of reach too: pages and memory would not agree.
    """
    pieces: list[Piece] = []
    position = request.offset
    answer = overlaid(lease, found(volume, file, lease, request, upto))
    if request.flags & LeaseFlags.MAP and volume.block_size < ranges.PAGE:
        answer = in_pages(joined(answer))
    for piece in joined(answer):
        if len(pieces) == request.room:
            break
        pieces.append(piece)
        position = piece.offset + piece.length
        if piece.kind == LeaseKind.MEMORY:
            # Whole blocks: what is given up later is looked up by blocks.
            begin, end = piece.pool_offset, piece.pool_offset + piece.length
            lease.tell(begin & -volume.block_size, end + -end % volume.block_size)
    if request.flags & LeaseFlags.MAP and not volume.read_only:
        through_kernel(lease, file, request.holder, pieces)
    return pieces, position


def found(volume: Volume, file: OpenFile, lease: Lease, request: LeaseRequest, upto: int) -> Iterator[Piece]:
    """The file's pieces up to there as its map has them, holes too."""
    node = file.node
    nothing: LeaseKind = LeaseKind.KERNEL if request.flags & LeaseFlags.MAP else LeaseKind.HOLE
    position = request.offset
    for begin, end, delta, unwritten in data.pieces(volume, node, position, upto):
        if begin > position:
            yield Piece(position, 0, begin - position, nothing)
        position = end
        if not unwritten:
            yield Piece(begin, begin + delta, end - begin, LeaseKind.MEMORY)
            continue
        at = begin
        for low, high, _, _ in lease.grown.within(begin, end) if request.flags & LeaseFlags.GROW else ():
            if low > at:
                yield Piece(at, 0, low - at, nothing)
            yield Piece(low, low + delta, high - low, LeaseKind.MEMORY)
            at = high
        if at < end:
            yield Piece(at, 0, end - at, nothing)
    if position < upto:
        yield Piece(position, 0, upto - position, nothing)


def overlaid(lease: Lease, pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces, with what is mapped through the kernel cut out."""
    if not lease.kernel:
        yield from pieces
        return
    borders = sorted({border for held in lease.kernel for border in (held.begin, held.end)})
    for piece in pieces:
        at, stop = piece.offset, piece.offset + piece.length
        for border in [*(b for b in borders if at < b < stop), stop]:
            if any(held.begin <= at < held.end for held in lease.kernel):
                yield Piece(at, 0, border - at, LeaseKind.KERNEL)
            else:
                place = piece.pool_offset + at - piece.offset if piece.kind == LeaseKind.MEMORY else 0
                yield Piece(at, place, border - at, piece.kind)
            at = border


def in_pages(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces, where blocks are smaller than pages: what is no whole page of memory is mapped through the kernel."""
    for piece in pieces:
        begin, end = piece.offset, piece.offset + piece.length
        low, high = begin + -begin % ranges.PAGE, end & -ranges.PAGE
        if piece.kind != LeaseKind.MEMORY or low >= high or (piece.pool_offset - begin) % ranges.PAGE:
            low = high = end
        if begin < low:
            kind = LeaseKind.KERNEL if piece.kind == LeaseKind.MEMORY else piece.kind
            yield Piece(begin, 0, low - begin, kind)
        if low < high:
            yield Piece(low, piece.pool_offset + low - begin, high - low, LeaseKind.MEMORY)
        if high < end:
            yield Piece(high, 0, end - high, LeaseKind.KERNEL)


def joined(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Neighbours of one kind that lie together as one."""
    held: Piece | None = None
    for piece in pieces:
        if held is None:
            held = piece
        elif held.kind == piece.kind and (
            piece.kind != LeaseKind.MEMORY or held.pool_offset + held.length == piece.pool_offset
        ):
            held = held._replace(length=held.length + piece.length)
        else:
            yield held
            held = piece
    if held is not None:
        yield held


def through_kernel(lease: Lease, file: OpenFile, holder: int, pieces: list[Piece]) -> None:
    """Keep what the answer says is mapped through the kernel; who was told of holes there must ask again."""
    for piece in pieces:
        begin, end = piece.offset, piece.offset + piece.length
        if piece.kind == LeaseKind.KERNEL and not any(
            held.file is file and held.holder == holder and held.begin <= begin and end <= held.end
            for held in lease.kernel
        ):
            lease.kernel.append(KernelRange(file, holder, begin, end))
            lease.moved()


# Giving back


def give_back(volume: Volume, file: OpenFile, holder: int | None = None) -> None:
    """A holder, or all of an open file, use nothing any more."""
    lease = file.node.lease
    if lease is None:
        return
    kernel, grower = len(lease.kernel), lease.grower
    lease.drop(file, holder)
    if grower != lease.grower and not volume.read_only:
        parking.end_growth(volume, file.node)
    if lease.holders:
        if len(lease.kernel) != kernel:
            lease.moved()
        let_go(volume, lease)
        return
    del volume.leases.by_ino[lease.ino]
    file.node.lease = None
    let_go(volume, lease)
    if lease.slot:
        volume.board.give(lease.slot)


def let_go(volume: Volume, lease: Lease) -> None:
    """Free what was given up before any holder that is left has renewed."""
    since = lease.held_since()
    while lease.parked and lease.parked[0].epoch < since:
        ino = lease.parked.pop(0).ino
        volume.nodes.kept.discard(ino)
        removal.collect(volume, ino)


def part(volume: Volume) -> None:
    """The daemon goes: no answer holds any more, and who still maps the pool is a stranger for it.

    What strangers may touch stays where it is, nameless, for the next mount to free. Who has closed all files has
    nothing to touch, even if it keeps the pool mapped.
    """
    leases = volume.leases
    for lease in leases.by_ino.values():
        lease.end()
    leases.strangers = leases.strangers or (bool(leases.by_ino) and volume.pool.mapped_elsewhere())


def look_for_strangers(volume: Volume) -> None:
    """Free what waits for strangers when the last of them is gone."""
    if not volume.leases.strangers or volume.pool.mapped_elsewhere(volume.leases.lock):
        return
    volume.leases.strangers = False
    volume.leases.stray = 0
    nodes, held = volume.nodes, {parked.ino for lease in volume.leases.by_ino.values() for parked in lease.parked}
    nodes.kept -= {ino for ino in nodes.kept if ino not in held and ino != volume.board.ino}
    for ino in tuple(nodes.unlinked):
        removal.collect(volume, ino)


# Telling the daemon


def stored(volume: Volume, file: OpenFile, told: Stored) -> None:
    """A client has stored: times move, and the file reaches ``told.size`` at least.

    Raises:
        FsError: EBADF, EROFS, EFBIG, EINVAL (it holds no lease), ENOSPC; EAGAIN, and nothing has changed: the file has
            not the size any more that ``told.base`` says, or somebody else has ended the growth.
    """
    node = file.node
    if not file.writable:
        raise FsError(errno.EBADF)
    volume.writable()
    lease = node.lease
    if lease is None or file not in lease.holders:
        raise FsError(errno.EINVAL, f"inode {node.ino}: this open file has no lease")
    if told.size > node.size or told.base is not None:
        if told.base not in {None, node.size} or lease.grower is None or lease.grower[0] is not file:
            raise FsError(errno.EAGAIN)
        if told.size > volume.max_size(node.ino):
            raise FsError(errno.EFBIG)
        if told.size > volume.large_file_from:
            volume.allow_large_files()
    if told.size > node.size:
        grow(volume, node, lease, told.size)
    else:
        volume.touch_mtime(node)
    if told.durable:
        data.fsync(volume, node.ino, data_only=told.data_only)


def grow(volume: Volume, node: Node, lease: Lease, size: int) -> None:
    """Blocks that a client has filled become written up to ``size``, and the file reaches it."""
    bits = volume.block_bits
    if node.map is None:
        data.load_map(volume, node)
    begin = node.size & -volume.block_size
    filled = [
        mapping.Extent(low >> bits, low + delta >> bits, high - low >> bits, False)
        for low, high, delta, unwritten in data.pieces(volume, node, begin, size + -size % volume.block_size)
        if unwritten and lease.grown.find(low)
    ]
    for run in filled:
        volume.retrying(grow_step, node, lease, run, min(run.lblk + run.length << bits, size))
    if node.size < size:
        volume.retrying(grow_step, node, lease, None, size)
    lease.grown.cut(0, size)


def grow_step(volume: Volume, node: Node, lease: Lease, run: mapping.Extent | None, size: int) -> None:
    """Mark one run as written and move the end of the file, in one handle."""
    with volume.handle(ranges.CREDITS_STEP) as tx:
        inode = inodes.edit(tx, node.ino)
        if run is not None:
            mapping.mark_written(tx, inode, run.lblk, run.length)
        if not lease.grown.find(inode.size):
            data.zero_tail(volume, tx, inode, inode.size)
        inode.size = size
        ranges.finish(tx, inode)
    volume.resize(node, size)
    ranges.note(volume, node, () if run is None else (run,))
