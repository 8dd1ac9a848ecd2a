"""Count and time the requests of each process, for ``daxfs top``; part of counting (`statistics`).

A process is a number in the daemon's pid namespace. The kernel sends 0 for requests of its own, such as write-back.
"""

from __future__ import annotations

from typing import Any

from daxfs.fuse.kernel.abi import Opcode

CLASSES = 64
"""The number of classes of durations: class n holds durations from 2**(n-1) ns to less than 2**n ns."""
MOST_PROCESSES = 256
"""The most processes that are counted: a new one takes the place of the one that took the least time."""


def trimmed(histogram: list[int]) -> list[int]:
    """Return a histogram up to its last class that is not empty."""
    return histogram[: max((n + 1 for n, number in enumerate(histogram) if number), default=0)]


class Process:
    """The totals of one process; times in nanoseconds. ``opcode``: of the request that took longest."""

    __slots__ = ("bytes", "histogram", "longest", "nanoseconds", "opcode")

    def __init__(self) -> None:
        self.bytes = self.longest = self.nanoseconds = self.opcode = 0
        self.histogram = [0] * CLASSES

    def as_json(self) -> dict[str, Any]:
        """Return the values for JSON."""
        histogram = trimmed(self.histogram)
        return {
            "count": sum(histogram),
            "bytes": self.bytes,
            "nanoseconds": self.nanoseconds,
            "longest": self.longest,
            "longest_is": Opcode(self.opcode).name,
            "histogram": histogram,
        }


class Processes(dict[int, Process]):
    """The totals by process."""

    def count(self, pid: int, opcode: int, taken: int, transferred: int) -> None:
        """Count a request that took ``taken`` nanoseconds and transferred so many bytes of files."""
        process = self.get(pid)
        if process is None:
            if len(self) >= MOST_PROCESSES:
                del self[min(self, key=lambda each: self[each].nanoseconds)]
            process = self[pid] = Process()
        process.histogram[taken.bit_length()] += 1
        process.bytes += transferred
        process.nanoseconds += taken
        if taken >= process.longest:
            process.longest, process.opcode = taken, opcode
