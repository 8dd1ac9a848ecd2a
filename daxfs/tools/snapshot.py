"""A snapshot of a mount's statistics: its numbers by name, the difference of two snapshots, percentiles of histograms.

`stats` requests and prints it, `metrics` puts it into Prometheus's format.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

JOURNAL_COUNTERS = ("commits", "blocks", "blocks_home", "blocks_logged", "blocks_revoked", "tail_moves", "rollbacks")
TIER_COUNTERS = ("reads", "hits", "read", "promoted", "demoted")


@dataclass(frozen=True, slots=True)
class Operation:
    """The totals of one kind of request, in nanoseconds.

    Attributes:
        count: requests.
        errors: requests that were refused.
        bytes: bytes of files read, written or copied.
        nanoseconds: the time that they took.
        longest: the time of the one that took longest.
        histogram: ``histogram[n]`` counts those that took 2**(n-1) to below 2**n.
        stall: the time of the one that took longest since counting began.
        longest_by: the process that sent it.
    """

    count: int
    errors: int
    bytes: int
    nanoseconds: int
    longest: int
    histogram: list[int]
    stall: int = 0
    longest_by: int = 0

    def after(self, earlier: Operation) -> Operation:
        """Return the totals since an earlier count."""
        histogram = differences(self.histogram, earlier.histogram)
        return Operation(
            self.count - earlier.count,
            self.errors - earlier.errors,
            self.bytes - earlier.bytes,
            self.nanoseconds - earlier.nanoseconds,
            largest_after(histogram, self.longest, earlier.longest),
            histogram,
            self.stall,
            self.longest_by,
        )


@dataclass(frozen=True, slots=True)
class Process:
    """The totals of one process's requests, in nanoseconds; ``longest`` since counting began, and of which opcode."""

    count: int
    nanoseconds: int
    longest: int
    longest_is: str
    bytes: int = 0
    histogram: list[int] = field(default_factory=list)

    def after(self, earlier: Process | None) -> Process:
        """Return the totals since an earlier count; those of a process that is new, or counted anew, stay."""
        if earlier is None or self.count < earlier.count:
            return self
        return replace(
            self,
            count=self.count - earlier.count,
            bytes=self.bytes - earlier.bytes,
            nanoseconds=self.nanoseconds - earlier.nanoseconds,
            histogram=differences(self.histogram, earlier.histogram),
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The daemon's answer to a query of its statistics.

    Attributes:
        since: when the counting of requests began, in seconds since 1970.
        seconds: the time since then.
        lasting: counting does not end (mount option ``stats``).
        fresh: counting has begun with this query.
        operations: totals by the name of the opcode.
        files: numbers of open files, remembered inodes and so on, by name.
        holding: the open files that deferred frees wait for: inode number, user and process of the opener, bytes.
        journal: the journal's counts since the mount, by name; None on a read-only mount.
        bad: the ranges of the pool that are known to be bad: first byte, byte after the last.
        processes: totals by the number of the process.
        session: seconds since counting began: ``spun``, the session waited for requests without sleeping; ``cpu``, the
            daemon's processor time.
        tiers: memory and storage of a tiered pool, and what was read and moved since the mount, by name
            (`daxfs.fs.types.TierUse`); None: the pool has no storage.
    """

    since: float
    seconds: float
    lasting: bool
    fresh: bool
    operations: dict[str, Operation]
    files: dict[str, int]
    holding: list[dict[str, int]]
    journal: dict[str, Any] | None
    bad: list[list[int]]
    processes: dict[str, Process] = field(default_factory=dict)
    session: dict[str, float] = field(default_factory=lambda: {"spun": 0.0, "cpu": 0.0})
    tiers: dict[str, Any] | None = None

    @classmethod
    def of(cls, text: bytes) -> Snapshot:
        """Parse the daemon's JSON."""
        facts = json.loads(text)
        facts["operations"] = {
            name: Operation(**values, stall=values["longest"]) for name, values in facts["operations"].items()
        }
        facts["processes"] = {pid: Process(**values) for pid, values in facts.get("processes", {}).items()}
        return cls(**facts)

    def after(self, earlier: Snapshot) -> Snapshot:
        """Return the counts since an earlier snapshot; numbers that are a state and not a count stay."""
        if self.since != earlier.since:
            return self
        none = Operation(0, 0, 0, 0, 0, [])
        operations = {
            name: operation.after(earlier.operations.get(name, none)) for name, operation in self.operations.items()
        }
        journal = self.journal
        if journal is not None and earlier.journal is not None:
            sizes = differences(journal["sizes"], earlier.journal["sizes"])
            journal = {
                **journal,
                **{name: journal[name] - earlier.journal[name] for name in JOURNAL_COUNTERS},
                "sizes": sizes,
                "largest": largest_after(sizes, journal["largest"], earlier.journal["largest"]),
            }
        tiers = self.tiers
        if tiers is not None and earlier.tiers is not None:
            tiers = {**tiers, **{name: tiers[name] - earlier.tiers[name] for name in TIER_COUNTERS}}
        return replace(
            self,
            since=earlier.since + earlier.seconds,
            seconds=self.seconds - earlier.seconds,
            fresh=earlier.fresh,
            operations={name: operation for name, operation in operations.items() if operation.count},
            journal=journal,
            processes={pid: each.after(earlier.processes.get(pid)) for pid, each in self.processes.items()},
            tiers=tiers,
            session={name: value - earlier.session[name] for name, value in self.session.items()},
        )


def failures(tiers: dict[str, Any]) -> list[str]:
    """Name the members of a pool's storage that have failed, and why."""
    return [f"{path} has failed: {failed}" for path, _size, _free, failed in tiers["members"] if failed]


def differences(later: Sequence[int], earlier: Sequence[int]) -> list[int]:
    """Subtract two histograms class by class; the earlier one may be shorter."""
    return [number - (earlier[n] if n < len(earlier) else 0) for n, number in enumerate(later)]


def largest_after(histogram: Sequence[int], largest: int, earlier: int) -> int:
    """Return the largest value of an interval: exact if it is the largest ever, else an upper bound."""
    last = max((n for n, number in enumerate(histogram) if number), default=0)
    return largest if largest > earlier else min(largest, (1 << last) - 1)


def percentile(histogram: Sequence[int], share: float, largest: int) -> float:
    """Return the value that ``share`` of all values do not exceed, assuming that each class is evenly filled."""
    wanted = share * sum(histogram)
    for n, number in enumerate(histogram):
        if number and number >= wanted:
            low, high = 1 << n >> 1, min(1 << n, largest)
            return low + (high - low) * wanted / number if high > low else high
        wanted -= number
    return largest
