"""Make a volume of a pool, and a clean pool of a volume.

Mounting checks the superblock, the features and the size, replays the journal, marks the pool as in use (the feature
flag ``needs_recovery``, `recovery_flag.py`) and frees the orphans. Unmounting commits, empties the log and marks the
pool clean. A pool that is refused stays unchanged.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from daxfs.errors import BadMemory, Corrupt, CorruptKind, FsError, MissingMemory, Unsupported
from daxfs.ext4 import features, jbd2
from daxfs.ext4.features import Incompat, RoCompat
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.inode import EXT4_ROOT_INO
from daxfs.ext4.superblock import EXT4_ERR_UNKNOWN, EXT4_SUPER_MAGIC, EXT4_VALID_FS, SUPERBLOCK_OFFSET, Superblock
from daxfs.fs import badmemory, damage, fast_replay, outside, recovery_flag, removal
from daxfs.fs.grants.table import Grants
from daxfs.fs.moving import logmoving
from daxfs.fs.snapshots import catalogue
from daxfs.fs.snapshots.keeper import CREDITS_RECORD, Keeper
from daxfs.fs.tiers import homecoming, policy
from daxfs.fs.types import Options
from daxfs.fs.volume import Volume
from daxfs.journal import recovery
from daxfs.journal.area import LogArea
from daxfs.journal.journal import Journal
from daxfs.journal.log import load_superblock
from daxfs.journal.view import Check, PoolView, View
from daxfs.runs import BlockRun
from daxfs.structures import blocks, inodes, journalmap, mapping, metadata_zone

if TYPE_CHECKING:
    from daxfs.journal.recovery import RecoveryReport
    from daxfs.pmem.pool import Pool

log = logging.getLogger("daxfs.fs")

MIN_JOURNAL_BLOCKS = 1024


class TornView(PoolView):
    """The pool before its log is replayed: blocks that lead to the log are believed without their checksums.

    A power cut tears the blocks that were just being copied home. The group descriptor and the neighbours of the
    journal's inode may be among them; the replay repairs them, and what they say of the journal did not change. The
    inode's own checksum and the bounds of its map are checked nevertheless.
    """

    __slots__ = ()

    def verified(self, number: int, check: Check, *context: object) -> memoryview:  # noqa: ARG002
        """Return the block without a check."""
        return self.block(number)


def read_superblock(pool: Pool) -> Superblock:
    """Return a copy of the pool's superblock. Its checksum is not checked yet: the log may hold a better superblock."""
    end = SUPERBLOCK_OFFSET + Superblock.SIZE
    if pool.size < end:
        raise FsError(errno.EINVAL, f"{pool.path}: not an ext4 pool: only {pool.size} bytes long")
    if pool.bad.first(SUPERBLOCK_OFFSET, end):
        raise BadMemory(f"{pool.path}: the superblock lies in bad memory; e2fsck -b 32768 takes a backup in its place")
    sb = Superblock(memoryview(bytearray(pool.memory[SUPERBLOCK_OFFSET:end])))
    if sb.s_magic != EXT4_SUPER_MAGIC:
        raise FsError(errno.EINVAL, f"{pool.path}: not an ext4 pool: no superblock magic (make one: daxfs mkfs)")
    return sb


def geometry_of(pool: Pool, sb: Superblock) -> Geometry:
    """Return the geometry of a file system in a pool.

    Raises:
        Corrupt, Unsupported: as `Geometry.of`; or the pool is too small for it.
    """
    geometry = Geometry.of(sb)
    geometry.check_pool_size(pool.size)
    geometry.bound(pool.memory_size if pool.memory_size < pool.size else 0)
    return geometry


def check_features(sb: Superblock, *, read_only: bool) -> bool:
    """Refuse unknown incompatible features; return whether unknown ro_compat features force a read-only mount."""
    if sb.s_feature_incompat & features.RESTORING:
        raise FsError(errno.EBUSY, "the restore of a snapshot was interrupted; run again: daxfs snapshot restore")
    refused = features.unsupported_incompat(sb.s_feature_incompat)
    if refused:
        raise Unsupported(refused)
    unknown = features.unsupported_ro_compat(sb.s_feature_ro_compat)
    if unknown and not read_only:
        log.warning("mounted read-only, unknown features: %s", " ".join(unknown))
    return read_only or bool(unknown)


