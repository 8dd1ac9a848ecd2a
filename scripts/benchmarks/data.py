"""Data by fio, ``--direct=1`` and psync: one process at queue depth 1, four processes at once; and fallocate."""

from __future__ import annotations

import os
import time
from pathlib import Path

import rig
from benchmarks import systems
from benchmarks.report import Ratio, Report, Samples

RANDOM_READ = rig.Job("4 KiB random read", "randread", "4k")
RANDOM_WRITE = rig.Job("4 KiB random write", "randwrite", "4k")
READ = rig.Job("1 MiB sequential read", "read", "1m")
WRITE = rig.Job("1 MiB sequential write", "write", "1m")
JOBS = (RANDOM_READ, RANDOM_WRITE, READ, WRITE)
RANDOM = (RANDOM_READ.name, RANDOM_WRITE.name)
PROCESSES = 4
ONE, APART, SHARED = "1 job", "4 jobs, 4 files", "4 jobs, 1 file"
GIB = 1 << 30
FALLOCATE_MOST_MS = 20.0


def data(base: Path, report: Report) -> None:
    """Compare null, daxfs, pyfuse3 and fuse2fs in turn, with one fio process at a time."""
    found = [systems.make(base, name, "1G") for name in ("null", "daxfs", "pyfuse3", "fuse2fs")]
    samples = Samples("operations/s")
    with systems.together(found) as points:
        for name, point in points.items():
            if name != "null":
                rig.lay_out(point, "256m")
        for _ in range(report.scale.rounds):
            for job in JOBS:
                for name, point in points.items():
                    samples.add(job.name, name, rig.fio(job, point, report.scale.seconds).iops)
    peers = dict.fromkeys(RANDOM, 1.8) | {READ.name: 1.2, WRITE.name: 1.2}
    ratios = (
        Ratio("daxfs", "fuse2fs", peers),
        Ratio("daxfs", "pyfuse3", dict.fromkeys(RANDOM, 1.05)),
        Ratio("daxfs", "null", dict.fromkeys(RANDOM, 0.8)),
    )
    report.compare("fio, psync, direct=1, queue depth 1", samples, ratios)
    for system in found:
        report.say(f"{system.name}: {system.check()}")


def jobs(base: Path, report: Report) -> None:
    """Compare the total rates of one process, four processes on separate files, and four on one file."""
    found = [systems.make(base, name, "2G") for name in ("daxfs", "null")]
    samples = Samples("operations/s in total")
    with systems.together(found) as points:
        for name, point in points.items():
            if name != "null":
                rig.lay_out(point, "256m", PROCESSES)
        for _ in range(report.scale.rounds):
            for job in JOBS:
                for name, point in points.items():
                    for column, processes in ((ONE, 1), (APART, PROCESSES), (SHARED, PROCESSES)):
                        if name == "null" and column == APART:
                            continue  # The null server has only one file.
                        several = rig.Job(job.name, job.mode, job.block, processes=processes, apart=column == APART)
                        measured = rig.fio(several, point, report.scale.seconds).iops
                        samples.add(f"{job.name}, {name}", column, measured)
    least = {f"{job.name}, daxfs": 1.0 for job in JOBS}
    report.compare("one fio job and four", samples, (Ratio(APART, ONE, least), Ratio(SHARED, ONE, least)))
    for system in found:
        report.say(f"{system.name}: {system.check()}")


def fallocate(base: Path, report: Report) -> None:
    """Compare posix_fallocate(3) of 1 GiB for a new file."""
    found = [systems.make(base, name, "8G") for name in ("daxfs", "fuse2fs")]
    samples = Samples("ms")
    with systems.together(found) as points:
        for number in range(report.scale.rounds):
            for name, point in points.items():
                path = point / f"reserved{number}"
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
                try:
                    begin = time.perf_counter()
                    os.posix_fallocate(descriptor, 0, GIB)
                    samples.add("1 GiB", name, 1000 * (time.perf_counter() - begin))
                finally:
                    os.close(descriptor)
                path.unlink()
    report.compare("posix_fallocate", samples)
    report.say(f"daxfs, ms: {report.bound('1 GiB, ms', samples.median('1 GiB', 'daxfs'), most=FALLOCATE_MOST_MS)}")
    for system in found:
        report.say(f"{system.name}: {system.check()}")
