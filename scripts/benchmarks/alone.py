"""Figures of daxfs alone: directories by size, mounts by pool size, the costs of commits and of the option ``sync``."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import systems
from benchmarks.report import Report, Series
from daxfs import FileSystem, Options
from daxfs.fs.ranges import KEEP_SIZE
from daxfs.fs.types import ROOT_INO
from daxfs.structures import inodes

SYNC_OPERATIONS = 2_000
LOOKUPS = 1_000
CPUCLOCK_SCHED = 2
"""The clock of a process that counts all its threads' time on processors (include/linux/posix-timers.h)."""


def directory(base: Path, report: Report) -> None:
    """Measure lookup, create and listing by directory size, as a library; then a listing on a mount."""
    system = systems.make(base, "daxfs", "4G")
    rows = []
    costs: dict[str, list[tuple[float, float]]] = {"lookup": [], "create": []}
    with FileSystem.open(system.pool) as fs:
        made = 0
        ino = fs.mkdir(ROOT_INO, b"big", 0o755).ino
        for size in (report.scale.listed // 100, report.scale.listed // 10, report.scale.listed):
            begin = time.perf_counter()
            for number in range(made, size):
                fs.mknod(ino, b"entry-%08d" % number, 0o644)
            created = (time.perf_counter() - begin) / (size - made)
            made = size
            names = [b"entry-%08d" % number for number in range(0, size, max(size // LOOKUPS, 1))]
            begin = time.perf_counter()
            for name in names:
                fs.lookup(ino, name)
            looked = (time.perf_counter() - begin) / len(names)
            begin = time.perf_counter()
            opened = fs.opendir(ino)
            assert sum(1 for _ in fs.readdir(opened)) == size + 2
            fs.releasedir(opened)
            listed = time.perf_counter() - begin
            rows.append((f"{size:,}", f"{looked * 1e6:.1f}", f"{created * 1e6:.1f}", f"{listed:.2f}"))
            costs["lookup"].append((size, looked * 1e6))
            costs["create"].append((size, created * 1e6))
    report.table("directories, as a library", ("entries", "us a lookup", "us a create", "listing s"), rows)
    report.draw(Series("cost by directory size, as a library", "entries", "us", costs, log="x"))
    report.say(system.check())
    system = systems.make(base, "daxfs", "4G")
    with system.mounted() as point:
        (point / "big").mkdir()
        for number in range(report.scale.listed):
            os.mknod(point / "big" / f"entry-{number:08d}")
    with system.mounted() as point:
        begin = time.perf_counter()
        found = len(os.listdir(point / "big"))
        took = time.perf_counter() - begin
    report.table("mounted, cold", ("entries", "listing s"), [(f"{found:,}", f"{took:.2f}")])
    report.say(system.check())


def daemon(point: Path, program: str = "daxfs") -> Path:
    """Return the directory in /proc of the daemon that serves a mountpoint, a process of the program."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(point) in words and any(program.encode() in word for word in words):
            return command.parent
    raise RuntimeError(f"no daemon serves {point}")


def cpu_seconds(process: Path) -> float:
    """Return the CPU time of a process in seconds, its ended threads included (clock_getcpuclockid(3))."""
    number = int(process.name)
    return time.clock_gettime(~number << 3 | CPUCLOCK_SCHED)


def resident(point: Path) -> float:
    """Return the daemon's resident memory in MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", (daemon(point) / "status").read_text())
    if found is None:
        raise RuntimeError(f"the daemon that serves {point} has ended")
    return int(found[1]) / 1024


def mount(base: Path, report: Report) -> None:
    """Measure the time to mount and the resident memory, by pool size."""
    rows = []
    for size in ("16G", "1T"):
        begin = time.perf_counter()
        system = systems.make(base, "daxfs", size)
        made = time.perf_counter() - begin
        times, memory = [], []
        for _ in range(report.scale.rounds):
            begin = time.perf_counter()
            with system.mounted() as point:
                times.append(time.perf_counter() - begin)
                memory.append(resident(point))
        medians = (statistics.median(times), statistics.median(memory))
        rows.append((size, f"{made:.2f}", f"{medians[0]:.2f}", f"{medians[1]:.1f}"))
    report.table("mounting a clean sparse pool", ("pool", "mkfs s", "mount s", "resident MiB"), rows)


def sync(base: Path, report: Report) -> None:
    """Measure the cost of the mount option ``sync`` for a create and for a 4 KiB append, as a library."""
    rows = []
    for mode in (False, True):
        system = systems.make(base, "daxfs", "1G")
        with FileSystem.open(system.pool, Options(sync=mode)) as fs:
            begin = time.perf_counter()
            for number in range(SYNC_OPERATIONS):
                fs.mknod(ROOT_INO, b"file%d" % number, 0o644)
            created = (time.perf_counter() - begin) / SYNC_OPERATIONS
            file, _ = fs.create(ROOT_INO, b"appended", 0o644, os.O_RDWR)
            block = b"x" * 4096
            begin = time.perf_counter()
            for number in range(SYNC_OPERATIONS):
                fs.write(file, number * 4096, block)
            appended = (time.perf_counter() - begin) / SYNC_OPERATIONS
            fs.release(file)
        rows.append(("sync" if mode else "async", f"{created * 1e6:.1f}", f"{appended * 1e6:.1f}"))
        system.check()
    report.table("what sync costs, as a library", ("mode", "us a create", "us a 4 KiB append"), rows)


def commit(base: Path, report: Report) -> None:
    """Measure a change and the fsync after it, as a library; medians, because an fsync that empties the log is slow."""
    system = systems.make(base, "daxfs", "1G")
    with FileSystem.open(system.pool) as fs:
        file, _ = fs.create(ROOT_INO, b"grown", 0o644, os.O_RDWR)
        fs.fallocate(file, KEEP_SIZE, 0, 1 << 20)
        other, _ = fs.create(ROOT_INO, b"appended", 0o644, os.O_RDWR)

        def edit(number: int) -> None:
            with fs.volume.handle(1) as tx:
                inodes.edit(tx, file.ino).mtime_ns = number

        changes: dict[str, Callable[[int], object]] = {
            "a handle that edits an inode": edit,
            "8 bytes more in allocated blocks": lambda number: fs.write(file, 8 * number, b"12345678"),
            "4 KiB appended": lambda number: fs.write(other, 4096 * number, bytes(4096)),
        }
        rows = []
        for name, change in changes.items():
            taken: list[tuple[int, int]] = []
            for number in range(SYNC_OPERATIONS):
                begin = time.perf_counter_ns()
                change(number)
                changed = time.perf_counter_ns()
                fs.fsync(file.ino)
                taken.append((changed - begin, time.perf_counter_ns() - changed))
            rows.append((name, *(f"{statistics.median(part) / 1000:.1f}" for part in zip(*taken, strict=True))))
        fs.release(file)
        fs.release(other)
    report.table("changes made durable, as a library", ("change", "us", "us fsync"), rows)
    report.say(system.check())
