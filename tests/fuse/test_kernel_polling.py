"""Adaptive polling: the session chooses the better of two ways of waiting."""

from __future__ import annotations

import itertools

from daxfs.fuse.kernel.polling import MOST_TURNS, AdaptivePolling


def spun(polling: AdaptivePolling, turns: int, sleeping: float, spinning: float) -> list[bool]:
    """Serve turns at the rates of the two ways; return for each turn whether it was spinning."""
    found = []
    for _ in range(turns):
        found.append(polling.spinning)
        polling.learn(spinning if polling.spinning else sleeping)
    return found


def test_the_better_way_wins_and_is_seldom_doubted() -> None:
    for sleeping, spinning in ((150_000, 40_000), (8_000, 90_000)):
        polling = AdaptivePolling(choice=True)
        spun(polling, 200, sleeping, spinning)
        lately = spun(polling, 1000, sleeping, spinning)
        assert lately.count(spinning > sleeping) > 0.95 * len(lately)
        assert lately.count(spinning < sleeping) >= 1000 // (2 * MOST_TURNS)


def test_a_change_is_noticed_at_once() -> None:
    polling = AdaptivePolling(choice=True)
    spun(polling, 1000, 150_000, 100_000)
    lately = spun(polling, 40, 8_000, 100_000)
    assert lately.count(True) > 25


def test_ways_that_are_alike_are_not_changed_often() -> None:
    polling = AdaptivePolling(choice=True)
    spun(polling, 200, 100_000, 100_000)
    lately = spun(polling, 500, 100_000, 101_000)
    assert sum(a != b for a, b in itertools.pairwise(lately)) < 20


def test_without_a_choice_it_always_sleeps() -> None:
    polling = AdaptivePolling(choice=False)
    assert spun(polling, 100, 1_000, 100_000) == [False] * 100
