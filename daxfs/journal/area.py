"""Layer 4: where the blocks of the log are.

The log counts its blocks from 0, the journal's superblock; `LogArea` turns such a position into a place in the pool.
The fs layer makes one from the journal's inode. Used by `log` and `recovery`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from daxfs.errors import Corrupt, CorruptKind


class LogArea:
    """The blocks of the journal's inode.

    Attributes:
        runs: (first block, count), in the order of the file.
        blocks: how many in all.
    """

    __slots__ = ("_starts", "blocks", "runs")

    def __init__(self, runs: Sequence[tuple[int, int]]) -> None:
        """An area of these runs."""
        self.runs = tuple(runs)
        ends = list(accumulate(count for _, count in self.runs))
        self.blocks = ends[-1] if ends else 0
        self._starts = [0, *ends[:-1]]

    def check(self, limit: int) -> None:
        """Every run lies in the file system and none twice.

        Args:
            limit: blocks of the file system.

        Raises:
            Corrupt: otherwise, or there are no blocks.
        """
        end = 0
        for start, count in sorted(self.runs):
            if count <= 0 or start <= 0 or start < end or start + count > limit:
                raise Corrupt(
                    CorruptKind.JOURNAL_INODE, f"blocks {start} to {start + count - 1} overlap or lie outside"
                )
            end = start + count
        if not self.blocks:
            raise Corrupt(CorruptKind.JOURNAL_INODE, "it has no blocks")

    def physical(self, position: int) -> int:
        """The block of the pool that holds the log's block ``position`` (0 <= position < blocks)."""
        index = bisect_right(self._starts, position) - 1
        return self.runs[index][0] + position - self._starts[index]

    def run(self, position: int) -> tuple[int, int, int]:
        """The run that holds the log's block ``position``: its first position, the one behind it, its first block."""
        index = bisect_right(self._starts, position) - 1
        first = self._starts[index]
        start, count = self.runs[index]
        return first, first + count, start

    def holds(self, block: int) -> bool:
        """Whether a block of the pool belongs to the journal."""
        return any(start <= block < start + count for start, count in self.runs)
