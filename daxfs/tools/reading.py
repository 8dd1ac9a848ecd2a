"""Read a pool without a mount and without a lock, for info, dump and map. Nothing is written.

A pool that was not unmounted is shown as recovery will leave it: its log is replayed on a private mapping. On a pool in
use by a daemon the home locations have the state of the last commit, because a commit ends with the home copies. Only
the superblock may be older at home, so its newest copy is read from the log. Of a mounted snapshot, the metadata of its
moment is shown. `map` makes the daemon commit first, by fsync, and `info` asks the mount for free space. If the pool
changes meanwhile, a half-changed state may raise a `Corrupt` without any damage; repeat the command.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daxfs.errors import FsError, MissingMemory, PoolError, UserError
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.inode import EXT4_ROOT_INO
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET, Superblock
from daxfs.fs import mounting
from daxfs.fs.mounting import read_superblock
from daxfs.fs.snapshots.past import PastView
from daxfs.fs.tiers import members
from daxfs.journal import recovery
from daxfs.journal.view import PoolView
from daxfs.pmem.opening import open_pool
from daxfs.structures import directories, inodes
from daxfs.tools import snapshotsource

if TYPE_CHECKING:
    from daxfs.journal.view import View
    from daxfs.pmem.pool import Pool
    from daxfs.structures.inodes import Inode

ATTEMPTS = 5
"""The most attempts to read the log of a pool in use while the log does not change."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A pool that is open for reading."""

    pool: Pool
    superblock: Superblock
    geometry: Geometry
    view: View

    def inode(self, which: str) -> Inode:
        """Return the inode of a number (``12`` or debugfs's ``<12>``) or of an absolute path, without following links.

        Raises:
            UserError: the path does not exist, or ``which`` is neither a path nor a number.
            FsError, Corrupt: there is no such inode.
        """
        number = which.strip("<>")
        if number.isascii() and number.isdigit():
            return inodes.read(self.view, int(number))
        if not which.startswith("/"):
            raise UserError(f"{which} is not an inode; give a number or a path from the pool's root, /like/this", 64)
        ino = EXT4_ROOT_INO
        for name in which.encode(errors="surrogateescape").split(b"/"):
            if name in (b"", b"."):
                continue
            inode = inodes.read(self.view, ino)
            try:
                found = directories.find(self.view, inode, name) if inode.mode & 0xF000 == 0x4000 else None
            except FsError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                    raise
                found = None
            if found is None or not found.ino:
                raise UserError(f"{which} is not in {self.pool.path}", os.EX_NOINPUT)
            ino = found.ino
        return inodes.read(self.view, ino)


def _open(path: str) -> Pool:
    """Map the pool; if it needs recovery and is not in use, map it privately and recover the mapping."""
    pool = _with_addresses(open_pool(path, read_only=True, exclusively=False))
    try:
        if not mounting.needs_recovery(read_superblock(pool)):
            return pool
        private = _with_addresses(open_pool(path, private=True))
    except (PoolError, FsError):
        return pool  # in use, or not recoverable
    try:
        mounting.recover_in_place(private)
    except MissingMemory:
        private.close()
        pool.close()
        raise
    except FsError:
        private.close()  # the log can't be replayed: show the home locations
        return pool
    pool.close()
    return private


def _with_addresses(pool: Pool) -> Pool:
    """Give the storage of a tiered pool addresses, so that its blocks have numbers; nothing reads their content."""
    try:
        found = members.records(pool)
        if found:
            members.attach_all(pool, found)
    except FsError:
        pass  # who reads the superblock says what is wrong with it
    except BaseException:
        pool.close()
        raise
    return pool


def _newest_superblock(pool: Pool) -> Superblock:
    """Return the superblock as of the last commit."""
    superblock = read_superblock(pool)
    if not mounting.needs_recovery(superblock):
        return superblock
    for _ in range(ATTEMPTS):
        superblock = read_superblock(pool)
        try:
            content = _logged_superblock(pool, superblock)
        except FsError:
            continue  # the log has changed while it was read
        if content is None:
            break
        newest = Superblock(content)
        if not newest.is_torn():
            return newest
    return superblock


def _logged_superblock(pool: Pool, superblock: Superblock) -> memoryview | None:
    """Return the bytes of the newest superblock in the log, or None if the log has none."""
    geometry = Geometry.of(superblock)
    if not geometry.has_journal:
        return None
    area = mounting.log_area(mounting.TornView(pool, geometry), superblock)
    block, offset = divmod(SUPERBLOCK_OFFSET, geometry.block_size)
    content = recovery.newest_copy(pool, geometry, area, block)
    return None if content is None else memoryview(content)[offset : offset + Superblock.SIZE]


@contextmanager
def reading(path: str) -> Iterator[Reading]:
    """Open a pool for reading; or a snapshot, by the source of its mount.

    Raises:
        UserError: the snapshot is lost or deleted.
        PoolError: the pool can't be opened.
        FsError, Corrupt: the pool has no readable ext4.
        MissingMemory: EIO, the body has read memory that is missing, as zeros.
    """
    shown = snapshotsource.shown_by(path)
    if shown is not None:
        with snapshotsource.opened(shown.place) as source:
            past = PastView(source.pool, source.past(snapshotsource.valid(source, shown.name)))
            yield Reading(source.pool, past.superblock(), past.geometry, past)
        return
    pool = _open(path)
    try:
        with pool.faults.checked():
            superblock = _newest_superblock(pool)
            geometry = Geometry.of(superblock)
            view = PoolView(pool, geometry)
            try:
                yield Reading(pool, superblock, geometry, view)
            finally:
                view.release()
    finally:
        pool.close()
