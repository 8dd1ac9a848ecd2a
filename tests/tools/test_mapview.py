"""``daxfs map`` computes how much of a file 2 MiB pages can map."""

from __future__ import annotations

import pytest

from daxfs.fs.ranges import FIEMAP_EXTENT_UNWRITTEN
from daxfs.fs.types import FileExtent
from daxfs.tools.mapview import huge_bytes

M = 1 << 20


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], 0),
        ([(0, 2 * M, 2 * M)], 2 * M),
        ([(0, 2 * M, 2 * M - 4096)], 0),
        ([(0, 3 * M, 8 * M)], 0),
        ([(4096, 2 * M + 4096, 8 * M)], 6 * M),
        ([(0, 2 * M, M), (M, 3 * M, M)], 2 * M),
        ([(0, 2 * M, M), (M, 5 * M, M)], 0),
        ([(0, 8 * M, 2 * M), (4 * M, 2 * M, 4 * M)], 6 * M),
        ([(2 * M, 0, 2 * M)], 2 * M),
    ],
)
def test_whole_pages_at_whole_places(runs: list[tuple[int, int, int]], expected: int) -> None:
    assert huge_bytes([FileExtent(*run, flags=0) for run in runs]) == expected


def test_written_and_unwritten_blocks_are_one_piece_of_memory() -> None:
    assert huge_bytes([FileExtent(0, 2 * M, M, 0), FileExtent(M, 3 * M, M, FIEMAP_EXTENT_UNWRITTEN)]) == 2 * M
