"""Contention: notice that other threads want the processor on which the session spins.

A thread that spins while others wait for its processor wastes their time and its own share: it has used up its share
when a request comes, and then waits for the processor itself. The rates that `polling.py` compares do not show this,
because the load of the machine changes them more. The time that the session loses shows it: a thread that spins alone
on a processor has nearly all of the time for itself, and one that shares it loses a large part in every turn.

The number of preemptions does not show it: a timer that goes off every 10 ms, as in many programs, preempts the session
in most turns and takes it some microseconds.

Callers are no contention. If there are more callers than processors, some share the session's. The session gives way to
each of them when it spins (sched_yield(2)), or is preempted when it answers; the caller runs for some microseconds,
asks again, and sleeps. Sleeping instead of spinning would not help it, and costs each of them a wake-up. A program that
computes keeps the processor for its whole share, some milliseconds. So each switch may take `CALLER_SECONDS`, and only
what is lost beyond that counts.
"""

from __future__ import annotations

from resource import RUSAGE_THREAD, getrusage
from time import thread_time

LOST_SHARE = 0.1
"""A turn in which a spinning session lost more than this part of its time was disturbed."""
CALLER_SECONDS = 20e-6
"""The time that a caller may have for each switch to it: it returns from a call, makes the next one, and sleeps."""
DISTURBED_TURNS = 3
"""So many disturbed turns in a row show contention."""
CALM_TURNS = 32
"""So many undisturbed turns in a row show that an earlier contention is over."""
FEWEST_TURNS = 16
MOST_TURNS = 256
"""Turns without spinning after contention was seen: from `FEWEST_TURNS` to `MOST_TURNS`, doubled while it lasts."""


class Contention:
    """Whether other threads want the processor of a session.

    Attributes:
        present: they do, so that spinning does harm.
    """

    def __init__(self) -> None:
        self.present = False
        self._disturbed = 0
        self._calm = 0
        self._left = 0
        self._length = FEWEST_TURNS
        self._had = 0.0
        self._switches = 0

    def begin_turn(self, wanted: bool) -> bool:
        """Begin a turn; return whether the session may spin where it waits, if that is wanted."""
        if not wanted or self.present:
            return False
        self._had, self._switches = thread_time(), getrusage(RUSAGE_THREAD).ru_nivcsw
        return True

    def end_turn(self, awake: float, *, spun: bool) -> None:
        """Learn from a turn in which requests came.

        Args:
            awake: seconds of the turn in which the session did not sleep.
            spun: whether it spun where it waited, as `begin_turn` allowed.
        """
        if spun:
            self.watch(awake, thread_time() - self._had, getrusage(RUSAGE_THREAD).ru_nivcsw - self._switches, spun=True)
        else:
            self.watch(awake, 0.0, 0, spun=False)

    def watch(self, awake: float, had: float, switches: int, *, spun: bool) -> None:
        """Learn from the figures of a turn.

        Args:
            awake: seconds of the turn in which the session did not sleep.
            had: seconds of processor time that it had.
            switches: how often it gave its processor away without sleeping.
            spun: whether it spun where it waited; else the figures show nothing.
        """
        if self.present:
            self._left -= 1
            if not self._left:
                self.present = False
                self._disturbed = 0
        elif spun:
            self._note(awake - had - CALLER_SECONDS * switches > LOST_SHARE * awake)

    def _note(self, disturbed: bool) -> None:
        """Take note of a turn with spinning."""
        if not disturbed:
            self._disturbed = 0
            self._calm += 1
            if self._calm >= CALM_TURNS:
                self._length = FEWEST_TURNS
            return
        self._calm = 0
        self._disturbed += 1
        if self._disturbed >= DISTURBED_TURNS:
            self.present = True
            self._left = self._length
            self._length = min(2 * self._length, MOST_TURNS)
