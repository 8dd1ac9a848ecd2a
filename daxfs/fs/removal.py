"""The end of inodes: those without a name wait while they are busy and are then freed, also after a crash.

An inode whose last name went joins ``nodes.unlinked``. If it is still busy when the transaction commits, the commit
hook puts it on the on-disk orphan list, so that recovery frees it; one that is freed before never touches that list.
Freeing a large file takes several handles: the tree is valid between them, and the orphan list names the inode.
"""

from __future__ import annotations

import logging
import stat
import time

from daxfs.fs.data import cut_blocks
from daxfs.fs.volume import Volume
from daxfs.journal.transaction import Handle
from daxfs.structures import inodes, mapping, orphans, xattrs
from daxfs.structures.inodes import Inode

log = logging.getLogger("daxfs.fs")

CREDITS_FREE = 64
"""Blocks one step of freeing may change: index blocks, inode, descriptors, attribute block, orphan block."""
BLOCKS_PER_STEP = 32


def orphan(volume: Volume, tx: Handle, inode: Inode) -> None:
    """The inode has no name (any more). It is freed by `collect`, or listed as an orphan at the commit."""
    volume.nodes.unlinked.add(inode.number)
    tx.reserve("orphans", 8)


def named(volume: Volume, tx: Handle, ino: int) -> None:
    """An inode without a name got one; the last that its handle does, since the books are not rolled back."""
    nodes = volume.nodes
    if ino in nodes.listed:
        orphans.remove(tx, ino)
        nodes.listed.discard(ino)
    nodes.unlinked.discard(ino)
    nodes.linkable.discard(ino)


def collect(volume: Volume, ino: int) -> None:
    """Free the inode if it has no name and is busy no more.

    While strangers may touch it, nothing is done; nor after an abort, for recovery frees it then.
    """
    nodes = volume.nodes
    if ino in nodes.unlinked and not nodes.busy(ino) and not volume.leases.strangers and not volume.read_only:
        free(volume, ino)


def list_orphans(volume: Volume, tx: Handle) -> None:
    """Commit hook: what has no name but lives on is named on the disk's orphan list."""
    nodes = volume.nodes
    for ino in tuple(nodes.unlinked - nodes.listed):
        if inodes.read(tx, ino).links_count:
            nodes.unlinked.discard(ino)
        else:
            orphans.add(tx, ino)
            nodes.listed.add(ino)


def holds_blocks(inode: Inode) -> bool:
    """Whether the inode's block area is a map of blocks (not a symbolic link's text, not a device number)."""
    if inode.is_symlink:
        return not inode.is_fast_symlink
    return inode.is_regular or inode.is_dir


def free(volume: Volume, ino: int) -> None:
    """Give back the inode's blocks, then the inode; in as many handles as it takes."""
    nodes = volume.nodes
    nodes.forget(ino)
    nodes.unlinked.add(ino)
    finished = False
    while not finished:
        with volume.handle(CREDITS_FREE) as tx:
            inode = inodes.edit(tx, ino)
            if inode.links_count:
                nodes.unlinked.discard(ino)
                return
            metadata = not stat.S_ISREG(inode.mode)
            if holds_blocks(inode) and not mapping.remove(tx, inode, 0, None, metadata=metadata, limit=BLOCKS_PER_STEP):
                continue
            xattrs.drop(tx, inode)
            if ino in nodes.listed:
                orphans.remove(tx, ino)
            inode.i_dtime = int(time.time()) & 0xFFFFFFFF
            inode.size = 0
            inodes.free(tx, inode)
            finished = True
    nodes.unlinked.discard(ino)
    nodes.listed.discard(ino)


def collect_all(volume: Volume) -> None:
    """Free every inode without a name that is busy no more; the log says how many there were."""
    waiting = tuple(volume.nodes.unlinked)
    for ino in waiting:
        collect(volume, ino)
    note_cleaned(len(waiting) - len(volume.nodes.unlinked))


def note_cleaned(count: int) -> None:
    """Say how many orphans are gone, if any are."""
    if count:
        log.info("%d orphaned inodes cleaned", count)


def recover(volume: Volume) -> None:
    """After a crash: free the orphans without names, cut the others to their size."""
    found = list(orphans.listing(volume.view))
    for ino in found:
        volume.nodes.listed.add(ino)
        if inodes.read(volume.view, ino).links_count == 0:
            volume.nodes.unlinked.add(ino)
            collect(volume, ino)
        else:
            cut_blocks(volume, ino)
            with volume.handle(CREDITS_FREE) as tx:
                orphans.remove(tx, ino)
            volume.nodes.listed.discard(ino)
    note_cleaned(sum(ino not in volume.nodes.unlinked for ino in found))
