"""How long somebody waits while another user's long or numerous requests are answered.

A probe calls statx(2), which asks the daemon each time, and reads 4 KiB, again and again. Meanwhile another user runs
one disturbance of ``disturbances.py``. The table shows how long the probe's calls took. A call that takes longer than
the probe's pause also counts as those that the probe would have made meanwhile, so that a percentile is one of time:
without them a stall of a minute would be one sample among thousands.

A daemon that stalls must not stop the benchmark: probe and disturbance are processes, and after `LIMIT_SECONDS` the
daemon is killed, which ends every call on its mount.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import rig
from benchmarks import disturbances, prepared
from benchmarks.alone import cpu_seconds, daemon
from benchmarks.disturbances import DISTURBANCES, Disturbance
from benchmarks.report import PERCENTILE, Report, Series

LIMIT_SECONDS = 180.0
"""The most that a disturbance may take."""
READY_SECONDS = 120.0
"""The most that its preparation may take."""
PAUSE_SECONDS = 0.002
"""The probe's pause between its calls."""
BEFORE_SECONDS, AFTER_SECONDS = 0.3, 0.5
"""How long the probe runs before the disturbance, and how long it watches what the disturbance leaves to do."""
STRANGER = 65534
P99_MS, WORST_MS = 10.0, 50.0
TIMELINE_POINTS = 100
READ_BYTES = 4096
AT_FDCWD, AT_STATX_FORCE_SYNC = -100, 0x2000
STATX_BASIC_STATS, STATX_BYTES = 0x7FF, 256
PERCENTILES = (50, 75, 90, 95, 99, 99.9, 100)

processes = multiprocessing.get_context("fork")
Sample = tuple[float, float]
"""When a call began, and how long it took, in seconds."""


