"""Ranges of bytes against sets of bytes."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from daxfs.runs import ByteRange, joined, overlap, subtract

END = 40


def some_ranges(chance: random.Random) -> list[ByteRange]:
    begins = [chance.randrange(END) for _ in range(chance.randrange(6))]
    return [ByteRange(begin, begin + chance.randrange(9)) for begin in begins]


def members(ranges: list[ByteRange]) -> set[int]:
    return {byte for begin, end in ranges for byte in range(begin, end)}


@pytest.mark.parametrize("seed", range(50))
def test_ranges_agree_with_sets(seed: int) -> None:
    chance = random.Random(seed)
    given = some_ranges(chance)
    one, other = list(joined(given)), list(joined(some_ranges(chance)))
    assert members(one) == members(given)
    assert all(begin < end for begin, end in one)
    assert all(before.end < after.begin for before, after in pairwise(one))
    left = list(subtract(one, other))
    assert (members(left), left) == (members(one) - members(other), list(joined(left)))
    first, end = sorted(chance.sample(range(END), 2))
    assert members(list(overlap(one, first, end))) == members(one) & set(range(first, end))


@pytest.mark.parametrize(
    ("ranges", "taken", "left"),
    [
        ([(0, 10), (20, 30)], [(2, 3), (5, 25), (29, 40)], [(0, 2), (3, 5), (25, 29)]),
        ([(0, 10), (12, 14)], [], [(0, 10), (12, 14)]),
        ([(0, 4), (6, 8)], [(0, 8)], []),
    ],
)
def test_subtract(ranges: list[tuple[int, int]], taken: list[tuple[int, int]], left: list[tuple[int, int]]) -> None:
    assert list(subtract([ByteRange(*each) for each in ranges], [ByteRange(*each) for each in taken])) == left
