"""Giving up blocks that a client may still touch: they park on an inode without a name instead of becoming free.

A client that was told where a file lies loads and stores there without asking. So every cut of a file's blocks goes
through `remove`, which takes back what holders were told of from what the handle has freed and maps it into a *keeper*:
a nameless inode that only holds blocks. The keeper is on the orphan list in the same transaction, so that whatever
happens, recovery frees it. `leasing.py` frees it when the last holder of that epoch is gone.
"""

from __future__ import annotations

import stat
from functools import partial
from typing import TYPE_CHECKING

from daxfs.fs import clock
from daxfs.fs.filemap import FileMap
from daxfs.fs.leases import Lease, Parked
from daxfs.fs.types import ROOT_INO
from daxfs.structures import blocks, inodes, mapping
from daxfs.structures.mapping import Extent

if TYPE_CHECKING:
    from daxfs.fs.nodes import Node
    from daxfs.fs.volume import Volume
    from daxfs.journal.transaction import Handle
    from daxfs.structures.inodes import Inode

CREDITS_PARK = 24
"""What parking adds to a handle: a new inode, its map's last leaf and what splits above it."""
CREDITS_END = 64 + CREDITS_PARK
RUNS_PER_END = 32
FEW_BLOCKS = 64
"""So few free blocks are taken for none: giving something up must not fail because the pool is full."""
RUNS_INSIDE = 4
"""Runs for which an inode has room in itself."""
MAX_PARKED = 8
"""Keepers of one lease; what is given up after that joins the last one and goes with it."""

Run = tuple[int, int]


def remove(volume: Volume, tx: Handle, inode: Inode, first: int, last: int | None, *, limit: int = 1 << 30) -> bool:
    """`mapping.remove` for a regular file's blocks, as far as nobody may touch them any more; the rest parks.

    It costs `CREDITS_PARK` more. Whoever calls it says ``moved`` when all is removed.
    """
    mark = len(tx.frees)
    finished = mapping.remove(tx, inode, first, last, limit=limit)
    lease = volume.leases.by_ino.get(inode.number)
    if volume.leases.strangers or lease is not None:
        runs = withheld(volume, tx, mark, lease)
        if runs:
            park(volume, tx, lease, runs)
    return finished


def end_growth(volume: Volume, node: Node) -> None:
    """Nobody makes the file longer by itself any more: what lies behind its end for that goes, as a cut does.

    Whoever is about to make the file longer in another way calls it first, so that a client that goes on storing there
    does not store into what others write.
    """
    forsake(volume, node.ino)
    lease = node.lease
    if lease is None or not lease.grown.runs:
        return
    lease.grower = None
    bits = volume.block_bits
    first = node.size + volume.block_size - 1 >> bits
    runs = [(max(begin >> bits, first), (end >> bits) - 1) for begin, end, _, _ in lease.grown.runs]
    lease.grown = FileMap()
    try:
        for low, high in reversed(runs):
            if node.map is not None:
                node.map.cut(low << bits, high + 1 << bits)
            if low <= high:
                give_up(volume, node.ino, low, high)
    finally:
        lease.moved()


def forsake(volume: Volume, ino: int) -> None:
    """Before a file gets longer while there are strangers: none of what lies behind its end becomes part of it.

    A stranger may have been given those blocks to make the file longer, and tries again and again to append there. They
    park; with them goes what other programs have reserved there.
    """
    leases = volume.leases
    if not leases.strangers or ino in leases.forsaken:
        return
    size = inodes.read(volume.view, ino).size
    give_up(volume, ino, size + volume.block_size - 1 >> volume.block_bits, None)
    node = volume.nodes.open.get(ino)
    if node is not None:
        node.map = None
        if node.lease is not None:
            node.lease.grown = FileMap()
            node.lease.moved()
    leases.forsaken.add(ino)


def give_up(volume: Volume, ino: int, first: int, last: int | None) -> None:
    """`remove` blocks behind the end of a file, in as many handles as it takes."""
    finished = False
    while not finished:
        with volume.handle(CREDITS_END) as tx:
            inode = inodes.edit(tx, ino)
            finished = remove(volume, tx, inode, first, last, limit=RUNS_PER_END)
            mapping.settle_tail(tx, inode)


