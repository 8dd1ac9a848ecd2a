"""Run the explorer on every processor: ``python -m explorer.explore`` in the folder ``tests`` (`make test-crash`).

    --formats 4k,1k     of `crash_rig.FORMATS`, `crash_rig.PLAIN` and `tiers.TIERED`; all if not given. All pairs of the
                        first are done
    --twos N            pairs of operations of each other format, a seeded sample (default 400)
    --threes N          workloads of three operations for each format (default 60); half as many from mount to unmount,
                        and of clients
    --laps N            workloads in which the log begins anew, for each format (default 2)
    --kinds ones,twos   of "ones", "twos", "threes", "lives", "laps" and "clients"; all if not given
    --part 2/8          the second of eight equal shares of all that: for a long run in several sittings
    --alone N           lines of a cut that go missing or are there alone, at most (default 512); in formats other than
                        the first no more than 128, for pairs no more than 8
    --minutes M         stop after so many. The order is: single operations, all pairs of the first format, the rest
    --seed N            of all samples, and of the order within those three
    --workload LINE     this one only, as a failure names it: "4k/last: append>sync, unlink"

It ends with the figures of docs/CRASH.md. Each workload with an image that recovers to something it may not leave is
reported with the command that tries it again; then the exit code is 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from crash_rig import FORMATS, PLAIN
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from explorer import workloads
from explorer.examine import Depth, Examiner, Tally, freeze_clocks
from explorer.plain import PlainExaminer
from explorer.tiers import TIERED
from explorer.workloads import Part, Workload

SHARED_MEMORY = Path("/dev/shm")
EVERY_FORMAT = ("4k", *(name for name in FORMATS if name != "4k"), *TIERED, *PLAIN)
KINDS = ("ones", "twos", "threes", "lives", "laps", "clients")
"""Of `Workload.kind`."""
MOST_WRONG = 20
"""Wrong workloads after which a run ends."""
THIN = {"alone": 8, "subsets": 2}
"""Of two operations all are tried, with fewer images at each cut than of one."""
ALONE_IN_OTHERS = 128
"""Lines alone of a cut in formats other than the first."""
REPORT_SECONDS = 30.0
"""Between two lines about progress where there is no terminal for a bar."""


class Task(NamedTuple):
    """A workload and how closely it is examined."""

    workload: Workload
    depth: Depth


class Result(NamedTuple):
    """What became of a task; ``wrong`` says what is wrong, if anything."""

    workload: Workload
    tally: Tally
    wrong: str = ""


def examine(task: Task) -> Result:
    """One workload, in a process whose clocks stand still."""
    workload, depth = task
    with tempfile.TemporaryDirectory() as folder:
        try:
            examiner = PlainExaminer if workload.format in PLAIN else Examiner
            tally = examiner(workload, Path(folder), depth).explore()
        except AssertionError as error:
            return Result(workload, Tally(workloads=1), str(error))
    return Result(workload, tally)


def prepare(folder: str) -> None:
    """A worker's clocks stand still, and its files lie in the folder."""
    freeze_clocks()
    tempfile.tempdir = folder


def explore(tasks: list[Task]) -> Iterator[Result]:
    """Do the tasks on all processors; results come in any order."""
    spawn, count = multiprocessing.get_context("fork"), len(os.sched_getaffinity(0))
    # The folder outlives the workers, which are ended in the middle of a task when a run is stopped.
    with (
        tempfile.TemporaryDirectory(dir=SHARED_MEMORY, prefix="daxfs-explorer-") as folder,
        spawn.Pool(count, initializer=prepare, initargs=(folder,)) as pool,
    ):
        yield from pool.imap_unordered(examine, tasks, chunksize=4)


def depth_of(workload: Workload, alone: int, first: str) -> Depth:
    """Return how closely a workload is examined; ``first`` is the format that is examined most closely."""
    if workload.part is Part.LAST:
        return Depth(alone=min(THIN["alone"], alone), subsets=THIN["subsets"])
    return Depth(alone=alone if workload.format == first else min(ALONE_IN_OTHERS, alone))