@dataclass(frozen=True)
class Seen:
    """What a disturbance did: its end, the probe's calls, the daemon's time on a processor and its wait for one."""

    outcome: str
    seconds: float
    begin: float
    samples: list[Sample]
    cpu: float
    waited: float

    def latencies(self) -> list[float]:
        """Return how long calls took at any time of the disturbance, in ascending order."""
        found = []
        for _, took in self.samples:
            left = took
            while True:
                found.append(left)
                left -= PAUSE_SECONDS
                if left < PAUSE_SECONDS:
                    break
        return sorted(found)

    def timeline(self) -> list[tuple[float, float]]:
        """Return the longest call by time: seconds since the disturbance began, milliseconds."""
        if not self.samples:
            return []
        step = max((self.samples[-1][0] - self.samples[0][0]) / TIMELINE_POINTS, 1e-3)
        worst: dict[int, Sample] = {}
        for begin, took in self.samples:
            place = int((begin - self.begin) // step)
            worst[place] = max(worst.get(place, (0.0, 0.0)), (took, begin))
        return [(round(begin - self.begin, 4), round(1000 * took, 3)) for took, begin in worst.values()]


def fairness(base: Path, report: Report) -> None:
    """Watch each disturbance on a mount of its own."""
    if os.getuid():
        report.say("without root the disturbances are this user's own, and none is root's")
    rows = []
    percentiles: dict[str, list[tuple[float, float]]] = {}
    timelines: dict[str, list[tuple[float, float]]] = {}
    masters: dict[str, Path] = {}
    for disturbance in DISTURBANCES:
        if disturbance.root and os.getuid():
            continue
        if disturbance.pool not in masters:
            report.say(f"making the pool {disturbance.pool!r}")
            masters[disturbance.pool] = base / f"{disturbance.pool}.master"
            prepared.make(masters[disturbance.pool], disturbance.pool, report.scale.names)
        pool = base / "fairness.pool"
        prepared.copy(masters[disturbance.pool], pool)
        seen = watch(base, pool, disturbance)
        rows.append(row(disturbance, seen, report))
        report.say(f"{disturbance.name}: worst {1000 * seen.latencies()[-1]:.1f} ms")
        percentiles[disturbance.name] = [(part, 1000 * percentile(seen.latencies(), part)) for part in PERCENTILES]
        timelines[disturbance.name] = seen.timeline()
    for master in masters.values():
        master.unlink()
    columns = ("another user's", "s", "CPU s", "waited s", "p50 ms", "p99 ms", "worst ms", "end")
    report.table("stat and a 4 KiB read of ours meanwhile", columns, rows)
    report.draw(Series("a stat or read while another user works", PERCENTILE, "ms", percentiles, log="y"))
    report.draw(Series("the longest call by time", "seconds", "ms", timelines, log="y", apart=True))


def row(disturbance: Disturbance, seen: Seen, report: Report) -> tuple[str, ...]:
    """Return the table's row for a disturbance, and record whether its goals are met."""
    name, found = disturbance.name, seen.latencies()
    return (
        name,
        f"{seen.seconds:.2f}",
        report.bound(f"{name}, daemon's CPU s", seen.cpu, most=disturbance.most_cpu),
        f"{seen.waited:.2f}",
        f"{1000 * percentile(found, 50):.2f}",
        report.bound(f"{name}, p99 ms", 1000 * percentile(found, 99), most=P99_MS),
        report.bound(f"{name}, worst ms", 1000 * found[-1], most=WORST_MS),
        seen.outcome,
    )


def watch(base: Path, pool: Path, disturbance: Disturbance) -> Seen:
    """Mount a pool, run the probe and the disturbance, unmount and check the pool."""
    point = base / "fairness.mnt"
    point.mkdir(exist_ok=True)
    killed = False
    try:
        with rig.daxfs(pool, point):
            point.chmod(0o777)
            serving = daemon(point)
            try:
                seen = observe(point, serving, disturbance)
            except TimeoutError as error:
                killed = True
                seen = error.args[0]
                os.kill(int(serving.name), signal.SIGKILL)
                rig.detach(point)
    except subprocess.SubprocessError:
        if not killed:
            raise
    if not killed:
        rig.check(pool)
    pool.unlink()
    return seen


def observe(point: Path, serving: Path, disturbance: Disturbance) -> Seen:
    """Run the probe and a disturbance on a mount.

    Raises:
        TimeoutError: the disturbance has not ended in time; with what was seen.
    """
    stop, go = processes.Event(), processes.Event()
    with started(probe, point, stop) as samples, started(disturb, point, go, disturbance) as outcome:
        try:
            if not outcome.poll(READY_SECONDS):
                raise TimeoutError(Seen("not prepared in time", READY_SECONDS, 0.0, [(0.0, READY_SECONDS)], 0.0, 0.0))
            outcome.recv()
            time.sleep(BEFORE_SECONDS)
            cpu, waited = scheduled(serving)
            begin = time.perf_counter()
            go.set()
            in_time = outcome.poll(LIMIT_SECONDS)
            text = outcome.recv() if in_time else "timed out"
            seconds = time.perf_counter() - begin
            time.sleep(AFTER_SECONDS if in_time else 0.0)
        finally:
            stop.set()
            go.set()
        answered = samples.poll(READY_SECONDS if in_time else AFTER_SECONDS)
        after = scheduled(serving)
        taken: list[Sample] = samples.recv() if answered else [(begin, seconds)]
        taken = [sample for sample in taken if sample[0] + sample[1] >= begin]
        seen = Seen(text, seconds, begin, taken, after[0] - cpu, after[1] - waited)
        if not (in_time and answered):
            raise TimeoutError(seen)
        return seen


@contextlib.contextmanager
def started(work: object, point: Path, *given: object) -> Iterator[Connection]:
    """Run a function in a process of its own for the body; yield what it sends. It is killed at the end."""
    ours, theirs = processes.Pipe(duplex=False)
    child = processes.Process(target=work, args=(theirs, point, *given), daemon=True)  # type: ignore[arg-type]
    child.start()
    theirs.close()
    try:
        yield ours
    finally:
        child.join(0.2)
        child.kill()  # a process that waits for a stalled daemon ends when the daemon does
        ours.close()


def probe(results: Connection, point: Path, stop: Event) -> None:
    """Call and measure until told to stop; then send the samples."""
    path = os.fsencode(point / "probed")
    status = ctypes.create_string_buffer(STATX_BYTES)
    statx = disturbances.libc.statx
    descriptor = os.open(path, os.O_RDONLY)
    blocks = os.fstat(descriptor).st_size // READ_BYTES
    samples: list[Sample] = []
    clock = time.perf_counter
    while not stop.is_set():
        begin = clock()
        statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, status)
        middle = clock()
        with contextlib.suppress(OSError):
            os.pread(descriptor, READ_BYTES, READ_BYTES * random.randrange(blocks))
        samples += [(begin, middle - begin), (middle, clock() - middle)]
        time.sleep(PAUSE_SECONDS)
    results.send(samples)


def disturb(outcome: Connection, point: Path, go: Event, disturbance: Disturbance) -> None:
    """Prepare a disturbance, say so, and run it as another user when told to; then say how it ended."""
    act = disturbance.prepare(point)
    disturbances.as_user(0 if disturbance.root else STRANGER)
    outcome.send("ready")
    go.wait()
    try:
        act()
        outcome.send("done")
    except OSError as error:
        outcome.send(error.strerror or str(error))


def scheduled(process: Path) -> tuple[float, float]:
    """Return how long a process has run, and how long it has waited for a processor (schedstat), in seconds."""
    waited = sum(int((thread / "schedstat").read_text().split()[1]) for thread in (process / "task").iterdir())
    return cpu_seconds(process), waited / 1e9


def percentile(ordered: Sequence[float], part: float) -> float:
    """Return a percentile of samples in ascending order."""
    return ordered[min(int(len(ordered) * part / 100), len(ordered) - 1)]
