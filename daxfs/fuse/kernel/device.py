"""The descriptor of /dev/fuse: read one request, write one answer, and wait in between.

Waiting decides the speed of small requests. The event loop's own wait costs more than a request. So while requests come
the device waits itself, for at most 10 ms: in poll(2), which costs no processor time, or in poll(2) after a while of
spinning (`polling.py` chooses).
"""

from __future__ import annotations

import errno
import mmap
import os
import select
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import perf_counter

from daxfs.fuse.kernel import abi

LINGER_MILLISECONDS = 100
SPINS_BEFORE_YIELD = 16
NOT_NOW = (errno.EAGAIN, errno.EINTR, errno.ENOENT)
"""Errors of readv(2): there is no request, or the request was interrupted before it was read."""
ENDED = (errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN)
"""Errors of both calls: the file system was unmounted, or the connection was aborted."""
MISSING = errno.EFAULT
"""writev(2): a part of the answer lies in memory that is missing; the kernel has answered EIO."""
UNWANTED = (errno.ENOENT, errno.EINTR, *ENDED)
"""Errors of writev(2): the caller no longer waits for the answer."""


class Device:
    """One connection to the kernel.

    The session's loop calls readv, writev and poll directly, since a method call costs a tenth of a request. This class
    has their arguments and handles their errors.

    Attributes:
        descriptor: of /dev/fuse, not blocking.
        buffer: holds the request that was received last.
        buffers: a list of this buffer, for readv(2).
        poll: polls the descriptor, with a timeout in milliseconds.
        spin_seconds: how long `spin` polls.
        ended: no request will ever come again.
        unmounted: it ended because the last mount is gone, and with it every open file and mapping.
    """

    def __init__(self, descriptor: int, size: int, spin_seconds: float) -> None:
        self.descriptor = descriptor
        os.set_blocking(descriptor, False)
        # The data of a WRITE begins on a page boundary, so that both sides copy whole pages.
        before = mmap.PAGESIZE - abi.IN_HEADER.size - abi.WRITE_IN.size
        self.buffer = memoryview(mmap.mmap(-1, before + size))[before:]
        self.spin_seconds = spin_seconds
        self.ended = False
        self.unmounted = False
        self.buffers = [self.buffer]
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        self.poll = poller.poll
        self._poller = poller
        self._awaited = -1

    def not_received(self, error: OSError) -> None:
        """Handle a failed readv(2): there is no request now, or (``ended``) there never will be one."""
        if error.errno in ENDED:
            self.ended = True
            self.unmounted = error.errno == errno.ENODEV
        elif error.errno not in NOT_NOW:
            raise error

    def not_sent(self, error: OSError) -> None:
        """Handle a failed writev(2): pass if the caller no longer waits for the answer, else raise the error."""
        if error.errno not in UNWANTED:
            raise error

    def notify(self, code: int, body: bytes) -> None:
        """Send a notification, a message that answers no request."""
        try:
            os.writev(self.descriptor, (abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(body), code, 0), body))
        except OSError as error:
            self.not_sent(error)

    def wakened(self) -> Callable[[], object]:
        """Return a function that makes `poll` return: what a work waits for has ended.

        Its descriptor stays open as long as the process: threads may call it at any time.
        """
        if self._awaited < 0:
            self._awaited = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._poller.register(self._awaited, select.POLLIN)
        return partial(os.eventfd_write, self._awaited, 1)

    def awaited(self) -> None:
        """Take note of all calls of `wakened` so far."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._awaited)

    def spin(self) -> bool:
        """Poll without sleeping for `spin_seconds` at most; return whether there is a request."""
        poll = self.poll
        end = perf_counter() + self.spin_seconds
        while perf_counter() < end:
            for _ in range(SPINS_BEFORE_YIELD):
                if poll(0):
                    return True
            os.sched_yield()
        return False

    def close(self) -> None:
        """Close the descriptor; if the file system is still mounted, callers get ENOTCONN from now on."""
        os.close(self.descriptor)
