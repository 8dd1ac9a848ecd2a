"""The pieces of an answer to a lease request: where in the pool the requested bytes of a file lie.

Blocks that are mapped in the file's tree are memory, all else is a hole. Bytes that a holder maps through the kernel
are withheld from all other holders, since the kernel's pages and the pool's memory would not agree. Bad memory is never
granted: the daemon answers for it, and for what lies on storage. Nothing here changes the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from daxfs.fs import data, ranges
from daxfs.fs.grants.inode_grants import Holder
from daxfs.fs.types import LeaseRequest
from daxfs.protocol import Flag, GrantedExtent, Kind

if TYPE_CHECKING:
    from daxfs.fs.grants.inode_grants import InodeGrants
    from daxfs.fs.nodes import Node
    from daxfs.fs.openfile import OpenFile
    from daxfs.fs.tiers.storagecache import StorageCache
    from daxfs.fs.volume import Volume

WRITE, EXTEND, MAP, PAGES = int(Flag.WRITE), int(Flag.EXTEND), int(Flag.MAP), int(Flag.PAGES)
HOLE, MEMORY, KERNEL = Kind


def compose(
    volume: Volume, file: OpenFile, grants: InodeGrants, request: LeaseRequest, upto: int
) -> tuple[list[GrantedExtent], int]:
    """Return the pieces of the answer, up to ``upto`` at most, and the offset where they end."""
    if request.flags & PAGES:
        pages = [GrantedExtent(request.offset, 0, upto - request.offset, KERNEL)]
        if not volume.read_only:
            record_kernel_mapped(grants, file, request.holder, pages)
        return pages, upto
    storing = Holder(file, request.holder) if request.flags & WRITE else None
    mapping = Holder(file, request.holder) if request.flags & MAP else None
    if (whole := single_piece(volume, file.node, grants, request, upto)) is not None:
        grants.grant(whole.pool_offset & -volume.block_size, pool_end(volume, whole), storing, mapping)
        return [whole], upto
    pieces: list[GrantedExtent] = []
    position = request.offset
    answer = overlay_kernel_mapped(grants, mapped_pieces(volume, file, grants, request, upto))
    if volume.tiers is not None:
        answer = withhold_storage(volume.tiers, answer)
    if volume.pool.bad:
        answer = withhold_bad(volume, answer)
    if request.flags & MAP and volume.block_size < ranges.PAGE:
        answer = whole_pages(merge_adjacent(answer))
    for piece in merge_adjacent(answer):
        if len(pieces) == request.room:
            break
        pieces.append(piece)
        position = piece.offset + piece.length
        if piece.kind == MEMORY:
            # Whole blocks, since deferred frees are compared by blocks.
            grants.grant(piece.pool_offset & -volume.block_size, pool_end(volume, piece), storing, mapping)
    if request.flags & MAP and not volume.read_only:
        record_kernel_mapped(grants, file, request.holder, pieces)
    return pieces, position


def single_piece(
    volume: Volume, node: Node, grants: InodeGrants, request: LeaseRequest, upto: int
) -> GrantedExtent | None:
    """Return the only piece of the answer if the requested bytes lie together in the pool; None if they do not."""
    if grants.through_kernel or volume.block_size < ranges.PAGE or not request.room:
        return None
    mapped = node.map or data.load_map(volume, node)
    run = mapped.find(request.offset) if mapped is not None else None
    if run is None or run[3] or run[1] < upto:
        return None
    return GrantedExtent(request.offset, request.offset + run[2], upto - request.offset, MEMORY)


def pool_end(volume: Volume, piece: GrantedExtent) -> int:
    """Return the pool offset where the block ends that contains the piece's last byte."""
    end = piece.pool_offset + piece.length
    return end + -end % volume.block_size


