"""Direct access: programs that read, write and map files of a daxfs mount as their own memory.

Four systems in turn: ``shm``, a plain file in the directory of the pools; ``direct``, a daxfs mount below `daxfs exec`;
``daxfs``, the same kind of mount without it; ``fuse2fs``. All have the same files, which are fully written before. Each
fio job runs in its own process, draws blocks with repetition, and warms up before it is measured, so that no system
pays for the first touch of a page. Jobs that neither map nor append use O_DIRECT: tmpfs accepts that flag too, and
without it the figures of fuse2fs would be those of the kernel's cache.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import rig
from benchmarks import systems
from benchmarks.alone import cpu_seconds, daemon
from benchmarks.report import Ratio, Report, Samples
from daxfs.tools import stats
from daxfs.tools.snapshot import Snapshot

SHM, DIRECT, PLAIN, PEER = "shm", "direct", "daxfs", "fuse2fs"
SIZE = "128m"
SECONDS = 0.7
WARM = "300ms"
COMMON = ("--norandommap", "--invalidate=0", f"--ramp_time={WARM}")

RANDOM_READ = rig.Job("4 KiB random read", "randread", "4k", SIZE, options=COMMON)
RANDOM_WRITE = rig.Job("4 KiB random write", "randwrite", "4k", SIZE, options=COMMON)
READ = rig.Job("1 MiB sequential read", "read", "1m", SIZE, options=COMMON)
WRITE = rig.Job("1 MiB sequential write", "write", "1m", SIZE, options=COMMON)
MAP_READ = rig.Job("4 KiB random read, mmap", "randread", "4k", SIZE, engine="mmap", options=COMMON)
MAP_WRITE = rig.Job("4 KiB random write, mmap", "randwrite", "4k", SIZE, engine="mmap", options=COMMON)
JOBS = (RANDOM_READ, RANDOM_WRITE, READ, WRITE, MAP_READ, MAP_WRITE)
APPEND = rig.Job("4 KiB append and fsync", "write", "4k", "1g", options=("--fsync=1", "--invalidate=0", "--direct=0"))
TWO = 2
ONE_FILE, TWO_FILES = "1 process", "2 processes, 2 files"
WATCHED_SECONDS = 2.0
BEGUN_SECONDS = 1.0
"""The time after which a started job has warmed up."""
IDLE_CPU_MS = 10.0
"""The most CPU time of the daemon in a second while programs work."""
IDLE_REQUESTS = 2.0
"""The most requests in a second: the second statistics query may need a piece more than the one subtracted."""
CLIENT_LOOP = Path(__file__).with_name("client_loop.py")
CLIENT_US, MAP_MS = 2.0, 10.0
GIB = 1 << 30
SMALL_WHAT = "open, map, read, close"
SMALL_BYTES = 2048
SMALL_LOOP = Path(__file__).with_name("small_files.py")


def exec_command() -> list[str]:
    """Return the command that runs a program with direct access."""
    return [rig.tool("daxfs"), "exec", "--"]


def below(name: str) -> list[str]:
    """Return the command below which a system's programs run; empty for all but ``direct``."""
    return exec_command() if name == DIRECT else []


def direct(base: Path, report: Report) -> None:
    """Run all measurements of direct access, on one set of mounts."""
    found = [systems.make(base, name, "4G") for name in (DIRECT, PLAIN, PEER)]
    shm = base / SHM
    shm.mkdir(exist_ok=True)
    with systems.together(found) as points:
        places = {SHM: shm, **points}
        for place in places.values():
            lay_out(place)
        one_process(places, report)
        appends(places, report)
        two_processes(places, report)
        idle(places[DIRECT], report)
        client(places[DIRECT], report)
        small_files(places[DIRECT], report)
    for system in found:
        report.say(f"{system.name}: {system.check()}")


def lay_out(place: Path) -> None:
    """Write the files of the fio jobs."""
    rig.lay_out(place, SIZE, TWO)


def one_process(places: Mapping[str, Path], report: Report) -> None:
    """Compare the systems by each job with one process, round by round."""
    samples = Samples("operations/s")
    for _ in range(report.scale.rounds):
        for job in JOBS:
            for name, place in places.items():
                samples.add(job.name, name, rig.fio(job, place, SECONDS, below(name)).iops)
    small = (RANDOM_READ.name, RANDOM_WRITE.name)
    large = (READ.name, WRITE.name, MAP_READ.name, MAP_WRITE.name)
    ratios = (
        Ratio(DIRECT, SHM, dict.fromkeys(small, 0.8) | dict.fromkeys(large, 0.95)),
        Ratio(DIRECT, PEER, dict.fromkeys(small, 10.0)),
        Ratio(DIRECT, PLAIN),
    )
    report.compare("fio, queue depth 1", samples, ratios)


