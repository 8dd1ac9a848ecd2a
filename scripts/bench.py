"""The figures of docs/BENCHMARKS.md, measured in one run. Sections: see `--help`; all of them without an argument.

Medians and ratios are what to quote: machines differ and are noisy, and the systems take turns within each round.
Everything it makes is in one directory of /dev/shm that goes at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import rig
from benchmarks import alone, data, direct, metadata
from benchmarks.report import FULL, QUICK, Report, load, machine

SECTIONS: dict[str, Callable[[Path, Report], None]] = {
    "data": data.data,
    "jobs": data.jobs,
    "metadata": metadata.metadata,
    "fallocate": data.fallocate,
    "directory": alone.directory,
    "mount": alone.mount,
    "commit": alone.commit,
    "sync": alone.sync,
    "direct": direct.direct,
}
IDLE = 0.5


def main() -> int:
    """Run the sections named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="one short round: whether it runs, not what it measures")
    parser.add_argument("--out", default="", metavar="FILE", help="write it to FILE: JSON, or Markdown tables (.md)")
    parser.add_argument("--place", default="/dev/shm", help="where the pools are made")
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"unknown: {' '.join(sorted(unknown))}; there are: {' '.join(SECTIONS)}")
    report = Report(QUICK if given.quick else FULL)
    report.say(", ".join(f"{name} {value}" for name, value in machine().items()))
    if load() > IDLE:
        report.say("other processes are at work here: absolute figures are worth little, ratios more")
    with rig.workplace(given.place) as base:
        for name in given.sections or SECTIONS:
            with report.section(name):
                SECTIONS[name](base, report)
    report.close(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
