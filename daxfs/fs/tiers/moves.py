"""Promotion and demotion: the data of files moves between memory and storage (docs/TIERS.md).

Nothing but a demotion writes to storage, always to blocks that are free, and the copy is durable before the handle
begins that gives it to the file. So there is no order between the members that a commit would have to keep, and a power
cut leaves the old place or the new one. Each system call on storage is waited for between two steps. There anything may
happen to the file, so each step looks again.

The same is moved as by relocation (`daxfs.fs.moving.relocation`): the data of regular files. A file that clients of
direct access use is not demoted.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from daxfs.errors import FsError, MissingMemory
from daxfs.fs import badmemory, datalog, removal
from daxfs.fs.change import Change
from daxfs.fs.notifiers import CREDITS_QUARANTINE
from daxfs.fs.steps import Steps
from daxfs.fs.tiers.heat import Heat
from daxfs.fs.tiers.storagecache import StorageCache
from daxfs.fs.types import Caller, MemberUse, TierUse
from daxfs.pmem import storagequeue
from daxfs.runs import BlockRun, ByteRange, subtract
from daxfs.structures import blocks, groups, inodes, mapping
from daxfs.structures.mapping import Extent

if TYPE_CHECKING:
    from daxfs.fs.nodes import Node
    from daxfs.fs.volume import Volume
    from daxfs.journal.handle import Handle
    from daxfs.pmem.storagequeue import StorageQueue

log = logging.getLogger("daxfs.fs")
AT_ONCE = 2 << 20
"""The most bytes that one handle moves."""
CREDITS = 64 + 2 * CREDITS_QUARANTINE
"""Blocks that moving one run may change: as an atomic write to new blocks."""
UNPRIVILEGED = Caller(uid=65534, gid=65534)
"""Promotions leave root's reserved blocks alone, whoever needs them."""


class Moved(NamedTuple):
    """What a promotion or demotion has done, in bytes (of one run: in blocks)."""

    moved: int
    stayed: int


Mover = Callable[["Volume", "Node", Extent], Steps[Moved | None]]


def attach(volume: Volume) -> None:
    """Let a volume read and write the storage of its pool, if it has some."""
    if volume.pool.storages:
        volume.tiers = StorageCache(volume.pool)
        volume.heat = Heat()
        volume.pool.reader = volume.tiers.metadata
        volume.nodes.memory_end = volume.tiers.begin
        if volume.on_storage_answer is not None:
            volume.tiers.leave_to(volume.on_storage_answer)
        volume.geometry.inode_border = groups.tables_on_storage(volume.view)


def use(volume: Volume) -> TierUse:
    """Return how much of memory and storage is in use, and what was moved.

    Raises:
        FsError: EOPNOTSUPP: the pool has no storage.
    """
    (tiers, heat), bits = counted(volume), volume.block_bits
    free = groups.free_on_storage(volume.view)
    return TierUse(
        memory=tiers.begin,
        memory_free=volume.view.superblock().free_blocks_count - free << bits,
        storage=tiers.end - tiers.begin,
        storage_free=free << bits,
        reads=heat.reads,
        hits=heat.reads - tiers.waits,
        read=tiers.read,
        promoted=tiers.promoted,
        demoted=tiers.demoted,
        members=tuple(_use_of(volume, queue) for queue in tiers.queues),
    )


def _use_of(volume: Volume, queue: StorageQueue) -> MemberUse:
    bits, (begin, end), group = volume.block_bits, queue.storage.place, volume.geometry.group_of_block
    free = groups.free_in(volume.view, range(group(begin >> bits), group((end >> bits) - 1) + 1))
    return MemberUse(queue.storage.path, end - begin, free << bits, queue.failed)


def _tiers(volume: Volume) -> StorageCache:
    if volume.tiers is None:
        raise FsError(errno.EOPNOTSUPP, f"{volume.pool.path} has no storage; make one with: daxfs mkfs --tier")
    return volume.tiers


def counted(volume: Volume) -> tuple[StorageCache, Heat]:
    """Return the storage of a volume and the uses of its files.

    Raises:
        FsError: EOPNOTSUPP: the pool has no storage; between two steps it may have left.
    """
    tiers, heat = _tiers(volume), volume.heat
    assert heat is not None
    return tiers, heat


def promote(volume: Volume, ino: int, begin: int, end: int, enough: Callable[[], bool] = bool) -> Steps[Moved]:
    """Move what the bytes [begin, end) of a regular file have on storage to memory, whole blocks, in steps.

    Args:
        volume: that has storage.
        ino: the file.
        begin: of the bytes.
        end: of the bytes.
        enough: whether the rest may stay where it is.

    Raises:
        FsError: EINVAL: not a file's data; EIO, the storage has failed; EROFS.
    """
    return _each_run(volume, ino, begin, end, _promote_run, enough)


