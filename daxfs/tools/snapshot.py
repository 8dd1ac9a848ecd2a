"""One answer of a mount to ``daxfs stats``: its numbers by name, the difference of two, percentiles of a histogram.

`stats` asks for it and prints it, `metrics` puts it into Prometheus's format.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

JOURNAL_COUNTERS = ("commits", "blocks", "blocks_home", "blocks_logged", "blocks_revoked", "tail_moves", "rollbacks")


@dataclass(frozen=True, slots=True)
class Operation:
    """What one kind of request came to. Nanoseconds; ``histogram[n]``: how many took less than 2**n, not 2**(n-1)."""

    count: int
    errors: int
    bytes: int
    nanoseconds: int
    longest: int
    histogram: list[int]

    def after(self, earlier: Operation) -> Operation:
        """What came after an earlier count."""
        histogram = differences(self.histogram, earlier.histogram)
        return Operation(
            self.count - earlier.count,
            self.errors - earlier.errors,
            self.bytes - earlier.bytes,
            self.nanoseconds - earlier.nanoseconds,
            largest_after(histogram, self.longest, earlier.longest),
            histogram,
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a daemon told.

    Attributes:
        since: when the counting of requests began, in seconds since the epoch.
        seconds: how long ago that was.
        lasting: counting does not end (mount option ``stats``).
        fresh: it has begun with this question.
        operations: requests by the name of their opcode.
        files: what is kept in memory, by name.
        holding: for which open files freed blocks wait: inode number, user and process that opened it, bytes.
        journal: what the journal has done since the mount, by name; None on a read-only mount.
    """

    since: float
    seconds: float
    lasting: bool
    fresh: bool
    operations: dict[str, Operation]
    files: dict[str, int]
    holding: list[dict[str, int]]
    journal: dict[str, Any] | None

    @classmethod
    def of(cls, text: bytes) -> Snapshot:
        """From the daemon's JSON."""
        facts = json.loads(text)
        facts["operations"] = {name: Operation(**values) for name, values in facts["operations"].items()}
        return cls(**facts)

    def after(self, earlier: Snapshot) -> Snapshot:
        """What happened since an earlier snapshot; what is a state and no count stays."""
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
        return replace(
            self,
            since=earlier.since + earlier.seconds,
            seconds=self.seconds - earlier.seconds,
            fresh=earlier.fresh,
            operations={name: operation for name, operation in operations.items() if operation.count},
            journal=journal,
        )


def differences(later: Sequence[int], earlier: Sequence[int]) -> list[int]:
    """Class by class; the earlier histogram may be shorter."""
    return [number - (earlier[n] if n < len(earlier) else 0) for n, number in enumerate(later)]


def largest_after(histogram: Sequence[int], largest: int, earlier: int) -> int:
    """The largest value of an interval: exact if it is a new record, else no more than this."""
    last = max((n for n, number in enumerate(histogram) if number), default=0)
    return largest if largest > earlier else min(largest, (1 << last) - 1)


def percentile(histogram: Sequence[int], share: float, largest: int) -> float:
    """The value that ``share`` of all do not exceed, taking each class for evenly filled: right within its class."""
    wanted = share * sum(histogram)
    for n, number in enumerate(histogram):
        if number and number >= wanted:
            low, high = 1 << n >> 1, min(1 << n, largest)
            return low + (high - low) * wanted / number if high > low else high
        wanted -= number
    return largest
