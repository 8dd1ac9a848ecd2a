"""Power cuts while clients store by themselves: a size is never durable before its bytes, and no old bytes appear."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from crash_marker import complete
from crash_rig import FORMATS
from explorer import workloads
from explorer.clients import OPERATIONS, POOLS
from explorer.examine import Depth, Examiner
from explorer.explore import Task, explore
from explorer.workloads import Workload

FLUSHED = ("append and flush", "append blocks and flush", "overwrite and flush a range", "store and flush a range")
SHALLOW = Depth(alone=1, subsets=1, others=0, again=0, grow=0.02)


def explored(work: list[Workload], depth: Depth) -> None:
    for found in explore([Task(each, depth) for each in work]):
        assert not found.wrong, found.wrong
        assert found.tally.distinct > 1


@pytest.mark.parametrize("way", POOLS)
def test_what_a_client_flushes(way: str) -> None:
    explored([Workload("1k", ((name, ""),), clients=way) for name in FLUSHED], SHALLOW)


def test_what_clients_do() -> None:
    """Each operation in one of the two ways, followed by a sync of the daemon, which flushes nothing of a client's."""
    chance = random.Random(1)
    left = [name for name in OPERATIONS if name not in (*FLUSHED, "snapshot")]
    explored([Workload("1k", ((name, "sync"),), clients=chance.choice(list(POOLS))) for name in left], SHALLOW)


AFTER_SNAPSHOTS = ("store, snapshot, store>sync", "append, snapshot, overwrite and flush")
MORE_AFTER_SNAPSHOTS = (
    "fill a hole, snapshot, store, snapshot, store and flush a range",
    "overwrite>sync, snapshot, fill a hole, snapshot, close>sync",
    "append large, snapshot, truncate below>sync, store",
)


@pytest.mark.parametrize("way", POOLS)
@pytest.mark.parametrize(
    ("part", "lines"), [("last", AFTER_SNAPSHOTS), pytest.param("work", MORE_AFTER_SNAPSHOTS, marks=pytest.mark.full)]
)
def test_what_clients_store_after_a_snapshot(part: str, lines: tuple[str, ...], way: str) -> None:
    """Their stores before their next request, and after it, are not in the snapshot; those before are."""
    explored([Workload.read(f"1k/{part}/{way}: {line}") for line in lines], SHALLOW)


@pytest.mark.full
@pytest.mark.parametrize("name", FORMATS)
def test_two_operations_of_clients(name: str) -> None:
    for found in explore([Task(each, Depth(alone=16, subsets=2)) for each in workloads.clients(name, 20, 1)]):
        assert not found.wrong, found.wrong


@pytest.mark.parametrize("way", POOLS)
def test_the_record_has_the_stores_of_clients(way: str, tmp_path: Path) -> None:
    """The bytes at the start and the stores since make up the memory."""
    for name in OPERATIONS:
        run = Examiner(Workload("1k", ((name, "sync"),), clients=way), tmp_path, SHALLOW).run
        assert complete(run.pool, run.last), name
