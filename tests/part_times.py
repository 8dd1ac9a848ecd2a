"""How long each part of a test run took: a part is a folder of ``tests``. `conftest` prints it at the end of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Protocol


class Timed(Protocol):
    """What is used of pytest's reports: each test has one for its setup, one for itself, one for its end."""

    nodeid: str
    duration: float
    when: str


def part_of(nodeid: str) -> str:
    """Return the part that a test belongs to."""
    parts = PurePosixPath(nodeid.partition("::")[0]).parts
    return "/".join(parts[:2]) if len(parts) > 2 else parts[0]


def lines(reports: Iterable[Timed]) -> Iterator[str]:
    """Yield a line for each part, the longest first, and one for all; nothing if there is one part only.

    The seconds are those of all worker processes together, so they pass faster than that on several processors.
    """
    seconds: dict[str, float] = defaultdict(float)
    tests: dict[str, int] = defaultdict(int)
    for report in reports:
        for part in (part_of(report.nodeid), "all"):
            seconds[part] += report.duration
            tests[part] += report.when == "call"
    if len(seconds) > 2:
        for part in sorted(seconds, key=lambda part: (part == "all", -seconds[part])):
            yield f"{part:20}{seconds[part]:8.1f} s{tests[part]:8} tests"
