"""The end of inodes: those without a name wait while they are busy and are then freed, also after a crash.

`lifetimes.py` keeps the books of their lives, and the disk's list. Freeing a large file takes several handles: the tree
is valid between them, and the orphan list names the inode.
"""

from __future__ import annotations

import logging
import stat
import time

from daxfs.fs.data import cut_blocks
from daxfs.fs.volume import Volume
from daxfs.structures import inodes, mapping, orphans, xattrs
from daxfs.structures.inodes import Inode

log = logging.getLogger("daxfs.fs")

CREDITS_FREE = 64
"""Blocks one step of freeing may change: index blocks, inode, descriptors, attribute block, orphan block."""
BLOCKS_PER_STEP = 32


def collect(volume: Volume, ino: int) -> None:
    """Free the inode if it has no name and is busy no more.

    While stale clients may touch it, nothing is done; nor after an abort, for recovery frees it then.
    """
    if ino in volume.lives.nameless and not volume.is_busy(ino) and not volume.notifier.stale and not volume.read_only:
        free(volume, ino)


def holds_blocks(inode: Inode) -> bool:
    """Whether the inode's block area is a map of blocks (not a symbolic link's text, not a device number)."""
    if inode.is_symlink:
        return not inode.is_fast_symlink
    return inode.is_regular or inode.is_dir


def free(volume: Volume, ino: int) -> None:
    """Give back the inode's blocks, then the inode; in as many handles as it takes."""
    volume.nodes.forget(ino)
    finished = False
    while not finished:
        with volume.handle(CREDITS_FREE) as tx:
            inode = inodes.edit(tx, ino)
            metadata = not stat.S_ISREG(inode.mode)
            if holds_blocks(inode) and not mapping.remove(tx, inode, 0, None, metadata=metadata, limit=BLOCKS_PER_STEP):
                continue
            xattrs.drop(tx, inode)
            volume.lives.freed(tx, ino)
            inode.i_dtime = int(time.time()) & 0xFFFFFFFF
            inode.size = 0
            inodes.free(tx, inode)
            finished = True


def collect_all(volume: Volume) -> None:
    """Free every inode without a name that is busy no more; the log says how many there were."""
    waiting = tuple(volume.lives.nameless)
    for ino in waiting:
        collect(volume, ino)
    note_cleaned(len(waiting) - len(volume.lives.nameless))


def note_cleaned(count: int) -> None:
    """Say how many orphans are gone, if any are."""
    if count:
        log.info("%d orphaned inodes cleaned", count)


def recover(volume: Volume) -> None:
    """After a crash: free the orphans without names, cut the others to their size."""
    found = list(orphans.listing(volume.view))
    lives = volume.lives
    for ino in found:
        nameless = inodes.read(volume.view, ino).links_count == 0
        lives.found_listed(ino, nameless=nameless)
        if nameless:
            collect(volume, ino)
        else:
            cut_blocks(volume, ino)
    note_cleaned(sum(ino not in lives.nameless for ino in found))
