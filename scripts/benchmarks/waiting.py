"""What waiting for requests costs: requests that come now and then, and jobs on a machine that has other work.

A daemon that spins while it waits answers dense requests faster. It must not do so while requests are sparse, or while
other programs need the processors. Section ``waiting`` compares daxfs with fuse2fs in both conditions, in turn.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import rig
from benchmarks import systems
from benchmarks.alone import cpu_seconds, daemon
from benchmarks.report import Ratio, Report, Samples

DAXFS, PEER = "daxfs", "fuse2fs"
GAPS_MS = (20, 5, 1, 0)
SPARSE_MS = 20
COUNT, DENSE_COUNT = 100, 3_000
"""Requests of a sample, with and without a gap."""
WARMING = 500
"""Requests before a sample: Python adapts code to its use when it has run some times."""
BYTES = 100
MOST_SPARSE = 1.5
"""A sparse request's CPU time may be this multiple of fuse2fs's."""
ACCOUNTS = Path(__file__).parents[2] / "tests/direct/applications/accounts.c"
TRANSACTIONS, KEYS, DBENCH_SECONDS = 200, 5_000, 2
LIMIT = 300


def waiting(base: Path, report: Report) -> None:
    """Compare the daemons' CPU time for sparse requests, then jobs with more busy processes than processors."""
    found = [systems.make(base, name, "1G") for name in (DAXFS, PEER)]
    samples = Samples("us of the daemon's CPU for each pwrite of 100 bytes")
    rates = Samples("operations/s")
    jobs = known_jobs(base, report)
    with systems.together(found) as points:
        for condition, busy in (("quiet", 0), ("busy", more_than_processors())):
            with busy_processes(busy):
                for _ in range(report.scale.rounds):
                    for gap in GAPS_MS:
                        for name, point in points.items():
                            samples.add(f"every {gap} ms, {condition}", name, cpu_for_each(point, gap))
        with busy_processes(more_than_processors()):
            for number in range(report.scale.rounds):
                for what, job in jobs.items():
                    for name, point in points.items():
                        folder = point / f"{what.split(',')[0].replace(' ', '-')}{number}"
                        folder.mkdir()
                        rates.add(what, name, job(folder))
    least = {f"every {SPARSE_MS} ms, {condition}": 1 / MOST_SPARSE for condition in ("quiet", "busy")}
    report.compare("sparse requests", samples, (Ratio(PEER, DAXFS, least),))
    if jobs:
        title = f"jobs beside {more_than_processors()} busy processes on {os.cpu_count()} processors"
        report.compare(title, rates, (Ratio(DAXFS, PEER, dict.fromkeys(jobs, 1.0)),))
    for system in found:
        report.say(f"{system.name}: {system.check()}")


def more_than_processors() -> int:
    """Return how many busy processes oversubscribe this machine: three on two processors."""
    return (os.cpu_count() or 1) + 1


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Let processes compute for the body."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def cpu_for_each(point: Path, gap: int) -> float:
    """Write 100 bytes again and again with a gap in milliseconds; return the daemon's CPU time for each, in us."""
    serving = daemon(point)
    count = COUNT if gap else DENSE_COUNT
    descriptor = os.open(point / "sparse", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        for _ in range(WARMING):
            os.pwrite(descriptor, bytes(BYTES), 0)
        before = cpu_seconds(serving)
        for number in range(count):
            if gap:
                time.sleep(gap / 1000)
            os.pwrite(descriptor, bytes(BYTES), BYTES * number)
        return 1e6 * (cpu_seconds(serving) - before) / count
    finally:
        os.close(descriptor)


def known_jobs(base: Path, report: Report) -> dict[str, Callable[[Path], float]]:
    """Return the jobs whose programs are installed: each runs in a directory and returns a rate. Name the others."""
    jobs: dict[str, Callable[[Path], float]] = {}
    missing = []
    program = base / "accounts"
    try:
        rig.run(rig.tool("gcc"), "-O2", "-o", program, ACCOUNTS, "-lpmemobj")
        rig.tool("pmempool")
        jobs["libpmemobj, transactions"] = lambda folder: transactions(program, folder)
    except (rig.Missing, subprocess.CalledProcessError):
        missing.append("libpmemobj transactions (packages gcc, libpmemobj-dev, pmdk-tools)")
    for what, tool, package, job in (
        ("RocksDB, fillrandom", "db_bench", "rocksdb-tools", rocksdb),
        ("dbench, MB/s", "dbench", "dbench", dbench),
    ):
        try:
            rig.tool(tool)
            jobs[what] = job
        except rig.Missing:
            missing.append(f"{what} (package {package})")
    for what in missing:
        report.not_run(what)
    return jobs


def transactions(program: Path, folder: Path) -> float:
    """Run transactions of libpmemobj in a file that is mapped through the kernel; return them by second."""
    pool = folder / "objects"
    rig.run(rig.tool("pmempool"), "create", "--layout=accounts", "--size=16M", "obj", pool, limit=LIMIT)
    begin = time.perf_counter()
    rig.run(program, "work", pool, str(TRANSACTIONS), limit=LIMIT)
    return TRANSACTIONS / (time.perf_counter() - begin)


def rocksdb(folder: Path) -> float:
    """Fill a RocksDB data base in random order; return keys by second."""
    command = (rig.tool("db_bench"), "--benchmarks=fillrandom", f"--db={folder}", f"--num={KEYS}")
    output = rig.run(*command, "--compression_type=none", limit=LIMIT).stdout
    return number_in(r"fillrandom\s*:.*?(\d+) ops/sec", output)


def dbench(folder: Path) -> float:
    """Run dbench with one client; return megabytes by second."""
    output = rig.run(rig.tool("dbench"), "-D", folder, "-t", str(DBENCH_SECONDS), "1", limit=LIMIT).stdout
    return number_in(r"Throughput ([\d.]+) MB/sec", output)


def number_in(pattern: str, output: str) -> float:
    """Return the number that a program printed.

    Raises:
        RuntimeError: it did not.
    """
    found = re.search(pattern, output)
    if found is None:
        raise RuntimeError(f"{pattern!r} is not in the output: {output[-500:]}")
    return float(found[1])
