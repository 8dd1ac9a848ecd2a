"""Compare the CPU time of single requests in two checkouts, in turn: ``paired.py OTHER [REQUEST ...]``.

Each checkout serves messages of the kernel in a process of its own, without a mount: what is measured is everything
between readv(2) and writev(2). The processes take turns of some milliseconds, so that both meet the same machine. Each
ratio is the median over the rounds of the other checkout's time divided by this one's: above 1 this one is faster.

A worker (``--worker``) reads a request's name from each line of its input and prints the nanoseconds of process CPU
time that one such request took. It uses only what checkouts of the last years have in common.
"""

from __future__ import annotations

import argparse
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
MEMORY = Path("/dev/shm")
POOL_SIZE = "256M"
BUFFER = 2 << 20
BLOCK = 4096
FILE_BLOCKS = 1024
COUNT = 200
"""Requests of one sample."""
WARMING = 10
"""Samples before the first round: Python adapts code to its use when it has run some times."""
ROUNDS = 40
COLD_BYTES = 4 << 20
"""What is copied before each request to displace everything from the processor's own caches, with ``--cold``."""
HEADER = struct.Struct("<IIQQIIIHH")
OPEN = os.O_RDWR


class Served:
    """A file system and the messages that its session would get."""

    def __init__(self, pool: Path, *, cold: bool = False) -> None:
        from daxfs.fs.filesystem import FileSystem
        from daxfs.fuse.kernel import dispatch
        from daxfs.fuse.kernel.abi import Opcode
        from daxfs.fuse.kernel.connection import Connection
        from daxfs.fuse.kernel.request import Request
        from daxfs.fuse.mountoptions import MountOptions

        self.cold = cold
        self.here, self.there = bytearray(COLD_BYTES if cold else 0), bytes(COLD_BYTES if cold else 0)
        self.core = FileSystem.open(pool)
        self.connection = Connection(self.core, dispatch.TABLE, lambda *_: None, MountOptions())
        self.buffer = bytearray(BUFFER)
        self.request = Request(memoryview(self.buffer), self.core.pins)
        self.answer, self.op = dispatch.answer, Opcode
        self.spent = 0
        offered = struct.pack("<IIIII44x", 7, 45, 1 << 17, 0xFFFFFFFF, 0xFFFFFFFF)
        self.ask(Opcode.INIT, 0, offered)

    def message(self, opcode: int, node: int, body: bytes = b"") -> bytes:
        """Return a message of the superuser."""
        return HEADER.pack(HEADER.size + len(body), opcode, 2, node, 0, 0, os.getpid(), 0, 0) + body

    def ask(self, opcode: int, node: int, body: bytes = b"") -> bytes:
        """Answer one message, and add its CPU time to `spent`; return the body of the answer."""
        message = self.message(opcode, node, body)
        self.buffer[: len(message)] = message
        begin = time.thread_time_ns()
        reply: Any = self.answer(self.connection, self.request, len(message), self.connection.table)
        self.spent += time.thread_time_ns() - begin
        answer = b"".join(bytes(part) for part in reply)
        error = struct.unpack_from("<i", answer, 4)[0]
        if error:
            raise OSError(-error, f"{opcode!r}: {os.strerror(-error)}")
        return answer[16:]

    def timed(self, messages: list[bytes]) -> float:
        """Answer the messages; return the CPU time for each, in nanoseconds, without the slowest tenth."""
        buffer, request, connection, answer = self.buffer, self.request, self.connection, self.answer
        table = connection.table
        spent = []
        for message in messages:
            length = len(message)
            if self.cold:
                self.here[:] = self.there
            buffer[:length] = message
            begin = time.thread_time_ns()
            answer(connection, request, length, table)
            spent.append(time.thread_time_ns() - begin)
        return without_slowest(spent)

    def timed_together(self, groups: list[list[bytes]]) -> float:
        """Answer each group of messages, and process the forgets in it; return the CPU time for each group."""
        buffer, request, connection, answer = self.buffer, self.request, self.connection, self.answer
        table = connection.table
        spent = []
        for group in groups:
            begin = time.thread_time_ns()
            for message in group:
                length = len(message)
                buffer[:length] = message
                answer(connection, request, length, table)
            if connection.forgets:
                connection.process_forgets()
            spent.append(time.thread_time_ns() - begin)
        return without_slowest(spent)


