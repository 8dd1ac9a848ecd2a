"""Contention: a session that loses its time to others while it spins stops spinning for a while."""

from __future__ import annotations

from collections.abc import Iterable

from daxfs.fuse.kernel.contention import CALM_TURNS, DISTURBED_TURNS, FEWEST_TURNS, LOST_SHARE, MOST_TURNS, Contention

TURN = 0.01


def turns(watched: Contention, disturbed: Iterable[bool]) -> list[bool]:
    """Serve turns, some of which are disturbed if they spin; return for each whether it may spin."""
    found = []
    for one in disturbed:
        spun = not watched.present
        found.append(spun)
        watched.watch(TURN, TURN * (1 - 2 * LOST_SHARE if one and spun else 1), spun=spun)
    return found


def test_single_disturbances_are_no_contention() -> None:
    assert all(turns(Contention(), [number % DISTURBED_TURNS != 0 for number in range(1000)]))


def test_a_timer_that_preempts_every_turn_for_a_moment_is_no_contention() -> None:
    watched = Contention()
    for _ in range(1000):
        watched.watch(TURN, TURN * (1 - LOST_SHARE / 2), spun=True)
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
        watched.watch(TURN, 0.0, spun=False)
    assert not watched.present