def demote(volume: Volume, ino: int, begin: int, end: int, enough: Callable[[], bool] = bool) -> Steps[Moved]:
    """Move what the bytes [begin, end) of a regular file have in memory to storage, whole blocks, in steps.

    All of a file that clients of direct access use stays. ``enough``: as `promote`.

    Raises:
        FsError: as `promote`.
    """
    return _each_run(volume, ino, begin, end, _demote_run, enough)


def _each_run(volume: Volume, ino: int, begin: int, end: int, move: Mover, enough: Callable[[], bool]) -> Steps[Moved]:
    _tiers(volume)
    volume.writable()
    inode = inodes.read(volume.view, ino)
    if not inode.is_regular or not inodes.nameable(volume.view, ino) or ino in volume.lives.quarantine:
        raise FsError(errno.EINVAL, f"inode {ino}: its blocks are not a file's data")
    bits = volume.block_bits
    lblk, stop = begin >> bits, (min(end, inode.geometry.max_extent_file_size) + volume.block_size - 1) >> bits
    node = volume.nodes.opened(inode)
    moved = stayed = 0
    try:
        while lblk < stop and not enough():
            found = next(mapping.walk(volume.view, inodes.read(volume.view, ino), lblk, stop - 1), None)
            if found is None:
                break
            lblk = max(lblk, found.lblk)
            border = _tiers(volume).border_after(found.pblk + lblk - found.lblk << bits) >> bits
            run = _part(found, lblk, min(stop, lblk + (AT_ONCE >> bits), found.lblk + border - found.pblk))
            done = yield from move(volume, node, run)
            if done is not None:
                moved, stayed = moved + done.moved, stayed + done.stayed
                lblk += sum(done) or run.length
            if lblk < stop:
                yield
        return Moved(moved << bits, stayed << bits)
    finally:
        volume.nodes.closed(node)
        removal.begin(volume, ino)


def _part(run: Extent, first: int, end: int) -> Extent:
    """Return the part of a run in the blocks [first, end) of the file."""
    first, end = max(run.lblk, first), min(run.lblk + run.length, end)
    return Extent(first, run.pblk + first - run.lblk, end - first, run.unwritten)


def _is_still(volume: Volume, node: Node, run: Extent) -> bool:
    """Return whether the file has this run."""
    end = run.lblk + run.length
    inode = inodes.read(volume.view, node.ino)
    found = next(mapping.walk(volume.view, inode, run.lblk, end - 1), None)
    return found is not None and _part(found, run.lblk, end) == run


def leave(volume: Volume, ino: int, begin: int, end: int, avoid: BlockRun) -> Steps[Moved]:
    """Move what a regular file has on storage within ``avoid`` to other storage, or else to memory, in steps.

    Raises:
        FsError: as `promote`.
    """
    return _each_run(volume, ino, begin, end, partial(_leave_run, avoid), bool)


def _leave_run(avoid: BlockRun, volume: Volume, node: Node, run: Extent) -> Steps[Moved | None]:
    """Move a run, or a part of it, if it lies in ``avoid``. Returns blocks; None: it has changed meanwhile."""
    tiers, bits = _tiers(volume), volume.block_bits
    if run.pblk + run.length <= avoid.start or not tiers.holds(run.pblk << bits):
        return Moved(0, 0)
    if run.pblk < avoid.start:
        return Moved(0, avoid.start - run.pblk)
    place = None if run.unwritten else _find(volume, tiers, run.length)
    if place is None:
        return (yield from _promote_run(volume, node, run))
    run = run._replace(length=place.length)
    source = BlockRun(run.pblk, run.length)
    content = yield from tiers.occupying(source, tiers.load(run.pblk << bits, run.length << bits))
    if not (yield from _store(volume, tiers, place, content)):
        return None
    if not _is_still(volume, node, run) or not volume.retrying(_demote_at_once, node, run, place):
        return None
    return Moved(place.length, 0)


def _promote_run(volume: Volume, node: Node, run: Extent) -> Steps[Moved | None]:
    """Promote a run, or a part of it, if it lies on storage. Returns blocks; None: it has changed meanwhile."""
    tiers, bits = _tiers(volume), volume.block_bits
    if not tiers.holds(run.pblk << bits):
        return Moved(0, 0)
    content = b""
    if not run.unwritten:
        place = BlockRun(run.pblk, run.length)
        ticket = tiers.load(run.pblk << bits, run.length << bits)
        content = yield from tiers.occupying(place, ticket)
        if not _is_still(volume, node, run):
            return None
    try:
        done = volume.retrying(_promote_at_once, node, run, content)
        tiers.promoted += done << bits
        return Moved(done, 0)
    except FsError as error:
        if error.errno != errno.ENOSPC or isinstance(error, MissingMemory):
            raise
        return Moved(0, run.length)
    finally:
        node.moved(run.lblk << bits, run.lblk + run.length << bits)


