"""The policy for a full pool: reclaimers free space, and the operation that found none runs once more.

This is the only policy for ENOSPC. Space that nobody uses may not be free yet. Blocks freed in the running transaction
become free with its commit; blocks that clients may touch, when those clients are gone; files without a name, when
nothing refers to them. The code that keeps such space registers a *reclaimer*, in this layer or above. An atomic
operation that finds the pool full runs once more after all reclaimers were called. What takes long is reclaimed in
parts, and the operation runs after each part: most need few blocks, and others wait meanwhile. Nothing else in the file
system retries.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from daxfs.errors import FsError, MissingMemory
from daxfs.fs.steps import Steps

P = ParamSpec("P")
R = TypeVar("R")

Reclaimer = Callable[[], bool]
"""Gives back the room that it can, and answers whether it gave any. Called outside of handles; it does not raise
ENOSPC."""


class Reclaimers:
    """The reclaimers of one volume, in the order in which they are called: what one frees the next may make usable."""

    def __init__(self) -> None:
        self._all: list[Reclaimer] = []
        self._unfinished: list[Callable[[], bool]] = []

    def add(self, reclaim: Reclaimer, unfinished: Callable[[], bool] | None = None) -> None:
        """Add a reclaimer, which is called before those that are there.

        Args:
            reclaim: the reclaimer.
            unfinished: returns whether the reclaimer has done only a part of what it can do, since all of it takes
                long. The operation runs after each part.
        """
        self._all.insert(0, reclaim)
        if unfinished is not None:
            self._unfinished.append(unfinished)

    def retrying(self, operation: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run an atomic operation; if the pool is full, run it once more after a reclaimer has freed space."""
        more = True
        while more:
            try:
                return operation(*args, **kwargs)
            except FsError as error:
                if error.errno != errno.ENOSPC or isinstance(error, MissingMemory) or not self.reclaim():
                    raise
            more = self._have_more()
        return operation(*args, **kwargs)

    def retrying_steps(self, operation: Callable[P, Steps[R]], *args: P.args, **kwargs: P.kwargs) -> Steps[R]:
        """Run the steps of an operation that can be repeated from its beginning, as `retrying`."""
        more = True
        while more:
            try:
                return (yield from operation(*args, **kwargs))
            except FsError as error:
                if error.errno != errno.ENOSPC or isinstance(error, MissingMemory) or not self.reclaim():
                    raise
            more = self._have_more()
            yield
        return (yield from operation(*args, **kwargs))

    def reclaim(self) -> bool:
        """Call all reclaimers; return whether any freed space."""
        return any([reclaim() for reclaim in self._all])

    def _have_more(self) -> bool:
        """Return whether a reclaimer has done only a part of what it can do."""
        return any(unfinished() for unfinished in self._unfinished)
