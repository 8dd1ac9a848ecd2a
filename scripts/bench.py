"""Measure the figures of docs/BENCHMARKS.md in one run. `--help` lists the sections; without an argument all are run.

Quote medians and ratios: machines differ and are noisy, and the systems take turns within each round. All pools are in
one directory of /dev/shm, which is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import rig
from benchmarks import (
    ageing,
    alone,
    atomic,
    core,
    curves,
    data,
    direct,
    fairness,
    memory,
    metadata,
    persistence,
    plots,
    postgres,
    snapshot,
    tiers,
    waiting,
)
from benchmarks.report import FULL, QUICK, Report, load, machine

SECTIONS: dict[str, Callable[[Path, Report], None]] = {
    "data": data.data,
    "jobs": data.jobs,
    "metadata": metadata.metadata,
    "fallocate": data.fallocate,
    "directory": alone.directory,
    "mount": alone.mount,
    "memory": memory.memory,
    "commit": alone.commit,
    "core": core.core,
    "sync": alone.sync,
    "direct": direct.direct,
    "persistence": persistence.persistence,
    "atomic": atomic.atomic,
    "curves": curves.curves,
    "fairness": fairness.fairness,
    "waiting": waiting.waiting,
    "postgres": postgres.postgres,
    "snapshot": snapshot.snapshot,
    "ageing": ageing.ageing,
    "tiers": tiers.tiers,
}
IDLE = 0.5


def main() -> int:
    """Run the sections named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="run one short round, to test the script")
    parser.add_argument(
        "--out", default="", metavar="FILE", help="write results to FILE: JSON, or Markdown tables (.md)"
    )
    parser.add_argument(
        "--plots", default="", metavar="DIR", help="draw what was measured: SVG files in DIR (needs the extra 'plots')"
    )
    parser.add_argument(
        "--from", dest="source", default="", metavar="FILE", help="draw an earlier run, whose --out was FILE (JSON)"
    )
    parser.add_argument("--place", default="/dev/shm", help="the directory for the pools")
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"unknown: {' '.join(sorted(unknown))}; there are: {' '.join(SECTIONS)}")
    if given.plots and (lacking := plots.missing()):
        parser.error(lacking)
    if given.source:
        if not given.plots or given.sections:
            parser.error("--from draws all of an earlier run: name --plots, and no section")
        for path in plots.draw(json.loads(Path(given.source).read_text())["sections"], Path(given.plots)):
            print(f"drawn: {path}")
        return 0
    report = Report(QUICK if given.quick else FULL)
    report.say(", ".join(f"{name} {value}" for name, value in machine().items()))
    if load() > IDLE:
        report.say("other processes are running: ratios are more reliable than absolute figures")
    with rig.workplace(given.place) as base:
        for name in given.sections or SECTIONS:
            with report.section(name):
                SECTIONS[name](base, report)
    report.close(given.out)
    if given.plots:
        for path in plots.draw(report.sections, Path(given.plots)):
            report.say(f"drawn: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
