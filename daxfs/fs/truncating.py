"""Truncates: a file gets another size, and the blocks past it are freed.

A long cut takes several handles. In between the inode is on the orphan list, so that recovery finishes the cut after a
crash; the bytes past EOF in the last block are zeroed when the new size is durable.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, FsError
from daxfs.ext4.inode import EXT4_APPEND_FL, EXT4_IMMUTABLE_FL
from daxfs.fs import appends
from daxfs.fs.change import Change
from daxfs.fs.data import zero_tail
from daxfs.fs.nodes import END
from daxfs.fs.notifiers import CREDITS_QUARANTINE
from daxfs.fs.openfile import OpenFile, open_whole
from daxfs.fs.privileges import drop_capability, takes_set_id, without_set_id
from daxfs.fs.steps import Steps
from daxfs.structures import inodes

if TYPE_CHECKING:
    from daxfs.fs.types import Caller
    from daxfs.fs.volume import Volume

CREDITS_CUT = 64 + CREDITS_QUARANTINE
BLOCKS_PER_CUT = 256
"""Runs that one step of cutting a file frees: 32 of the credits are for the commit (`blocks.RESERVED_PER_CALL`), and
the leaves between the first and the last are freed, not changed."""


def open_file(volume: Volume, ino: int, flags: int, caller: Caller, kill: bool | None = None) -> Steps[OpenFile]:
    """Open an inode by number, as `open_whole`; O_TRUNC truncates it to 0 bytes.

    ``kill`` says whether O_TRUNC drops set-id bits (`truncate`).
    """
    file = open_whole(volume, ino, flags, caller)
    if flags & os.O_TRUNC:
        try:
            yield from truncate(volume, ino, 0, caller, kill)
            volume.finish()
        except BaseException:
            volume.nodes.closed(file.node)
            raise
    return file


def truncate(volume: Volume, ino: int, size: int, caller: Caller, kill: bool | None = None) -> Steps[None]:
    """Set the file size in bytes (EFBIG, EINVAL, EISDIR, EPERM). Blocks past it are freed; an extension is a hole.

    Set-id bits are dropped as `takes_set_id` says, file capabilities always.
    """
    if size < 0:
        raise FsError(errno.EINVAL)
    inode = inodes.read(volume.view, ino)
    if not stat.S_ISREG(inode.mode):
        raise FsError(errno.EISDIR if stat.S_ISDIR(inode.mode) else errno.EINVAL)
    if inode.flags & (EXT4_IMMUTABLE_FL | EXT4_APPEND_FL):
        raise FsError(errno.EPERM)
    if volume.exceeds_map(ino, size):
        raise FsError(errno.EFBIG)
    if size > volume.large_file_from:
        volume.allow_large_files()
    if volume.tiers is not None:
        last = min(size, inode.size)
        volume.tiers.require_memory(volume.view, ino, last & -volume.block_size, last)
    volume.note_sync(inode)
    shrinks = size <= inode.size
    drop_capability(volume, inode)
    whole = True
    appends.end_preallocation(volume, ino)
    with volume.handle(CREDITS_CUT) as tx, Change(volume, tx, ino) as change:
        inode = change.inode
        if takes_set_id(caller, kill):
            inode.mode = without_set_id(inode, caller)
        if size > inode.size:
            zero_tail(volume, tx, inode, inode.size)
        inode.size = size
        if shrinks:
            first = (size + volume.block_size - 1) >> volume.block_bits
            whole = change.unmap(first, None, limit=BLOCKS_PER_CUT)
            if not whole:
                volume.lives.being_cut(tx, ino)
    volume.nodes.reloaded(inode)
    if shrinks:
        yield from finish_cut(volume, ino, size, whole=whole)


def finish_cut(volume: Volume, ino: int, size: int, *, whole: bool) -> Steps[None]:
    """Finish a `truncate` that made the file shorter: free the rest of its blocks, zero the last block past EOF."""
    try:
        if not whole:
            yield from cut_rest(volume, ino)
    finally:
        node = volume.nodes.open.get(ino)
        if node is not None:
            node.moved(size, END)
    if size & (volume.block_size - 1):
        # The old bytes past the new EOF are zeroed only when the new size is durable: a crash before that needs them.
        volume.journal.commit()
        inode = inodes.read(volume.view, ino)
        if inode.size == size:
            with volume.handle(1) as tx:
                zero_tail(volume, tx, inode, size)


def cut_rest(volume: Volume, ino: int) -> Steps[None]:
    """Free the rest of the blocks past EOF, of an inode that `Lifetimes.being_cut` has noted.

    The inode stays open meanwhile, so that it outlives its last name. A caller that abandons these steps leaves the
    rest to `removal.freeing`.
    """
    node = volume.nodes.opened(inodes.read(volume.view, ino))
    try:
        yield
        while not cut_step(volume, ino):
            yield
    except GeneratorExit:
        volume.lives.ending[ino] = None
        raise
    except Corrupt:
        give_up_cut(volume, ino)
        raise
    finally:
        volume.nodes.closed(node)


def give_up_cut(volume: Volume, ino: int) -> bool:
    """Take an inode whose cut met damage off the orphan list; False: that meets damage as well.

    Each mount would meet the damage again. The file keeps the blocks past EOF that are left, until e2fsck has run
    (``ext4_truncate`` does the same).
    """
    try:
        with volume.pool.faults.checked(), volume.handle(CREDITS_CUT) as tx:
            volume.lives.cut(tx, ino)
    except FsError:
        return False
    return True


def cut_step(volume: Volume, ino: int) -> bool:
    """Free some of the blocks past EOF in one handle; return whether none is left. Then recovery has nothing to do."""
    with volume.handle(CREDITS_CUT) as tx, Change(volume, tx, ino, dated=False) as change:
        first = (change.inode.size + volume.block_size - 1) >> volume.block_bits
        finished = change.unmap(first, None, limit=BLOCKS_PER_CUT)
        if finished:
            volume.lives.cut(tx, ino)
    return finished
