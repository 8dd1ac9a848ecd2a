"""The commit writer of pools without a journal: home copies, and a fence, are all there is.

Nothing here is atomic: a power cut leaves a part of the last commit, which e2fsck repairs. Caller:
`daxfs.journal.journal`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from daxfs.journal.log import unchanged

if TYPE_CHECKING:
    from daxfs.pmem.pool import Pool

UNLOGGED_LIMIT = 8192  # blocks in one transaction of a pool without a journal: bounds the DRAM


class NoLog:
    """The commit writer of a pool without a journal: a commit is the home copies and a fence, and is not atomic."""

    def __init__(self, pool: Pool) -> None:
        self.limit = UNLOGGED_LIMIT
        self.revokes_per_block = UNLOGGED_LIMIT
        self.tail_moves = 0
        self.before_home: Callable[[memoryview], None] = unchanged
        self._pool = pool

    def prepare(self, blocks: int) -> None:
        """Do nothing: home copies need no buffer."""

    def commit(self, copies: Mapping[int, memoryview], revokes: Collection[int]) -> int:  # noqa: ARG002
        """Make file data durable first: metadata must not name blocks that are not filled yet."""
        self._pool.fence()
        return 0

    def after_checkpoint(self) -> None:
        """Make the home copies durable: without a log they are the commit."""
        self._pool.fence()

    def store_later(self, number: int, content: memoryview) -> bool:  # noqa: ARG002
        """Call ``before_home`` and return False: no block may wait, so the caller stores it now."""
        self.before_home(content)
        return False

    def store_waiting(self) -> None:
        """Do nothing: nothing waits."""

    def empty(self) -> None:
        """Do nothing: there is no log to empty."""

    def follow_size(self) -> None:
        """Do nothing: it keeps no view of the pool."""

    def close(self) -> None:
        """Do nothing, as `empty`."""

    def record_error(self, number: int) -> None:
        """Do nothing: without a journal there is no field for an errno."""
