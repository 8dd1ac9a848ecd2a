"""Errors at every place where one can happen, in every operation (`failing`): a sample, and all in the full run.

An operation is done once to see its events, and then with each of them failing (of the events on one path through the
program, three). Each time the tree, the state in DRAM, the next operations and e2fsck are judged.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from crash_rig import LARGE
from explorer.tiers import TIERED
from failing import lives
from failing.seams import SEAMS
from failing.sweep import EVERY_FORMAT, Lab, Tally, swept
from failing.work import ALL, RESIZED
from in_memory import tmp_path

__all__ = ["tmp_path"]

SAMPLED = 6
"""Operations of each seam in the sample."""
STRIDES = {"allocation": 1, "room": 4, "store": 3, "load": 9, "buffer": 5}
"""Every which event of an operation fails in the sample: as many as leave two or three of each."""


@pytest.mark.interpreted
def test_some_operations(tmp_path: Path) -> None:
    """Each seam in operations of its own, on the format with the most structures."""
    lab = Lab("4k", tmp_path)
    chance = random.Random(1)
    tried = 0
    for seam in SEAMS:
        chosen = chance.sample([name for name in ALL if name not in LARGE], SAMPLED)
        tally = swept(lab, chosen, seam, stride=STRIDES[seam], lasting=chance.random() < 0.5)
        assert not tally.wrong, tally.wrong[0]
        tried += tally.tried
    assert tried > 20


@pytest.mark.interpreted
@pytest.mark.parametrize("seam", SEAMS)
def test_growth_and_moves(seam: str, tmp_path: Path) -> None:
    """On a pool of many groups, with room past the end of its file system."""
    lab = Lab("groups", tmp_path)
    tally = swept(lab, RESIZED, seam, stride=4 * STRIDES[seam])
    assert not tally.wrong, tally.wrong[0]
    assert not any(lab.reference(operation).refused for operation in RESIZED)
    assert tally.tried > 3 or seam == "room"


@pytest.mark.interpreted
def test_a_move_of_the_log(tmp_path: Path) -> None:
    lab = Lab("late log", tmp_path)
    for seam in ("room", "store", "load", "buffer"):
        tally = swept(lab, ["shrink moving log"], seam, stride=1 if seam in ("room", "buffer") else 5)
        assert not tally.wrong, tally.wrong[0]
        assert tally.tried, seam


@pytest.mark.interpreted
def test_moves_to_storage_and_back(tmp_path: Path) -> None:
    lab = Lab("tiered", tmp_path)
    for seam in SEAMS:
        tally = swept(lab, ["demote", "promote", "append to demoted"], seam, stride=STRIDES[seam])
        assert not tally.wrong, tally.wrong[0]
        assert tally.tried or seam == "room", seam


@pytest.mark.full
@pytest.mark.interpreted
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("seam", SEAMS)
@pytest.mark.parametrize("name", EVERY_FORMAT)
def test_every_operation(name: str, seam: str, lasting: bool, tmp_path: Path) -> None:
    tally = swept(Lab(name, tmp_path), list(ALL), seam, lasting=lasting)
    assert not tally.wrong, f"{len(tally.wrong)} of {tally.tried}: {tally.wrong[:5]}"
    assert tally.tried > 20


@pytest.mark.interpreted
@pytest.mark.parametrize("seam", ["store", "load", "buffer"])
def test_some_mounts_and_unmounts(seam: str, tmp_path: Path) -> None:
    """The pool has a log to replay and orphans."""
    tally = Tally()
    lives.swept(Lab("4k", tmp_path), seam, tally, stride=7)
    assert not tally.wrong, tally.wrong[0]
    assert tally.tried > 2


@pytest.mark.full
@pytest.mark.interpreted
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seam", ["allocation", "room", "store", "load", "buffer"])
@pytest.mark.parametrize("name", [name for name in EVERY_FORMAT if name not in TIERED])
def test_every_mount_and_unmount(name: str, seam: str, tmp_path: Path) -> None:
    tally = Tally()
    lives.swept(Lab(name, tmp_path), seam, tally)
    assert not tally.wrong, f"{len(tally.wrong)} of {tally.tried}: {tally.wrong[:5]}"
