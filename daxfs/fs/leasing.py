"""Asking for a file's memory: what a client is told, and how it gives it back.

An answer holds until the slot on the board shows another epoch or the open file is closed. For storing, the range gets
blocks of zeros first and all of it is committed, so that the client's own flush and fence make its stores durable
(what MAP_SYNC means in the kernel). A process may ask if it has the file open and can open the pool, which it proves by
quoting the token that lies in it (`board.py`). What clients say that they have stored is `growing.py`'s. docs/DIRECT.md
has the rules of both sides.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.ext4.inode import EXT4_EXTENTS_FL
from daxfs.fs import data, deferred, parking, ranges, removal
from daxfs.fs.leases import MAX_ALL_HOLDERS, MAX_HOLDERS, MAX_HOLDERS_OF_ALL_FILES, Lease
from daxfs.fs.types import Grant, LeaseRequest, Piece, PoolIdentity
from daxfs.pmem.persist import MSYNC
from daxfs.protocol import FURTHEST, MOST_FILLED, Flag, Kind
from daxfs.structures import blocks, inodes, mapping

if TYPE_CHECKING:
    from daxfs.fs.data import OpenFile
    from daxfs.fs.nodes import Node
    from daxfs.fs.volume import Volume

Range = tuple[int, int]

# Plain numbers: sums of an IntFlag's members cost more than all else that an ordinary answer needs.
WRITE, FILL, GROW, MAP, RENEW = (int(flag) for flag in Flag)
HOLE, MEMORY, KERNEL = Kind


def identity(volume: Volume) -> PoolIdentity:
    """Which pool it is, for a client to find and to compare.

    Raises:
        FsError: EOPNOTSUPP when there is no file or device to open; ENOSPC when there is no block for the token.
    """
    pool, books = volume.pool, volume.leases
    if books.identity is not None:
        return books.identity
    if pool.status is None:
        raise FsError(errno.EOPNOTSUPP, f"{pool.path}: nobody else can map a pool of kind {pool.kind}")
    volume.board.make()
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
        token=volume.board.token,
    )
    return books.identity


# Asking


def grant(volume: Volume, file: OpenFile, request: LeaseRequest) -> Grant:
    """Answer a request.

    Raises:
        FsError: EINVAL (range), EOPNOTSUPP (no token or not this mount's; not served from memory, or synchronous by its
            flags), EBADF, EPERM, EROFS, ENOSPC, EAGAIN (too many holders, or too much waits for this user to be freed;
            somebody else grows the file).
    """
    check(volume, file, request)
    if not request.length:
        give_back(volume, file, request.holder)
        return Grant(request.offset, file.node.size, 0, 0, [], False)
    if volume.leases.deferred and deferred.over_limit(volume, file.caller.uid):
        refuse_debtor(volume, file, request)
    lease = join(volume, file, request)
    if file.node.atime_due:
        volume.touch_atime(file.node)
    made = False
    end = reach(volume, file.node, request)
    upto = request.offset + request.length
    if not request.flags & MAP:
        upto = min(upto, end)
    if request.flags & FILL and end > request.offset:
        first = request.offset & -volume.block_size
        if end - first > MOST_FILLED:
            end = upto = first + MOST_FILLED
        made = fill(volume, file, lease, first, end)
    if not volume.read_only and volume.journal.dirty:
        # Else a crash could make free, for the next mount, what programs go on reading.
        volume.commit()
    pieces, told_to = tell(volume, file, lease, request, upto)
    return Grant(told_to, file.node.size, lease.slot, lease.epoch, pieces, made)


def check(volume: Volume, file: OpenFile, request: LeaseRequest) -> None:
    """Refuse what can't be granted."""
    node, flags = file.node, request.flags
    if request.offset < 0 or request.length < 0 or request.offset + request.length > FURTHEST:
        raise FsError(errno.EINVAL)
    if flags & (FILL | GROW) and not flags & WRITE:
        raise FsError(errno.EINVAL)
    if flags & GROW and not flags & FILL:
        raise FsError(errno.EINVAL)
    if not request.length and not flags & RENEW:
        raise FsError(errno.EINVAL)
    if not volume.board.proves(request.token):
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
        data.drop_privileges(volume, node, file.caller)
    if not node.plain:
        # Each of its writes means more than a store.
        raise FsError(errno.EOPNOTSUPP)
    if flags & GROW:
        if request.offset + request.length > volume.max_size(node.ino):
            raise FsError(errno.EFBIG)
        if not inodes.read(volume.view, node.ino).flags & EXT4_EXTENTS_FL:
            raise FsError(errno.EOPNOTSUPP)


