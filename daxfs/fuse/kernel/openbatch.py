"""The batch of an open file, as a connection keeps it, and pages that the kernel must not keep after its commit.

Every WRITE makes the kernel drop the pages of its range (docs/FUSE.md, "Caches"); a page that it reads for its cache
afterwards has the content before the commit. The daemon cannot drop it, since that would wait for readers who wait for
the daemon. So `OpenBatch.outdates` tells the commit, which is refused.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daxfs.fs.batches import Batch

MOST_CACHED = 1 << 16
"""Pages that the kernel has read for its cache, noted for one batch; if there are more, all count as read."""


class OpenBatch:
    """The batch of an open file.

    Attributes:
        batch: the core's.
        ino: the file.
        pid: the thread that has begun it, as the kernel numbers it for the daemon.
    """

    __slots__ = ("_cached", "_written", "batch", "ino", "pid")

    def __init__(self, batch: Batch, ino: int, pid: int) -> None:
        self.batch = batch
        self.ino = ino
        self.pid = pid
        self._written: set[int] = set()
        self._cached: set[int] = set()

    def wrote(self, offset: int, size: int) -> None:
        """Note which pages a WRITE has staged."""
        self._written.update(_pages(offset, size))

    def cached(self, offset: int, size: int) -> None:
        """Note which pages the kernel has read for its cache."""
        if len(self._cached) <= MOST_CACHED:
            self._cached.update(_pages(offset, size))

    @property
    def outdates(self) -> bool:
        """Whether a commit would leave an outdated page in the kernel."""
        return bool(self._written) and (len(self._cached) > MOST_CACHED or not self._written.isdisjoint(self._cached))


def _pages(offset: int, size: int) -> range:
    return range(offset // mmap.PAGESIZE, -(-(offset + size) // mmap.PAGESIZE))