def appends(places: Mapping[str, Path], report: Report) -> None:
    """Compare the systems by 4 KiB appends to a file, each made durable before the next."""
    samples = Samples("operations/s")
    for _ in range(report.scale.rounds):
        for name, place in places.items():
            folder = place / "grows"
            folder.mkdir(exist_ok=True)
            try:
                samples.add(APPEND.name, name, rig.fio(APPEND, folder, SECONDS, below(name)).iops)
            finally:
                (folder / "fio.dat").unlink()
    report.compare("appending", samples, (Ratio(DIRECT, PEER, {APPEND.name: 5.0}), Ratio(PLAIN, PEER)))


def two_processes(places: Mapping[str, Path], report: Report) -> None:
    """Compare the total rates of one process and of two on separate files; ``shm`` shows this machine's limit."""
    samples = Samples("operations/s in total")
    for _ in range(report.scale.rounds):
        for job in (RANDOM_READ, RANDOM_WRITE):
            for name in (SHM, DIRECT):
                for column, processes in ((ONE_FILE, 1), (TWO_FILES, TWO)):
                    several = replace(job, processes=processes, apart=True)
                    measured = rig.fio(several, places[name], SECONDS, below(name)).iops
                    samples.add(f"{job.name}, {name}", column, measured)
    least = {f"{job.name}, {DIRECT}": 1.8 for job in (RANDOM_READ, RANDOM_WRITE)}
    report.compare("processes side by side", samples, (Ratio(TWO_FILES, ONE_FILE, least),))


def idle(place: Path, report: Report) -> None:
    """Measure CPU time and requests of the daemon in a second while two processes work on two files."""
    rows = []
    for job in (RANDOM_READ, RANDOM_WRITE):
        with ThreadPoolExecutor(1) as pool:
            at_work = pool.submit(
                rig.fio, replace(job, processes=TWO, apart=True), place, WATCHED_SECONDS, below(DIRECT)
            )
            time.sleep(BEGUN_SECONDS)
            milliseconds, requests = watch(place, 1.0)
            operations = at_work.result().iops
        cpu = report.bound(f"{job.name}, daemon's CPU", milliseconds, most=IDLE_CPU_MS)
        count = report.bound(f"{job.name}, requests", requests, most=IDLE_REQUESTS)
        rows.append((job.name, f"{operations:,.0f}", cpu, count))
    report.table("the daemon meanwhile, a second", ("two processes", "operations", "CPU ms", "requests"), rows)


def watch(place: Path, seconds: float) -> tuple[float, float]:
    """Return the daemon's CPU time in milliseconds, and its requests without this function's own, in some seconds."""
    process = daemon(place)
    with stats.opened(str(place)) as (descriptor, mountpoint):
        stats.ask(descriptor, mountpoint)
        alone = stats.ask(descriptor, mountpoint)
        begin = stats.ask(descriptor, mountpoint)
        own = requests(begin.after(alone))
        before = cpu_seconds(process)
        time.sleep(seconds)
        after = cpu_seconds(process)
        end = stats.ask(descriptor, mountpoint)
    return 1000 * (after - before), float(requests(end.after(begin)) - own)


def requests(seen: Snapshot) -> int:
    """Return the number of requests of all kinds."""
    return sum(operation.count for operation in seen.operations.values())


def client(place: Path, report: Report) -> None:
    """Measure the Python client, each time in a new process."""
    large = place / "large"
    with large.open("wb") as content:
        for _ in range(GIB >> 20):
            content.write(b"m" * (1 << 20))
    runs = [
        json.loads(rig.run(sys.executable, CLIENT_LOOP, place / "fio.dat", large).stdout)
        for _ in range(report.scale.rounds)
    ]
    rows = []
    for name, what, most in (
        ("read", "4 KiB read, us", CLIENT_US),
        ("write", "4 KiB write, us", CLIENT_US),
        ("map", "first map of 1 GiB, ms", MAP_MS),
    ):
        rows.append((what, report.bound(what, statistics.median(run[name] for run in runs), most=most)))
    rows.append(("in memory", str(all(run["direct"] for run in runs))))
    report.table("Python client", ("what", "median"), rows)
    large.unlink()


def small_files(place: Path, report: Report) -> None:
    """Compare opening, mapping, reading and closing many small files with and without direct access, on one mount."""
    folder = place / "small"
    folder.mkdir()
    count = report.scale.files
    for number in range(count):
        (folder / str(number)).write_bytes(b"s" * SMALL_BYTES)
    samples = Samples("us a file")
    for _ in range(report.scale.rounds):
        for name in (DIRECT, PLAIN):
            output = rig.run(*below(name), sys.executable, SMALL_LOOP, folder, str(count)).stdout
            samples.add(SMALL_WHAT, name, float(output))
    report.compare("small files", samples, (Ratio(PLAIN, DIRECT, {SMALL_WHAT: 1.0}),))
