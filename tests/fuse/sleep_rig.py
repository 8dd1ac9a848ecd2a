"""Whether a session that waits uses the processor."""

from __future__ import annotations

import time

import trio

WINDOW_SECONDS = 0.1
WINDOWS = 20


async def asleep() -> None:
    """Fail if no window of time is without work. One may have some: the garbage collector's, or a signal's."""
    for _ in range(WINDOWS):
        busy = time.process_time()
        time.sleep(WINDOW_SECONDS / 2)  # for what another thread would do
        await trio.sleep(WINDOW_SECONDS / 2)
        if time.process_time() - busy < 0.03:
            return
    raise AssertionError("the processor was never idle")
