"""A bounded sample of the explorer, and the explorer itself: what it must see if the file system were wrong."""

from __future__ import annotations

import random
from argparse import ArgumentParser
from itertools import cycle
from pathlib import Path

import pytest
from crash_marker import complete
from crash_rig import AFTER, FORMATS, PLAIN, SINGLE, Run, image, words_agree
from explorer import workloads
from explorer.examine import Depth, Examiner, Tally, Wrong
from explorer.explore import Task, explore, plan, share
from explorer.lines import Line, choices, cuts
from explorer.tiers import TIER_OPERATIONS
from explorer.workloads import Workload
from recorder import CACHE_LINE, Event, Fence, Flush, Store
from tiered_recorder import MemoryStorage

SAMPLE = Depth(alone=6, subsets=1, again=0.003)


def explored(work: list[Workload], depth: Depth = SAMPLE) -> Tally:
    """Examine these workloads on all processors; the first wrong image fails the test."""
    total = Tally()
    for found in explore([Task(each, depth) for each in work]):
        assert not found.wrong, found.wrong
        total.add(found.tally)
    assert total.workloads == len(work)
    return total


def test_every_operation() -> None:
    """Each with one kind of sync after it."""
    work = list(workloads.ones("1k"))
    chance = random.Random(1)
    some = [chance.choice(work[at : at + len(AFTER)]) for at in range(0, len(work), len(AFTER))]
    found = explored(some, Depth(alone=1, subsets=1, again=0.001))
    assert found.cuts >= 2 * found.workloads
    assert found.distinct > 4 * found.workloads


@pytest.mark.full
def test_every_operation_with_every_sync() -> None:
    explored(list(workloads.ones("1k")), Depth(alone=2, subsets=1, again=0.001))


@pytest.mark.parametrize("name", FORMATS)
def test_two_operations(name: str) -> None:
    explored(workloads.sample(name, 3, 1))


def test_three_operations() -> None:
    explored(list(workloads.threes("1k", 4, 1)))


@pytest.mark.full
@pytest.mark.parametrize("name", FORMATS)
def test_two_and_three_operations(name: str) -> None:
    explored([*workloads.sample(name, 24, 2), *workloads.threes(name, 24, 2)])


def test_mounts_and_unmounts() -> None:
    explored([work for name in FORMATS for work in workloads.lives(name, 1, 1)], Depth(alone=2, subsets=1, again=0.003))


@pytest.mark.full
def test_more_mounts_and_unmounts() -> None:
    explored([work for name in FORMATS for work in workloads.lives(name, 4, 2)])


def test_a_log_that_begins_anew() -> None:
    assert explored(list(workloads.laps("1k", 1, 1)), Depth(alone=2, subsets=1, again=0.003)).cuts > 10


def test_without_a_journal() -> None:
    explored(workloads.sample(*PLAIN, 4, 1), Depth(alone=2, subsets=1))


def test_files_move_between_tiers() -> None:
    """Every operation on storage with one kind of sync after it, and some pairs."""
    work = [Workload("tiered", ((name, after),)) for name, after in zip(TIER_OPERATIONS, cycle(AFTER))]
    pairs = [each for each in workloads.twos("tiered") if all(name in TIER_OPERATIONS for name, _ in each.steps)]
    explored([*work, *random.Random(1).sample(pairs, 6)], Depth(alone=2, subsets=1, others=0.02, again=0.003))


@pytest.mark.full
def test_files_move_between_tiers_among_all_operations() -> None:
    explored([*workloads.ones("tiered"), *workloads.sample("tiered", 60, 1), *workloads.lives("tiered", 6, 1)])


def record_is_complete(name: str, operation: str, after: str) -> bool:
    """The bytes at the start and the stores since make up the memory, the unmount included."""
    run = Run(image(name), [(operation, after)], close=True)
    return complete(run.pool, run.last)


def test_the_record_is_complete() -> None:
    """Of every operation, on a format of its own."""
    for operation, name, after in zip(SINGLE, cycle(FORMATS), cycle(("", "sync", "sync", ""))):
        assert record_is_complete(name, operation, after), (name, operation)


@pytest.mark.full
@pytest.mark.parametrize("name", FORMATS)
def test_the_record_is_complete_on_every_format(name: str) -> None:
    for operation in SINGLE:
        for after in ("", "sync"):
            assert record_is_complete(name, operation, after), operation


# The explorer itself


