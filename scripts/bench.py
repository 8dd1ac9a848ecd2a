"""The figures of docs/BENCHMARKS.md, measured in one run: data and names beside fuse2fs, directories, mounts, ``sync``.

Usage: bench.py [data] [metadata] [directory] [mount] [sync] (all of them without an argument). Medians and ratios are
what to quote: machines differ and are noisy. Everything it makes is in one directory of /dev/shm that goes at the end.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table

import rig

console = rig.console()
ROUNDS = 5
FILES = 10_000
SYSTEMS: dict[str, Callable[..., object]] = {"daxfs": rig.daxfs, "fuse2fs": rig.fuse2fs}


def new_pool(base: Path, name: str, size: str = "1G") -> Path:
    """A fresh pool for a system, made by its own means."""
    pool = base / f"{name}.pool"
    pool.unlink(missing_ok=True)
    if name.startswith("daxfs"):
        rig.run(rig.tool("daxfs"), "mkfs", pool, "--size", size)
    else:
        rig.make_peer_pool(pool, size)
    return pool


@contextmanager
def both(base: Path) -> Iterator[dict[str, Path]]:
    """Both systems mounted at the same time on fresh pools; both pools are checked at the end."""
    points = {}
    pools = {name: new_pool(base, name) for name in SYSTEMS}
    for name in SYSTEMS:
        points[name] = base / f"{name}.mnt"
        points[name].mkdir(exist_ok=True)
    with rig.daxfs(pools["daxfs"], points["daxfs"]), rig.fuse2fs(pools["fuse2fs"], points["fuse2fs"]):
        yield points
    for name, pool in pools.items():
        console.print(f"  e2fsck -fn {name}: {rig.check(pool)}")


def data(base: Path) -> None:
    """fio at queue depth 1, in turn."""
    jobs = (
        rig.Job("4 KiB random read", "randread", "4k"),
        rig.Job("4 KiB random write", "randwrite", "4k"),
        rig.Job("1 MiB sequential read", "read", "1m"),
        rig.Job("1 MiB sequential write", "write", "1m"),
    )
    rows: dict[str, dict[str, list[float]]] = {job.name: {name: [] for name in SYSTEMS} for job in jobs}
    with both(base) as points:
        for point in points.values():
            rig.lay_out(point, "256m")
        for _ in range(ROUNDS):
            for job in jobs:
                for name, point in points.items():
                    rows[job.name][name].append(rig.fio(job, point, 2).iops)
    show("fio, psync, direct=1, queue depth 1 (operations/s)", rows)


def metadata_round(point: Path) -> dict[str, float]:
    """Create+close, stat, list, rename and unlink of `FILES` files in one directory: operations a second."""
    directory = point / "many"
    directory.mkdir()
    names = [f"{directory}/file{number:06d}" for number in range(FILES)]
    rates = {}

    def timed(what: str, action: Callable[[str], object]) -> None:
        begin = time.perf_counter()
        for name in names:
            action(name)
        rates[what] = FILES / (time.perf_counter() - begin)

    timed("create+close", lambda name: os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)))
    timed("stat", os.stat)
    timed("rename", lambda name: os.rename(name, name + "x"))
    names = [name + "x" for name in names]
    timed("unlink", os.unlink)
    directory.rmdir()
    return rates


def metadata(base: Path) -> None:
    """Names, in turn."""
    rows: dict[str, dict[str, list[float]]] = {}
    with both(base) as points:
        for _ in range(3):
            for name, point in points.items():
                for what, rate in metadata_round(point).items():
                    rows.setdefault(what, {system: [] for system in SYSTEMS})[name].append(rate)
    show(f"{FILES:,} files in one directory (operations/s)", rows)


def directory(base: Path) -> None:
    """Lookup cost by directory size, and how long a listing of 100,000 names takes (unmounted, then mounted)."""
    from daxfs import FileSystem
    from daxfs.fs.filesystem import ROOT_INO

    pool = new_pool(base, "daxfs-dir", "4G")
    table = Table(title="directories of daxfs, as a library")
    for column in ("entries", "us a lookup", "us a create", "listing s"):
        table.add_column(column, justify="right")
    with FileSystem.open(pool) as fs:
        made = 0
        ino = fs.mkdir(ROOT_INO, b"big", 0o755).ino
        for size in (1_000, 10_000, 100_000):
            begin = time.perf_counter()
            for number in range(made, size):
                fs.mknod(ino, b"entry-%08d" % number, 0o644)
            created = (time.perf_counter() - begin) / (size - made)
            made = size
            names = [b"entry-%08d" % number for number in range(0, size, max(size // 1000, 1))]
            begin = time.perf_counter()
            for name in names:
                fs.lookup(ino, name)
            looked = (time.perf_counter() - begin) / len(names)
            begin = time.perf_counter()
            opened = fs.opendir(ino)
            assert sum(1 for _ in fs.readdir(opened)) == size + 2
            fs.releasedir(opened)
            listed = time.perf_counter() - begin
            table.add_row(f"{size:,}", f"{looked * 1e6:.1f}", f"{created * 1e6:.1f}", f"{listed:.2f}")
    console.print(table)
    console.print(f"  e2fsck -fn: {rig.check(pool)}")
    pool = new_pool(base, "daxfs-dir", "4G")
    point = base / "dir.mnt"
    point.mkdir(exist_ok=True)
    with rig.daxfs(pool, point):
        (point / "big").mkdir()
        for number in range(100_000):
            os.mknod(point / "big" / f"entry-{number:08d}")
        begin = time.perf_counter()
        found = len(os.listdir(point / "big"))
        console.print(f"  mounted: listing {found:,} entries took {time.perf_counter() - begin:.2f} s")
    console.print(f"  e2fsck -fn: {rig.check(pool)}")


def resident(point: Path) -> float:
    """Resident memory in MiB of the daxfs daemon that serves a mountpoint."""
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = status.read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(point) in words and any(b"daxfs" in word for word in words):
            found = re.search(r"VmRSS:\s+(\d+)", (status.parent / "status").read_text())
            if found:
                return int(found.group(1)) / 1024
    raise RuntimeError(f"no daemon serves {point}")


def mount(base: Path) -> None:
    """Time to mount and resident memory, by pool size."""
    table = Table(title="mounting a clean sparse pool")
    for column in ("pool", "mkfs s", "mount s", "resident MiB"):
        table.add_column(column, justify="right")
    point = base / "mount.mnt"
    point.mkdir(exist_ok=True)
    for size in ("16G", "1T"):
        begin = time.perf_counter()
        pool = new_pool(base, "daxfs-mount", size)
        made = time.perf_counter() - begin
        times, memory = [], []
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            with rig.daxfs(pool, point):
                times.append(time.perf_counter() - begin)
                memory.append(resident(point))
        row = (statistics.median(times), statistics.median(memory))
        table.add_row(size, f"{made:.2f}", f"{row[0]:.2f}", f"{row[1]:.1f}")
    console.print(table)


def sync(base: Path) -> None:
    """What the mount option ``sync`` costs: a create, and a 4 KiB append, by library."""
    from daxfs import FileSystem, Options
    from daxfs.fs.filesystem import ROOT_INO

    table = Table(title="what sync costs (library, /dev/shm)")
    for column in ("mode", "us a create", "us a 4 KiB append"):
        table.add_column(column, justify="right")
    for mode in (False, True):
        pool = new_pool(base, "daxfs-sync")
        with FileSystem.open(pool, Options(sync=mode)) as fs:
            begin = time.perf_counter()
            for number in range(2_000):
                fs.mknod(ROOT_INO, b"file%d" % number, 0o644)
            created = (time.perf_counter() - begin) / 2_000
            file, _ = fs.create(ROOT_INO, b"appended", 0o644, os.O_RDWR)
            block = b"x" * 4096
            begin = time.perf_counter()
            for number in range(2_000):
                fs.write(file, number * 4096, block)
            appended = (time.perf_counter() - begin) / 2_000
            fs.release(file)
        table.add_row("sync" if mode else "async", f"{created * 1e6:.1f}", f"{appended * 1e6:.1f}")
        rig.check(pool)
    console.print(table)


def show(title: str, rows: dict[str, dict[str, list[float]]]) -> None:
    """Medians of both systems and their ratio."""
    table = Table(title=title)
    table.add_column("what")
    for name in SYSTEMS:
        table.add_column(name, justify="right")
    table.add_column("ratio", justify="right")
    for what, measured in rows.items():
        ours, peers = (statistics.median(measured[name]) for name in SYSTEMS)
        table.add_row(what, f"{ours:,.0f}", f"{peers:,.0f}", f"{ours / peers:.2f}")
    console.print(table)


PARTS = {"data": data, "metadata": metadata, "directory": directory, "mount": mount, "sync": sync}


def main() -> int:
    """Run the parts named on the command line."""
    chosen = sys.argv[1:] or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        console.print(f"unknown: {' '.join(sorted(unknown))}; there are: {' '.join(PARTS)}")
        return 64
    with rig.workplace() as base:
        for name in chosen:
            console.rule(name)
            PARTS[name](base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
