"""The table of lookup counts against a dict, its bounds, and the memory that it takes."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence

import pytest

from daxfs.fs.pins import FEWEST_ENTRIES, MOST_ENTRIES, STUCK, Pins

MOST_BYTES = 26
"""The most bytes for one entry of a large table."""
MOST_BYTES_AFTER = 40
"""The same after most entries have gone."""
SOME = 40 * MOST_ENTRIES


def generation_of(ino: int) -> int:
    return ino * 2654435761 & 0xFFFFFFFF


def filled(inodes: Sequence[int]) -> Pins:
    pins = Pins()
    for ino in inodes:
        pins.pin(ino, generation_of(ino))
    return pins


@pytest.mark.parametrize("spread", [3, 40, 1 << 32])
def test_it_counts_as_a_dict_does(spread: int) -> None:
    chance = random.Random(spread)
    numbers = [chance.randrange(spread) for _ in range(3 * MOST_ENTRIES)]
    pins = Pins()
    model: dict[int, int] = {}
    for step in range(30_000):
        ino = chance.choice(numbers)
        if chance.random() < (0.6 if step < 15_000 else 0.4):
            pins.pin(ino, generation_of(ino))
            model[ino] = model.get(ino, 0) + 1
        else:
            count = chance.choice((1, 1, 2, STUCK, 1 << 64))
            pins.unpin(ino, count)
            if model.get(ino, 0) <= count:
                model.pop(ino, None)
            else:
                model[ino] -= count
        assert (ino in pins) is (ino in model)
        assert pins.get(ino) == model.get(ino)
        assert pins.generation(ino) == (generation_of(ino) if ino in model else None)
        if step % 1000 == 0:
            pins.check()
            assert dict(pins) == model
            assert len(pins) == len(model)
    assert dict(pins) == model
    pins.clear()
    assert not pins
    assert dict(pins) == {}


def test_a_count_that_is_full_stays() -> None:
    pins = filled([12, 13])
    pins._values[0][0] += STUCK - 2
    pins.pin(12, generation_of(12))
    assert pins[12] == STUCK
    pins.pin(12, generation_of(12))
    assert (pins[12], pins.generation(12)) == (STUCK, generation_of(12)), "the count must not reach the generation"
    pins.unpin(12, STUCK)
    assert pins[12] == STUCK
    assert pins[13] == 1


ORDERS = {
    "rising": list(range(12, 12 + SOME)),
    "falling": list(range(12 + SOME, 12, -1)),
    "scattered": random.Random(1).sample(range(1 << 32), SOME),
}


def bytes_of(pins: Pins) -> int:
    """The memory that the table gives back when it is cleared."""
    before = tracemalloc.get_traced_memory()[0]
    pins.clear()
    return before - tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize("order", ORDERS)
def test_an_entry_takes_few_bytes(order: str) -> None:
    tracemalloc.start()
    try:
        assert bytes_of(filled(ORDERS[order])) <= MOST_BYTES * SOME
        pins = filled(ORDERS[order])
        left = random.Random(2).sample(ORDERS[order], SOME // 20)
        for ino in set(ORDERS[order]) - set(left):
            pins.unpin(ino)
        pins.check()
        assert sorted(left) == list(pins)
        assert bytes_of(pins) <= MOST_BYTES_AFTER * len(left), "it shrinks"
    finally:
        tracemalloc.stop()


def test_new_inodes_leave_full_segments() -> None:
    pins = filled(ORDERS["rising"])
    assert {len(numbers) for numbers in pins._numbers[:-1]} == {MOST_ENTRIES}


def test_small_neighbours_are_joined() -> None:
    pins = filled(range(1, MOST_ENTRIES + 2))
    assert len(pins._numbers) == 2
    for ino in range(1, MOST_ENTRIES + 3 - FEWEST_ENTRIES):
        assert len(pins._numbers) == 2
        pins.unpin(ino)
    pins.unpin(MOST_ENTRIES)
    assert len(pins._numbers) == 1
    pins.check()
