"""The end of inodes: an inode without a name is freed when it is no longer busy, after a crash too.

`lifetimes.py` keeps the states of inodes and the disk's orphan list. Freeing a large file takes several handles:
between them the tree is valid, and the orphan list names the inode. So the operation that took the last name, or closed
the file, need not wait for the end: `begin` does the first step, which is the whole for a small file, and `freeing` the
others. What they will free counts as free already (`attributes.statfs`), and an operation that finds the pool full has
them done, one after the other, before it fails (`free_some`).

An inode whose end meets damage is given up: it leaves the orphan list, which would lead each mount to the damage again,
and stays in use with what was not freed, so that nobody gets these blocks. The error is recorded, so that the next
e2fsck checks everything, and frees it. So is an inode of the list whose slot is damaged. (The kernel forgets such an
inode in memory, and the whole list at its next mount: ``ext4_evict_inode`` in fs/ext4/inode.c, ``ext4_orphan_cleanup``
in orphan.c.) If memory is missing, the inode stays on the list, since the memory may be there again.
"""

from __future__ import annotations

import logging
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, FsError, MissingMemory
from daxfs.fs import appends, damage, truncating
from daxfs.fs.steps import Steps
from daxfs.fs.volume import Volume
from daxfs.structures import inode_allocation, inodes, mapping, orphans, xattrs
from daxfs.structures.inodes import Inode

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle

log = logging.getLogger("daxfs.fs")

CREDITS_FREE = 64
"""Blocks one step of freeing may change: index blocks, inode, descriptors, attribute block, orphan block."""
CREDITS_GIVEN_UP = 4
"""Blocks that giving up an inode may change: the inode's, that of its neighbour in the list, superblock or file."""
BLOCKS_PER_STEP = 256
"""Runs that one step frees (`daxfs.fs.truncating.BLOCKS_PER_CUT`)."""


def begin(volume: Volume, ino: int) -> None:
    """Begin to free the inode if it has no name and is not busy: do the first step.

    While stale clients may touch it, nothing is done; nor after an abort, since recovery frees it then. The operation
    that took the last name or closed the file has succeeded, whatever memory this needs.
    """
    if ino in volume.lives.nameless and not volume.is_busy(ino) and not volume.notifier.stale and not volume.read_only:
        volume.nodes.forget(ino)
        step(volume, ino)


def cut(volume: Volume, ino: int) -> None:
    """Free what a file that the orphan list names has past EOF, with the first step now: its last user has closed it.

    That has succeeded, whatever memory this needs. What fails is done at the end of the mount, or by recovery.
    """
    if ino in volume.lives.listed and ino not in volume.lives.nameless and not volume.read_only:
        step(volume, ino)


def collect(volume: Volume, ino: int) -> None:
    """Free the inode if it has no name and is not busy, as `begin`, but to the end."""
    begin(volume, ino)
    while unfinished(volume) and ino in volume.lives.ending:
        step(volume, ino)


def unfinished(volume: Volume) -> bool:
    """Return whether the end of some inodes has begun and takes more steps."""
    return bool(volume.lives.ending) and not volume.read_only


def step(volume: Volume, ino: int) -> None:
    """Do the next step of the end of an inode, or of a cut that was abandoned."""
    lives = volume.lives
    lives.ending[ino] = None
    finished = True  # also with an error
    try:
        finished = free_step(volume, ino) if ino in lives.nameless else truncating.cut_step(volume, ino)
    except (Corrupt, MissingMemory, MemoryError) as error:
        failed(volume, ino, error)
    finally:
        if finished:
            lives.ending.pop(ino, None)


def freeing(volume: Volume) -> Steps[None]:
    """Finish all that `begin` has begun, the oldest first, and whatever begins meanwhile."""
    while free_some(volume):
        yield


def free_rest(volume: Volume) -> None:
    """Finish all that has begun at once."""
    while free_some(volume):
        pass


def free_some(volume: Volume) -> bool:
    """Do the next step of what has begun, the oldest first; return whether there was anything (a reclaimer)."""
    begun = unfinished(volume)
    if begun:
        step(volume, next(iter(volume.lives.ending)))
    return begun


def holds_blocks(inode: Inode) -> bool:
    """Return whether the inode's block area is a map of blocks (not a symbolic link's text, not a device number)."""
    if inode.is_symlink:
        return not inode.is_fast_symlink
    return inode.is_regular or inode.is_dir


def free(volume: Volume, ino: int) -> None:
    """Free the inode's blocks, then the inode, in as many handles as it takes."""
    volume.nodes.forget(ino)
    while not free_step(volume, ino):
        pass
    volume.lives.ending.pop(ino, None)


def free_step(volume: Volume, ino: int) -> bool:
    """Free some of the inode's blocks in one handle, with the last ones also the inode; return whether it is free."""
    with volume.handle(CREDITS_FREE) as tx:
        inode = inodes.edit(tx, ino)
        metadata = not stat.S_ISREG(inode.mode)
        if holds_blocks(inode) and not mapping.remove(tx, inode, 0, None, metadata=metadata, limit=BLOCKS_PER_STEP):
            return False
        xattrs.drop(tx, inode)
        volume.lives.freed(tx, ino)
        inode.i_dtime = int(time.time()) & 0xFFFFFFFF
        inode.size = 0
        inode_allocation.free(tx, inode)
    return True