def plan(formats: list[str], twos: int, threes: int, laps: int, seed: int) -> list[Workload]:
    """All single operations, all pairs of the first format, then samples of the rest; in random order within these."""
    ones = [workload for name in formats for workload in workloads.ones(name)]
    pairs = list(workloads.twos(formats[0]))
    rest: list[Workload] = []
    for name in formats:
        rest += workloads.sample(name, twos, seed) if name != formats[0] else ()
        rest += workloads.threes(name, threes, seed)
        rest += workloads.clients(name, threes // 2, seed)
        if name not in PLAIN:
            rest += workloads.lives(name, threes // 2, seed)
            rest += workloads.laps(name, laps, seed) if "4k" not in name and name not in TIERED else ()
    rng = random.Random(seed)
    for part in (ones, pairs, rest):
        rng.shuffle(part)
    return [*ones, *pairs, *rest]


class Progressed:
    """Shows what was found so far: with a bar, or in lines where there is no terminal."""

    def __init__(self, work: list[Workload]) -> None:
        self.planned = Counter((workload.format, workload.kind) for workload in work)
        self.found = {row: Tally() for row in self.planned}
        self.wrong: list[Workload] = []
        self.begin = self._said = time.monotonic()
        self._count = len(work)
        self._watched = sys.stderr.isatty()
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, disable=not self._watched, transient=True, console=Console(stderr=True))
        self._task = self.bar.add_task("workloads", total=len(work))

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.begin

    @property
    def total(self) -> Tally:
        """Of all rows."""
        total = Tally()
        for tally in self.found.values():
            total.add(tally)
        return total

    def add(self, result: Result) -> None:
        """Count one workload."""
        workload, tally, wrong = result
        self.found[workload.format, workload.kind].add(tally)
        if wrong:
            self.wrong.append(workload)
            self.bar.console.print(f"wrong: {again(workload)}\n{wrong}", markup=False, soft_wrap=True)
        total = self.total
        tried = total.images + total.again
        line = f"{tried:,} images, {tried / self.seconds:,.0f} a second"
        self.bar.update(self._task, advance=1, description=line)
        if not self._watched and self.seconds - (self._said - self.begin) > REPORT_SECONDS:
            self._said = time.monotonic()
            print(f"{total.workloads:,} of {self._count:,} workloads, {line}", file=sys.stderr, flush=True)

    def report(self) -> None:
        """The figures, for people."""
        columns = ("workloads", "of", "crash points", "images", "distinct", "states", "others", "recoveries cut")
        table = Table(title="Power cuts", caption="others: images that e2fsck and the kernel have recovered, too")
        table.add_column("format")
        table.add_column("kind")
        for column in columns:
            table.add_column(column, justify="right")
        for (name, kind), tally in sorted(self.found.items()):
            row = (tally.workloads, self.planned[name, kind], tally.cuts, tally.images, tally.distinct, tally.states)
            table.add_row(name, kind, *(f"{number:,}" for number in (*row, tally.others, tally.again)))
        Console(width=None if sys.stdout.isatty() else 120).print(table)
        total = self.total
        tried = total.images + total.again
        print(
            f"{total.workloads:,} workloads, {total.cuts:,} crash points, {tried:,} images, {self.seconds:,.0f} s, "
            f"{tried / self.seconds:,.0f} images a second; {len(self.wrong)} workloads wrong"
        )


def again(workload: Workload) -> str:
    """The command that tries one workload."""
    return f"make test-crash EXPLORE=\"--workload '{workload.spell()}'\""


def share(parser: argparse.ArgumentParser, spelled: str, work: list[Workload]) -> list[Workload]:
    """Every eighth workload from the second on, for the spelling "2/8"."""
    number, _, count = spelled.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        parser.error(f"{spelled!r} is no share; one is '2/8', the second of eight")
    return work[int(number) - 1 :: int(count)]


def chosen(parser: argparse.ArgumentParser, given: argparse.Namespace) -> list[Workload]:
    """What the command line asks for."""
    if given.workload:
        try:
            return [Workload.read(given.workload)]
        except ValueError as error:
            parser.error(str(error))
    formats = given.formats.split(",")
    unknown = [name for name in formats if name not in EVERY_FORMAT]
    if unknown:
        parser.error(f"no format is called {', '.join(unknown)}: choose from {', '.join(EVERY_FORMAT)}")
    kinds = given.kinds.split(",")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        parser.error(f"no kind of workload is called {', '.join(unknown)}: choose from {', '.join(KINDS)}")
    work = plan(formats, given.twos, given.threes, given.laps, given.seed)
    return share(parser, given.part, [workload for workload in work if workload.kind in kinds])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make test-crash", description="Try every power cut of short workloads.")
    parser.add_argument("--formats", default=",".join(EVERY_FORMAT))
    parser.add_argument("--twos", type=int, default=400)
    parser.add_argument("--threes", type=int, default=60)
    parser.add_argument("--laps", type=int, default=2)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--alone", type=int, default=Depth().alone)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workload")
    given = parser.parse_args()
    work = chosen(parser, given)
    first = given.formats.partition(",")[0]
    seen = Progressed(work)
    with seen.bar:
        for result in explore([Task(workload, depth_of(workload, given.alone, first)) for workload in work]):
            seen.add(result)
            if seen.seconds > given.minutes * 60 or len(seen.wrong) == MOST_WRONG:
                break
    seen.report()
    return 1 if seen.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
