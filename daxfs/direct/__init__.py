"""Files of a mounted daxfs, read, written and mapped in memory by the program itself (docs/DIRECT.md).

``open`` and ``map`` are for programs; every other module here is theirs. Whoever may open the pool gets memory; whoever
may not gets the same bytes through the kernel, and ``why``.
"""

from __future__ import annotations

import os

from daxfs.direct import holding, limits, maps, pool
from daxfs.direct.files import DirectFile, detach, leave_memory, open
from daxfs.direct.maps import Mapping, map

__all__ = ["DirectFile", "Mapping", "detach", "map", "open"]


def _before_fork() -> None:
    holding.before_fork()
    maps.before_fork()


def _after_fork() -> None:
    pool.forked()
    holding.after_fork()


limits.watch(holding.close_windows)
pool.when_rights_go(leave_memory)
os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
