"""Wait for the next request of a pyfuse3 session: poll briefly after work, then sleep.

A wake-up through the event loop costs more than a whole request (docs/DESIGN.md, decision 11). pyfuse3 looks ``trio``
up in its module namespace at each use, so a `Gate` in that place can poll the descriptor before it passes the wait to
trio. The session runs one worker task and no handler awaits anything, so the lock that pyfuse3 takes around the wait is
always free: the gate replaces it by one that costs no checkpoint. Only `session.py` uses this module.

Invariants:
    1. Other tasks run at least every `FAIR_SECONDS` while requests keep coming.
    2. After `close` no wait blocks: it raises ``trio.ClosedResourceError``.
    3. Polling ends `poll_seconds` after the last request; then the task sleeps in trio.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from os import sched_yield
from time import perf_counter
from types import SimpleNamespace

import trio

FAIR_SECONDS = 0.010
"""The longest time that other tasks wait while requests come without a pause."""

POLLS_BEFORE_YIELD = 16
"""Polls in a row before sched_yield(2): the next caller may be waiting for this processor."""


class _FreeLock:
    """An async lock that never waits, for code that never contends for it."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_exc: object) -> None:
        return None


class Gate:
    """Waits for one descriptor to become readable.

    Args:
        poll_seconds: how long to poll before sleeping; 0 turns polling off.
    """

    def __init__(self, poll_seconds: float) -> None:
        self.poll_seconds = poll_seconds
        self._closed = False
        self._poll: Callable[[int], list[tuple[int, int]]] | None = None
        self._slept = 0.0

    async def wait_readable(self, fd: int) -> None:
        """Return when ``fd`` is readable or has failed; the read that follows returns the error.

        Raises:
            trio.ClosedResourceError: `close` was called.
        """
        if self.poll_seconds > 0:
            poll = self._poll
            if poll is None:
                poller = select.poll()
                poller.register(fd, select.POLLIN)
                poll = self._poll = poller.poll
            now = perf_counter()
            if now - self._slept > FAIR_SECONDS:
                await trio.lowlevel.checkpoint()
                if self._closed:
                    raise trio.ClosedResourceError("the session is closing")
                self._slept = now = perf_counter()
            if poll(0):
                return
            end = now + self.poll_seconds
            while perf_counter() < end:
                for _ in range(POLLS_BEFORE_YIELD):
                    if poll(0):
                        return
                sched_yield()
        if self._closed:
            raise trio.ClosedResourceError("the session is closing")
        await trio.lowlevel.wait_readable(fd)
        self._slept = perf_counter()

    def close(self, fd: int) -> None:
        """Make this and every later wait raise ``trio.ClosedResourceError``."""
        self._closed = True
        trio.lowlevel.notify_closing(fd)

    def module(self) -> SimpleNamespace:
        """Return the stand-in for ``trio`` in pyfuse3: the names that pyfuse3 uses, with this wait and lock."""
        return SimpleNamespace(
            Lock=_FreeLock,
            ClosedResourceError=trio.ClosedResourceError,
            open_nursery=trio.open_nursery,
            lowlevel=SimpleNamespace(
                wait_readable=self.wait_readable,
                notify_closing=self.close,
                current_task=trio.lowlevel.current_task,
                current_trio_token=trio.lowlevel.current_trio_token,
            ),
        )
