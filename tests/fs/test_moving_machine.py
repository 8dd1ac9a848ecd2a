"""Random operations while blocks move: resizes, relocations, snapshots, clients, tiers, power cuts and remounts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from machine_rig import run_few, run_many
from moving_machine import FORMATS, MovingMachine
from tiering_machine import TieringMachine

from daxfs.fs.grants import recall

DONE = (
    *("grown", "shrunk", "renumbered", "relocated", "resize abandoned", "relocate abandoned", "snapshot compared"),
    *(
        "client stored",
        "client appended",
        "cut within resize",
        "cut within relocate",
        "cut within snapshot",
        "power cut",
    ),
)
DONE_WITH_STORAGE = (
    *(
        "demoted",
        "promoted",
        "tier abandoned",
        "late answer",
        "storage failed",
        "move failed",
        "relocated",
        "power cut",
    ),
    "cut within relocate",
)
"""What many walks do; few walks do the greater part."""


def few(machine: Callable[[Counter[str]], MovingMachine], done: tuple[str, ...]) -> None:
    """Run some walks."""
    tally = Counter[str]()
    run_few(lambda: machine(tally), 8, steps=40)
    assert sum(tally[each] > 0 for each in done) > len(done) // 2, tally


def many(machine: Callable[[Counter[str]], MovingMachine], done: tuple[str, ...]) -> None:
    """Run many walks, others each time."""
    tally = Counter[str]()
    run_many(lambda: machine(tally), 170, steps=80)
    assert not [each for each in done if not tally[each]], tally


@pytest.fixture(autouse=True)
def _time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines set the time of recalls; it is the system's again then."""
    monkeypatch.setattr(recall, "time", recall.time)


@pytest.mark.parametrize("name", ["block4k", "block1k"])
def test_blocks_move_under_random_operations(name: str) -> None:
    few(lambda tally: MovingMachine(name, tally), DONE)


def test_files_move_between_tiers_under_random_operations() -> None:
    few(lambda tally: TieringMachine("tiered", tally), DONE_WITH_STORAGE)


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", FORMATS)
def test_blocks_move_under_many_random_operations(name: str) -> None:
    many(lambda tally: MovingMachine(name, tally), DONE)


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_files_move_between_tiers_under_many_random_operations() -> None:
    many(lambda tally: TieringMachine("tiered", tally), DONE_WITH_STORAGE)
