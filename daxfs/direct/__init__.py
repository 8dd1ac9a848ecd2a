"""Read, write and map files of a mounted daxfs in memory, without the daemon (docs/DIRECT.md).

Programs use the names in ``__all__``; the modules of this package are private. A process that may open the pool gets
memory. Any other process gets the same bytes through the kernel, and finds the reason in ``why``.
"""

from __future__ import annotations

import os

from daxfs.direct import lease_cache, limits, maps, pool
from daxfs.direct.files import DirectFile, detach, end_direct_access, open
from daxfs.direct.maps import Mapping, map

__all__ = ["DirectFile", "Mapping", "detach", "map", "open"]


def _before_fork() -> None:
    lease_cache.before_fork()
    maps.before_fork()


def _after_fork() -> None:
    pool.after_fork()
    lease_cache.after_fork()


limits.before_change(lease_cache.clear_write_extents)
pool.on_rights_lost(end_direct_access)
os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