def withheld(volume: Volume, tx: Handle, mark: int, lease: Lease | None) -> list[Run]:
    """What of that which was freed since ``mark`` must wait; it is taken off the list of what becomes free."""
    freed = tx.frees[mark:]
    if volume.leases.strangers or lease is None:
        del tx.frees[mark:]
        return freed
    bits = volume.block_bits
    kept: list[Run] = []
    free: list[Run] = []
    for start, count in freed:
        position, end = start, start + count
        for begin, stop, _, _ in lease.told.within(start << bits, end << bits):
            low, high = begin >> bits, stop >> bits
            if low > position:
                free.append((position, low - position))
            kept.append((low, high - low))
            position = high
        if position < end:
            free.append((position, end - position))
    tx.frees[mark:] = free
    return kept


def park(volume: Volume, tx: Handle, lease: Lease | None, runs: list[Run]) -> None:
    """Map the runs into a keeper, the lease's last one if it will do; in a full pool into as many as need no block."""
    if blocks.free_blocks(tx) < FEW_BLOCKS:
        for first in range(0, len(runs), RUNS_INSIDE):
            park_on(volume, tx, lease, 0, runs[first : first + RUNS_INSIDE])
    else:
        park_on(volume, tx, lease, reusable(lease) if lease is not None else strays(volume), runs)


def park_on(volume: Volume, tx: Handle, lease: Lease | None, number: int, runs: list[Run]) -> None:
    """Map the runs into this keeper (0: a new one)."""
    keeper = inodes.edit(tx, number) if number else new_keeper(tx)
    bits = volume.block_bits
    for start, count in runs:
        mapping.insert(tx, keeper, Extent(keeper.size >> bits, start, count, False))
        inodes.add_blocks(keeper, count, tx.geometry)
        keeper.size += count << bits
    keep(volume, keeper.number)
    if lease is None:
        volume.leases.undo.append(partial(setattr, volume.leases, "stray", volume.leases.stray))
        volume.leases.stray = keeper.number
        return
    books = volume.leases
    books.undo.append(partial(setattr, lease, "parked", lease.parked[:]))
    books.undo.append(partial(setattr, books, "deferred", books.deferred))
    size = sum(count for _, count in runs) << bits
    books.deferred += size
    for start, count in runs:
        begin, end = start << bits, start + count << bits
        lease.told.cut(begin, end)
        volume.leases.undo.append(partial(lease.told.put, begin, end, 0, False))
    if number:
        size += lease.parked.pop().size
    lease.parked.append(Parked(lease.epoch, keeper.number, size))


def reusable(lease: Lease) -> int:
    """The keeper that more can be put on: the last, if that keeps nothing longer than it must or there are many."""
    if not lease.parked:
        return 0
    last = lease.parked[-1]
    return last.ino if last.epoch == lease.epoch or len(lease.parked) >= MAX_PARKED else 0


def strays(volume: Volume) -> int:
    """The keeper of what only strangers may touch: one for all, since they end together."""
    return volume.leases.stray if volume.leases.stray in volume.nodes.kept else 0


def new_keeper(tx: Handle) -> Inode:
    """An inode for blocks that belong to no file; `keep` says so to the books."""
    inode = inodes.allocate(tx, inodes.read(tx, ROOT_INO), stat.S_IFREG)
    mapping.new_inode_map(tx, inode)
    inode.atime_ns = inode.mtime_ns = inode.ctime_ns = inode.crtime_ns = clock.now()
    tx.reserve("orphans", 8)
    return inode


def keep(volume: Volume, ino: int) -> None:
    """A keeper has no name, so that recovery frees it, and is busy until it is let go. Undone with the handle."""
    nodes = volume.nodes
    if ino not in nodes.kept:
        nodes.keep(ino)
        volume.leases.undo.append(partial(nodes.unkeep, ino))