def test_a_workload_in_one_line() -> None:
    work = [
        next(workloads.ones("4k")),
        *workloads.sample("1k", 5, 1),
        *workloads.lives(*PLAIN, 1, 1),
        *workloads.clients("1k", 2, 1),
    ]
    assert [Workload.read(each.spell()) for each in work] == work
    for line in (
        "5k/last: append",
        "4k/last: no such operation",
        "4k/last: append>never",
        "4k/first: append",
        "4k/work/never: append",
        "",
    ):
        with pytest.raises(ValueError, match="is no workload"):
            Workload.read(line)


def test_words_of_versions() -> None:
    """A word is of one version; where an operation ended within the word, each byte is."""
    old, zeros, new = b"old old!", bytes(8), b"new!\0\0\0\0"
    around = b"same word"[:8]
    assert words_agree(around + old, [around + new, around + old])
    assert words_agree(around + b"old \0\0\0\0", [around + old, around + zeros, around + new])
    assert not words_agree(around + b"old \0\0\0\0", [around + old, around + zeros]), "none ended within it"
    assert not words_agree(around + b"odd \0\0\0\0", [around + old, around + zeros, around + new])
    assert not words_agree(around, [around + old])


def test_the_shares_of_a_plan_are_all_of_it() -> None:
    parser = ArgumentParser()
    work = plan(["4k"], twos=0, threes=3, laps=0, seed=1)
    shares = [share(parser, f"{number}/7", work) for number in range(1, 8)]
    assert sorted(each for found in shares for each in found) == sorted(work)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for wrong in ("0/7", "8/7", "7", "/7", "7/", "-1/7", "a/b"):
        with pytest.raises(SystemExit):
            share(parser, wrong, work)


def test_cuts_of_lines() -> None:
    events: list[Event] = [
        Store(0, b"a" * 8),
        Flush(0, 8),
        Store(60, b"b" * 8),
        Fence(),
        Store(0, b"c" * 8),
        Store(0, b"d" * 8),
        Flush(0, 8),
    ]
    durable = bytearray(256)
    found = cuts(events, durable)
    first = next(found)
    assert first.position == 3
    assert [line.offset for line in first.lines] == [0, 64]
    assert len(first.lines[0].versions) == 2
    second = next(found)
    assert bytes(durable[:8]) == b"a" * 8, "flushed before the fence"
    assert bytes(durable[60:64]) == bytes(4), "not flushed after it was stored"
    assert [line.offset for line in second.lines] == [0, 64]
    assert second.lines[0].versions[0][60:] == b"b" * 4, "still undecided"
    assert not list(found)
    assert bytes(durable[:8]) == b"d" * 8


def test_choices_of_lines() -> None:
    lines = tuple(Line(at * CACHE_LINE, bytes(64), (b"x" * 64,)) for at in range(3))
    labels = [
        (label, len(common.ground), len(own))
        for common in choices(lines, random.Random(1), alone=9, subsets=1)
        for label, own in common.images
    ]
    assert len(labels) == 1 + 3 + 1 + 3 + 2
    assert labels[0] == ("none", 0, 0)
    assert ("all", 1, 0) in labels, "neighbours are one piece"


@pytest.mark.parametrize(
    ("event", "steps"),
    [("fence", (("append", "sync"),)), ("flush", (("unlink", "sync"),))],
)
def test_a_record_that_lacks_a_fence_or_a_flush_is_found_out(
    tmp_path: Path, event: str, steps: tuple[tuple[str, str], ...]
) -> None:
    """Without the last fence before a promise, or without any write-back, what was promised can be lost."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr("time.time", lambda: 0.0)
        examiner = Examiner(Workload("1k", steps), tmp_path, Depth(others=0))
        events = examiner.run.pool.events
        if event == "fence":
            promised = max(promise.position for promise in examiner.run.promises[:-1])
            last = max(at for at in range(promised) if isinstance(events[at], Fence))
            events[last] = Flush(0, 0)
        else:
            events[examiner.run.start :] = [
                Flush(0, 0) if isinstance(found, Flush) else found for found in events[examiner.run.start :]
            ]
        with pytest.raises(Wrong):
            examiner.explore()


def test_a_demotion_that_does_not_synchronise_storage_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 0.0)
    monkeypatch.setattr(MemoryStorage, "sync", lambda _: None)
    few = Depth(alone=1, subsets=1, others=0, grow=0, again=0)
    with pytest.raises(Wrong):
        Examiner(Workload("tiered", (("demote", "sync"),)), tmp_path, few).explore()
