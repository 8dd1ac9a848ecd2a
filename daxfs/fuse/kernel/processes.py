"""Count and time the requests of each process, for ``daxfs top``; part of counting (`statistics`).

A process is a number in the daemon's pid namespace. The kernel sends 0 for requests of its own, such as write-back.
"""

from __future__ import annotations

from daxfs.fuse.kernel.abi import Opcode

MOST_PROCESSES = 256
"""The most processes that are counted: a new one takes the place of the one that took the least time."""


class Process:
    """The totals of one process; times in nanoseconds. ``opcode``: of the request that took longest."""

    __slots__ = ("count", "longest", "nanoseconds", "opcode")

    def __init__(self) -> None:
        self.count = self.longest = self.nanoseconds = self.opcode = 0

    def as_json(self) -> dict[str, int | str]:
        """Return the values for JSON."""
        return {
            "count": self.count,
            "nanoseconds": self.nanoseconds,
            "longest": self.longest,
            "longest_is": Opcode(self.opcode).name,
        }


class Processes(dict[int, Process]):
    """The totals by process."""

    def count(self, pid: int, opcode: int, taken: int) -> None:
        """Count a request that took ``taken`` nanoseconds."""
        process = self.get(pid)
        if process is None:
            if len(self) >= MOST_PROCESSES:
                del self[min(self, key=lambda each: self[each].nanoseconds)]
            process = self[pid] = Process()
        process.count += 1
        process.nanoseconds += taken
        if taken >= process.longest:
            process.longest, process.opcode = taken, opcode
