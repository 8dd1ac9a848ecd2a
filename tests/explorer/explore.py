"""Run the explorer on every processor: ``python -m explorer.explore`` in the folder ``tests`` (`make test-crash`).

    --formats 1k,4k     of `crash_rig.FORMATS`; all if not given
    --twos N            workloads of two operations for each format; all if not given
    --threes N          workloads of three operations for each format (default 200); half as many from mount to unmount
    --laps N            workloads in which the log begins anew, for each format (default 2)
    --alone N           lines of a cut that go missing or are there alone, at most (default 512)
    --seed N            of all samples

It ends with the figures of docs/CRASH.md and exit code 0, or with the first image that recovers to something that its
workload may not leave, and exit code 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from crash_rig import FORMATS, PLAIN
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from explorer import workloads
from explorer.examine import Depth, Examiner, Tally, Wrong, freeze_clocks
from explorer.plain import PlainExaminer
from explorer.workloads import Workload

SHARED_MEMORY = Path("/dev/shm")


def examine(workload: Workload, depth: Depth) -> Tally | str:
    """One workload, in a process whose clocks stand still; a text says what is wrong."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY, prefix="daxfs-explorer-") as folder:
        try:
            examiner = PlainExaminer if workload.format in PLAIN else Examiner
            return examiner(workload, Path(folder), depth).explore()
        except Wrong as error:
            return str(error)


def explore(work: list[Workload], depth: Depth) -> Iterator[Tally | str]:
    """Examine workloads on all processors, in any order."""
    spawn = multiprocessing.get_context("fork")
    with spawn.Pool(len(os.sched_getaffinity(0)), initializer=freeze_clocks) as pool:
        yield from pool.imap_unordered(partial(examine, depth=depth), work, chunksize=4)


def plan(formats: Iterable[str], twos: int | None, threes: int, laps: int, seed: int) -> list[Workload]:
    """All ones, all twos or a sample of them, samples of threes and lives, and laps of the log."""
    work: list[Workload] = []
    for name in formats:
        work += workloads.ones(name)
        work += workloads.twos(name) if twos is None else workloads.sample(name, twos, seed)
        work += workloads.threes(name, threes, seed)
        if name not in PLAIN:
            work += workloads.lives(name, threes // 2, seed)
            work += workloads.laps(name, laps, seed) if "4k" not in name else ()
    return work


def report(total: Tally, seconds: float) -> str:
    """The figures, for people."""
    return (
        f"{total.workloads:,} workloads, {total.cuts:,} crash points, {total.images:,} images "
        f"({total.distinct:,} distinct), {total.states:,} states after recovery\n"
        f"{total.others:,} images recovered by e2fsck and the kernel too, {total.again:,} images of cut recoveries\n"
        f"{seconds:,.0f} s, {total.images / seconds:,.0f} images a second"
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Try every power cut of short workloads.")
    parser.add_argument("--formats", default=",".join((*FORMATS, *PLAIN)))
    parser.add_argument("--twos", type=int)
    parser.add_argument("--threes", type=int, default=200)
    parser.add_argument("--laps", type=int, default=2)
    parser.add_argument("--alone", type=int, default=Depth.alone)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    work = plan(given.formats.split(","), given.twos, given.threes, given.laps, given.seed)
    total, begin = Tally(), time.monotonic()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task("workloads", total=len(work))
        for found in explore(work, Depth(alone=given.alone)):
            if isinstance(found, str):
                print(found, file=sys.stderr)
                return 1
            total.add(found)
            rate = total.images / (time.monotonic() - begin)
            progress.update(task, advance=1, description=f"{total.images:,} images, {rate:,.0f} a second")
    print(report(total, time.monotonic() - begin))
    return 0


if __name__ == "__main__":
    sys.exit(main())
