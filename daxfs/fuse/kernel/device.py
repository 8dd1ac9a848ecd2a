"""The descriptor of /dev/fuse: one request in, one answer out, and how to wait in between.

Waiting decides the speed of small requests. The event loop's own wait costs more than a request, so while requests
come the device waits by itself, for at most 10 ms: in poll(2), which costs no processor time, or after asking
again and again for a while (`pace.py` chooses).
"""

from __future__ import annotations

import errno
import mmap
import os
import select
from collections.abc import Sequence
from time import perf_counter

LINGER_MILLISECONDS = 10
SPINS_BEFORE_YIELD = 16
NOT_NOW = (errno.EAGAIN, errno.EINTR, errno.ENOENT)
"""read(2): nothing there, or the request was interrupted before it was read."""
ENDED = (errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN)
"""Unmounted, or the connection was aborted."""
UNWANTED = (errno.ENOENT, errno.EINTR, *ENDED)
"""writev(2): nobody waits for the answer any more."""


class Device:
    """One connection to the kernel. ``buffer`` holds the request that was received last."""

    def __init__(self, descriptor: int, size: int, spin_seconds: float) -> None:
        self.descriptor = descriptor
        os.set_blocking(descriptor, False)
        self.buffer = memoryview(mmap.mmap(-1, size))
        self.spin_seconds = spin_seconds
        self.ended = False
        self._buffers = [self.buffer]
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        self._poll = poller.poll

    def receive(self) -> int:
        """Read a request; 0: there is none, or the connection has ended (``ended``)."""
        try:
            return os.readv(self.descriptor, self._buffers)
        except OSError as error:
            if error.errno in ENDED:
                self.ended = True
            elif error.errno not in NOT_NOW:
                raise
            return 0

    def send(self, parts: Sequence[bytes | memoryview]) -> bool:
        """Write an answer or a notification; False: nobody wants it any more."""
        try:
            os.writev(self.descriptor, parts)
        except OSError as error:
            if error.errno not in UNWANTED:
                raise
            return False
        return True

    def pending(self) -> bool:
        """Whether a request can be received at once."""
        return bool(self._poll(0))

    def wait(self, spinning: bool) -> bool:
        """Wait for the next request, asking again and again first if ``spinning``; False: none came for a while."""
        poll = self._poll
        if spinning:
            end = perf_counter() + self.spin_seconds
            while perf_counter() < end:
                for _ in range(SPINS_BEFORE_YIELD):
                    if poll(0):
                        return True
                os.sched_yield()
        return bool(poll(LINGER_MILLISECONDS))

    def close(self) -> None:
        """Close the descriptor: callers get ENOTCONN from now on, if it is still mounted."""
        os.close(self.descriptor)
