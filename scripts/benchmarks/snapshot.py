"""What a snapshot costs a load of writes: the first overwrite of each block, later ones, and no snapshot.

Section ``snapshot``. All writes are overwrites of a file, each block once in a pass. The daemon's CPU time is compared:
what the client and the kernel do is the same. All memory of the pool was stored to before, as of a real device, so what
is measured is the copy, and the mapping of the store's pages in the first round.
"""

from __future__ import annotations

import mmap
import os
import random
from pathlib import Path

import rig
from benchmarks import systems
from benchmarks.alone import cpu_seconds, daemon
from benchmarks.atomic import FILE_BYTES, LONGEST, made, touch_all
from benchmarks.report import Ratio, Report, Samples

NONE, FIRST, LATER = "no snapshot", "first overwrite", "later ones"
LEAST_FIRST, LEAST_LATER = 0.5, 0.9
PASSES = 5
"""How often the file is overwritten where that changes nothing: one pass in pieces of 64 KiB takes 25 ms, in which the
daemon has not learned yet how to wait for the next request."""
JOBS = {"4 KiB": 4096, "64 KiB": 64 << 10, "1 MiB less a page": LONGEST}


def snapshot(base: Path, report: Report) -> None:
    """Compare overwrites with one snapshot with those without: the daemon's CPU time for each."""
    system = systems.make(base, "daxfs", "512M")
    spent, making = Samples("us of the daemon's CPU for each write"), Samples("ms of the daemon's CPU")
    with systems.together([system]) as points:
        point = points[system.name]
        touch_all(point)
        descriptor = made(point / "file", logged=False)
        for _ in range(report.scale.rounds):
            for job, size in JOBS.items():
                spent.add(job, NONE, 1e6 * steady(point, descriptor, size))
                before = cpu_seconds(daemon(point))
                rig.run(rig.tool("daxfs"), "snapshot", "create", point, "one")
                making.add("snapshot create", "daxfs", 1e3 * (cpu_seconds(daemon(point)) - before))
                spent.add(job, FIRST, 1e6 * costs(point, descriptor, size))
                spent.add(job, LATER, 1e6 * steady(point, descriptor, size))
                rig.run(rig.tool("daxfs"), "snapshot", "delete", point, "one")
        os.close(descriptor)
    ratios = (
        Ratio(NONE, FIRST, dict.fromkeys(JOBS, LEAST_FIRST)),
        Ratio(NONE, LATER, dict.fromkeys(JOBS, LEAST_LATER)),
    )
    report.compare("overwrites with a snapshot", spent, ratios)
    report.compare("making a snapshot", making, ())
    report.say(f"{system.name}: {system.check()}")


def steady(point: Path, descriptor: int, size: int) -> float:
    """Overwrite all of the file some times; return seconds of the daemon's CPU for each write."""
    return sum(costs(point, descriptor, size) for _ in range(PASSES)) / PASSES


def costs(point: Path, descriptor: int, size: int) -> float:
    """Overwrite all of the file in a random order; return seconds of the daemon's CPU for each write."""
    serving = daemon(point)
    slot = 1 << (size - 1).bit_length()
    places = list(range(0, FILE_BYTES, slot))
    random.Random(1).shuffle(places)
    with mmap.mmap(-1, size) as buffer:
        buffer.write(os.urandom(size))
        before = cpu_seconds(serving)
        for place in places:
            os.pwrite(descriptor, buffer, place)
        return (cpu_seconds(serving) - before) / len(places)
