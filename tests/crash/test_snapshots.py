"""Power cuts with snapshots: after each, every snapshot that was made shows the tree at its making, and no other one.

The explorer does the same with every operation (`make test-crash`); `crash_rig.Run.judge` says what may be left.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from explorer.examine import Depth, Examiner
from explorer.workloads import Workload

SHALLOW = Depth(alone=12, subsets=2, others=0, grow=0, again=0.02)
WORKLOADS = (
    "4k/work: snapshot",
    "1k/work: snapshot",
    "4k/last: snapshot, overwrite",
    "1k/last: snapshot, unlink>sync",
    "4k/last: snapshot, write new in d",
    "4k/last: snapshot, truncate unaligned",
    "orphan-file/last: unlink open, snapshot",
    "1k/work: second snapshot",
    "4k/work: delete older snapshot",
    "no-extents/work: delete newer snapshot",
    "4k/work: delete snapshot",
    "4k/last: snapshot, atomic overwrite of many blocks",
    "1k/last: snapshot, batch to holes",
    "4k/last: snapshot, atomic journaled overwrite of many blocks",
    "4k/last: atomic overwrite, snapshot, overwrite atomic",
    pytest.param("4k/life: atomic journaled overwrite, snapshot, batch>sync, second snapshot", marks=pytest.mark.full),
    "4k/life: snapshot, overwrite moved>sync, second snapshot, unlink big",
)


@pytest.mark.parametrize("line", WORKLOADS)
def test_snapshots_after_power_cuts(line: str, tmp_path: Path) -> None:
    tally = Examiner(Workload.read(line), tmp_path, SHALLOW).explore()
    assert tally.images > 20
