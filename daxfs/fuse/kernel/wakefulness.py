"""Keeps processors from sleeping deeply while requests keep coming (PM quality of service).

A caller that waits for an answer leaves its processor idle for some microseconds. Waking it up again may take longer
than the request: tens of microseconds out of a deep C-state, or out of a halted virtual processor. The kernel's
interface for this is /dev/cpu_dma_latency: as long as it is open, no processor enters a state whose exit takes longer
than the number written to it (Documentation/power/pm_qos_interface.rst). It is held open only while requests come
densely, and given back when they pause.
"""

from __future__ import annotations

import logging
import os
import struct

log = logging.getLogger("daxfs.fuse")

DEVICE = "/dev/cpu_dma_latency"


class Wakefulness:
    """Holds the wish for quick wake-ups, or not.

    Args:
        microseconds: the longest exit latency that is accepted; None: never ask.
    """

    def __init__(self, microseconds: int | None) -> None:
        self._wish = None if microseconds is None else struct.pack("=i", microseconds)
        self._held: int | None = None

    def hold(self) -> None:
        """Requests come densely."""
        if self._held is not None or self._wish is None:
            return
        try:
            self._held = os.open(DEVICE, os.O_WRONLY | os.O_CLOEXEC)
            os.write(self._held, self._wish)
        except OSError as error:
            log.debug("%s: %s", DEVICE, error.strerror)
            self._wish = None
            self.release()

    def release(self) -> None:
        """They pause."""
        if self._held is not None:
            os.close(self._held)
            self._held = None