def log_area(view: View, sb: Superblock) -> LogArea:
    """Return the blocks of the journal inode."""
    if not sb.s_journal_inum or sb.s_journal_dev:
        raise Unsupported(["journal on another device"])
    try:
        inode = inodes.read(view, sb.s_journal_inum)
    except Corrupt as error:
        # A power cut tears the inode while the log moves (`logmoving`), or while an inode beside it is copied home.
        copied = journalmap.copied(sb) if error.kind is CorruptKind.INODE_CHECKSUM else None
        if copied is None:
            raise
        return LogArea(copied)
    except MissingMemory:
        raise
    except FsError as error:
        raise Corrupt(CorruptKind.JOURNAL_INODE, f"inode {sb.s_journal_inum}: {error.strerror}") from None
    runs: list[BlockRun] = []
    expected = 0
    total = inode.size >> view.geometry.block_bits
    for extent in mapping.walk(view, inode, 0, total - 1):
        if extent.lblk != expected:
            raise Corrupt(CorruptKind.JOURNAL_INODE_HAS_A_HOLE, f"block {expected}")
        runs.append(BlockRun(extent.pblk, extent.length))
        expected += extent.length
    if expected < MIN_JOURNAL_BLOCKS or expected < total:
        raise Corrupt(CorruptKind.JOURNAL_TOO_SHORT, f"{expected} blocks")
    return LogArea(runs)


def mount(pool: Pool, options: Options, recovered: Callable[[Pool], None] = lambda _: None) -> Volume:
    """Mount the pool.

    Args:
        pool: with all of its members.
        options: of the mount.
        recovered: called after recovery, which may have changed the members (`members.follow`).

    Raises:
        FsError, Corrupt, Unsupported: it can't be mounted, and is unchanged.
    """
    if not options.replay and not options.read_only:
        raise FsError(errno.EINVAL, "noload leaves the log as it is, and is for read-only mounts only; add ro")
    sb = found = read_superblock(pool)
    read_only = check_features(sb, read_only=options.read_only or pool.read_only)
    was_clean = not needs_recovery(sb) and bool(sb.s_state & EXT4_VALID_FS)
    try:
        geometry, view = before_replay(pool, sb)
        if was_clean:
            view = PoolView(pool, geometry)
        uses_log = geometry.has_journal and (not read_only or (options.replay and needs_recovery(sb)))
        area = log_area(view, sb) if uses_log else None
    except Corrupt:
        sb.verify()  # a damaged superblock explains all damage that it leads to
        raise
    report = None
    if area is not None and needs_recovery(sb):
        report = recover(pool, geometry, area)
        recovered(pool)
        sb = read_superblock(pool)
        geometry = geometry_of(pool, sb)
    sb.verify()
    check_root(pool, geometry)
    if read_only:
        volume = Volume(pool, geometry, PoolView(pool, geometry), None, options)
        volume.notifier = Grants(volume)
        volume.snapshots = Keeper(volume)
        policy.attach(volume)
        return volume
    if area is not None:
        logmoving.mend(pool, geometry)
        mend_log(pool, geometry, area)
        recovery.wipe(pool, geometry, area)
    volume = start(pool, geometry, Journal.open(pool, geometry, area), options)
    damage.note_panic(pool.path, sb, options)
    protect_log(volume, area)
    snapshots_of(volume).attach()
    homecoming.doubt(volume, found)
    mark_in_use(volume, recount=not was_clean)
    homecoming.settle(volume)
    if report is not None and report.errno:
        note_abort(volume, report.errno)
    # A clean end of a mount means that its clients had closed all files: they keep the pool mapped and touch nothing.
    grants = grants_of(volume)
    grants.epochs.stale = pool.mapped_by_readers() if was_clean else pool.mapped_elsewhere()
    if grants.stale:
        log.warning("%s: programs still map it from before; what they may touch is freed when they end", pool.path)
    removal.recover(volume)
    volume.commit()
    retire_bad_blocks(volume)
    return volume


