"""Keep processors from sleeping deeply while requests come densely, by a CPU latency request (PM quality of service).

A caller that waits for an answer leaves its processor idle for some microseconds. Waking the processor may take longer
than the request: tens of microseconds out of a deep C-state, or out of a halted virtual processor. The kernel's
interface against this is /dev/cpu_dma_latency: as long as the device is open, no processor enters a state whose exit
latency exceeds the number written to it (Documentation/power/pm_qos_interface.rst). The session holds the request only
while requests come densely, and releases it when they pause.
"""

from __future__ import annotations

import logging
import os
import struct

log = logging.getLogger("daxfs.fuse")

DEVICE = "/dev/cpu_dma_latency"


class CpuLatencyRequest:
    """The CPU latency request of one session.

    Args:
        microseconds: the longest exit latency to accept; None: never hold a request.
    """

    def __init__(self, microseconds: int | None) -> None:
        self._latency = None if microseconds is None else struct.pack("=i", microseconds)
        self._held: int | None = None

    def hold(self) -> None:
        """Hold the request while requests come densely. A device that refuses is logged once and not tried again."""
        if self._held is not None or self._latency is None:
            return
        try:
            self._held = os.open(DEVICE, os.O_WRONLY | os.O_CLOEXEC)
            os.write(self._held, self._latency)
        except OSError as error:
            log.debug("%s: %s", DEVICE, error.strerror)
            self._latency = None
            self.release()

    def release(self) -> None:
        """Release the request; does nothing if it is not held."""
        if self._held is not None:
            os.close(self._held)
            self._held = None
