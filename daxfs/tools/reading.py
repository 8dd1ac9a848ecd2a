"""Looking into a pool without a mount and without a lock: for info, dump and map.

Nothing is written. A pool that was not unmounted is seen as recovery will leave it: its log is replayed on a private
mapping. On a pool in use by a daemon what lies in place is the state of its last commit (daxfs copies blocks home right
after each commit) but for the superblock, which is read from the log; so `map` asks for a commit with fsync first, and
`info` asks the mount for free space. A pool that changes meanwhile may be seen half-way, and then gives a `Corrupt`
that means nothing; look again.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daxfs.errors import FsError, PoolError, UserError
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.inode import EXT4_ROOT_INO
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET, Superblock
from daxfs.fs import mounting
from daxfs.fs.mounting import read_superblock
from daxfs.journal import recovery
from daxfs.journal.view import PoolView
from daxfs.pmem.pool import open_pool
from daxfs.structures import directories, inodes

if TYPE_CHECKING:
    from daxfs.journal.view import View
    from daxfs.pmem.pool import Pool
    from daxfs.structures.inodes import Inode

NO_INPUT = 66  # EX_NOINPUT, sysexits.h
ATTEMPTS = 5
"""How often the log of a pool in use is read until it does not change meanwhile."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A pool opened for looking."""

    pool: Pool
    superblock: Superblock
    geometry: Geometry
    view: View

    def inode(self, which: str) -> Inode:
        """The inode of a number (``12`` or debugfs's ``<12>``) or of an absolute path; symbolic links are not followed.

        Raises:
            UserError: no such path, or neither path nor number.
            FsError, Corrupt: no such inode.
        """
        number = which.strip("<>")
        if number.isascii() and number.isdigit():
            return inodes.read(self.view, int(number))
        if not which.startswith("/"):
            raise UserError(f"{which} is no inode: give a number or a path from the pool's root, /like/this", 64)
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
                raise UserError(f"{which} is not in {self.pool.path}", NO_INPUT)
            ino = found.ino
        return inodes.read(self.view, ino)


def _open(path: str) -> Pool:
    """Map the pool as it lies there or, if a crash left it and nobody uses it, as recovery will leave it."""
    pool = open_pool(path, read_only=True, exclusively=False)
    try:
        if not mounting.needs_recovery(read_superblock(pool)):
            return pool
        private = open_pool(path, private=True)
    except (PoolError, FsError):
        return pool  # in use, or not to be recovered
    try:
        mounting.recover_in_place(private)
    except FsError:
        private.close()  # a log that can't be replayed: what lies in place is all there is to see
        return pool
    pool.close()
    return private


def _newest_superblock(pool: Pool) -> Superblock:
    """The superblock as of the last commit."""
    superblock = read_superblock(pool)
    if not mounting.needs_recovery(superblock):
        return superblock
    for _ in range(ATTEMPTS):
        superblock = read_superblock(pool)
        try:
            content = _logged_superblock(pool, superblock)
        except FsError:
            continue  # a log that changes while it is read
        if content is None:
            break
        newest = Superblock(content)
        if not newest.is_torn():
            return newest
    return superblock


def _logged_superblock(pool: Pool, superblock: Superblock) -> memoryview | None:
    """The bytes of the newest superblock in the log."""
    geometry = Geometry.of(superblock)
    if not geometry.has_journal:
        return None
    area = mounting.log_area(mounting.TornView(pool, geometry), superblock)
    block, offset = divmod(SUPERBLOCK_OFFSET, geometry.block_size)
    content = recovery.newest_copy(pool, geometry, area, block)
    return None if content is None else memoryview(content)[offset : offset + Superblock.SIZE]


@contextmanager
def reading(path: str) -> Iterator[Reading]:
    """Open a pool for looking.

    Raises:
        PoolError: it can't be opened.
        FsError, Corrupt: there is no ext4 in it that could be read.
    """
    pool = _open(path)
    try:
        superblock = _newest_superblock(pool)
        geometry = Geometry.of(superblock)
        view = PoolView(pool, geometry)
        try:
            yield Reading(pool, superblock, geometry, view)
        finally:
            view.release()
    finally:
        pool.close()