def before_replay(pool: Pool, sb: Superblock) -> tuple[Geometry, PoolView]:
    """Return the geometry of a pool, and the view in which its log is found before it is replayed.

    The superblock may be torn, in the middle of growth too, and only its checksum can show that it is not. Otherwise
    the geometry of a pool that needs recovery is good for nothing but the log.

    Raises:
        Corrupt, Unsupported: as `Geometry.of` and `Geometry.check_pool_size`.
    """
    recovers = needs_recovery(sb)
    try:
        geometry = geometry_of(pool, sb)
    except Corrupt as error:
        if not recovers or error.kind is CorruptKind.POOL_SIZE:
            raise
    else:
        if not recovers or (geometry.metadata_csum and not sb.is_torn()):
            return geometry, TornView(pool, geometry)
    geometry = Geometry.of_torn(sb, pool.size)
    view = TornView(pool, geometry)
    metadata_zone.disregard(view)
    return geometry, view


def check_root(pool: Pool, geometry: Geometry) -> None:
    """Refuse a pool whose root can't be read: a mount of it would answer every request with an error.

    Raises:
        Corrupt: the root's inode is damaged, or is no directory.
    """
    view = PoolView(pool, geometry)
    try:
        inode = inodes.read(view, EXT4_ROOT_INO)
        if not inode.is_dir or not inode.links_count:
            raise Corrupt(CorruptKind.INODE_MODE, f"the root is no directory: mode {inode.mode:#o}")
    except (Corrupt, MissingMemory):
        raise
    except FsError as error:
        raise Corrupt(CorruptKind.INODE_MODE, f"the root: {error.strerror}") from None
    finally:
        view.release()


def protect_log(volume: Volume, area: LogArea | None) -> None:
    """Let no file claim the log's blocks from now on; the volume knows where they are."""
    volume.log_area = area
    if area is not None:
        metadata_zone.protect(volume.view, volume.view.superblock().s_journal_inum, area.runs)


def needs_recovery(sb: Superblock) -> bool:
    """Return whether the log may hold something newer than the pool.

    The flag says so. A wrong checksum may also mean that the superblock was torn while it was copied home from the log.
    """
    return bool(sb.s_feature_incompat & Incompat.needs_recovery) or sb.is_torn()


def recover(pool: Pool, geometry: Geometry, area: LogArea) -> RecoveryReport:
    """Replay the log; if the log is empty, clear a torn recovery flag.

    What another program has written since the pool was in use is noted before its superblock is overwritten.
    """
    if pool.read_only:
        raise FsError(errno.EROFS, "the journal needs replay and the pool is open for reading only")
    found = read_superblock(pool)
    try:
        with pool.faults.checked():
            report = recovery.replay(pool, geometry, area)
            if report.fast is not None:
                log.info("%s: %d fast commits are replayed", pool.path, report.fast.count)
                fast_replay.store(pool, geometry_of(pool, read_superblock(pool)), area, report.fast)
                report = recovery.replay(pool, geometry, area)
    except MissingMemory as error:
        place = bad_log_block(pool, geometry, area)
        if place is None:
            raise
        raise BadMemory(
            f"{pool.path}: the journal needs replay, but its block {place} lies in bad memory; e2fsck -y gives the "
            f"journal's content up"
        ) from error
    if not report.clean:
        log.info("%s: %d transactions replayed, %d blocks", pool.path, report.transactions, report.replayed)
    elif recovery_flag.mend(pool):
        log.info("%s: the superblock was cut while its recovery flag was stored; mended", pool.path)
    sb = read_superblock(pool)
    if catalogue.was_written_after(found, sb):
        catalogue.disbelieve(pool, PoolView(pool, Geometry.of(sb)))
    return report


def bad_log_block(pool: Pool, geometry: Geometry, area: LogArea) -> int | None:
    """Return the first block of the pool that belongs to the log and lies in bad memory; None: there is none."""
    bits = geometry.block_bits
    for first, count in area.runs if pool.bad else ():
        for begin, _ in pool.bad.within(first << bits, first + count << bits):
            return begin >> bits
    return None


