"""The move of the journal to other blocks of the pool, while the pool is in use.

Recovery finds the log by the map of the journal's inode, so this map must not be in the log itself: the kernel would go
on logging at the old place after its replay. So it changes when the log is empty, at home, and both places have an
empty log then. Whichever map a power cut leaves, it leads to one of them; a map whose inode has a wrong checksum is
mended from the superblock's copy, by a mount (`mend`) or by e2fsck. Each piece of the log gets a piece of the same
length: so a map of old and new pieces, where no checksum shows it, is a good one too.

The blocks of both places are in use meanwhile, and those of one belong to nobody. A power cut, or an error that has no
memory left to undo it, leaves them so, and the file system marked as one with errors, as a power cut during resize2fs
does: the next e2fsck -p frees them.

A log whose map does not fit into its inode, or is no extent map, stays. Callers: `daxfs.fs.moving.shrinking`, and the
mount.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.ext4.superblock import EXT4_ERROR_FS
from daxfs.journal.area import LogArea
from daxfs.journal.view import PoolView
from daxfs.runs import BlockRun
from daxfs.structures import blocks, groupmaps, inodes, journalmap, metadata_zone

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.fs.steps import Steps
    from daxfs.fs.volume import Volume
    from daxfs.journal.view import View
    from daxfs.pmem.pool import Pool
    from daxfs.structures.inodes import Inode

BYTES_PER_STEP = 4 << 20
"""Bytes of the new place for which one step has memory allocated and mapped."""
CREDITS = 32
"""Blocks that the move changes beside the bitmaps and descriptors of the groups that the log lies in."""


def move(volume: Volume, target: int) -> Steps[None]:
    """Move the journal if it has blocks from ``target`` on and there is room for it elsewhere.

    Nothing is taken from there on (`blocks.confine`), so that it lies before it. The running transaction is committed,
    and the log begins anew. The memory of the new place is had before that, a part in each step.

    Raises:
        FsError: as a commit; ENOSPC, the pool's file has no room for its holes.
    """
    area, bits = volume.log_area, volume.block_bits
    if area is None or all(start + length <= target for start, length in area.runs):
        return
    ino = volume.view.superblock().s_journal_inum
    if not journalmap.fits(inodes.read(volume.view, ino), len(area.runs)):
        return
    for start, length in _places(volume, area) or ():
        begin, end = start << bits, start + length << bits
        for offset in range(begin, end, BYTES_PER_STEP):
            size = min(BYTES_PER_STEP, end - offset)
            volume.pool.make_room(offset, size)
            volume.pool.prefault(offset, size)
            yield
    places = _places(volume, area)  # others may have taken them meanwhile
    if places is not None:
        _move(volume, ino, area, LogArea(places))


def _places(volume: Volume, area: LogArea) -> list[BlockRun] | None:
    """Return free runs, one as long as each piece of the log; None: there are none."""
    free: list[BlockRun] = []
    for group in range(volume.geometry.groups_count):
        for run in blocks.free_runs(volume.view, group, 1):
            if free and sum(free[-1]) == run.start:
                run = BlockRun(free[-1].start, free.pop().length + run.length)
            free.append(run)
    found: list[BlockRun] = []
    for _, length in area.runs:
        fitting = [at for at, run in enumerate(free) if run.length >= length]
        if not fitting:
            return None
        best = min(fitting, key=lambda at: free[at].length)
        start, room = free[best]
        found.append(BlockRun(start, length))
        free[best] = BlockRun(start + length, room - length)
    return found


def _move(volume: Volume, ino: int, old: LogArea, new: LogArea) -> None:
    bits, journal = volume.block_bits, volume.journal
    for start, length in new.runs:
        volume.pool.make_room(start << bits, length << bits)
    credits = CREDITS + 2 * _groups(volume, (*old.runs, *new.runs))
    with volume.handle(credits) as tx:
        blocks.take_runs(tx, list(new.runs))
        tx.edit_superblock().s_state |= EXT4_ERROR_FS
    try:
        journal.checkpoint()
        log = journal.make_empty_log(new)
        inode, place = _slot(volume.view, ino)
        journalmap.move(inode, [start for start, _ in new.runs])
        volume.pool.faults.check()
    except (FsError, MemoryError):
        if not journal.aborted:
            with volume.handle(credits) as tx:
                blocks.free_all(tx, list(new.runs))
                tx.edit_superblock().s_state &= ~EXT4_ERROR_FS
        raise
    try:
        _store(volume.pool, inode, place)
    except BaseException as error:  # nobody knows to which log the inode leads now
        journal.abort(error)
        raise
    journal.use_log(log)
    volume.log_area = new
    metadata_zone.protect(volume.view, ino, new.runs)
    groupmaps.forget(volume.view)
    with volume.handle(credits) as tx:
        tx.drop_recent()
        sb = tx.edit_superblock()
        sb.s_state &= ~EXT4_ERROR_FS
        journalmap.copy(sb, inodes.read(tx, ino))
        blocks.free_all(tx, list(old.runs))
    volume.commit()


def _groups(volume: Volume, runs: tuple[BlockRun, ...]) -> int:
    return len({group for run in runs for group, _, _ in blocks.pieces_of(volume.geometry, *run)})


def mend(pool: Pool, geometry: Geometry) -> None:
    """Mend the journal's inode if its checksum is wrong, from the superblock's copy; the log is empty or replayed."""
    view = PoolView(pool, geometry)
    try:
        sb = view.superblock()
        ino = sb.s_journal_inum
        try:
            inodes.read(view, ino)
        except Corrupt as error:
            if error.kind is not CorruptKind.INODE_CHECKSUM or journalmap.copied(sb) is None:
                raise
            inode, place = _slot(view, ino)
            journalmap.restore(sb, inode)
            _store(pool, inode, place)
    finally:
        view.release()


def _slot(view: View, ino: int) -> tuple[Inode, int]:
    """Return a copy of an inode's slot, whatever its checksum is, and where in the pool the slot lies."""
    number, offset = inodes.position(view, ino)
    size = view.geometry.inode_size
    inode = inodes.Inode(memoryview(bytearray(view.block(number)[offset : offset + size])), 0, view.geometry)
    inode.number = ino
    return inode, (number << view.geometry.block_bits) + offset


def _store(pool: Pool, inode: Inode, place: int) -> None:
    if inode.geometry.metadata_csum:
        inode.seal(inode.number, inode.geometry)
    pool.write(place, inode.buffer)
    pool.fence()
