"""Contention: notice that other threads want the processor on which the session spins.

A thread that spins while others wait for its processor wastes their time and its own share: it has used up its share
when a request comes, and then waits for the processor itself. The rates that `polling.py` compares do not show this,
because the load of the machine changes them more. The kernel's count of involuntary context switches does: a thread
that spins alone on a processor is hardly ever preempted, and one that shares it is preempted in every turn.
"""

from __future__ import annotations

import resource

PREEMPTED_TURNS = 3
"""So many turns in a row in which the spinning session was preempted show contention."""
CALM_TURNS = 32
"""So many turns in a row in which it was not show that an earlier contention is over."""
FEWEST_TURNS = 16
MOST_TURNS = 256
"""Turns without spinning after contention was seen: from `FEWEST_TURNS` to `MOST_TURNS`, doubled while it lasts."""


class Contention:
    """Whether other threads want the processor of the thread that calls `watch`.

    Attributes:
        present: they do, so that spinning does harm.
    """

    def __init__(self) -> None:
        self.present = False
        self._switches = involuntary_switches()
        self._preempted = 0
        self._calm = 0
        self._left = 0
        self._length = FEWEST_TURNS

    def watch(self, *, spun: bool) -> None:
        """Learn from a turn in which requests came, whether or not the session spun in it."""
        if self.present:
            self._left -= 1
            if not self._left:
                self.present = False
                self._preempted = 0
                self._switches = involuntary_switches()
        elif spun:
            before, self._switches = self._switches, involuntary_switches()
            self._note(self._switches != before)

    def _note(self, preempted: bool) -> None:
        """Take note of a turn with spinning."""
        if not preempted:
            self._preempted = 0
            self._calm += 1
            if self._calm >= CALM_TURNS:
                self._length = FEWEST_TURNS
            return
        self._calm = 0
        self._preempted += 1
        if self._preempted >= PREEMPTED_TURNS:
            self.present = True
            self._left = self._length
            self._length = min(2 * self._length, MOST_TURNS)


def involuntary_switches() -> int:
    """Return how often the calling thread has lost its processor to another thread (getrusage(2), ru_nivcsw)."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