def mend_log(pool: Pool, geometry: Geometry, area: LogArea) -> None:
    """Rewrite the bad blocks of an empty log, all but the first of which have no content that matters.

    Raises:
        BadMemory: one can't be mended.
    """
    bits = geometry.block_bits
    while (number := bad_log_block(pool, geometry, area)) is not None:
        begin = (number << bits) & -mmap.PAGESIZE
        end = max(begin + mmap.PAGESIZE, number + 1 << bits)
        mendable = all(area.holds(each) and each != area.physical(0) for each in range(begin >> bits, end >> bits))
        if not (mendable and pool.rewrite(begin, bytes(end - begin))):
            raise BadMemory(
                f"{pool.path}: block {number} of the pool, in its journal, lies in bad memory; mount it read-only, or "
                f"make a new journal: tune2fs -O ^has_journal, tune2fs -j"
            )


def mend_superblock(pool: Pool) -> bool:
    """Repair a superblock that a power cut has torn, from the log or by its flag; return whether it was torn.

    e2fsck checks the superblock's checksum before it reads the log, and ``e2fsck -p`` stops there.

    Raises:
        FsError, Corrupt, Unsupported: as `mount`; the pool is unchanged.
    """
    if not read_superblock(pool).is_torn():
        return False
    recover_in_place(pool)
    return not read_superblock(pool).is_torn()


def may_have_fast_commits(pool: Pool) -> bool:
    """Return whether the pool needs recovery and its journal has an area for fast commits.

    e2fsck 1.47 replays them, and logs beside old ones, in part or not at all.

    Raises:
        FsError, Corrupt, Unsupported: the journal can't be found.
    """
    sb = read_superblock(pool)
    if not sb.s_feature_compat & features.Compat.has_journal or not needs_recovery(sb):
        return False
    geometry, view = before_replay(pool, sb)
    try:
        journal = load_superblock(pool, geometry, log_area(view, sb))
    finally:
        view.release()
    return bool(journal.s_start and journal.incompat & jbd2.Incompat.FAST_COMMIT)


def recover_in_place(pool: Pool) -> None:
    """Recover a pool that is not mounted, as `recover`; orphans and the recovery flag stay.

    Raises:
        FsError, Corrupt, Unsupported: as `mount`; the pool is unchanged.
    """
    sb = read_superblock(pool)
    check_features(sb, read_only=True)
    geometry, view = before_replay(pool, sb)
    if geometry.has_journal:
        recover(pool, geometry, log_area(view, sb))


def note_abort(volume: Volume, number: int) -> None:
    """Record in the superblock, for e2fsck, that the last mount aborted the journal (ext4_clear_journal_err)."""
    log.warning("%s: the journal was aborted with errno %d; run: daxfs check", volume.pool.path, -number)
    with volume.handle(1) as tx:
        tx.edit_superblock().record_error(int(time.time()), EXT4_ERR_UNKNOWN, "journal aborted")
    volume.commit()
    volume.journal.clear_error()


def start(pool: Pool, geometry: Geometry, journal: Journal, options: Options) -> Volume:
    """Return a volume on an open journal, with the hooks of this layer and of the structures."""
    volume = Volume(pool, geometry, journal.view, journal, options)
    volume.notifier = Grants(volume)
    volume.snapshots = Keeper(volume)
    add_hooks(volume)
    policy.attach(volume)
    return volume


def grants_of(volume: Volume) -> Grants:
    """Return the grants of a volume: its notifier, with the type that the layers above know."""
    assert isinstance(volume.notifier, Grants)
    return volume.notifier


def snapshots_of(volume: Volume) -> Keeper:
    """Return the keeper of a volume's snapshots, with the type that the layers above know."""
    assert isinstance(volume.snapshots, Keeper)
    return volume.snapshots


