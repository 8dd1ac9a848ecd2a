"""What atomic writes cost: writes to a file with ``chattr +j``, and the same writes to an ordinary file, in turn.

Section ``atomic``. All writes are overwrites of blocks that are written already, from a buffer that begins with a page,
so that the kernel passes on each in one request. All memory of the pool was stored to before: the first store to a page
of shared memory costs a fault, which a write to a new block would pay and one in place would not.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import rig
from benchmarks import systems
from benchmarks.alone import cpu_seconds, daemon
from benchmarks.report import Ratio, Report, Samples

ORDINARY, ATOMIC = "ordinary", "atomic"
FILE_BYTES = 64 << 20
LONGEST = (1 << 20) - mmap.PAGESIZE
SECONDS = 0.4
"""Of a sample."""
WARMING = 20

MOST_SHORT, LEAST_LONG = 1.5, 0.5
"""An atomic write of 4 KiB with its fsync may take this multiple of an ordinary one; a long one must reach this part of
an ordinary one's throughput.
"""
SHORT, LONG = "4 KiB and fsync", "1 MiB less a page"


def nothing(_descriptor: int) -> None:
    """Leave it to the daemon when a write becomes durable."""


JOBS: dict[str, tuple[int, Callable[[int], None]]] = {
    SHORT: (4096, os.fsync),
    "4 KiB and fdatasync": (4096, os.fdatasync),
    "64 KiB and fsync": (64 << 10, os.fsync),
    LONG: (LONGEST, nothing),
    "1 MiB less a page and fsync": (LONGEST, os.fsync),
}


def atomic(base: Path, report: Report) -> None:
    """Compare atomic writes with ordinary ones: time for each, and the daemon's CPU time."""
    system = systems.make(base, "daxfs", "512M")
    elapsed, cpu = Samples("us for each write"), Samples("us of the daemon's CPU for each write")
    with systems.together([system]) as points:
        point = points[system.name]
        touch_all(point)
        files = {kind: made(point / kind, logged=kind == ATOMIC) for kind in (ORDINARY, ATOMIC)}
        for _ in range(3 * report.scale.rounds):
            for job, (size, settle) in JOBS.items():
                for kind, descriptor in files.items():
                    seconds, spent = costs(point, descriptor, size, settle)
                    elapsed.add(job, kind, 1e6 * seconds)
                    cpu.add(job, kind, 1e6 * spent)
        for descriptor in files.values():
            os.close(descriptor)
    least = {SHORT: 1 / MOST_SHORT, LONG: LEAST_LONG}
    report.compare("atomic writes: chattr +j", elapsed, (Ratio(ORDINARY, ATOMIC, least),))
    report.compare("atomic writes: the daemon", cpu, (Ratio(ORDINARY, ATOMIC),))
    report.say(f"{system.name}: {system.check()}")


def touch_all(point: Path) -> None:
    """Fill the file system once, and empty it."""
    filler = point / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 20)):
            pass
    filler.unlink()
    rig.run(rig.tool("daxfs"), "sync", point)


def made(path: Path, *, logged: bool) -> int:
    """Make a file whose blocks are written, with ``chattr +j`` if ``logged``; return its descriptor."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    for offset in range(0, FILE_BYTES, 1 << 20):
        os.pwrite(descriptor, bytes(1 << 20), offset)
    if logged:
        rig.run(rig.tool("chattr"), "+j", path)
    return descriptor


def costs(point: Path, descriptor: int, size: int, settle: Callable[[int], None]) -> tuple[float, float]:
    """Overwrite at random multiples of the size (of 1 MiB for the longest) for `SECONDS`.

    Returns:
        Elapsed seconds, and seconds of the daemon's CPU, for each write.
    """
    serving, chosen = daemon(point), random.Random(1)
    slot = 1 << (size - 1).bit_length()
    places = [chosen.randrange(FILE_BYTES // slot) * slot for _ in range(997)]
    count = 0
    with mmap.mmap(-1, size) as buffer:
        buffer.write(os.urandom(size))
        for place in places[:WARMING]:
            os.pwrite(descriptor, buffer, place)
            settle(descriptor)
        os.fsync(descriptor)
        before, begun = cpu_seconds(serving), time.perf_counter()
        while (passed := time.perf_counter() - begun) < SECONDS:
            os.pwrite(descriptor, buffer, places[count % len(places)])
            settle(descriptor)
            count += 1
    return passed / count, (cpu_seconds(serving) - before) / count
