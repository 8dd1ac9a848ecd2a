"""Curves: latency by percentile, throughput by block size and jobs, cost of an operation by the pool's size and age."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import rig
from benchmarks import systems
from benchmarks.data import RANDOM_READ, RANDOM_WRITE
from benchmarks.report import PERCENTILE, Report, Samples, Series
from daxfs import FileSystem
from daxfs.fs.types import ROOT_INO

DAXFS, PEER, KERNEL = "daxfs", "fuse2fs", "ext4"
BLOCKS = ("4k", "16k", "64k", "256k", "1m")
KIB = {"4k": 4, "16k": 16, "64k": 64, "256k": 256, "1m": 1024}
PROCESSES = (1, 4)
SECONDS = 0.5
POOL_SIZES = {"256M": 1 / 4, "4G": 4, "64G": 64, "1T": 1024}
"""Sizes of pools, in GiB."""
ROUNDS = 3
OPERATIONS = 500
AGES, CHANGES = 8, 2_000
"""How often an aging pool is measured, and how many files are made or removed in between."""
LARGEST = 128 << 10
FULL_FROM, EMPTY_FROM = 0.8, 0.6
"""The share of the pool above which an aging pool only removes files, and below which it only makes them."""
BLOCK = 4096
Costs = dict[str, float]


def curves(base: Path, report: Report) -> None:
    """Measure all curves."""
    through_the_kernel(base, report)
    by_pool_size(base, report)
    by_age(base, report)


def through_the_kernel(base: Path, report: Report) -> None:
    """Measure latencies and throughput of daxfs, fuse2fs and, as root, the kernel's ext4 on a loop device, in turn."""
    with ExitStack() as stack:
        points = stack.enter_context(systems.together(systems.make(base, name, "1G") for name in (DAXFS, PEER)))
        if not os.getuid():
            pool, point = base / f"{KERNEL}.pool", base / f"{KERNEL}.mnt"
            point.mkdir()
            rig.make_peer_pool(pool, "1G")
            points[KERNEL] = stack.enter_context(rig.kernel_ext4(pool, point))
        for point in points.values():
            rig.lay_out(point, "64m", max(PROCESSES))
        latencies(points, report)
        throughput(points, report)


def latencies(points: dict[str, Path], report: Report) -> None:
    """Measure the percentiles of 4 KiB reads and writes; each is a median."""
    for job in (RANDOM_READ, RANDOM_WRITE):
        seen: dict[str, dict[float, list[float]]] = {name: {} for name in points}
        for _ in range(min(report.scale.rounds, ROUNDS)):
            for name, point in points.items():
                small = rig.Job(job.name, job.mode, job.block, "64m")
                for part, value in rig.fio(small, point, report.scale.seconds).percentiles:
                    seen[name].setdefault(part, []).append(value)
        lines = {
            name: [(part, statistics.median(values)) for part, values in found.items() if part >= 1]
            for name, found in seen.items()
        }
        report.draw(Series(f"latency of a {job.name}", PERCENTILE, "us", lines, log="y"))
        shown = (50.0, 90.0, 99.0, 99.9)
        rows = [
            (name, *(f"{dict(line)[min(dict(line), key=lambda part: abs(part - want))]:.1f}" for want in shown))
            for name, line in lines.items()
        ]
        report.table(f"{job.name}, us by percentile", ("system", *map(str, shown)), rows)


def throughput(points: dict[str, Path], report: Report) -> None:
    """Measure throughput by block size and number of processes, each with a file of its own."""
    for mode, what in (("randread", "read"), ("randwrite", "write")):
        samples = Samples("MB/s in total")
        for _ in range(min(report.scale.rounds, ROUNDS)):
            for block in BLOCKS:
                for processes in PROCESSES:
                    for name, point in points.items():
                        job = rig.Job(f"{block} {what}", mode, block, "64m", processes=processes, apart=True)
                        column = f"{name}, {processes} {'job' if processes == 1 else 'jobs'}"
                        samples.add(block, column, rig.fio(job, point, SECONDS).megabytes)
        lines = {
            column: [(KIB[block], samples.median(block, column)) for block in BLOCKS] for column in samples.columns
        }
        report.compare(f"random {what} by block size", samples)
        report.draw(Series(f"random {what} by block size", "KiB", "MB/s", lines, log="xy"))


