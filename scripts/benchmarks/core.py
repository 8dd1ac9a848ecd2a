"""What compiling the core brings: the same operations as a library, compiled and with ``DAXFS_PURE=1``, in turn.

Section ``core``. Each side is a process of its own with a pool of its own (``python -m benchmarks.core POOL``): it
reads an operation's name from each line of its input, and prints the nanoseconds of CPU that one such operation took.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import systems
from benchmarks.report import Ratio, Report, Samples
from daxfs import compiled
from daxfs.fs.filesystem import ROOT_INO, FileSystem

COMPILED, INTERPRETED = "compiled", "interpreted"
COUNT = 500
BLOCK = 4096
READS = 5000
WARMING = 3
"""Samples before the first round: Python adapts code to its use when it has run some times."""
LEAST = {"create": 1.3, "rename": 1.2, "unlink": 1.3, "lookup": 1.1, "read 4 KiB": 1.3}
"""What an operation must be faster, compiled."""


class Worker:
    """One side: a file system, and the operations, each of which leaves it as it was."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        self.directory = fs.mkdir(ROOT_INO, b"names", 0o755).ino
        self.listed = fs.mkdir(ROOT_INO, b"listed", 0o755).ino
        for number in range(COUNT):
            fs.mknod(self.directory, b"there %d" % number, 0o644)
            fs.mknod(self.listed, b"listed %d" % number, 0o644)
        self.file, _ = fs.create(ROOT_INO, b"data", 0o644)
        fs.write(self.file, 0, os.urandom(1 << 20))

    def create(self) -> Iterator[None]:
        """Make files; they are removed afterwards."""
        for number in range(COUNT):
            file, _ = self.fs.create(self.directory, b"new %d" % number, 0o644)
            self.fs.release(file)
        yield
        for number in range(COUNT):
            self.fs.unlink(self.directory, b"new %d" % number)

    def unlink(self) -> Iterator[None]:
        """Remove files, which are made again."""
        for number in range(COUNT):
            self.fs.unlink(self.directory, b"there %d" % number)
        yield
        for number in range(COUNT):
            self.fs.mknod(self.directory, b"there %d" % number, 0o644)

    def rename(self) -> Iterator[None]:
        """Rename files, and back."""
        for number in range(COUNT):
            self.fs.rename(self.directory, b"there %d" % number, self.directory, b"moved %d" % number)
        yield
        for number in range(COUNT):
            self.fs.rename(self.directory, b"moved %d" % number, self.directory, b"there %d" % number)

    def lookup(self) -> Iterator[None]:
        """Look up names."""
        for number in range(COUNT):
            self.fs.lookup(self.directory, b"there %d" % number)
        yield

    def listing(self) -> Iterator[None]:
        """List a directory whose listing is not in DRAM."""
        self.fs.mknod(self.listed, b"one more", 0o644)
        self.fs.unlink(self.listed, b"one more")
        opened = self.fs.opendir(self.listed)
        for _ in self.fs.readdir(opened):
            pass
        yield
        self.fs.releasedir(opened)

    def append(self) -> Iterator[None]:
        """Append blocks, each with an fsync; the file is removed afterwards."""
        file, made = self.fs.create(ROOT_INO, b"appended", 0o644)
        block = bytes(BLOCK)
        for number in range(COUNT):
            self.fs.write(file, number * BLOCK, block)
            self.fs.fsync(made.ino)
        yield
        self.fs.release(file)
        self.fs.unlink(ROOT_INO, b"appended")

    def read(self) -> Iterator[None]:
        """Read blocks of a file."""
        for number in range(READS):
            self.fs.read(self.file, number % 256 * BLOCK, BLOCK)
        yield


OPERATIONS: dict[str, tuple[Callable[[Worker], Iterator[None]], int]] = {
    "create": (Worker.create, COUNT),
    "rename": (Worker.rename, COUNT),
    "unlink": (Worker.unlink, COUNT),
    "append 4 KiB and fsync": (Worker.append, COUNT),
    "lookup": (Worker.lookup, COUNT),
    "a listed name": (Worker.listing, COUNT),
    "read 4 KiB": (Worker.read, READS),
}


def work(pool: str) -> None:
    """Do what each line of standard input names."""
    with FileSystem.open(pool) as fs:
        worker = Worker(fs)
        print(compiled.state(), flush=True)
        for line in sys.stdin:
            operation, count = OPERATIONS[line.strip()]
            begin = time.process_time_ns()
            steps = operation(worker)
            next(steps)
            took = time.process_time_ns() - begin
            for _ in steps:
                pass
            print(took / count, flush=True)


@contextlib.contextmanager
def side(pool: Path, pure: bool) -> Iterator[Callable[[str], float]]:
    """Run one side; yield what measures an operation, in microseconds."""
    environment = {**os.environ, compiled.VARIABLE: "1" if pure else ""}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, "-m", "benchmarks.core", str(pool)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout
        state = answers.readline().strip()
        if (state == compiled.COMPILED) == pure:
            raise RuntimeError(f"the core is {state}: run make compiled")

        def measure(operation: str) -> float:
            requests.write(operation + "\n")
            requests.flush()
            return float(answers.readline()) / 1000

        yield measure
        requests.close()


def core(base: Path, report: Report) -> None:
    """Compare the compiled core with the interpreted one, by CPU time."""
    if compiled.state() != compiled.COMPILED:
        report.not_run(f"core: {compiled.state()}; run make compiled")
        return
    cpu = Samples("us of CPU")
    made = []
    for name in (COMPILED, INTERPRETED):
        (base / name).mkdir()
        made.append(systems.make(base / name, "daxfs", "512M"))
    with side(made[0].pool, False) as native, side(made[1].pool, True) as plain:
        for number in range(WARMING + 3 * report.scale.rounds):
            for operation in OPERATIONS:
                for name, measure in ((COMPILED, native), (INTERPRETED, plain)):
                    took = measure(operation)
                    if number >= WARMING:
                        cpu.add(operation, name, took)
    report.compare("the core as a library", cpu, (Ratio(INTERPRETED, COMPILED, LEAST),))
    for system in made:
        report.say(system.check())


if __name__ == "__main__":
    work(sys.argv[1])