def add_hooks(volume: Volume) -> None:
    """Register the hooks of this layer and of the structures for commits and rollbacks."""
    nodes, lives, journal = volume.nodes, volume.lives, volume.journal
    journal.add_commit_hook(nodes.write_times, lambda: nodes.lazy)
    journal.add_commit_hook(lives.list_orphans, lambda: lives.unlisted)
    journal.add_commit_hook(blocks.apply_frees, journal.has_frees)
    journal.before_superblock_home(lambda content: outside.keep(volume, content))
    journal.abort_hooks.append(nodes.drop_maps)
    journal.home_hooks.append(nodes.stored_home)


def written_at() -> int:
    """Return the time of a write for the superblock: a second ago.

    Every other program that changes the pool stores its own second there. So the field tells that it came after daxfs,
    within the same second too (`daxfs.fs.snapshots.catalogue`).
    """
    return int(time.time()) - 1 & 0xFFFFFFFF


def mark_in_use(volume: Volume, *, recount: bool) -> None:
    """Count a mount in the superblock (ext4_setup_super in fs/ext4/super.c).

    The change goes through the log like every later change of the superblock, so that a power cut can't tear it.
    ``recount``: the free counts may be old, since the kernel keeps only those in the group descriptors up to date.
    """
    geometry = volume.geometry
    if geometry.has_journal:
        recovery_flag.store(volume.pool, raised=True)
    with volume.handle(1 + CREDITS_RECORD) as tx:
        if recount:
            blocks.correct_free_counts(tx)
        sb = tx.edit_superblock()
        sb.s_mnt_count = (sb.s_mnt_count + 1) & 0xFFFF
        sb.s_mtime = int(time.time()) & 0xFFFFFFFF
        sb.s_wtime = written_at()
        if volume.options.mountpoint:
            sb.s_last_mounted = os.fsencode(volume.options.mountpoint)[:63].ljust(64, b"\0")
        if not geometry.has_journal:
            sb.s_state &= ~EXT4_VALID_FS
        if geometry.has_orphan_file:
            sb.s_feature_ro_compat |= RoCompat.orphan_present
        volume.snapshots.pool_marked(tx)
    homecoming.mark(volume)
    volume.commit()


def unmount(volume: Volume) -> None:
    """Commit, mark the pool clean, empty the log. After an abort the pool stays as it is, for recovery."""
    if not volume.was_writable or volume.journal.aborted:
        return
    journal = volume.journal
    grants = grants_of(volume)
    grants.epochs.stale = grants.stale and volume.pool.mapped_elsewhere()
    if not volume.read_only:
        volume.lives.pins.clear()
        grants.page.erase()
        if grants.stale:
            log.warning("%s: programs still map it; what they may touch is freed by a later mount", volume.pool.path)
        else:
            removal.free_nameless(volume)
        retire_bad_blocks(volume)
    outside.take_over(volume)
    journal.commit()
    damage.report_commits(volume)
    if grants.stale or (volume.lives.unfinished and not volume.read_only):
        # Not clean: the next mount or check must look for stale clients, and for orphans as after a crash.
        return
    mark_clean(volume)


def retire_bad_blocks(volume: Volume) -> None:
    """Have the format keep what is free from use that is known to be bad; a mount neither fails nor stays for it."""
    if volume.read_only or not volume.pool.bad:
        return
    try:
        volume.commit()  # what it frees may be bad
        badmemory.retire(volume)
        volume.commit()
    except FsError as error:
        log.warning("%s: bad blocks are not listed: %s", volume.pool.path, error.strerror)


def mark_clean(volume: Volume) -> None:
    """Clear the recovery flag in the superblock, empty the log and close it. Everything is committed before."""
    journal = volume.journal
    with journal.handle(1 + CREDITS_RECORD) as tx:
        sb = tx.edit_superblock()
        sb.s_feature_ro_compat &= ~int(RoCompat.orphan_present)
        # Another mount does not make a pool clean that has no journal and was not unmounted.
        sb.s_state |= volume.mounted_state & EXT4_VALID_FS
        sb.s_wtime = written_at()
        volume.snapshots.pool_marked(tx)
    homecoming.mark(volume)
    journal.close()
    recovery_flag.store(volume.pool, raised=False)