def without_slowest(spent: list[int]) -> float:
    """Return the mean without the slowest tenth."""
    spent.sort()
    kept = spent[: max(len(spent) * 9 // 10, 1)]
    return sum(kept) / len(kept)


class Requests:
    """The requests, each a method that prepares ``COUNT`` messages, answers them, and puts the pool in order again."""

    def __init__(self, served: Served) -> None:
        self.served = served
        op, ask = served.op, served.ask
        self.serial = 0
        self.ask, self.op = ask, op
        self.folder = self.node_in(ask(op.MKDIR, 1, struct.pack("<II", 0o755, 0) + b"d\0"))
        self.nodes = [self.made(b"f%04d" % number)[0] for number in range(COUNT)]
        self.renamed = 0
        self.node, self.fh = self.made(b"file")
        self.ask(op.WRITE, self.node, self.write(0, bytes(BLOCK * 16)))
        for block in range(16, FILE_BLOCKS, 16):
            self.ask(op.WRITE, self.node, self.write(block, bytes(BLOCK * 16)))

    def node_in(self, entry: bytes) -> int:
        """Return the node of a fuse_entry_out."""
        node: int = struct.unpack_from("<Q", entry)[0]
        return node

    def made(self, name: bytes) -> tuple[int, int]:
        """Create and open a file; return its node and its handle."""
        answer = self.ask(self.op.CREATE, self.folder, struct.pack("<IIII", OPEN, 0o100644, 0, 0) + name + b"\0")
        fh: int = struct.unpack_from("<Q", answer, 128)[0]
        return self.node_in(answer), fh

    def write(self, block: int, data: bytes, fh: int | None = None) -> bytes:
        """Return the body of a WRITE."""
        handle = self.fh if fh is None else fh
        return struct.pack("<QQIIQII", handle, block * BLOCK, len(data), 0, 0, OPEN, 0) + data

    def each(self, opcode: int, node: int, bodies: list[bytes]) -> float:
        """Time one message for each body."""
        return self.served.timed([self.served.message(opcode, node, body) for body in bodies])

    def fresh(self) -> tuple[int, int, bytes]:
        """Create a file for one sample; return its node, handle and name."""
        self.serial += 1
        name = b"n%d" % self.serial
        return *self.made(name), name

    def drop(self, node: int, fh: int, name: bytes) -> None:
        """Close and remove a file, and commit."""
        self.ask(self.op.RELEASE, node, struct.pack("<QIIQ", fh, 0, 0, 0))
        self.ask(self.op.UNLINK, self.folder, name + b"\0")
        self.served.connection.forget(node, 1)
        self.served.connection.process_forgets()
        self.served.core.sync()

    # The requests

    def getattr(self) -> float:
        """stat(2) of an open file whose times wait."""
        return self.each(self.op.GETATTR, self.node, [struct.pack("<IIQ", 0, 0, 0)] * COUNT)

    def lookup(self) -> float:
        """stat(2) of a path that the kernel does not remember."""
        names = [b"f%04d\0" % number for number in range(COUNT)]
        return self.each(self.op.LOOKUP, self.folder, names)

    def listing(self) -> float:
        """One READDIRPLUS of a page."""
        return self.each(self.op.READDIRPLUS, self.folder, [struct.pack("<QQIIQII", 0, 0, BLOCK, 0, 0, 0, 0)] * COUNT)

    def create(self) -> float:
        """open(2) with O_CREAT."""
        names = [b"c%d" % number for number in range(COUNT)]
        head = struct.pack("<IIII", OPEN, 0o100644, 0, 0)
        spent = self.each(self.op.CREATE, self.folder, [head + name + b"\0" for name in names])
        for name in names:
            self.ask(self.op.UNLINK, self.folder, name + b"\0")
        connection = self.served.connection
        for handle in [handle for handle in connection.files if handle != self.fh][-COUNT:]:
            connection.closed(handle)
        self.served.core.sync()
        return spent

    def read(self) -> float:
        """pread(2) of 4 KiB."""
        places = [(number * 37) % FILE_BLOCKS * BLOCK for number in range(COUNT)]
        bodies = [struct.pack("<QQIIQII", self.fh, place, BLOCK, 0, 0, OPEN, 0) for place in places]
        return self.each(self.op.READ, self.node, bodies)

    def overwrite(self) -> float:
        """pwrite(2) of 4 KiB over blocks that exist."""
        data = bytes(BLOCK)
        return self.each(
            self.op.WRITE, self.node, [self.write(number * 37 % FILE_BLOCKS, data) for number in range(COUNT)]
        )

    def append(self) -> float:
        """Extending writes of 4 KiB."""
        node, fh, name = self.fresh()
        data = bytes(BLOCK)
        spent = self.each(self.op.WRITE, node, [self.write(number, data, fh) for number in range(COUNT)])
        self.drop(node, fh, name)
        return spent

    def ioctl(self, fh: int, command: int, argument: bytes, size: int) -> bytes:
        """Return the body of an IOCTL whose answer has ``size`` bytes."""
        return struct.pack("<QIIQII", fh, 0, command, 0, len(argument), size) + argument

    def appended(self) -> float:
        """DAXFS_IOC_APPENDED, made durable: what a client's append and fsync(2) of 4 KiB take together."""
        from daxfs import protocol

        node, fh, name = self.fresh()
        found = protocol.Pool.unpack(self.ask(self.op.IOCTL, node, self.ioctl(fh, protocol.IOC_POOL, b"", 1024))[16:])
        with Path(os.fsdecode(found.path)).open("rb") as pool:
            pool.seek(found.token)
            token = pool.read(16)
        flags = protocol.Flag.WRITE | protocol.Flag.FILL | protocol.Flag.EXTEND
        lease = protocol.Lease(7, 0, 2 * COUNT * BLOCK, flags, token=token).pack(protocol.LEASE_SIZE)
        self.ask(self.op.IOCTL, node, self.ioctl(fh, protocol.IOC_LEASE, lease, len(lease)))
        bodies = [
            protocol.APPENDED.pack(number * BLOCK, (number + 1) * BLOCK, 7, protocol.DURABLE, 0)
            for number in range(COUNT)
        ]
        spent = self.each(
            self.op.IOCTL, node, [self.ioctl(fh, protocol.IOC_APPENDED, body, len(body)) for body in bodies]
        )
        self.drop(node, fh, name)
        return spent

    def hole(self) -> float:
        """Writes of 4 KiB into holes."""
        node, fh, name = self.fresh()
        self.resize(node, 4 * COUNT * BLOCK)
        data = bytes(BLOCK)
        spent = self.each(self.op.WRITE, node, [self.write(4 * number, data, fh) for number in range(COUNT)])
        self.drop(node, fh, name)
        return spent

    def fallocate(self) -> float:
        """fallocate(2) of 64 KiB."""
        node, fh, name = self.fresh()
        bodies = [struct.pack("<QQQII", fh, number << 17, 1 << 16, 0, 0) for number in range(COUNT)]
        spent = self.each(self.op.FALLOCATE, node, bodies)
        self.drop(node, fh, name)
        return spent

    def resize(self, node: int, size: int) -> bytes:
        """Set a file's size; return the body of the request."""
        body = struct.pack("<IIQQQQQQIIIIIIII", 1 << 3, 0, 0, size, *[0] * 12)
        self.ask(self.op.SETATTR, node, body)
        return body

    def truncate(self) -> float:
        """ftruncate(2) by one block."""
        node, fh, name = self.fresh()
        self.ask(self.op.WRITE, node, self.write(0, bytes(BLOCK * COUNT), fh))
        sizes = [BLOCK * (COUNT - 1 - number) for number in range(COUNT)]
        bodies = [struct.pack("<IIQQQQQQIIIIIIII", 1 << 3, 0, 0, size, *[0] * 12) for size in sizes]
        spent = self.each(self.op.SETATTR, node, bodies)
        self.drop(node, fh, name)
        return spent

    def seek(self) -> float:
        """lseek(2) with SEEK_DATA."""
        return self.each(self.op.LSEEK, self.node, [struct.pack("<QQII", self.fh, 0, os.SEEK_DATA, 0)] * COUNT)

    def fsync(self) -> float:
        """fdatasync(2) after an overwrite: nothing to commit."""
        self.served.core.sync()
        self.ask(self.op.WRITE, self.node, self.write(0, bytes(BLOCK)))
        return self.each(self.op.FSYNC, self.node, [struct.pack("<QII", self.fh, 1, 0)] * COUNT)

    def commit(self) -> float:
        """fsync(2) after an overwrite: the times are to be committed."""
        sync = self.served.message(self.op.FSYNC, self.node, struct.pack("<QII", self.fh, 0, 0))
        spent = 0.0
        for _ in range(COUNT // 4):
            self.ask(self.op.WRITE, self.node, self.write(0, bytes(BLOCK)))
            spent += self.served.timed([sync])
        return spent / (COUNT // 4)

    # What the kernel sends for one system call, or for two

    def directory_checked(self) -> bytes:
        """Return the GETATTR that follows each change of a directory, for the kernel's check of permissions."""
        return self.served.message(self.op.GETATTR, self.folder, struct.pack("<IIQ", 0, 0, 0))

    def creation(self) -> float:
        """open(2) with O_CREAT and close(2)."""
        message, op, folder = self.served.message, self.op, self.folder
        head = struct.pack("<IIII", OPEN, 0o100644, 0, 0)
        first, fh, first_name = self.fresh()
        names = [b"c%d" % number for number in range(COUNT)]
        groups = [
            [
                self.directory_checked(),
                message(op.LOOKUP, folder, name + b"\0"),
                message(op.CREATE, folder, head + name + b"\0"),
                message(op.RELEASE, 0, struct.pack("<QIIQ", fh + 1 + number, 0, 0, 0)),
            ]
            for number, name in enumerate(names)
        ]
        spent = self.served.timed_together(groups)
        for name in names:
            node = self.node_in(self.ask(op.LOOKUP, folder, name + b"\0"))
            self.ask(op.UNLINK, folder, name + b"\0")
            self.served.connection.forget(node, 2)
        self.drop(first, fh, first_name)
        return spent

    def removal(self) -> float:
        """unlink(2) of a file that the kernel remembers."""
        message, op, folder = self.served.message, self.op, self.folder
        names = [b"r%d" % number for number in range(COUNT)]
        groups = []
        for name in names:
            node, fh = self.made(name)
            self.ask(op.RELEASE, node, struct.pack("<QIIQ", fh, 0, 0, 0))
            unlink, forget = message(op.UNLINK, folder, name + b"\0"), message(op.FORGET, node, struct.pack("<Q", 1))
            groups.append([self.directory_checked(), unlink, forget])
        spent = self.served.timed_together(groups)
        self.served.core.sync()
        return spent

    def renaming(self) -> float:
        """rename(2) within a directory."""
        message, op, folder = self.served.message, self.op, self.folder
        before, self.renamed = self.renamed, self.renamed + 1
        groups = []
        for number in range(COUNT):
            old, new = (b"m%04d-%d\0" % (number, times) for times in (before, self.renamed))
            if not before:
                self.made(old[:-1])
            lookup = message(op.LOOKUP, folder, new)
            rename = message(op.RENAME, folder, struct.pack("<Q", folder) + old + new)
            groups.append([self.directory_checked(), lookup, rename])
        spent = self.served.timed_together(groups)
        self.served.core.sync()
        return spent

    def durable(self) -> float:
        """write(2) of 4 KiB past EOF and fsync(2)."""
        node, fh, name = self.fresh()
        data = bytes(BLOCK)
        sync = self.served.message(self.op.FSYNC, node, struct.pack("<QII", fh, 0, 0))
        groups = [
            [self.served.message(self.op.WRITE, node, self.write(number, data, fh)), sync] for number in range(COUNT)
        ]
        spent = self.served.timed_together(groups)
        self.drop(node, fh, name)
        return spent

    def whole(self) -> float:
        """A cold listing of the directory in pages of 64 KiB, without attributes."""
        folder, op = self.folder, self.op
        self.served.core.volume.forget_content()
        self.served.spent = cookie = 0
        while page := self.ask(op.READDIR, folder, struct.pack("<QQIIQII", 0, cookie, 16 * BLOCK, 0, 0, 0, 0)):
            at = 0
            while at < len(page):
                _, cookie, length, _ = struct.unpack_from("<QQII", page, at)
                at += 24 + (length + 7 & ~7)
        return self.served.spent


NAMES = (
    "getattr", "lookup", "listing", "create", "read", "overwrite", "append", "appended", "hole", "fallocate",
    "truncate", "seek", "fsync", "commit", "creation", "removal", "renaming", "durable", "whole",
)  # fmt: skip


def work(pool: Path, *, cold: bool) -> None:
    """Measure what each line asks for, until the input ends."""
    requests = Requests(Served(pool, cold=cold))
    for line in sys.stdin:
        measure: Callable[[], float] = getattr(requests, line.strip())
        print(measure(), flush=True)


class Worker:
    """A process that measures requests in one checkout."""

    def __init__(self, checkout: Path, folder: Path, *options: str) -> None:
        python = checkout / ".venv/bin/python"
        pool = folder / f"{checkout.name}.pool"
        making = [python.with_name("daxfs"), "mkfs", pool, "--size", POOL_SIZE]
        subprocess.run(making, check=True, capture_output=True)
        # One processor for both, since processors differ in what else they do.
        command = ["taskset", "-c", "0", python, HERE, "--worker", pool, *options]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin
        assert process.stdout
        self.process, self.input, self.output = process, process.stdin, process.stdout

    def measure(self, name: str) -> float:
        """Return the nanoseconds of one request."""
        print(name, file=self.input, flush=True)
        return float(self.output.readline())

    def end(self) -> None:
        """End the process."""
        self.input.close()
        self.process.wait()


def compare(other: Path, names: list[str], rounds: int, *options: str) -> None:
    """Measure all requests in both checkouts, and print a table."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        place = Path(folder)
        for part in ("other", "this"):
            (place / part).mkdir()
        workers = [Worker(other, place / "other", *options), Worker(HERE.parents[1], place / "this", *options)]
        try:
            print(f"{'request':<12}{'other us':>10}{'this us':>10}{'ratio':>8}{'quartiles':>16}")
            for name in names:
                for _ in range(WARMING):
                    for worker in workers:
                        worker.measure(name)
                samples: list[list[float]] = [[], []]
                for number in range(rounds):
                    for which in (0, 1) if number % 2 else (1, 0):
                        samples[which].append(workers[which].measure(name))
                ratios = [before / after for before, after in zip(*samples, strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                times = [statistics.median(found) / 1000 for found in samples]
                print(f"{name:<12}{times[0]:>10.2f}{times[1]:>10.2f}{middle:>8.3f}{low:>9.3f}{high:>7.3f}", flush=True)
        finally:
            for worker in workers:
                worker.end()


def main() -> None:
    """Compare, or work."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("other", type=Path, help="the other checkout, with its .venv")
    parser.add_argument("requests", nargs="*", metavar="REQUEST", help=", ".join(NAMES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--cold", action="store_true", help="as after a pause: other data fills the caches before each")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.other, cold=given.cold)
    else:
        options = ["--cold"] if given.cold else []
        compare(given.other.resolve(), given.requests or list(NAMES), given.rounds, *options)


if __name__ == "__main__":
    main()
