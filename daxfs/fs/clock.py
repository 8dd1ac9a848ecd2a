"""The clock of all times that go into inodes.

It is the kernel's coarse real-time clock, the one that FUSE means by "now" (utimensat with UTIME_NOW). With a finer
clock a file that was just touched would look older than one written before. Nothing else in this layer reads a clock
for that.
"""

from __future__ import annotations

from time import clock_gettime_ns

CLOCK_REALTIME_COARSE = 5
"""Linux, include/uapi/linux/time.h; Python has no name for it."""


def now() -> int:
    """Return nanoseconds since the epoch, as of the last timer tick (at most some milliseconds ago)."""
    return clock_gettime_ns(CLOCK_REALTIME_COARSE)
