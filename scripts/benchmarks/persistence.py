"""What durability costs: cache lines written back and fences for each operation, and the time of the instructions.

The counts come from a pool in memory that counts. They hold on any machine; the times are those of this machine's
processor on ordinary memory. Emulated persistent memory has no clwb, and its clock can't be trusted.
"""

from __future__ import annotations

import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks import systems
from benchmarks.report import Report
from daxfs import FileSystem
from daxfs.fs.ranges import KEEP_SIZE
from daxfs.fs.types import ROOT_INO
from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.persist import Operations, volatile

LINE = 64
BLOCK = 4096
TIMES = 100


class Count(NamedTuple):
    """Cache lines whose write-back was started, and fences."""

    lines: int
    fences: int


class CountingPool(MemoryPool):
    """A pool in memory that counts what would be written back on persistent memory."""

    lines = 0
    fences = 0

    def take(self) -> Count:
        """Return the counts since the last call."""
        taken = Count(self.lines, self.fences)
        self.lines = self.fences = 0
        return taken

    def _operations(self, memory: memoryview) -> Operations:
        plain = volatile(memory)

        def count(offset: int, length: int) -> None:
            if length:
                self.lines += (offset + length - 1) // LINE - offset // LINE + 1

        def write(offset: int, data: bytes | bytearray | memoryview) -> None:
            plain.write(offset, data)
            count(offset, len(data))

        def zero(offset: int, length: int) -> None:
            plain.zero(offset, length)
            count(offset, length)

        def store_word(offset: int, value: int, size: int = 4) -> None:
            plain.store_word(offset, value, size)
            count(offset, size)

        def fence() -> None:
            self.fences += 1

        return Operations("counting", write, zero, store_word, count, fence, plain.retire, plain.follow_size)


def persistence(base: Path, report: Report) -> None:
    """Count write-backs and fences by operation, then time the instructions."""
    counts(base, report)
    instructions(report)
    msync(base, report)