def mapped_pieces(
    volume: Volume, file: OpenFile, grants: InodeGrants, request: LeaseRequest, upto: int
) -> Iterator[GrantedExtent]:
    """Yield the file's pieces up to ``upto`` as its map has them, holes included."""
    node = file.node
    nothing: Kind = KERNEL if request.flags & MAP else HOLE
    position = request.offset
    for begin, end, delta, unwritten in data.pieces(volume, node, position, upto):
        if begin > position:
            yield GrantedExtent(position, 0, begin - position, nothing)
        position = end
        if not unwritten:
            yield GrantedExtent(begin, begin + delta, end - begin, MEMORY)
            continue
        at = begin
        for low, high, _, _ in grants.preallocated.within(begin, end) if request.flags & EXTEND else ():
            if low > at:
                yield GrantedExtent(at, 0, low - at, nothing)
            yield GrantedExtent(low, low + delta, high - low, MEMORY)
            at = high
        if at < end:
            yield GrantedExtent(at, 0, end - at, nothing)
    if position < upto:
        yield GrantedExtent(position, 0, upto - position, nothing)


def overlay_kernel_mapped(grants: InodeGrants, pieces: Iterator[GrantedExtent]) -> Iterator[GrantedExtent]:
    """Yield the pieces, with bytes that are mapped through the kernel as pieces of their own."""
    if not grants.through_kernel:
        yield from pieces
        return
    for piece in pieces:
        at, stop = piece.offset, piece.offset + piece.length
        for begin, end, _, _ in grants.kernel_mapped.within(at, stop):
            if begin > at:
                yield part_of(piece, at, begin)
            yield GrantedExtent(begin, 0, end - begin, KERNEL)
            at = end
        if at < stop:
            yield part_of(piece, at, stop)


def withhold_storage(tiers: StorageCache, pieces: Iterator[GrantedExtent]) -> Iterator[GrantedExtent]:
    """Yield the pieces, of which those on storage go through the kernel."""
    for piece in pieces:
        if piece.kind == MEMORY and tiers.holds(piece.pool_offset + piece.length - 1):
            yield GrantedExtent(piece.offset, 0, piece.length, KERNEL)
        else:
            yield piece


def withhold_bad(volume: Volume, pieces: Iterator[GrantedExtent]) -> Iterator[GrantedExtent]:
    """Yield the pieces, with bad memory as pieces of their own that go through the kernel."""
    for piece in pieces:
        at, end = piece.offset, piece.offset + piece.length
        delta = piece.pool_offset - at
        for low, high in volume.pool.bad.within(at + delta, end + delta) if piece.kind == MEMORY else ():
            if low - delta > at:
                yield part_of(piece, at, low - delta)
            at = high - delta
            yield GrantedExtent(low - delta, 0, high - low, KERNEL)
        if at < end:
            yield part_of(piece, at, end)


def part_of(piece: GrantedExtent, begin: int, end: int) -> GrantedExtent:
    """Return the part [begin, end) of a piece; the bounds are offsets in the file."""
    return GrantedExtent(
        begin, piece.pool_offset + begin - piece.offset if piece.kind == MEMORY else 0, end - begin, piece.kind
    )


def whole_pages(pieces: Iterator[GrantedExtent]) -> Iterator[GrantedExtent]:
    """Yield the pieces, with memory that fills no whole page made KERNEL (for blocks smaller than a page)."""
    for piece in pieces:
        begin, end = piece.offset, piece.offset + piece.length
        low, high = begin + -begin % ranges.PAGE, end & -ranges.PAGE
        if piece.kind != MEMORY or low >= high or (piece.pool_offset - begin) % ranges.PAGE:
            low = high = end
        if begin < low:
            kind = KERNEL if piece.kind == MEMORY else piece.kind
            yield GrantedExtent(begin, 0, low - begin, kind)
        if low < high:
            yield GrantedExtent(low, piece.pool_offset + low - begin, high - low, MEMORY)
        if high < end:
            yield GrantedExtent(high, 0, end - high, KERNEL)


def merge_adjacent(pieces: Iterator[GrantedExtent]) -> Iterator[GrantedExtent]:
    """Yield the pieces, with neighbours merged that are of one kind and, if they are memory, adjacent in the pool."""
    held: GrantedExtent | None = None
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


def record_kernel_mapped(grants: InodeGrants, file: OpenFile, holder: int, pieces: list[GrantedExtent]) -> None:
    """Record the bytes of the answer that are mapped through the kernel. A new range ends the epoch."""
    for piece in pieces:
        begin, end = piece.offset, piece.offset + piece.length
        own = grants.through_kernel.get((file, holder))
        if piece.kind == KERNEL and (own is None or not own.covers(begin, end)):
            grants.map_through_kernel(file, holder, begin, end)
