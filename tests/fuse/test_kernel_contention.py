"""Contention: a session that is preempted while it spins stops spinning for a while."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from daxfs.fuse.kernel import contention
from daxfs.fuse.kernel.contention import CALM_TURNS, FEWEST_TURNS, MOST_TURNS, PREEMPTED_TURNS, Contention


class Switches:
    """The count of involuntary context switches, as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 7
        monkeypatch.setattr(contention, "involuntary_switches", lambda: self.count)

    def turns(self, watched: Contention, preempted: Iterable[bool]) -> list[bool]:
        """Serve turns, some of which are preempted if they spin; return for each whether it may spin."""
        found = []
        for one in preempted:
            spun = not watched.present
            found.append(spun)
            self.count += one and spun
            watched.watch(spun=spun)
        return found


@pytest.fixture
def switches(monkeypatch: pytest.MonkeyPatch) -> Switches:
    return Switches(monkeypatch)


def test_single_preemptions_are_no_contention(switches: Switches) -> None:
    turns = [number % PREEMPTED_TURNS != 0 for number in range(1000)]
    assert all(switches.turns(Contention(), turns))


def test_a_session_that_shares_its_processor_seldom_spins(switches: Switches) -> None:
    spun = switches.turns(Contention(), [True] * 10_000)
    assert spun.index(False) == PREEMPTED_TURNS
    assert sum(spun) <= 10_000 * 2 * PREEMPTED_TURNS / MOST_TURNS


def test_it_spins_again_soon_when_the_others_have_gone(switches: Switches) -> None:
    watched = Contention()
    switches.turns(watched, [True] * 10_000)
    assert all(switches.turns(watched, [False] * (MOST_TURNS + CALM_TURNS))[MOST_TURNS:])
    spun = switches.turns(watched, [True] * (PREEMPTED_TURNS + FEWEST_TURNS + 1))
    assert spun.count(False) == FEWEST_TURNS, "an old contention does not count"


def test_turns_without_spinning_show_nothing(switches: Switches) -> None:
    watched = Contention()
    for _ in range(100):
        switches.count += 1
        watched.watch(spun=False)
    assert not watched.present


def test_the_kernel_counts_switches_of_this_thread() -> None:
    before = contention.involuntary_switches()
    assert before >= 0
    assert contention.involuntary_switches() >= before