def refuse_debtor(volume: Volume, file: OpenFile, request: LeaseRequest) -> None:
    """Too much waits to be freed for the user who opened the file: EAGAIN, unless what is renewed now is enough."""
    if request.flags & RENEW:
        give_back(volume, file, request.holder)
        if not deferred.over_limit(volume, file.caller.uid):
            return
    raise FsError(errno.EAGAIN, f"user {file.caller.uid}: too much waits to be freed")


def join(volume: Volume, file: OpenFile, request: LeaseRequest) -> Lease:
    """The file's lease, with this holder in it."""
    node = file.node
    lease = node.lease
    if lease is None:
        if volume.leases.holders >= MAX_HOLDERS_OF_ALL_FILES:
            raise FsError(errno.EAGAIN, "too many holders of leases")
        slot = volume.board.take() if not volume.read_only else 0
        lease = node.lease = volume.leases.begin(node.ino, slot, node.size, volume.pool)
    elif request.flags & RENEW:
        grower = lease.grower
        volume.leases.holders -= lease.drop(file, request.holder)
        if lease.grower != grower and not request.flags & GROW and not volume.read_only:
            parking.end_growth(volume, node)
        if not lease.holders:
            lease.told.cut(0, volume.pool.size)
        let_go(volume, lease)
    if request.flags & GROW and lease.grower not in {None, (file, request.holder)}:
        raise FsError(errno.EAGAIN, f"inode {node.ino}: somebody else makes it longer by itself")
    holders = lease.holders.get(file, {})
    if request.holder not in holders:
        if (
            len(holders) >= MAX_HOLDERS
            or lease.all_holders >= MAX_ALL_HOLDERS
            or volume.leases.holders >= MAX_HOLDERS_OF_ALL_FILES
        ):
            raise FsError(errno.EAGAIN, f"inode {node.ino}: too many holders of its lease")
        holders[request.holder] = lease.epoch
        lease.holders[file] = holders
        volume.leases.holders += 1
    if request.flags & GROW:
        lease.grower = file, request.holder
    return lease


def reach(volume: Volume, node: Node, request: LeaseRequest) -> int:
    """Where what can be memory ends: with the block that the end of the file is in, or where a growing file asks."""
    end = request.offset + request.length
    if not request.flags & GROW:
        end = min(end, node.size)
    return end + -end % volume.block_size


# Providing


def fill(volume: Volume, file: OpenFile, lease: Lease, begin: int, end: int) -> bool:
    """Give every block of the range memory that is zeroed and, within the file, written; whether any had none."""
    node = file.node
    if end > node.size:
        parking.forsake(volume, node.ino)
    if node.map is None:
        data.load_map(volume, node)
    if end > node.size:
        blank_tail(volume, lease, node)
    if provided(volume, lease, node, begin, end):
        return False
    missing = end - begin - sum(high - low for low, high, _, _ in data.pieces(volume, node, begin, end))
    kept = blocks.kept(volume.geometry, volume.view.superblock(), privileged=volume.privileged(file.caller))
    if missing >> volume.block_bits > blocks.free_blocks(volume.view) + volume.pending_frees() - kept:
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
    """Whether all of [begin, end) is memory that may be told: written within the file, granted past EOF."""
    position, eof = begin, node.size + -node.size % volume.block_size
    for low, high, _, unwritten in data.pieces(volume, node, begin, end):
        if low > position or (unwritten and low < eof):
            return False
        if high > eof and any(True for _ in lease.grown.gaps(max(low, eof), high)):
            return False
        position = high
    return position >= end


def fill_step(volume: Volume, file: OpenFile, lease: Lease, lblk: int, stop: int) -> int:
    """Provide some runs in one handle; returns the block to go on with.

    Past EOF blocks stay unwritten, which is what ext4 has there, until `growing.stored` moves EOF. Written ones, which
    a damaged or foreign pool may have there, are zeroed as unwritten ones are.
    """
    node, bits = file.node, volume.block_bits
    inside = node.size + volume.block_size - 1 >> bits
    made: list[mapping.Extent] = []
    grown: list[Range] = []
    with volume.handle(ranges.CREDITS_STEP, file.caller) as tx:
        inode = inodes.edit(tx, node.ino)
        while lblk < stop and len(made) < ranges.RUNS_PER_STEP:
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
    if (whole := one_piece(volume, file.node, lease, request, upto)) is not None:
        lease.tell(whole.pool_offset & -volume.block_size, pool_end(volume, whole))
        return [whole], upto
    pieces: list[Piece] = []
    position = request.offset
    answer = overlaid(lease, found(volume, file, lease, request, upto))
    if request.flags & MAP and volume.block_size < ranges.PAGE:
        answer = in_pages(joined(answer))
    for piece in joined(answer):
        if len(pieces) == request.room:
            break
        pieces.append(piece)
        position = piece.offset + piece.length
        if piece.kind == MEMORY:
            # Whole blocks: what is given up later is looked up by blocks.
            lease.tell(piece.pool_offset & -volume.block_size, pool_end(volume, piece))
    if request.flags & MAP and not volume.read_only:
        through_kernel(lease, file, request.holder, pieces)
    return pieces, position


