"""The descriptor of /dev/fuse: one request in, one answer out, and how to wait in between.

Waiting decides the speed of small requests. The event loop's own wait costs more than a request, so while requests
come the device waits by itself, for at most 10 ms: in poll(2), which costs no processor time, or after asking
again and again for a while (`polling.py` chooses).
"""

from __future__ import annotations

import errno
import mmap
import os
import select
from time import perf_counter

from daxfs.fuse.kernel import abi

LINGER_MILLISECONDS = 10
SPINS_BEFORE_YIELD = 16
NOT_NOW = (errno.EAGAIN, errno.EINTR, errno.ENOENT)
"""read(2): nothing there, or the request was interrupted before it was read."""
ENDED = (errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN)
"""Unmounted, or the connection was aborted."""
UNWANTED = (errno.ENOENT, errno.EINTR, *ENDED)
"""writev(2): nobody waits for the answer any more."""


class Device:
    """One connection to the kernel.

    The loop of the session reads, writes and polls by itself, since a call in between costs as much as a tenth of a
    request; what it needs for that is here, and what to do when it fails.

    Attributes:
        descriptor: of /dev/fuse, not blocking.
        buffer: the request that was received last.
        buffers: the same, for readv(2).
        poll: asks whether a request is there, waiting so many milliseconds.
        spin_seconds: how long `spin` asks.
        ended: no request will ever come again.
        unmounted: because the last mount of it is gone, and with it every open file and mapping.
    """

    def __init__(self, descriptor: int, size: int, spin_seconds: float) -> None:
        self.descriptor = descriptor
        os.set_blocking(descriptor, False)
        # The data of a WRITE begins with a page, and so is copied by pages on both sides.
        before = mmap.PAGESIZE - abi.IN_HEADER.size - abi.WRITE_IN.size
        self.buffer = memoryview(mmap.mmap(-1, before + size))[before:]
        self.spin_seconds = spin_seconds
        self.ended = False
        self.unmounted = False
        self.buffers = [self.buffer]
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        self.poll = poller.poll

    def not_received(self, error: OSError) -> None:
        """readv(2) failed: there is no request now, or there never will be one (``ended``)."""
        if error.errno in ENDED:
            self.ended = True
            self.unmounted = error.errno == errno.ENODEV
        elif error.errno not in NOT_NOW:
            raise error

    def not_sent(self, error: OSError) -> None:
        """writev(2) failed: nobody wants the answer any more."""
        if error.errno not in UNWANTED:
            raise error

    def notify(self, code: int, body: bytes) -> None:
        """Send a message that answers no request."""
        try:
            os.writev(self.descriptor, (abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(body), code, 0), body))
        except OSError as error:
            self.not_sent(error)

    def spin(self) -> bool:
        """Ask again and again whether there is a request, for `spin_seconds` at most."""
        poll = self.poll
        end = perf_counter() + self.spin_seconds
        while perf_counter() < end:
            for _ in range(SPINS_BEFORE_YIELD):
                if poll(0):
                    return True
            os.sched_yield()
        return False

    def close(self) -> None:
        """Close the descriptor: callers get ENOTCONN from now on, if it is still mounted."""
        os.close(self.descriptor)