def by_pool_size(base: Path, report: Report) -> None:
    """Measure operations in new sparse pools of several sizes, as a library."""
    measured = {}
    for size in POOL_SIZES:
        pool = base / "sized.pool"
        rig.run(rig.tool("daxfs"), "mkfs", pool, "--sparse", "--size", size)
        with FileSystem.open(pool) as fs:
            measured[size] = costs(fs)
        pool.unlink()
    what = "cost by pool size, as a library"
    report.table(what, ("pool", *measured["4G"]), [(size, *shown(found)) for size, found in measured.items()])
    lines = {name: [(POOL_SIZES[size], found[name]) for size, found in measured.items()] for name in measured["4G"]}
    report.draw(Series(what, "GiB", "us of CPU", lines, log="x"))


def by_age(base: Path, report: Report) -> None:
    """Measure operations in a pool that files of random sizes have filled and left again and again, as a library."""
    chance = random.Random(14)
    pool = base / "aging.pool"
    rig.run(rig.tool("daxfs"), "mkfs", pool, "--sparse", "--size", "256M")
    measured: list[Costs] = []
    with FileSystem.open(pool) as fs:
        names: list[bytes] = []
        measured.append(costs(fs))
        for age in range(AGES):
            for number in range(CHANGES):
                found = fs.statfs()
                share = 1 - found.free / found.blocks
                if names and (share > FULL_FROM or (share > EMPTY_FROM and chance.random() < 0.5)):
                    fs.unlink(ROOT_INO, names.pop(chance.randrange(len(names))))
                else:
                    names.append(b"aged-%d-%d" % (age, number))
                    file, _ = fs.create(ROOT_INO, names[-1], 0o644, os.O_RDWR)
                    fs.write(file, 0, bytes(chance.randrange(1, LARGEST)))
                    fs.release(file)
            measured.append(costs(fs))
    report.say(f"e2fsck -fn: {rig.check(pool)}")
    what = "cost by age, as a library"
    aged = [(CHANGES * age, cost) for age, cost in enumerate(measured)]
    report.table(what, ("changes", *measured[0]), [(f"{age:,}", *shown(cost)) for age, cost in aged])
    lines = {name: [(age, cost[name]) for age, cost in aged] for name in measured[0]}
    report.draw(Series(what, "files made or removed", "us of CPU", lines))


def costs(fs: FileSystem) -> Costs:
    """Return the mean CPU time of operations in microseconds; the pool is as before."""
    names = [b"cost-%d" % number for number in range(OPERATIONS)]
    found: Costs = {}

    def timed(what: str, action: Callable[[int], object]) -> None:
        begin = time.process_time()
        for number in range(OPERATIONS):
            action(number)
        found[what] = 1e6 * (time.process_time() - begin) / OPERATIONS

    timed("create", lambda number: fs.mknod(ROOT_INO, names[number], 0o644))
    timed("lookup", lambda number: fs.lookup(ROOT_INO, names[number]))
    file, _ = fs.create(ROOT_INO, b"cost", 0o644, os.O_RDWR)
    block = bytes(BLOCK)
    timed("4 KiB append", lambda number: fs.write(file, BLOCK * number, block))
    timed("4 KiB overwrite", lambda number: fs.write(file, BLOCK * number, block))
    fs.release(file)
    fs.unlink(ROOT_INO, b"cost")
    timed("unlink", lambda number: fs.unlink(ROOT_INO, names[number]))
    return found


def shown(found: Costs) -> list[str]:
    """Return the cells of a row."""
    return [f"{value:.1f}" for value in found.values()]
