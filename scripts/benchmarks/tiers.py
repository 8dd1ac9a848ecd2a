"""A pool over memory and storage, against one in memory only and against the storage alone.

Section ``tiers``. Storage is a file beside the pool: its latency is emulated (`slow_storage.py`), the same for daxfs
and for a program that reads the storage alone. Four figures:

- a hot set in memory: 4 KiB random reads and writes of a file in memory, and of half a file whose other half lies on
  storage, in turn with a pool without storage;
- capacity: ten times the memory is written and read back;
- 4 KiB reads of five times the memory, by one reader: Zipf's distribution (0.99) over pieces of 2 MiB, uniform in a
  piece. If a share h of the reads need no storage, and these take no time, daxfs is 1/(1 - h) times as fast as the
  storage alone;
- a storage that does not answer for some seconds: how long stat(2) of a file in memory takes meanwhile.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import random
import statistics
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import rig
from benchmarks import disturbances
from benchmarks.fairness import AT_FDCWD, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, STATX_BYTES
from benchmarks.report import Ratio, Report, Samples
from benchmarks.slow_storage import delayed
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.pmem.storage import CONTENT, Storage

MIB = 1 << 20
BLOCK = 4096
MEMORY, QUICK_MEMORY = 256 * MIB, 128 * MIB
CAPACITY, DATA = 10, 5
"""How many times the memory is written, for the capacity and for the reads."""
PIECE = 2 * MIB
EXPONENT = 0.99
OPERATIONS = 10_000
LATENCIES_US = (200, 1000)
"""Emulated: a disk of flash, and a slow one or one across a network. The goal is for the second: with the first a
request to the daemon takes a good part of what the storage does."""
GOAL_US = 1000
WARM_SECONDS, ZIPF_SECONDS, STALL_SECONDS = 60.0, 15.0, 10.0
STALL_PAUSE = 0.001
LEAST_HOT, LEAST_ZIPF, MOST_STALLED_MS = 0.95, 0.7, 10.0
HOT = "64m"
TIERED, UNTIERED = "with storage", "without"


def tiers(base: Path, report: Report) -> None:
    """Measure the four figures."""
    quick = report.scale.rounds == 1
    hot_set(base, report)
    memory = QUICK_MEMORY if quick else MEMORY
    rows = []
    with made(base, memory, (CAPACITY + 1) * memory) as pool:
        rows.append(("written and read back, times the memory", capacity(base, pool, memory, report)))
        report.say(f"e2fsck -fn by daxfs check: {check(pool)}")
    report.table("capacity", ("what", "times"), rows)
    zipf(base, report, memory, quick=quick)
    stall(base, report, quick=quick)


@contextmanager
def made(base: Path, memory: int, storage: int) -> Iterator[Path]:
    """Make a pool with storage for the body, and remove both files."""
    pool, slow = base / "tiered.pool", base / "tiered.slow"
    tier = f"{slow}:{storage + CONTENT}"
    rig.run(rig.tool("daxfs"), "mkfs", pool, "--size", str(memory), "--tier", tier, "-N", "4096", "-J", "size=8")
    try:
        yield pool
    finally:
        pool.unlink()
        slow.unlink()


def check(pool: Path) -> str:
    """Return the last line of e2fsck about both members."""
    return rig.run(rig.tool("daxfs"), "check", pool, "-fn").stdout.strip().splitlines()[-1]


def hot_set(base: Path, report: Report) -> None:
    """Compare a hot set in memory with the same in a pool without storage."""
    plain, points = base / "plain.pool", rig.mountpoints(base, (TIERED, UNTIERED))
    rig.run(rig.tool("daxfs"), "mkfs", plain, "--size", "512M")
    with made(base, 512 * MIB, 1024 * MIB) as pool:
        lay_out(pool)
        lay_out(plain)
        library(pool, plain, report)
        rates = Samples("operations/s")
        with rig.daxfs(pool, points[0]), rig.daxfs(plain, points[1]):
            for _ in range(report.scale.rounds):
                for mode, what in itertools.product(("randread", "randwrite"), ("hot", "half")):
                    job = rig.Job(f"{what} {mode}", mode, "4k", HOT if what == "hot" else "32m")
                    for name, point in zip((TIERED, UNTIERED), points, strict=True):
                        found = rig.fio(job, point / what, report.scale.seconds)
                        row = f"4 KiB {mode[:4]}om {mode[4:]}, {'a file in memory' if what == 'hot' else 'half a file'}"
                        rates.add(row, name, found.iops)
        report.compare("a hot set in memory", rates, (Ratio(TIERED, UNTIERED, dict.fromkeys(rates.rows, LEAST_HOT)),))
    plain.unlink()


def library(pool: Path, plain: Path, report: Report) -> None:
    """Compare the processor time of the core, as a library: other processes disturb that least."""
    spent = Samples("us of processor time for each operation")
    places, content = [random.Random(3).randrange(8192) * BLOCK for _ in range(OPERATIONS)], bytes(BLOCK)
    with FileSystem.open(pool) as tiered, FileSystem.open(plain) as untiered:
        for _, (name, fs), what in itertools.product(
            range(3 * report.scale.rounds), ((TIERED, tiered), (UNTIERED, untiered)), ("hot", "half")
        ):
            file = fs.open_file(fs.tree.resolve(f"/{what}/fio.dat"), os.O_RDWR)
            row = "a file in memory" if what == "hot" else "half a file"
            begin = time.thread_time()
            for place in places:
                fs.read(file, place, BLOCK)
            middle = time.thread_time()
            for place in places:
                fs.write(file, place, content)
            end = time.thread_time()
            spent.add(f"4 KiB random read, {row}", name, 1e6 * (middle - begin) / OPERATIONS)
            spent.add(f"4 KiB random write, {row}", name, 1e6 * (end - middle) / OPERATIONS)
            fs.release(file)
    report.compare("a hot set in memory, as a library", spent, (Ratio(UNTIERED, TIERED, {}),))


def lay_out(pool: Path) -> None:
    """Make a file in memory, and one of which the second half lies on storage if there is some."""
    content = os.urandom(64 * MIB)
    with FileSystem.open(pool) as fs:
        for name in ("hot", "half"):
            fs.tree.mkdir(f"/{name}")
            fs.tree.write_bytes(f"/{name}/fio.dat", content)
        if fs.storages:
            directory = fs.lookup(ROOT_INO, b"half").ino
            fs.demote(fs.lookup(directory, b"fio.dat").ino, 32 * MIB)


def capacity(base: Path, pool: Path, memory: int, report: Report) -> str:
    """Write ten times the memory, and read it back; return how many times the memory that was."""
    (point,) = rig.mountpoints(base, ("capacity",))
    chance, sums = random.Random(4), []
    with rig.daxfs(pool, point):
        for number in range(CAPACITY * memory // (16 * MIB)):
            content = chance.randbytes(16 * MIB)
            (point / f"{number}").write_bytes(content)
            sums.append(zlib.crc32(content))
        right = sum(zlib.crc32((point / f"{number}").read_bytes()) == wanted for number, wanted in enumerate(sums))
    return report.bound("capacity, times the memory", right * 16 * MIB / memory, least=CAPACITY)


@contextmanager
def served(base: Path, pool: Path, name: str, microseconds: int) -> Iterator[tuple[Path, Path]]:
    """Mount a pool whose storage is slow for the body; yield the mountpoint, and the gate that stops the storage."""
    (point,) = rig.mountpoints(base, (name,))
    gate = base / f"{name}.gate"
    script = Path(__file__).with_name("slow_storage.py")
    command = (sys.executable, script, pool, point, str(microseconds), gate)
    with rig.served(point, *command):
        try:
            yield point, gate
        finally:
            gate.unlink(missing_ok=True)


def shown(point: Path) -> dict[str, Any]:
    """Return what ``daxfs tier`` shows."""
    found: dict[str, Any] = json.loads(rig.run(rig.tool("daxfs"), "tier", point, "--json").stdout)
    return found


class Stream:
    """Places of 4 KiB reads: Zipf's distribution over the pieces, whose order is random, and uniform in a piece."""

    def __init__(self, size: int) -> None:
        self._chance = random.Random(99)
        self._pieces = list(range(size // PIECE))
        self._chance.shuffle(self._pieces)
        weights = (1 / (rank + 1) ** EXPONENT for rank in range(len(self._pieces)))
        self._weights = list(itertools.accumulate(weights))

    def take(self, count: int) -> list[int]:
        """Return the next offsets."""
        pieces = self._chance.choices(self._pieces, cum_weights=self._weights, k=count)
        return [piece * PIECE + self._chance.randrange(PIECE // BLOCK) * BLOCK for piece in pieces]


def rate(read: Callable[[int], None], stream: Stream, seconds: float) -> tuple[float, float]:
    """Read for some seconds; return reads a second, and the median time of one in microseconds."""
    taken: list[float] = []
    begin = now = time.perf_counter()
    while now < begin + seconds:
        for offset in stream.take(100):
            before = time.perf_counter()
            read(offset)
            now = time.perf_counter()
            taken.append(now - before)
    return len(taken) / sum(taken), 1e6 * statistics.median(taken)


def zipf(base: Path, report: Report, memory: int, *, quick: bool) -> None:
    """Read five times the memory by Zipf's distribution, through daxfs and from the storage alone."""
    size = DATA * memory
    rows = []
    for microseconds in LATENCIES_US:
        with made(base, memory, (DATA + 1) * memory) as pool:
            with served(base, pool, f"zipf{microseconds}", microseconds) as (point, _):
                stream = Stream(size)
                found, hits = through_daxfs(point, size, stream, quick=quick)
            alone, latency = storage_alone(base / "tiered.slow", stream, microseconds, seconds(quick=quick))
        most = 1 / (1 - hits)
        least = LEAST_ZIPF if microseconds == GOAL_US and not quick else None
        share = report.bound(f"Zipf, {microseconds} us, of 1/(1 - hit ratio)", found / alone / most, least=least)
        row = (f"{microseconds} us emulated", f"{latency:.0f}", f"{hits:.3f}", f"{alone:,.0f}", f"{found:,.0f}")
        rows.append((*row, f"{found / alone:.2f}", f"{most:.2f}", share))
    columns = ("storage", "us for a read", "hit ratio", "alone/s", "daxfs/s", "times", "1/(1 - hit ratio)", "of that")
    report.table(f"4 KiB reads of {DATA} times the memory ({memory // MIB} MiB)", columns, rows)


def through_daxfs(point: Path, size: int, stream: Stream, *, quick: bool) -> tuple[float, float]:
    """Write the data, and read it until what is hot lies in memory; return reads a second then, and the hit ratio."""
    with (point / "data").open("wb", buffering=0) as file:
        for _ in range(size // PIECE):
            file.write(os.urandom(PIECE))
    descriptor = os.open(point / "data", os.O_RDONLY)
    try:
        read = partial(read_block, descriptor)
        rate(read, stream, 2.0 if quick else WARM_SECONDS)
        before = shown(point)
        found, _ = rate(read, stream, seconds(quick=quick))
        after = shown(point)
    finally:
        os.close(descriptor)
    return found, (after["hits"] - before["hits"]) / (after["reads"] - before["reads"])


def read_block(descriptor: int, offset: int) -> None:
    """Read a block of a file."""
    os.pread(descriptor, BLOCK, offset)


def seconds(*, quick: bool) -> float:
    """Return how long reads are measured."""
    return 2.0 if quick else ZIPF_SECONDS


def storage_alone(path: Path, stream: Stream, microseconds: int, length: float) -> tuple[float, float]:
    """Read from the storage without daxfs, with the same latency; as `rate`."""
    storage = Storage(str(path), read_only=True)
    read = delayed(storage.read, microseconds / 1e6)

    def read_alone(offset: int) -> None:
        read(offset, BLOCK)

    try:
        return rate(read_alone, stream, length)
    finally:
        storage.close()


def stall(base: Path, report: Report, *, quick: bool) -> None:
    """Measure stat(2) of a file in memory while the storage does not answer."""
    with made(base, 256 * MIB, 512 * MIB) as pool:
        with FileSystem.open(pool) as fs:
            fs.tree.write_bytes("/cold", os.urandom(16 * MIB))
            fs.tree.write_bytes("/warm", os.urandom(MIB))
            fs.demote(fs.lookup(ROOT_INO, b"cold").ino)
        with served(base, pool, "stalled", 0) as (point, gate):
            rows = [("storage answers", *times(point, seconds(quick=True)))]
            gate.touch()
            reader = threading.Thread(target=(point / "cold").read_bytes)
            reader.start()
            rows.append(("it does not", *times(point, seconds(quick=True) if quick else STALL_SECONDS)))
            waited = reader.is_alive()
            gate.unlink()
            reader.join()
        if not waited:
            raise RuntimeError("the reader of the file on storage has not waited")
    p99 = report.bound("p99 of stat while the storage stalls, ms", float(rows[1][2]), most=MOST_STALLED_MS)
    rows[1] = (*rows[1][:2], p99, rows[1][3])
    columns = ("", "p50 ms", "p99 ms", "max ms")
    report.table("stat of a file in memory, while another is read from storage", columns, rows)


def times(point: Path, length: float) -> tuple[str, str, str]:
    """Call statx(2), which asks the daemon each time; return the median, the 99th percentile and the most, in ms."""
    path, status = os.fsencode(point / "warm"), ctypes.create_string_buffer(STATX_BYTES)
    taken: list[float] = []
    end = time.perf_counter() + length
    while (before := time.perf_counter()) < end:
        if disturbances.libc.statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, status):
            raise OSError(ctypes.get_errno(), "statx")
        taken.append(1e3 * (time.perf_counter() - before))
        time.sleep(STALL_PAUSE)
    taken.sort()
    return f"{statistics.median(taken):.3f}", f"{taken[len(taken) * 99 // 100]:.3f}", f"{taken[-1]:.3f}"
