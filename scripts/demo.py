"""Do the main job as a user would: make a pool, mount it, run fio on it and on its peer fuse2fs, check both pools.

Usage: demo.py [--seconds N] [--rounds N] [--place DIR]. The exit code is 0 if every job ran, the written data was
verified and both pools are clean. The table shows only figures that were measured in this run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import rig

JOBS = (
    rig.Job("4 KiB random read", "randread", "4k"),
    rig.Job("4 KiB random write", "randwrite", "4k"),
    rig.Job("1 MiB sequential read", "read", "1m"),
    rig.Job("1 MiB sequential write", "write", "1m"),
    rig.Job("write and verify crc32c", "write", "64k", verify="crc32c"),
)
SYSTEMS = ("daxfs", "fuse2fs")
UNAVAILABLE = 69  # EX_UNAVAILABLE, sysexits.h
Measured = dict[tuple[str, str], list[rig.Result]]


def missing() -> list[str]:
    """Return what this machine lacks for a mount, one line each with the remedy."""
    found = []
    if not os.path.exists("/dev/fuse"):
        found.append("/dev/fuse is not there: load the fuse module, or give the container --device /dev/fuse")
    elif not os.access("/dev/fuse", os.R_OK | os.W_OK):
        found.append("this user may not open /dev/fuse: run as root, or chmod 666 /dev/fuse as root")
    for name in ("mke2fs", "e2fsck", "fio", "fuse2fs", "fusermount3"):
        try:
            rig.tool(name)
        except rig.Missing as error:
            found.append(str(error))
    return found


def measure(base: Path, console: Console, rounds: int, seconds: float) -> Measured:
    """Run all jobs on both systems in turn; return the results by (job, system)."""
    pools = {name: base / f"{name}.pool" for name in SYSTEMS}
    points = dict(zip(SYSTEMS, rig.mountpoints(base, [f"{name}.mnt" for name in SYSTEMS]), strict=True))
    made = rig.run(rig.tool("daxfs"), "mkfs", pools["daxfs"], "--size", "1G").stdout.strip()
    console.print(made or f"made {pools['daxfs']}")
    rig.make_peer_pool(pools["fuse2fs"], "1G")
    results: Measured = {(job.name, name): [] for job in JOBS for name in SYSTEMS}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with rig.daxfs(pools["daxfs"], points["daxfs"]), rig.fuse2fs(pools["fuse2fs"], points["fuse2fs"]):
        console.print(rig.run(rig.tool("daxfs"), "info", pools["daxfs"]).stdout.rstrip())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("laying out the files")
            for name in SYSTEMS:
                rig.lay_out(points[name], "256m")
            for number in range(rounds):
                for job in JOBS:
                    for name in SYSTEMS:
                        progress.update(task, description=f"round {number + 1} of {rounds}: {job.name} on {name}")
                        results[job.name, name].append(rig.fio(job, points[name], seconds))
                    console.log(f"round {number + 1}: {job.name}: {outcome(results, job.name)}")
    for name in SYSTEMS:
        console.print(f"e2fsck -fn {name}: {rig.check(pools[name])}")
    return results


def without_mount(base: Path, console: Console) -> None:
    """Show what works without FUSE: make a pool, write and read it as a library, check it."""
    from daxfs import FileSystem

    pool = base / "daxfs.pool"
    console.print(rig.run(rig.tool("daxfs"), "mkfs", pool, "--size", "1G").stdout.strip())
    content = os.urandom(1 << 20) * 256
    with FileSystem.open(pool) as fs:
        begin = time.perf_counter()
        fs.tree.write_bytes("/big", content)
        written = time.perf_counter()
        same = fs.tree.read_bytes("/big") == content
        read = time.perf_counter()
    rates = (f"{len(content) / 1e6 / took:,.0f} MB/s" for took in (written - begin, read - written))
    console.print(f"256 MiB written at {next(rates)}, read at {next(rates)}, {'equal' if same else 'DIFFERENT'}")
    console.print(f"e2fsck -fn: {rig.check(pool)}")


def outcome(results: Measured, job: str) -> str:
    """Return the newest result of a job on both systems, in one line."""
    return ", ".join(f"{name} {results[job, name][-1].iops:,.0f} IOPS" for name in SYSTEMS)


def table(results: Measured) -> Table:
    """Return a table of both systems' medians, with their ratio."""
    shown = Table(title="daxfs beside fuse2fs: medians of this run, psync, direct=1, queue depth 1")
    shown.add_column("job", no_wrap=True)
    for name in SYSTEMS:
        for column in ("IOPS", "MB/s", "mean us", "p99 us"):
            shown.add_column(f"{name}\n{column}", justify="right", no_wrap=True)
    shown.add_column("IOPS\nratio", justify="right", no_wrap=True)
    for job in JOBS:
        cells, medians = [], []
        for name in SYSTEMS:
            runs = results[job.name, name]
            medians.append(statistics.median(run.iops for run in runs))
            cells += [
                f"{medians[-1]:,.0f}",
                f"{statistics.median(run.megabytes for run in runs):,.0f}",
                f"{statistics.median(run.mean_us for run in runs):,.1f}",
                f"{statistics.median(run.p99_us for run in runs):,.1f}",
            ]
        shown.add_row(job.name, *cells, f"{medians[0] / medians[1]:.2f}")
    return shown


def main() -> int:
    """Run the demo; return 0 if everything worked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="length of each timed job")
    parser.add_argument("--rounds", type=int, default=3, help="how often each job runs; medians are shown")
    parser.add_argument("--place", default="/dev/shm", help="the directory for the pools")
    options = parser.parse_args()
    console = rig.console()
    lacking = missing()
    if lacking:
        for line in lacking:
            console.print(f"[red]missing:[/red] {line}")
        console.print("nothing can be mounted here; this is the pool as a library:")
        with rig.workplace(options.place) as base:
            without_mount(base, console)
        return UNAVAILABLE
    if os.getuid():
        console.print("not root: mounting through fusermount3, for this user only")
    try:
        with rig.workplace(options.place) as base:
            results = measure(base, console, options.rounds, options.seconds)
    except subprocess.CalledProcessError as error:
        console.print(f"[red]failed:[/red] {' '.join(map(str, error.cmd))}\n{error.stdout or ''}{error.stderr or ''}")
        return 1
    console.print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