def counts(base: Path, report: Report) -> None:
    """Count, by operation, what is written back until the operation is durable: the median of many of each."""
    system = systems.make(base, "daxfs", "1G")
    pool = CountingPool(Path(system.pool).read_bytes())
    rows = []
    with FileSystem.open(pool) as fs:
        file, _ = fs.create(ROOT_INO, b"file", 0o644, os.O_RDWR)
        fs.fallocate(file, 0, 0, TIMES * BLOCK)
        for number in range(TIMES):
            fs.write(file, number * BLOCK, bytes(BLOCK))
        appended, _ = fs.create(ROOT_INO, b"appended", 0o644, os.O_RDWR)
        roomy, _ = fs.create(ROOT_INO, b"roomy", 0o644, os.O_RDWR)
        fs.fallocate(roomy, KEEP_SIZE, 0, TIMES * BLOCK)
        fs.fsync(ROOT_INO)
        block = bytes(range(256)) * (BLOCK // 256)
        operations: dict[str, tuple[Callable[[int], object], Callable[[], object]]] = {
            "overwrite 4 KiB, fdatasync": (
                lambda number: fs.write(file, number * BLOCK, block),
                lambda: fs.fsync(file.ino, datasync=True),
            ),
            "overwrite 4 KiB, fsync": (
                lambda number: fs.write(file, number * BLOCK, block),
                lambda: fs.fsync(file.ino),
            ),
            "append 4 KiB, fsync": (
                lambda number: fs.write(appended, number * BLOCK, block),
                lambda: fs.fsync(appended.ino),
            ),
            "append 4 KiB in preallocated blocks, fsync": (
                lambda number: fs.write(roomy, number * BLOCK, block),
                lambda: fs.fsync(roomy.ino),
            ),
            "create, fsync": (
                lambda number: fs.mknod(ROOT_INO, b"new-%d" % number, 0o644),
                lambda: fs.fsync(ROOT_INO),
            ),
            "unlink, fsync": (
                lambda number: fs.unlink(ROOT_INO, b"new-%d" % number),
                lambda: fs.fsync(ROOT_INO),
            ),
            "nothing, fsync": (lambda number: number, lambda: fs.fsync(file.ino)),
        }
        for name, (change, sync) in operations.items():
            changed, synced = [], []
            for number in range(TIMES):
                pool.take()
                change(number)
                changed.append(pool.take())
                sync()
                synced.append(pool.take())
            rows.append((name, *middle(changed), *middle(synced)))
        for opened in (file, appended, roomy):
            fs.release(opened)
    report.table(
        "written back until an operation is durable",
        ("operation", "lines", "fences", "lines of sync", "fences of sync"),
        rows,
    )


def middle(counted: list[Count]) -> list[str]:
    """Return the median of both counts as text."""
    return [f"{statistics.median(part):.0f}" for part in zip(*counted, strict=True)]


TIME_FLUSHES = """
import ctypes, mmap, statistics, sys, time
library = ctypes.PyDLL("libpmem.so.1")
flush, drain = library.pmem_flush, library.pmem_drain
flush.argtypes, flush.restype = [ctypes.c_void_p, ctypes.c_size_t], None
drain.argtypes, drain.restype = [], None
size = 64 << 20
memory = mmap.mmap(-1, size)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
length = int(sys.argv[1])
line = bytes(range(1, 65))
def measure(write_back):
    taken = []
    for at in range(0, size - length, max(length, 4096) * 16):
        for place in range(at, at + length, 64):
            memory[place:place + 64] = line
        begin = time.perf_counter_ns()
        if write_back:
            flush(address + at, length)
        drain()
        taken.append(time.perf_counter_ns() - begin)
    return statistics.median(taken)
measure(True)
print(measure(True) - measure(False))
"""


def instructions(report: Report) -> None:
    """Time the write-back of dirty lines and the fence after it, by the instruction that libpmem is told to use."""
    ways = {
        "clwb": {},
        "clflushopt": {"PMEM_NO_CLWB": "1"},
        "clflush": {"PMEM_NO_CLWB": "1", "PMEM_NO_CLFLUSHOPT": "1"},
    }
    rows = []
    for name, setting in ways.items():
        taken = []
        for length in (LINE, BLOCK):
            done = subprocess.run(
                [sys.executable, "-c", TIME_FLUSHES, str(length)],
                env={**os.environ, "PMEM_IS_PMEM_FORCE": "1", **setting},
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
            )
            taken.append(f"{float(done.stdout):,.0f}")
        rows.append((name, *taken))
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii")
    missing = [name for name in ("clwb", "clflushopt") if f" {name}" not in flags]
    report.table(
        "writing dirty lines of ordinary memory back, then a fence", ("instruction", "ns a line", "ns for 4 KiB"), rows
    )
    if missing:
        report.say(f"this processor lacks {' and '.join(missing)}: libpmem takes the next instruction instead")


def msync(base: Path, report: Report) -> None:
    """Time msync(2) of one dirty page: on the tmpfs of the pools, and on the file system of the temporary files."""
    rows = []
    for place in (str(base), tempfile.gettempdir()):
        with tempfile.NamedTemporaryFile(dir=place) as file:
            file.truncate(TIMES * BLOCK)
            os.posix_fallocate(file.fileno(), 0, TIMES * BLOCK)
            with mmap.mmap(file.fileno(), TIMES * BLOCK) as mapping:
                taken = []
                for number in range(TIMES):
                    mapping[number * BLOCK] = 1
                    begin = time.perf_counter_ns()
                    mapping.flush(number * BLOCK, BLOCK)
                    taken.append(time.perf_counter_ns() - begin)
        kind = subprocess.run(["stat", "-f", "-c", "%T", place], capture_output=True, text=True, check=True).stdout
        rows.append((kind.strip(), f"{statistics.median(taken) / 1000:,.1f}"))
    report.table("msync of one dirty page", ("file system", "us"), rows)