def free_with_name(volume: Volume, tx: Handle, inode: Inode) -> bool:
    """Free an inode in the handle that takes its last name; return False if its end is more than that.

    An inode without blocks, which nobody knows, takes no step of its own. Damage is left to `begin`, too: it fails no
    operation.
    """
    ino, lives = inode.number, volume.lives
    if inode.links_count != 1 or inode.blocks or inode.file_acl or not stat.S_ISREG(inode.mode):
        return False
    if ino in volume.nodes.open or volume.is_busy(ino) or volume.notifier.stale or volume.pool.bad:
        return False
    if ino in lives.listed or not mapping.is_empty(inode):
        return False
    try:
        inode_allocation.free(tx, inode)  # it finds damage before it changes anything
    except Corrupt:
        return False
    inode.size = 0
    return True


def collect_all(volume: Volume) -> None:
    """Begin to free every inode that has no name and is not busy; log their number."""
    waiting = tuple(volume.lives.nameless)
    for ino in waiting:
        begin(volume, ino)
    note_cleaned(len(waiting) - len(volume.lives.nameless - volume.lives.ending.keys()))


def note_cleaned(count: int) -> None:
    """Log how many orphans were freed, if any were."""
    if count:
        log.info("%d orphaned inodes cleaned", count)


def recover(volume: Volume) -> None:
    """Free the orphans without names and cut the others to their size, after a crash.

    Damage is reported when all are done, since it may make the volume read-only.
    """
    lives = volume.lives
    survey = orphans.survey(volume.view)
    met = survey.met[:]
    for error in met:
        leave(volume, None, error)
    for before, following in survey.relinked.items():
        with unless_damaged(volume, None, met), volume.handle(CREDITS_GIVEN_UP) as tx:
            orphans.relink(tx, before, following)
    for index, slot in survey.cleared:
        with unless_damaged(volume, None, met), volume.handle(CREDITS_GIVEN_UP) as tx:
            orphans.clear(tx, index, slot)
    found = list(survey.found)
    lives.found_listed(found, whole=survey.whole)
    given_up = 0
    for ino in found:
        before = len(met)
        with unless_damaged(volume, ino, met):
            if inodes.read(volume.view, ino).links_count:
                while not truncating.cut_step(volume, ino):
                    pass
            else:
                lives.found_nameless(ino)
                if not volume.notifier.stale:
                    free(volume, ino)
        given_up += len(met) > before and ino not in lives.listed
    note_cleaned(sum(ino not in lives.listed for ino in found) - given_up)
    for error in met:
        report(volume, error)


def free_nameless(volume: Volume) -> None:
    """Free all inodes without a name, end windows, and finish abandoned cuts: the mount ends, and nobody needs them."""
    free_rest(volume)
    met: list[Corrupt | MissingMemory] = []
    for node in appends.with_windows(volume):
        with unless_damaged(volume, node.ino, met):
            appends.end(volume, node)
    for ino in tuple(volume.lives.listed - volume.lives.nameless):
        if volume.read_only:
            break
        with unless_damaged(volume, ino, met):
            while not truncating.cut_step(volume, ino):
                pass
    for ino in tuple(volume.lives.nameless):
        if volume.read_only:
            break
        with unless_damaged(volume, ino, met):
            free(volume, ino)
    for error in met:
        report(volume, error)


@contextmanager
def unless_damaged(volume: Volume, ino: int | None, met: list[Corrupt | MissingMemory]) -> Iterator[None]:
    """Go on, as `leave`, if what is done inside meets damaged or missing metadata.

    Args:
        volume: of the inode.
        ino: the inode; None: the list itself is read.
        met: gets the error, which the caller reports.
    """
    try:
        with volume.pool.faults.checked():
            yield
    except (Corrupt, MissingMemory) as error:
        leave(volume, ino, error)
        met.append(error)


def failed(volume: Volume, ino: int, error: Corrupt | MissingMemory | MemoryError) -> None:
    """Leave the inode, whose end needs metadata that is damaged or missing, or memory of the daemon, and report that.

    The operation that took its last name has succeeded, and neither a mount nor its end may fail because of it.
    """
    leave(volume, ino, error)
    if not isinstance(error, MemoryError):
        report(volume, error)


def report(volume: Volume, error: Corrupt | MissingMemory) -> None:
    """Report what the end of an inode has met."""
    if isinstance(error, Corrupt):
        damage.report(volume, error)
    else:
        damage.report_missing(volume, error, change=True)


def leave(volume: Volume, ino: int | None, error: Corrupt | MissingMemory | MemoryError) -> None:
    """Leave an inode whose end has failed: on the orphan list, or, if damage was met, to e2fsck (see the module).

    Args:
        volume: of the inode.
        ino: the inode; None: the list itself was read.
        error: what the end met.
    """
    if isinstance(error, MissingMemory):
        volume.forget_content()
    if ino is None:
        what = "the orphan list is read as far as it can be"
    elif isinstance(error, Corrupt) and give_up(volume, ino):
        what = f"inode {ino} is left to e2fsck"
    else:
        what = f"inode {ino} stays on the orphan list"
    log.error("%s: %s", what, error.strerror if isinstance(error, FsError) else "out of memory")


def give_up(volume: Volume, ino: int) -> bool:
    """Take an inode off the orphan list, and keep it in use; False: that meets damage as well."""
    if ino not in volume.lives.nameless:
        return truncating.give_up_cut(volume, ino)
    try:
        with volume.pool.faults.checked(), volume.handle(CREDITS_GIVEN_UP) as tx:
            volume.lives.given_up(tx, ino)
            inodes.edit(tx, ino).i_dtime = int(time.time()) & 0xFFFFFFFF  # e2fsck would have to ask about 0
    except FsError:
        return False
    return True
