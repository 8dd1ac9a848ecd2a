"""Helpers of the demo and the benchmarks: pools, mounts of daxfs and its peers, fio runs.

Every command that touches a mount has a time limit, and a mount is unmounted in any case.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

BIN = Path(sys.executable).parent
FIO_LIMIT = 120
MIN_WIDTH = 120
SYSTEM_PATHS = "/usr/sbin:/sbin"


def console() -> Console:
    """Return a console that is wide enough for the tables, also without a terminal."""
    made = Console(highlight=False, soft_wrap=True, log_path=False)
    return (
        made if made.width >= MIN_WIDTH else Console(highlight=False, soft_wrap=True, log_path=False, width=MIN_WIDTH)
    )


class Missing(Exception):
    """A needed tool is not installed; the text names it and how to install it."""


def tool(name: str) -> str:
    """Return the path of a program.

    Raises:
        Missing: it is not installed.
    """
    found = shutil.which(name, path=f"{BIN}:{os.environ.get('PATH', '')}:{SYSTEM_PATHS}")
    if found is None:
        raise Missing(f"{name} is not installed (make setup installs it as root)")
    return found


def run(*command: str | Path, limit: float = 60, quiet: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command with a time limit in seconds; return its output, or raise CalledProcessError with it."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=quiet,
        text=True,
        timeout=limit,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return done


@contextlib.contextmanager
def daxfs(pool: Path, mountpoint: Path, *options: str) -> Iterator[Path]:
    """Mount ``pool`` by daxfs for the body."""
    extra = ["-o", ",".join(options)] if options else []
    run(tool("daxfs"), "mount", pool, mountpoint, *extra)
    try:
        yield mountpoint
    finally:
        try:
            run(tool("daxfs"), "umount", mountpoint)
        except subprocess.SubprocessError:
            detach(mountpoint)
            raise


@contextlib.contextmanager
def fuse2fs(pool: Path, mountpoint: Path, *options: str) -> Iterator[Path]:
    """Mount ``pool`` by fuse2fs, daxfs's peer, for the body."""
    with served(mountpoint, tool("fuse2fs"), "-f", "-o", ",".join(("rw", *options)), pool, mountpoint):
        yield mountpoint


@contextlib.contextmanager
def kernel_ext4(pool: Path, mountpoint: Path) -> Iterator[Path]:
    """Mount ``pool`` by the kernel's ext4 on a loop device for the body; as root."""
    run(tool("mount"), "-t", "ext4", "-o", "loop", pool, mountpoint)
    try:
        yield mountpoint
    finally:
        try:
            run(tool("umount"), mountpoint)
        except subprocess.SubprocessError:
            detach(mountpoint)
            raise


@contextlib.contextmanager
def null_server(mountpoint: Path) -> Iterator[Path]:
    """Mount the null server for the body: one file ``fio.dat`` of 256 MiB, with the least work in Python."""
    with served(mountpoint, sys.executable, Path(__file__).with_name("null_server.py"), mountpoint):
        yield mountpoint


@contextlib.contextmanager
def served(mountpoint: Path, *command: str | Path) -> Iterator[None]:
    """Mount for the body by a server that runs in the foreground until it is unmounted."""
    log = mountpoint.with_suffix(".log").open("w")
    server = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        wait_mounted(mountpoint, server)
        yield
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            run(tool("fusermount3"), "-u", mountpoint, limit=20)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            detach(mountpoint)
        log.close()


def wait_mounted(mountpoint: Path, server: subprocess.Popen[bytes]) -> None:
    """Wait until the mountpoint is a mount.

    Raises:
        RuntimeError: its server ended before, or 10 s have passed.
    """
    for _ in range(200):
        if any(line.split()[1] == str(mountpoint) for line in Path("/proc/mounts").read_text().splitlines()):
            return
        if server.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"{server.args!r} did not mount {mountpoint}")


def detach(mountpoint: Path) -> None:
    """Unmount lazily, after an ordinary unmount has failed."""
    subprocess.run(["umount", "-l", str(mountpoint)], capture_output=True, timeout=20, check=False)


def make_peer_pool(path: Path, size: str) -> None:
    """Make an ext4 image for fuse2fs by mke2fs's own defaults; its root directory belongs to this user."""
    run("truncate", "-s", size, path)
    run(tool("mke2fs"), "-q", "-F", "-t", "ext4", "-E", f"root_owner={os.getuid()}:{os.getgid()}", path)