def one_piece(volume: Volume, node: Node, lease: Lease, request: LeaseRequest, upto: int) -> Piece | None:
    """The answer where it is the ordinary one: all that is asked lies together in the pool."""
    if lease.kernel or volume.block_size < ranges.PAGE or not request.room:
        return None
    mapped = node.map or data.load_map(volume, node)
    run = mapped.find(request.offset) if mapped is not None else None
    if run is None or run[3] or run[1] < upto:
        return None
    return Piece(request.offset, request.offset + run[2], upto - request.offset, MEMORY)


def pool_end(volume: Volume, piece: Piece) -> int:
    """Where in the pool the block ends that a piece ends in."""
    end = piece.pool_offset + piece.length
    return end + -end % volume.block_size


def found(volume: Volume, file: OpenFile, lease: Lease, request: LeaseRequest, upto: int) -> Iterator[Piece]:
    """The file's pieces up to there as its map has them, holes too."""
    node = file.node
    nothing: Kind = KERNEL if request.flags & MAP else HOLE
    position = request.offset
    for begin, end, delta, unwritten in data.pieces(volume, node, position, upto):
        if begin > position:
            yield Piece(position, 0, begin - position, nothing)
        position = end
        if not unwritten:
            yield Piece(begin, begin + delta, end - begin, MEMORY)
            continue
        at = begin
        for low, high, _, _ in lease.grown.within(begin, end) if request.flags & GROW else ():
            if low > at:
                yield Piece(at, 0, low - at, nothing)
            yield Piece(low, low + delta, high - low, MEMORY)
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
    for piece in pieces:
        at, stop = piece.offset, piece.offset + piece.length
        for begin, end, _, _ in lease.barred.within(at, stop):
            if begin > at:
                yield part_of(piece, at, begin)
            yield Piece(begin, 0, end - begin, KERNEL)
            at = end
        if at < stop:
            yield part_of(piece, at, stop)


def part_of(piece: Piece, begin: int, end: int) -> Piece:
    """The bytes [begin, end) of the file, which are in the piece."""
    return Piece(
        begin, piece.pool_offset + begin - piece.offset if piece.kind == MEMORY else 0, end - begin, piece.kind
    )


def in_pages(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces, where blocks are smaller than pages: what is no whole page of memory is mapped through the kernel."""
    for piece in pieces:
        begin, end = piece.offset, piece.offset + piece.length
        low, high = begin + -begin % ranges.PAGE, end & -ranges.PAGE
        if piece.kind != MEMORY or low >= high or (piece.pool_offset - begin) % ranges.PAGE:
            low = high = end
        if begin < low:
            kind = KERNEL if piece.kind == MEMORY else piece.kind
            yield Piece(begin, 0, low - begin, kind)
        if low < high:
            yield Piece(low, piece.pool_offset + low - begin, high - low, MEMORY)
        if high < end:
            yield Piece(high, 0, end - high, KERNEL)


def joined(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Neighbours of one kind that lie together as one."""
    held: Piece | None = None
    for piece in pieces:
        if held is None:
            held = piece
        elif held.kind == piece.kind and (piece.kind != MEMORY or held.pool_offset + held.length == piece.pool_offset):
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
        own = lease.kernel.get((file, holder))
        if piece.kind == KERNEL and (own is None or not own.covers(begin, end)):
            lease.map_through_kernel(file, holder, begin, end)


# Giving back


def give_back(volume: Volume, file: OpenFile, holder: int | None = None) -> None:
    """A holder, or all of an open file, use nothing any more."""
    lease = file.node.lease
    if lease is None:
        return
    kernel, grower = len(lease.kernel), lease.grower
    volume.leases.holders -= lease.drop(file, holder)
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
        first = lease.parked.pop(0)
        volume.leases.deferred -= first.size
        volume.nodes.kept.discard(first.ino)
        removal.collect(volume, first.ino)


def flush_stores(volume: Volume) -> None:
    """Have the next fence write back what clients have stored, whoever they are and whether or not they still live.

    msync(2) writes all dirty pages of the pool's file, whoever stored. Cache lines are the clients' own to flush.
    """
    if volume.was_writable and volume.pool.persistence == MSYNC:
        volume.pool.flush(0, volume.pool.size)


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
    volume.leases.forsaken.clear()
    nodes, held = volume.nodes, {parked.ino for lease in volume.leases.by_ino.values() for parked in lease.parked}
    nodes.kept -= {ino for ino in nodes.kept if ino not in held and ino != volume.board.ino}
    removal.collect_all(volume)
