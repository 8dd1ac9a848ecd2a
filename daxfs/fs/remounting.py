"""Changing the options of a mounted volume: from read-write to read-only and back, and the options that allow it.

A volume that has become read-only is as after an unmount: everything is durable at home, the log is empty, the pool is
marked clean, so that e2fsck finds nothing to do. Open files and the kernel's caches stay valid across both changes,
since inode numbers and content do. Leases do not: their status page lies in blocks that no file names, which a clean
pool must not have.

Source: ``ext4_remount`` in fs/ext4/super.c.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from daxfs.errors import BadMemory, FsError
from daxfs.fs import mounting, removal
from daxfs.fs.grants.table import Grants
from daxfs.journal.journal import Journal
from daxfs.journal.view import PoolView

if TYPE_CHECKING:
    from daxfs.fs.types import Options
    from daxfs.fs.volume import Volume


def remount(volume: Volume, options: Options) -> None:
    """Put ``options`` in force. Options that are decided once for a mount (``replay``, ``dax``, ``mountpoint``) stay.

    The caller ensures that no file is open for writing when the volume becomes read-only.

    Raises:
        FsError: EBUSY, clients hold leases or an inode without a name is in use; EROFS, the pool can't be written or
            damage has made the volume read-only. The volume stays as it was.
    """
    if options.read_only and not volume.read_only:
        stop_writing(volume)
    elif volume.read_only and not options.read_only:
        start_writing(volume)
    before = volume.options
    volume.adopt(replace(options, replay=before.replay, dax=before.dax, mountpoint=before.mountpoint))


def stop_writing(volume: Volume) -> None:
    """Commit, free what has no name, mark the pool clean."""
    refuse_leases(volume)
    lives = volume.lives
    if any(volume.is_busy(ino) for ino in lives.nameless - lives.quarantine):
        raise FsError(errno.EBUSY, "a file without a name is in use")
    mounting.grants_of(volume).page.erase()
    removal.free_nameless(volume)
    volume.commit()
    if lives.nameless:
        raise BadMemory("a file without a name can't be freed, since memory that this needs is missing")
    mounting.mark_clean(volume)
    volume.end_writing(PoolView(volume.pool, volume.geometry, volume.view.caches))
    volume.notifier = Grants(volume)


def start_writing(volume: Volume) -> None:
    """Do what a mount does with a clean pool."""
    if volume.was_writable:
        raise FsError(errno.EROFS, "damage has made the volume read-only; unmount it and run: daxfs check")
    pool, geometry = volume.pool, volume.geometry
    if pool.read_only or pool.private or not volume.options.replay:
        raise FsError(errno.EROFS, "the mount began read-only, so the pool is open for reading; unmount it first")
    sb = volume.view.superblock()
    if mounting.check_features(sb, read_only=False):
        raise FsError(errno.EROFS, "unknown features of the pool make it read-only")
    refuse_leases(volume)
    area = volume.log_area
    if area is None and geometry.has_journal:
        area = mounting.log_area(volume.view, sb)
    stale = pool.mapped_by_readers()
    volume.begin_writing(Journal.open(pool, geometry, area, volume.view.caches))
    grants = Grants(volume)
    grants.epochs.stale = stale
    volume.notifier = grants
    mounting.add_hooks(volume)
    mounting.protect_log(volume, area)
    mounting.snapshots_of(volume).attach()
    mounting.mark_in_use(volume, recount=False)


def refuse_leases(volume: Volume) -> None:
    """Refuse while there are clients: their answers end with the mount's mode, and they can't be notified."""
    grants = mounting.grants_of(volume)
    if grants.by_ino or grants.stale:
        raise FsError(errno.EBUSY, "programs map files of the mount; end them or have them close the files")
