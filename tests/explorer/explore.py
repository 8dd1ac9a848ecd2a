"""Run the explorer on every processor: ``python -m explorer.explore`` in the folder ``tests`` (`make test-crash`).

    --formats 1k,4k     of `crash_rig.FORMATS` and `crash_rig.PLAIN`; all if not given
    --twos N            workloads of two operations for each format; all if not given
    --threes N          workloads of three operations for each format (default 200); half as many from mount to unmount
    --laps N            workloads in which the log begins anew, for each format (default 2)
    --alone N           lines of a cut that go missing or are there alone, at most (default 512; 8 for two operations)
    --minutes M         stop after so many; what was done until then is a random sample
    --seed N            of all samples

It ends with the figures of docs/CRASH.md and exit code 0, or with the first image that recovers to something that its
workload may not leave, and exit code 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from crash_rig import FORMATS, PLAIN
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from explorer import workloads
from explorer.examine import Depth, Examiner, Tally, Wrong, freeze_clocks
from explorer.plain import PlainExaminer
from explorer.workloads import Workload

SHARED_MEMORY = Path("/dev/shm")
THIN = {"alone": 8, "subsets": 2}
"""Of two operations all are tried, with fewer images at each cut than of one."""
REPORT_SECONDS = 30.0
"""Between two lines about progress where there is no terminal for a bar."""


class Task(NamedTuple):
    """A workload and how closely it is looked at."""

    workload: Workload
    depth: Depth


class Result(NamedTuple):
    """What became of a task; ``wrong`` says what is wrong, if anything."""

    format: str
    tally: Tally
    seconds: float
    wrong: str = ""


def examine(task: Task) -> Result:
    """One workload, in a process whose clocks stand still."""
    workload, depth = task
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY, prefix="daxfs-explorer-") as folder:
        try:
            examiner = PlainExaminer if workload.format in PLAIN else Examiner
            tally = examiner(workload, Path(folder), depth).explore()
        except Wrong as error:
            return Result(workload.format, Tally(), 0.0, str(error))
    return Result(workload.format, tally, time.monotonic() - begin)


def explore(tasks: list[Task]) -> Iterator[Result]:
    """Do the tasks on all processors; results come in any order."""
    spawn = multiprocessing.get_context("fork")
    with spawn.Pool(len(os.sched_getaffinity(0)), initializer=freeze_clocks) as pool:
        yield from pool.imap_unordered(examine, tasks, chunksize=4)


def plan(formats: Iterable[str], twos: int | None, threes: int, laps: int, alone: int, seed: int) -> list[Task]:
    """All ones, all twos or a sample of them, samples of threes and lives, and laps of the log; in random order."""
    close = Depth(alone=alone)
    thin = Depth(alone=min(THIN["alone"], alone), subsets=THIN["subsets"])
    tasks: list[Task] = []
    for name in formats:
        pairs = list(workloads.twos(name)) if twos is None else workloads.sample(name, twos, seed)
        work = [*workloads.ones(name), *workloads.threes(name, threes, seed)]
        if name not in PLAIN:
            work += workloads.lives(name, threes // 2, seed)
            work += workloads.laps(name, laps, seed) if "4k" not in name else ()
        tasks += [Task(workload, thin) for workload in pairs]
        tasks += [Task(workload, close) for workload in work]
    random.Random(seed).shuffle(tasks)
    return tasks


def report(found: dict[str, Tally], planned: dict[str, int], seconds: float) -> None:
    """The figures, for people."""
    total = Tally()
    columns = ("format", "workloads", "of", "crash points", "images", "distinct", "states", "others", "recoveries cut")
    table = Table(title="Power cuts", caption="others: images that e2fsck and the kernel have recovered, too")
    for column in columns:
        table.add_column(column, justify="left" if column == "format" else "right")
    for name, tally in found.items():
        total.add(tally)
        row = (tally.workloads, planned[name], tally.cuts, tally.images, tally.distinct, tally.states, tally.others)
        table.add_row(name, *(f"{number:,}" for number in (*row, tally.again)))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    tried = total.images + total.again
    print(f"{tried:,} images, {seconds:,.0f} s, {tried / seconds:,.0f} images a second")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make test-crash", description="Try every power cut of short workloads.")
    parser.add_argument("--formats", default=",".join((*FORMATS, *PLAIN)))
    parser.add_argument("--twos", type=int)
    parser.add_argument("--threes", type=int, default=200)
    parser.add_argument("--laps", type=int, default=2)
    parser.add_argument("--alone", type=int, default=Depth().alone)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    formats = given.formats.split(",")
    unknown = [name for name in formats if name not in FORMATS and name not in PLAIN]
    if unknown:
        parser.error(f"no format is called {', '.join(unknown)}: choose from {', '.join((*FORMATS, *PLAIN))}")
    tasks = plan(formats, given.twos, given.threes, given.laps, given.alone, given.seed)
    found = {name: Tally() for name in formats}
    begin = said = time.monotonic()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    watched = sys.stderr.isatty()
    with Progress(*columns, disable=not watched, transient=True, console=Console(stderr=True)) as progress:
        bar = progress.add_task("workloads", total=len(tasks))
        for done, result in enumerate(explore(tasks), 1):
            if result.wrong:
                print(result.wrong, file=sys.stderr)
                return 1
            found[result.format].add(result.tally)
            now = time.monotonic()
            images = sum(tally.images + tally.again for tally in found.values())
            told = f"{images:,} images, {images / (now - begin):,.0f} a second"
            progress.update(bar, advance=1, description=told)
            if not watched and now - said > REPORT_SECONDS:
                said = now
                print(f"{done:,} of {len(tasks):,} workloads, {told}", file=sys.stderr, flush=True)
            if now - begin > given.minutes * 60:
                break
    planned = {name: sum(task.workload.format == name for task in tasks) for name in formats}
    report(found, planned, time.monotonic() - begin)
    return 0


if __name__ == "__main__":
    sys.exit(main())
