"""Layer 4: where the blocks of the log are.

The log counts its blocks from 0, the journal's superblock. `LogArea` converts such a position to a block of the pool.
The fs layer makes a `LogArea` from the journal's inode; `log` and `recovery` use it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from daxfs.errors import Corrupt, CorruptKind
from daxfs.runs import BlockRun


class LogArea:
    """The blocks of the journal's inode.

    Attributes:
        runs: in the order of the file.
        blocks: the number of blocks of all runs.
    """

    __slots__ = ("_starts", "blocks", "runs")

    def __init__(self, runs: Sequence[BlockRun]) -> None:
        self.runs = tuple(runs)
        ends = list(accumulate(count for _, count in self.runs))
        self.blocks = ends[-1] if ends else 0
        self._starts = [0, *ends[:-1]]

    def check(self, limit: int) -> None:
        """Check that every run lies in the file system and that no two runs overlap.

        Args:
            limit: blocks of the file system.

        Raises:
            Corrupt: a run lies outside or overlaps another, or there are no blocks.
        """
        end = 0
        for start, count in sorted(self.runs):
            if count <= 0 or start <= 0 or start < end or start + count > limit:
                raise Corrupt(
                    CorruptKind.JOURNAL_INODE, f"blocks {start} to {start + count - 1} overlap or lie outside"
                )
            end = start + count
        if not self.blocks:
            raise Corrupt(CorruptKind.JOURNAL_INODE, "the inode has no blocks")

    def physical(self, position: int) -> int:
        """Return the block of the pool that holds the log's block ``position`` (0 <= position < blocks)."""
        index = bisect_right(self._starts, position) - 1
        return self.runs[index].start + position - self._starts[index]

    def run(self, position: int) -> tuple[int, int, int]:
        """Return the run that holds the log's block ``position``: (first position, position after it, first block)."""
        index = bisect_right(self._starts, position) - 1
        first = self._starts[index]
        start, count = self.runs[index]
        return first, first + count, start

    def holds(self, block: int) -> bool:
        """Whether a block of the pool belongs to the journal."""
        return any(start <= block < start + count for start, count in self.runs)
