"""Contention: a session that loses its time to others while it spins stops spinning for a while."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import pytest

from daxfs.fuse.kernel import contention
from daxfs.fuse.kernel.contention import (
    CALLER_SECONDS,
    CALM_TURNS,
    DISTURBED_TURNS,
    FEWEST_TURNS,
    LOST_SHARE,
    MOST_TURNS,
    Contention,
)

TURN = 0.01


def turns(watched: Contention, disturbed: Iterable[bool]) -> list[bool]:
    """Serve turns, some of which are disturbed if they spin; return for each whether it may spin."""
    found = []
    for one in disturbed:
        spun = not watched.present
        found.append(spun)
        watched.watch(TURN, TURN * (1 - 2 * LOST_SHARE if one and spun else 1), 1, spun=spun)
    return found


def test_single_disturbances_are_no_contention() -> None:
    assert all(turns(Contention(), [number % DISTURBED_TURNS != 0 for number in range(1000)]))


def test_a_timer_that_preempts_every_turn_for_a_moment_is_no_contention() -> None:
    watched = Contention()
    for _ in range(1000):
        watched.watch(TURN, TURN * (1 - LOST_SHARE / 2), 1, spun=True)
        assert not watched.present


def test_a_session_that_shares_its_processor_seldom_spins() -> None:
    spun = turns(Contention(), [True] * 10_000)
    assert spun.index(False) == DISTURBED_TURNS
    assert sum(spun) <= 10_000 * 2 * DISTURBED_TURNS / MOST_TURNS


def test_it_spins_again_soon_when_the_others_have_gone() -> None:
    watched = Contention()
    turns(watched, [True] * 10_000)
    assert all(turns(watched, [False] * (MOST_TURNS + CALM_TURNS))[MOST_TURNS:])
    spun = turns(watched, [True] * (DISTURBED_TURNS + FEWEST_TURNS + 1))
    assert spun.count(False) == FEWEST_TURNS, "an old contention does not count"


def test_turns_without_spinning_show_nothing() -> None:
    watched = Contention()
    for _ in range(100):
        watched.watch(TURN, 0.0, 0, spun=False)
    assert not watched.present


def test_callers_that_share_the_processor_are_no_contention() -> None:
    """Each has it for a moment; what a program that computes takes is counted beside them."""
    watched = Contention()
    switches = round(TURN / 4 / CALLER_SECONDS)
    for _ in range(1000):
        watched.watch(TURN, TURN * 3 / 4, switches, spun=True)
        assert not watched.present
    for _ in range(DISTURBED_TURNS):
        watched.watch(TURN, TURN / 2, switches, spun=True)
    assert watched.present


def test_a_turn_is_measured_from_its_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(had=5.0, switches=7)
    monkeypatch.setattr(contention, "thread_time", lambda: now.had)
    monkeypatch.setattr(contention, "getrusage", lambda _: SimpleNamespace(ru_nivcsw=now.switches))
    watched = Contention()
    seen = []
    monkeypatch.setattr(watched, "watch", lambda *figures, spun: seen.append((*figures, spun)))
    assert watched.begin_turn(True)
    now.had, now.switches = 5.25, 10
    watched.end_turn(1.0, spun=True)
    watched.end_turn(2.0, spun=False)
    assert seen == [(1.0, 0.25, 3, True), (2.0, 0.0, 0, False)]
    assert not watched.begin_turn(False)
    watched.present = True
    assert not watched.begin_turn(True)
