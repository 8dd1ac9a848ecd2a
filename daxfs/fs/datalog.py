"""File data in the log: small atomic writes in place, and who must not store to such blocks.

The blocks of a logged write are copied into the running transaction, which logs them beside its metadata and stores
them home after its commit. So a power cut leaves all of the write or nothing, and the file keeps its blocks. Until the
commit readers take the copies: the node's map marks these blocks as `LOGGED`, `data.gather` asks `overlay`.

Such a block stays in the log until the log's tail has moved, and a replay stores it once more. `settle` makes blocks
ready for stores in place; whatever stores file data outside a handle calls it before. Inside a handle
`Handle.unlog_data` does the same (docs/CRASH.md, C17 and C18).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.fs.change import Change
from daxfs.fs.filemap import LOGGED
from daxfs.fs.nodes import END
from daxfs.structures import inodes, mapping

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from daxfs.fs.nodes import Node
    from daxfs.fs.types import Caller
    from daxfs.fs.volume import Volume
    from daxfs.journal.handle import Handle

    Piece = tuple[int, bytes | bytearray | memoryview]

MOST_BLOCKS = 8
"""The most blocks of a logged write; longer ones go to new blocks (docs/ATOMIC.md has the measurement)."""
CREDITS_SIZE = 4
"""Blocks that a new size changes: the inode's, and the superblock."""
CREDITS_REVOKE = 2


def blocks_to_log(volume: Volume, node: Node, pieces: Sequence[Piece]) -> dict[int, int] | None:
    """Return the blocks (logical -> physical) that a write of ``pieces`` changes if it can be logged; None: it can't.

    All of them are written blocks, and the block that EOF is in is one of them if the file gets longer. Clients that
    may store to the blocks themselves would lose stores to older copies, and bad memory may turn up at any store: then
    the write goes to new blocks.
    """
    bits = volume.block_bits
    if len(pieces) > MOST_BLOCKS or volume.log_area is None or volume.pool.bad:
        return None
    if node.grants is not None or volume.notifier.stale:
        return None
    found: dict[int, int] = {}
    end = 0
    for offset, content in pieces:
        end = offset + len(content)
        first, last = offset >> bits, end - 1 >> bits
        if last - first >= MOST_BLOCKS:
            return None
        for lblk in range(first, last + 1):
            if lblk not in found:
                pblk = _written_block(volume, node, lblk)
                if not pblk:
                    return None
                found[lblk] = pblk
    if len(found) > MOST_BLOCKS:
        return None
    if end > node.size and node.size & volume.block_size - 1 and node.size >> bits not in found:
        return None
    return found


def _written_block(volume: Volume, node: Node, lblk: int) -> int:
    """Return the written block of a file at ``lblk``; 0: there is none."""
    run = node.map.find(lblk << volume.block_bits) if node.map is not None else None
    if run is not None:
        return lblk + (run[2] >> volume.block_bits) if run[3] in (0, LOGGED) else 0
    extent = mapping.lookup(volume.view, inodes.read(volume.view, node.ino), lblk)
    return 0 if extent.unwritten else extent.pblk


def write(volume: Volume, node: Node, pieces: Sequence[Piece], blocks: dict[int, int], caller: Caller) -> None:
    """Log the new content of ``blocks`` (`blocks_to_log`) in one handle."""
    offset, content = pieces[-1]
    end = offset + len(content)
    if end <= node.size:
        with volume.handle(len(blocks)) as tx:
            _store(volume, tx, node, pieces, blocks)
        node.logs(blocks)
        node.overwritten()
    else:
        with volume.handle(len(blocks) + CREDITS_SIZE, caller) as tx, Change(volume, tx, node.ino) as change:
            for lblk, pblk in blocks.items():
                past_eof = max(node.size - (lblk << volume.block_bits), 0)
                copy = tx.log_data(pblk, node.ino)[past_eof:]
                copy[:] = bytes(len(copy))
            _store(volume, tx, node, pieces, blocks)
            change.inode.size = end
        node.logs(blocks)
    volume.bound_commit()


def _store(volume: Volume, tx: Handle, node: Node, pieces: Sequence[Piece], blocks: dict[int, int]) -> None:
    """Store to the transaction's copies. EIO: the old content of a block is needed, and its memory is missing."""
    bits = volume.block_bits
    for offset, content in pieces:
        end = offset + len(content)
        for lblk in range(offset >> bits, (end - 1 >> bits) + 1):
            begin = lblk << bits
            low, high = max(begin, offset), min(begin + volume.block_size, end)
            tx.log_data(blocks[lblk], node.ino)[low - begin : high - begin] = content[low - offset : high - offset]
    volume.finish_copy()


def overlay(volume: Volume, logged: dict[int, int], offset: int, content: bytearray) -> None:
    """Put the running transaction's copies of ``logged`` blocks into bytes of a file from ``offset`` on."""
    bits, end = volume.block_bits, offset + len(content)
    for lblk in range(offset >> bits, (end - 1 >> bits) + 1):
        pblk = logged.get(lblk)
        if pblk is not None:
            begin = lblk << bits
            low, high = max(begin, offset), min(begin + volume.block_size, end)
            content[low - offset : high - offset] = volume.view.block(pblk)[low - begin : high - begin]


def store_home(volume: Volume, node: Node) -> None:
    """Have the pool hold the newest content of the file: it is read from there, or its blocks move. Outside handles."""
    if node.logged is not None:
        volume.commit()


def settle(volume: Volume, ino: int, begin: int = 0, end: int = END) -> None:
    """Prepare the blocks of the bytes [begin, end) for stores in place. Called outside handles.

    What the running transaction has of them is committed. Their copies in the log are revoked by the next commit, which
    comes before any promise that later stores are durable: until then a replay may bring back what was durable before.
    """
    if ino not in volume.nodes.in_log.owners:
        return
    blocks = _logged_within(volume, ino, begin, end)
    if blocks and volume.journal.holds(blocks):
        volume.commit()
    with volume.handle(CREDITS_REVOKE) as tx:
        for number in blocks:
            tx.unlog_data(number, 1)
    node = volume.nodes.open.get(ino)
    if node is not None:
        node.settled()


def _logged_within(volume: Volume, ino: int, begin: int, end: int) -> Iterable[int]:
    """Return the file's blocks with bytes of [begin, end) that the transaction or the log holds."""
    in_log, bits = volume.nodes.in_log, volume.block_bits
    if begin == 0 and end == END:
        return tuple(in_log.owners[ino])
    inode = inodes.read(volume.view, ino)
    found: list[int] = []
    for run in mapping.walk(volume.view, inode, begin >> bits, end - 1 >> bits) if begin < end else ():
        found += in_log.within(run.pblk, run.length)
    return found