def _promote_at_once(volume: Volume, node: Node, run: Extent, content: bytes) -> int:
    """Give the file blocks in memory for the beginning of a run, in one handle; return how many."""
    bits = volume.block_bits
    with volume.handle(CREDITS, UNPRIVILEGED) as tx:
        place = blocks.allocate(tx, 0, run.length, align=volume.alignment(run.lblk, run.length))
        with Change(volume, tx, node.ino, dated=False) as change:
            if not run.unwritten:
                volume.pool.write(place.start << bits, memoryview(content)[: place.length << bits])
            _move(change, tx, run, place)
    return place.length


def _move(change: Change, tx: Handle, run: Extent, place: BlockRun) -> None:
    """Put the blocks of a place, which the handle has taken, into the file's map."""
    inodes.add_blocks(change.inode, place.length, tx.geometry)
    new = Extent(run.lblk, place.start, place.length, run.unwritten)
    change.move(run.lblk, run.lblk + place.length - 1, [new])
    change.remaps()


def _demote_run(volume: Volume, node: Node, run: Extent) -> Steps[Moved | None]:
    """Demote a run, or a part of it, if it lies in memory. Returns blocks; None: it has changed meanwhile."""
    tiers, bits = _tiers(volume), volume.block_bits
    if tiers.holds(run.pblk << bits):
        return Moved(0, 0)
    if not tiers.usable:
        raise tiers.queues[0].failure()
    place = None if node.grants is not None else _find(volume, tiers, run.length)
    if place is None or (volume.pool.bad and badmemory.overlaps(volume, run)):
        return Moved(0, run.length)
    run = run._replace(length=place.length)
    if run.unwritten:  # there is nothing to copy
        if not volume.retrying(_demote_at_once, node, run, place):
            return None
        tiers.lowered += place.length
        return Moved(place.length, 0)
    datalog.settle(volume, node.ino, run.lblk << bits, run.lblk + run.length << bits)
    source = slice(run.pblk << bits, run.pblk + run.length << bits)
    content = bytes(volume.pool.memory[source])
    volume.finish_copy()
    if not (yield from _store(volume, tiers, place, content)):
        return None
    datalog.settle(volume, node.ino, run.lblk << bits, run.lblk + run.length << bits)
    # A store in place leaves the map as it is.
    if node.grants is not None or not _is_still(volume, node, run) or volume.pool.memory[source] != content:
        return None
    if not volume.retrying(_demote_at_once, node, run, place):
        return None
    if volume.heat is not None:
        volume.heat.forget(node.ino, run.lblk << bits, run.lblk + run.length << bits)
    tiers.demoted += place.length << bits
    tiers.lowered += place.length
    return Moved(place.length, 0)


def _store(volume: Volume, tiers: StorageCache, place: BlockRun, content: bytes) -> Steps[bool]:
    """Write a copy to free blocks on storage; False: its file has holes, and its file system no room for them.

    Then nothing is written to the member for a while. What lies on it stays readable.
    """
    target = ByteRange(place.start << volume.block_bits, place.start + place.length << volume.block_bits)
    tiers.forget(*target)
    try:
        yield from tiers.occupying(place, tiers.store(target.begin, content))
    except FsError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        queue = tiers.queue_of(target.begin)
        if queue.takes:
            text = "%s: nothing goes to its storage for %d s: %s"
            log.warning(text, volume.pool.path, storagequeue.FULL_SECONDS, error.strerror)
        queue.put_off()
        return False
    tiers.forget(*target)
    return True


def _find(volume: Volume, tiers: StorageCache, most: int) -> BlockRun | None:
    """Find up to ``most`` free blocks on storage that nobody reads or is about to use; None: there are none."""
    view, geometry = volume.view, volume.geometry
    first, count = geometry.memory_groups, geometry.groups_count - geometry.memory_groups
    busy = sorted(ByteRange(start, start + length) for start, length in tiers.busy)
    for step in range(count):
        group = first + (tiers.group - first + step) % count
        if not tiers.queue_of(geometry.first_block(group) << volume.block_bits).takes:
            continue
        best: BlockRun | None = None
        for start, length in blocks.free_runs(view, group, 1):
            for low, high in subtract([ByteRange(start, start + length)], busy):
                if best is None or best.length < min(high - low, most):
                    best = BlockRun(low, min(high - low, most))
            if best is not None and best.length == most:
                break
        if best is not None:
            tiers.group = group
            return best
    return None


def _demote_at_once(volume: Volume, node: Node, run: Extent, place: BlockRun) -> bool:
    """Give the file the copy on storage, in one handle; False: its blocks are no longer free."""
    with volume.handle(CREDITS) as tx:
        if not blocks.take_on_storage(tx, place):
            return False
        with Change(volume, tx, node.ino, dated=False) as change:
            _move(change, tx, run, place)
    return True
