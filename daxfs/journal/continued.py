"""Layer 4: one more transaction behind those of a log that was not emptied.

After a power cut the log may be followed by fast commits. Recovery makes a transaction of what they say, with the
number that they name. So the log has either the fast commits or the transaction: from its commit word on, the fast
commits belong to a transaction that is committed, and nobody looks at them. The caller, in the fs layer, replays the
log once more afterwards.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from daxfs.errors import FsError, Unsupported
from daxfs.ext4.jbd2 import Compat
from daxfs.journal.log import Log, erase_fast_commits, load_superblock
from daxfs.journal.tail import JournalSuperblockWriter

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.journal.area import LogArea
    from daxfs.journal.fast_scan import FastCommits
    from daxfs.pmem.pool import Pool


class ContinuedLog(Log):
    """The log of a pool in recovery, in the format in which it was written; its tail stays where it is."""

    def __init__(self, pool: Pool, geometry: Geometry, area: LogArea, fast: FastCommits) -> None:
        """Open the log behind its last transaction.

        Raises:
            Corrupt: the journal's superblock is damaged.
            Unsupported: the log has checksums that daxfs does not write.
        """
        superblock = load_superblock(pool, geometry, area)
        if superblock.compat & Compat.CHECKSUM:
            raise Unsupported(["fast_commit with journal_checksum"])
        self._begin(pool, area, JournalSuperblockWriter(pool, area.physical(0) * geometry.block_size, superblock))
        self._sequence, self._head = fast.sequence, fast.position
        size = self._end - self._first
        self._free = size - (fast.position - superblock.s_start) % size

    def commit(self, copies: Mapping[int, memoryview], revokes: Collection[int]) -> int:
        """Make the transaction durable, as `Log.commit`.

        Raises:
            FsError: ENOSPC: it does not fit behind the others. Nothing is stored.
        """
        if self.blocks_needed(len(copies), len(revokes)) >= self._free:
            raise FsError(
                errno.ENOSPC,
                f"{self._pool.path}: the log has no room for what its fast commits say; run: daxfs check -y",
            )
        taken = super().commit(copies, revokes)
        erase_fast_commits(self._pool, self._area, self._tail.superblock)
        return taken

    def record_error(self, number: int) -> None:
        """Do nothing: a pool that can't be recovered stays as it is."""

    def close(self) -> None:
        """Leave the log as it is, for its replay."""
        self._words.release()
