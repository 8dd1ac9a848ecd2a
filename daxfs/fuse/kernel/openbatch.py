"""The batch of an open file, as a connection keeps it, and pages that the kernel must not keep after its commit.

Every WRITE makes the kernel drop the pages of its range (docs/FUSE.md, "Caches"); a page that it reads for its cache
afterwards has the content before the commit. The daemon cannot drop it, since that would wait for readers who wait for
the daemon. So `OpenBatch.outdates` tells the commit, which is refused.

A batch ends with the process that has begun it. The daemon learns of that when the open file is closed, or, if a child
has the open file too, with the next request that another process makes through it.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daxfs.fs.batches import Batch

MOST_CACHED = 1024
"""Pages that the kernel has read for its cache, noted for one batch; if there are more, all count as read."""


class OpenBatch:
    """The batch of an open file.

    Attributes:
        batch: the core's.
        handle: of the open file.
        ino: the file.
        thread: that has begun it, as the kernel numbers it for the daemon.
        process: of this thread; 0: it has no number here.
        committer: the COMMIT that has found no room and waits for it, by its number; 0: there is none.
    """

    __slots__ = ("_cached", "_written", "batch", "committer", "handle", "ino", "process", "thread")

    def __init__(self, batch: Batch, handle: int, ino: int, thread: int) -> None:
        self.batch = batch
        self.handle = handle
        self.ino = ino
        self.thread = thread
        self.process = process_of(thread)
        self.committer = 0
        self._written: set[int] = set()
        self._cached: set[int] = set()

    def is_of(self, thread: int) -> bool:
        """Return whether a thread belongs to the process that has begun the batch."""
        return thread == self.thread or os.path.exists(f"/proc/{self.process}/task/{thread}")

    def is_orphan(self, thread: int) -> bool:
        """Return whether the process that has begun the batch has ended, as another ``thread`` may find."""
        return bool(self.process) and not self.is_of(thread) and has_ended(self.process)

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


class OpenBatches:
    """The batches of a connection.

    Attributes:
        by_handle: by the handle of the open file.
        by_ino: by inode number, since a file has at most one.
    """

    __slots__ = ("by_handle", "by_ino")

    def __init__(self) -> None:
        self.by_handle: dict[int, OpenBatch] = {}
        self.by_ino: dict[int, OpenBatch] = {}

    def add(self, begun: OpenBatch) -> None:
        """Add a batch that was begun."""
        self.by_handle[begun.handle] = self.by_ino[begun.ino] = begun

    def remove(self, ended: OpenBatch) -> None:
        """Drop a batch, whether it was committed or not."""
        self.by_handle.pop(ended.handle, None)
        self.by_ino.pop(ended.ino, None)
        ended.batch.abort()

    def closed(self, handle: int) -> None:
        """Drop the batch of an open file that was closed, if it has one."""
        begun = self.by_handle.get(handle)
        if begun is not None:
            self.remove(begun)


def process_of(thread: int) -> int:
    """Return the process of a thread, or 0 if it has no number in the daemon's namespace."""
    with suppress(OSError):
        for line in Path(f"/proc/{thread}/status").read_text(errors="replace").splitlines():
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    return 0


def has_ended(process: int) -> bool:
    """Return whether a process has ended: its parent may still have to ask for its status."""
    try:
        status = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return True
    return status.rpartition(b") ")[2][:1] in (b"Z", b"X")


def _pages(offset: int, size: int) -> range:
    return range(offset // mmap.PAGESIZE, -(-(offset + size) // mmap.PAGESIZE))
