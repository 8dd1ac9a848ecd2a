"""Atomic writes: after a power cut a file holds all of a write or none of it, and readers never see a part.

A write is one piece, or several pieces of a file that change together. Short ones that replace written blocks go
through the log (`daxfs.fs.datalog`). Otherwise the new content goes to new blocks, with what the write leaves of their
first and last ones, and is flushed. The same handle gives the file these blocks in the place of the old ones. So the
commit that makes the new map durable makes the write durable, and without it the old blocks still hold the old content
(docs/ATOMIC.md). A refused write changes nothing.

Source: pwritev2(2), RWF_ATOMIC, for the errors.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from daxfs.errors import FsError
from daxfs.fs import appends, badmemory, data, datalog
from daxfs.fs.change import Change
from daxfs.fs.notifiers import CREDITS_QUARANTINE
from daxfs.structures import blocks, inodes, mapping

if TYPE_CHECKING:
    from daxfs.fs.data import Buffer
    from daxfs.fs.datalog import Piece
    from daxfs.fs.nodes import Node
    from daxfs.fs.openfile import OpenFile
    from daxfs.fs.volume import Volume

MOST_BYTES = 16 << 20
"""The longest atomic write."""
CREDITS = 64 + CREDITS_QUARANTINE
"""Blocks that replacing one run by one may change: as a cut and a piece of a write."""
ENTRIES_PER_NODE = 80
"""Entries in a node of a map, at least: the node has 1 KiB, and a split leaves it half full."""
MOST_GROUPS = 64
"""The most groups that the new blocks may come from."""


class Span(NamedTuple):
    """Blocks [first, last] of a file and their new content in ``parts``, which follow each other without a gap."""

    first: int
    last: int
    parts: list[Buffer]


def write(volume: Volume, file: OpenFile, offset: int, content: Buffer, kill: bool | None = None) -> int:
    """Write all of ``content`` at ``offset`` (at EOF with O_APPEND), or nothing; return its length.

    Args:
        volume: of the file.
        file: open for writing.
        offset: in bytes.
        content: at most `MOST_BYTES`.
        kill: whether the write drops set-id bits (`privileges.takes_set_id`).

    Raises:
        FsError: EINVAL: longer than `MOST_BYTES`. EOPNOTSUPP: the pool has no journal. Others as `write_pieces`.
    """
    refuse_without_journal(volume)
    content = memoryview(content).cast("B")
    if offset < 0 or len(content) > MOST_BYTES:
        raise FsError(errno.EINVAL)
    if file.append:
        offset = file.node.size
    write_pieces(volume, file, [(offset, content)] if len(content) else [], kill)
    return len(content)


def refuse_without_journal(volume: Volume) -> None:
    """Refuse (EOPNOTSUPP) atomic writes to a pool whose commits are not atomic themselves."""
    if volume.log_area is None:
        raise FsError(errno.EOPNOTSUPP, f"{volume.pool.path}: the pool has no journal, so no write is atomic")


def write_pieces(volume: Volume, file: OpenFile, pieces: Sequence[Piece], kill: bool | None = None) -> None:
    """Write all pieces (offset, content), or nothing.

    Args:
        volume: of the file.
        file: open for writing.
        pieces: not empty, in order, without overlap.
        kill: whether the write drops set-id bits (`privileges.takes_set_id`).

    Raises:
        FsError: EFBIG. ENOSPC: there is no room for a second copy of the blocks, or the old or the new ones lie in more
            pieces than one transaction holds. EBADF, EPERM, EROFS as for a write.
    """
    node = file.node
    if not file.writable:
        raise FsError(errno.EBADF)
    if not pieces:
        return
    begin, end = pieces[0][0], _end(pieces)
    if volume.exceeds_map(node.ino, end):
        raise FsError(errno.EFBIG)
    volume.writable()
    if volume.tiers is not None:
        volume.tiers.require_memory(volume.view, node.ino, min(begin, node.size), end)
    data.prepare(volume, file, begin, kill)
    blocks = datalog.blocks_to_log(volume, node, pieces)
    if blocks is not None:
        datalog.write(volume, node, pieces, blocks, file.caller)
        return
    if end > node.size:
        appends.end_preallocation(volume, node.ino)
    if end > volume.large_file_from:
        volume.allow_large_files()
    try:
        volume.retrying(_replace, file, pieces)
    finally:
        for offset, content in pieces:
            stop = offset + len(content)
            node.moved(offset & -volume.block_size, stop + -stop % volume.block_size)


def _replace(volume: Volume, file: OpenFile, pieces: Sequence[Piece]) -> None:
    """Give the file new blocks with the new content, in one handle."""
    node = file.node
    spans = [_span(volume, file, together) for together in _touching(pieces, volume.block_bits)]
    if volume.pool.hook is not None:
        volume.pool.hook.expect(sum(span.last - span.first + 1 for span in spans) << volume.block_bits)
    with (
        volume.handle(_credits(volume, node, spans), file.caller) as tx,
        Change(volume, tx, node.ino) as change,
    ):
        if pieces[-1][0] > node.size:
            data.zero_tail(volume, tx, change.inode, node.size)
        groups = blocks.GroupBound(MOST_GROUPS)
        for span in spans:
            _fill(volume, change, span, groups)
        change.inode.size = max(change.inode.size, _end(pieces))


def _fill(volume: Volume, change: Change, span: Span, groups: blocks.GroupBound) -> None:
    """Give a span new blocks, fill and flush them."""
    bits, store = volume.block_bits, volume.pool.write
    align = volume.alignment(span.first, span.last - span.first + 1)
    parts, rest = iter(span.parts), memoryview(b"")
    for run in change.replace(span.first, span.last, groups, align=align):
        place, end = run.pblk << bits, run.pblk + run.length << bits
        while place < end:
            rest = rest or memoryview(next(parts))
            store(place, rest[: end - place])
            place, rest = min(place + len(rest), end), rest[end - place :]


def _end(pieces: Sequence[Piece]) -> int:
    """Return where the last piece ends."""
    offset, content = pieces[-1]
    return offset + len(content)


def _touching(pieces: Sequence[Piece], bits: int) -> Iterator[list[Piece]]:
    """Yield the pieces in groups whose blocks follow each other without a gap."""
    together: list[Piece] = []
    for piece in pieces:
        if together and piece[0] >> bits > (_end(together) - 1 >> bits) + 1:
            yield together
            together = []
        together.append(piece)
    yield together


def _span(volume: Volume, file: OpenFile, pieces: Sequence[Piece]) -> Span:
    """Return the blocks of pieces without a gap, with what the pieces leave of them."""
    bits = volume.block_bits
    first, last = pieces[0][0] >> bits, _end(pieces) - 1 >> bits
    parts: list[Buffer] = []
    position = first << bits
    for offset, content in pieces:
        parts += kept(volume, file, position, offset), content
        position = offset + len(content)
    parts.append(kept(volume, file, position, last + 1 << bits))
    return Span(first, last, parts)


def kept(volume: Volume, file: OpenFile, begin: int, end: int) -> bytes:
    """Return the bytes [begin, end) as they stay, often none: zeros in holes, unwritten blocks and past EOF."""
    inside = max(min(end, file.node.size), begin)
    kept = data.gather(volume, file.node, begin, inside - begin) if inside > begin else b""
    if len(kept) < inside - begin:
        raise badmemory.error(volume, file.node, begin + len(kept))
    return kept + bytes(end - inside)


def _credits(volume: Volume, node: Node, spans: Sequence[Span]) -> int:
    """Return how many blocks the handle may change: nodes of the map before and after, bitmaps and descriptors.

    Blocks that clients may touch are also inserted into the map of a quarantine inode.
    """
    inode = inodes.read(volume.view, node.ino)
    nodes = mapping.nodes_within(volume.view, inode, [(span.first, span.last) for span in spans])
    new = sum(span.last - span.first + 3 for span in spans) // ENTRIES_PER_NODE
    deferred = new if node.grants is not None or volume.notifier.stale else 0
    return CREDITS + 2 * (nodes + new) + deferred + 2 * min(MOST_GROUPS, volume.geometry.groups_count)
