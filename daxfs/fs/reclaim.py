"""The policy for a full pool: reclaimers give room back, and the operation that found none is tried once more.

The one policy for ENOSPC. Room that nobody uses may not be free yet: blocks freed in the running transaction return
with its commit, blocks that clients could touch when they are gone, files without a name when nobody knows them any
more. The code that keeps such room registers a *reclaimer*, on this floor or above. An operation that is atomic and
finds the pool full is tried once more after all of them were called. Nothing else of the file system tries again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from daxfs.errors import FsError

P = ParamSpec("P")
R = TypeVar("R")

Reclaimer = Callable[[], bool]
"""Gives back the room that it can, and answers whether it gave any. Called outside of handles; it does not raise
ENOSPC."""


class Reclaimers:
    """Those of one volume, in the order in which they are called: what one gives back the next may make usable."""

    def __init__(self) -> None:
        self._all: list[Reclaimer] = []

    def add(self, reclaim: Reclaimer) -> None:
        """One more, called before those that are there."""
        self._all.insert(0, reclaim)

    def retrying(self, operation: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run an operation that happens whole or not at all; in a full pool once more, if there is room then."""
        try:
            return operation(*args, **kwargs)
        except FsError as error:
            if error.errno != errno.ENOSPC or not self.reclaim():
                raise
        return operation(*args, **kwargs)

    def reclaim(self) -> bool:
        """Call all reclaimers; whether any gave room back."""
        return any([reclaim() for reclaim in self._all])
