"""Which mapping of a pool a mount gets, and the recovery that a read-only mount needs before it.

A mount that may write maps the pool for storing, and `mounting.mount` recovers what a crash left. A read-only mount
shares the pool with other readers and stores nothing. As in ext4 (ext4_load_journal, ext4_orphan_cleanup) a log that is
not empty is recovered first: in the pool if it can be written, else in memory, on a private mapping that copies only
the pages that recovery stores to. ``noload`` leaves the log alone.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from daxfs.errors import PoolError
from daxfs.fs import mounting
from daxfs.fs.tiers import members
from daxfs.pmem.opening import open_pool as open_memory
from daxfs.pmem.pool import Pool

if TYPE_CHECKING:
    from daxfs.fs.types import Options

log = logging.getLogger("daxfs.fs")


def open_pool(path: str, *, read_only: bool = False, private: bool = False) -> Pool:
    """Open a pool, with its storage if it has some.

    Raises:
        PoolError: as `daxfs.pmem.opening.open_pool` and `members.attach`.
    """
    pool = open_memory(path, read_only=read_only, private=private)
    try:
        with pool.faults.checked():
            members.attach(pool)
    except BaseException:
        pool.close()
        raise
    return pool


def open_for(path: str, options: Options) -> Pool:
    """Open the pool at ``path`` as a mount with these options needs it.

    Raises:
        PoolError: it can't be opened as memory, or is in use.
        FsError, Corrupt, Unsupported: it holds no ext4, or a log that can't be recovered.
    """
    if not options.read_only:
        return open_pool(path)
    pool = open_pool(path, read_only=True)
    if not waits_for_recovery(pool, options):
        return pool
    try:
        _recover(path, options)
    except PoolError as error:
        log.info("%s; its log is replayed in memory", error)
    else:
        pool = open_pool(path, read_only=True)
        if not waits_for_recovery(pool, options):
            return pool
    return open_pool(path, private=True)


def waits_for_recovery(pool: Pool, options: Options) -> bool:
    """Return whether the log must be recovered before the pool is read; if so, or after an error, close the pool."""
    waits = True
    try:
        waits = options.replay and mounting.needs_recovery(mounting.read_superblock(pool))
    finally:
        if waits:
            pool.close()
    return waits


def _recover(path: str, options: Options) -> None:
    """Replay the log, free the orphans and leave the pool clean, as a mount and an unmount do."""
    with open_pool(path) as pool:
        mounting.unmount(mounting.mount(pool, replace(options, read_only=False, mountpoint=""), members.follow))