def check(pool: Path) -> str:
    """Run ``e2fsck -fn`` and return its last line; raise CalledProcessError if the pool is not clean."""
    return run(tool("e2fsck"), "-fn", pool).stdout.strip().splitlines()[-1]


@dataclass(frozen=True)
class Job:
    """One fio job. ``size`` and ``block`` are in fio's notation; ``verify`` names a checksum or is empty.

    ``processes`` processes run it at once: on one file, ``fio.dat``, or with ``apart`` on ``fio.dat.0``,
    ``fio.dat.1``, ... ``engine`` is fio's, with O_DIRECT if it is not mmap; ``options`` are further options of fio.
    """

    name: str
    mode: str
    block: str
    size: str = "256m"
    verify: str = ""
    processes: int = 1
    apart: bool = False
    engine: str = "psync"
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """A result of fio: operations and megabytes per second; latencies in microseconds, and by percentile."""

    iops: float
    megabytes: float
    mean_us: float
    p99_us: float
    percentiles: tuple[tuple[float, float], ...]


def fio(job: Job, directory: Path, seconds: float, below: Sequence[str] = ()) -> Result:
    """Run one job and return its result, summed over its processes.

    Args:
        job: the job.
        directory: that contains its files.
        seconds: how long to run; a job that verifies writes its file once instead.
        below: a command that runs fio, with its arguments.

    Raises:
        RuntimeError: fio reported an error; CalledProcessError: it failed, also in a verify error.
    """
    place = [f"--filename={directory / 'fio.dat'}"]
    if job.apart:
        place = [f"--directory={directory}", "--filename_format=fio.dat.$jobnum"]
    command = [
        *below,
        tool("fio"),
        f"--name={job.name.replace(' ', '-')}",
        *place,
        f"--numjobs={job.processes}",
        "--group_reporting",
        f"--rw={job.mode}",
        f"--bs={job.block}",
        f"--size={job.size}",
        f"--direct={int(job.engine != 'mmap')}",
        f"--ioengine={job.engine}",
        "--fallocate=none",
        "--output-format=json",
        *job.options,
    ]
    command += (
        [f"--verify={job.verify}", "--do_verify=1", "--verify_state_save=0"]
        if job.verify
        else [f"--runtime={round(1000 * seconds)}ms", "--time_based"]  # fio truncates a fraction of a second
    )
    output = run(*command, limit=FIO_LIMIT).stdout
    measured = json.loads(output[output.index("{") :])["jobs"][0]
    if measured["error"]:
        raise RuntimeError(f"fio {job.name}: error {measured['error']}")
    side = measured["read" if "read" in job.mode else "write"]
    latency = side["clat_ns"]
    percentiles = tuple((float(part), value / 1000) for part, value in latency.get("percentile", {}).items())
    p99 = dict(percentiles).get(99.0, 0.0)
    return Result(side["iops"], side["bw_bytes"] / 1e6, latency["mean"] / 1000, p99, percentiles)


def lay_out(directory: Path, size: str, processes: int = 1) -> None:
    """Write the file that the jobs use; for several processes also their separate files."""
    fio(Job("layout", "write", "1m", size, verify="crc32c"), directory, 0)
    if processes > 1:
        fio(Job("layout", "write", "1m", size, "crc32c", processes, apart=True), directory, 0)


@contextlib.contextmanager
def workplace(place: str = "/dev/shm") -> Iterator[Path]:
    """Make a directory for pools and mountpoints; after the body nothing is mounted there, and it is removed.

    SIGTERM and SIGHUP end the body as SystemExit does, so that it unmounts what it has mounted.
    """
    base = Path(place) / f"daxfs-{os.getpid()}"
    base.mkdir()
    with ended_by_signals():
        try:
            yield base
        finally:
            for mountpoint in mounted_below(base):
                detach(mountpoint)
            shutil.rmtree(base, ignore_errors=True)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have the first SIGTERM or SIGHUP raise SystemExit in the body, and further ones do nothing."""
    owner = os.getpid()
    ending = False

    def end(number: int, _frame: object) -> None:
        nonlocal ending
        if os.getpid() != owner:
            os._exit(128 + number)  # a fork of this process has nothing to clean up
        if not ending:
            ending = True
            raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def mounted_below(base: Path) -> list[Path]:
    """Return the mountpoints in a directory, those inside others first."""
    points = [Path(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines()]
    return [point for point in reversed(points) if base in point.parents]


def mountpoints(base: Path, names: Sequence[str]) -> list[Path]:
    """Make empty directories to mount on."""
    made = [base / name for name in names]
    for path in made:
        path.mkdir()
    return made
