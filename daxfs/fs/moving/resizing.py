"""Resizing a file system that is in use: how far it may grow, and its growth in steps.

`resize` makes it larger, up to the pool's file or device; a pool's file is made longer first. What the new groups look
like is `daxfs.structures.growth`'s. One step adds up to 16 groups in one handle, commits it, and then has the backups
follow, so a power cut or an interruption leaves the old size, the new one, or one between them. Snapshots must not
exist: their stores have a size of their own. Callers: the facade.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.ext4.superblock import EXT4_ERROR_FS
from daxfs.fs.types import Resized
from daxfs.structures import growth

if TYPE_CHECKING:
    from daxfs.fs.steps import Steps
    from daxfs.fs.volume import Volume

BACKUPS_PER_HANDLE = 64
ZEROED_AT_ONCE = 1 << 20
"""Bytes of an inode table that one step zeroes."""


def resize(volume: Volume, wanted: int) -> Steps[Resized]:
    """Make the file system larger.

    Args:
        volume: the mounted pool.
        wanted: the size in blocks; 0: as large as the file or device under the pool.

    Returns:
        The sizes in blocks. A last group that would have no room for its own metadata is left out.

    Raises:
        FsError: EROFS; EBUSY, it is being resized; EUCLEAN, damage was met before; EOPNOTSUPP, there are snapshots, or
            the pool has no file or device; EINVAL, a smaller size; ENOSPC, larger than the device, or the journal is
            too small; EFBIG, numbers would not fit; or the system's, the pool's file can't be made longer or mapped.
            Nothing has changed then. ENOSPC, EINTR and errors of the medium in the middle of growth leave what was
            added.
    """
    volume.writable()
    with exclusively(volume):
        target, geometry = _target(volume, wanted), volume.geometry
        before = geometry.blocks_count
        if target > geometry.blocks_count:
            _extend_pool(volume, target)
            while geometry.blocks_count < target:
                refuse_snapshots(volume)
                yield from _one_batch(volume, target)
                yield
            volume.journal.checkpoint()  # tools read the superblock where it is at home
        return Resized(before, geometry.blocks_count)


@contextmanager
def exclusively(volume: Volume) -> Iterator[None]:
    """Have nothing else change the size meanwhile.

    Raises:
        FsError: EBUSY, something does.
    """
    refuse_another(volume)
    volume.resizing = True
    try:
        yield
    finally:
        volume.resizing = False


def refuse_another(volume: Volume) -> None:
    """Refuse what a change of the size that is under way excludes (EBUSY)."""
    if volume.resizing:
        raise FsError(errno.EBUSY, f"{volume.pool.path} is being resized")


def _target(volume: Volume, wanted: int) -> int:
    """Return the size in blocks that can be had, or say why there is none."""
    geometry, pool, bits = volume.geometry, volume.pool, volume.block_bits
    refuse_damage(volume)
    refuse_snapshots(volume)
    available = pool.available()
    if not wanted:
        wanted = max(available & -mmap.PAGESIZE, geometry.blocks_count << bits) >> bits
    if wanted < geometry.blocks_count:
        raise FsError(
            errno.EINVAL, f"{wanted} blocks are fewer than the {geometry.blocks_count} in use: it can't be made smaller"
        )
    if wanted << bits > available and not pool.extensible:
        raise FsError(errno.ENOSPC, f"{pool.path} has {available} bytes, {wanted << bits} are wanted")
    target = growth.fitting(geometry, wanted)
    if (needed := growth.credits_of(geometry, target)) > volume.journal.capacity:
        raise journal_too_small(volume, needed)
    return target


def journal_too_small(volume: Volume, needed: int) -> FsError:
    """Return the error of a change that needs ``needed`` blocks in one transaction."""
    return FsError(
        errno.ENOSPC,
        f"{volume.pool.path}: one step needs {needed} blocks, a transaction of this journal holds "
        f"{volume.journal.capacity} (make a larger journal: tune2fs -O ^has_journal, tune2fs -J size=)",
    )


def refuse_damage(volume: Volume) -> None:
    """Refuse to change the size of a file system in which damage was met (EUCLEAN), or that has lost memory (EIO)."""
    volume.pool.refuse_cut_file()
    path = volume.pool.path
    if volume.view.superblock().s_state & EXT4_ERROR_FS:
        raise FsError(errno.EUCLEAN, f"{path}: damage was met; unmount it and run: daxfs check -f {path}")


def refuse_snapshots(volume: Volume) -> None:
    """Refuse to change the size of a file system that has snapshots (EOPNOTSUPP)."""
    names = volume.snapshots.names()
    if names:
        listed = ", ".join(name.decode(errors="replace") for name in names)
        raise FsError(errno.EOPNOTSUPP, f"{volume.pool.path} has snapshots ({listed}); delete them first")


def _extend_pool(volume: Volume, target: int) -> None:
    """Have the pool's memory cover the new blocks."""
    if volume.pool.size < target << volume.block_bits:
        volume.pool.extend(target << volume.block_bits)
    volume.follow_size()


def _one_batch(volume: Volume, target: int) -> Steps[None]:
    geometry = volume.geometry
    if growth.lacks_descriptors(geometry):
        with volume.handle(growth.SMALL_CREDITS) as tx:
            growth.use_meta_bg(tx)
    end = growth.batch_end(geometry, target)
    first = geometry.groups_count
    if not growth.keeps_unused_tables(geometry):
        yield from _zero_tables(volume, end)
    with volume.handle(growth.credits_of(geometry, end)) as tx:
        growth.extend(tx, end)
    commit_size(volume)
    store_backups(volume, first)


def commit_size(volume: Volume) -> None:
    """Make a new size durable, which the last handle has stored."""
    volume.follow_size()
    try:
        volume.commit()
    except BaseException:
        volume.geometry.follow(volume.view.superblock())  # the journal has stopped; readers see what was committed
        volume.follow_size()
        raise


def _zero_tables(volume: Volume, end: int) -> Steps[None]:
    """Zero the inode tables of the groups that are added next; the commit makes it durable."""
    bits = volume.block_bits
    length = volume.geometry.inode_blocks_per_group << bits
    for place in growth.tables(volume.geometry, end):
        begin = place.inode_table << bits
        for offset in range(0, length, ZEROED_AT_ONCE):
            volume.pool.zero(begin + offset, min(ZEROED_AT_ONCE, length - offset))
            yield


def store_backups(volume: Volume, first: int) -> None:
    """Store the backups, a part in each handle: what a cut leaves of them, e2fsck accepts.

    Args:
        volume: the mounted pool.
        first: groups before this one have the descriptors that their backups show.
    """
    copies = list(growth.backup_copies(volume.view, first))
    for at in range(0, len(copies), BACKUPS_PER_HANDLE):
        part = copies[at : at + BACKUPS_PER_HANDLE]
        with volume.handle(len(part)) as tx:
            for number, content in part:
                tx.create(number)[:] = content
