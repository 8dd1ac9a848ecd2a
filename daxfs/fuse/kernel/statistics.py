"""Count and time requests by opcode, while somebody asks for statistics.

The handlers of a connection are a table. Counting replaces them by handlers that time the plain ones, so statistics
cost nothing while nobody asks, not even a comparison. The first query begins the counting; it ends `KEEP_SECONDS` after
the last query. With the mount option ``stats`` it begins with the mount and does not end.

The time of a request is its handler's time, from the request in the buffer to the body of the answer. It excludes the
system calls around the handler, with the kernel's copies of data that is read or written.

A query is an ioctl on the root directory (`STATISTICS`) and returns JSON. A restricted ioctl carries less than 16 KiB,
so a longer text is fetched in pieces, each with the number of the snapshot that it belongs to.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from struct import Struct
from typing import TYPE_CHECKING, Any

from daxfs.errors import FsError
from daxfs.fuse.kernel import abi
from daxfs.fuse.kernel.abi import WITHOUT_ANSWER, Opcode
from daxfs.fuse.kernel.processes import CLASSES, Processes, trimmed

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Connection, Handler
    from daxfs.fuse.kernel.request import Request
    from daxfs.fuse.kernel.work import Answer, Work

KEEP_SECONDS = 300
BILLION = 10**9

PIECE = 8192
STATISTICS = 0xC000DA01 | PIECE << 16
"""_IOWR(0xda, 1, char[PIECE])."""
QUESTION = Struct("=I4xQ")  # snapshot offset; a query of offset 0 makes a new snapshot
PIECE_HEADER = Struct("=I4xQ")  # snapshot length; the text from the offset on follows, as much as fits
ROOM = PIECE - PIECE_HEADER.size

_clock = time.perf_counter_ns
_cpu_clock = time.process_time


class Counter:
    """The totals of one opcode's requests; times in nanoseconds. ``longest_by``: the process of the longest."""

    __slots__ = ("bytes", "errors", "histogram", "longest", "longest_by", "nanoseconds")

    def __init__(self) -> None:
        self.bytes = self.errors = self.longest = self.longest_by = self.nanoseconds = 0
        self.histogram = [0] * CLASSES

    def as_json(self) -> dict[str, Any]:
        """Return the values for JSON; the histogram ends with the last class that is not empty."""
        histogram = trimmed(self.histogram)
        return {
            "count": sum(histogram),
            "errors": self.errors,
            "bytes": self.bytes,
            "nanoseconds": self.nanoseconds,
            "longest": self.longest,
            "longest_by": self.longest_by,
            "histogram": histogram,
        }


def bytes_written(body: Answer) -> int:
    """Return the bytes that a WRITE or COPY_FILE_RANGE has written, from its answer."""
    (size,) = abi.WRITE_OUT.unpack(body or bytes(abi.WRITE_OUT.size))
    return int(size)


def bytes_copied(body: Answer) -> int:
    """Return the bytes that a COPY_FILE_RANGE_64 has copied, from its answer."""
    (size,) = abi.COPY_FILE_RANGE_OUT.unpack(body or bytes(abi.COPY_FILE_RANGE_OUT.size))
    return int(size)


def bytes_read(body: Answer) -> int:
    """Return the bytes that a READ has read, from its answer."""
    return len(body or b"")


TRANSFERRED: dict[int, Callable[[Answer], int]] = {
    Opcode.READ: bytes_read,
    Opcode.WRITE: bytes_written,
    Opcode.COPY_FILE_RANGE: bytes_written,
    Opcode.COPY_FILE_RANGE_64: bytes_copied,
}
"""For each opcode that transfers data of files: the function that returns the bytes from an answer's body."""


class Counting:
    """The counters of one connection. Counting begins with the object; a postponed request (ENOSPC) counts twice.

    Attributes:
        lasting: counting does not end.
        deadline: when it ends.
        spun: seconds that the session has spent on waiting for a request without sleeping.
    """

    def __init__(self, connection: Connection, *, lasting: bool = False) -> None:
        """Begin to count; if ``lasting``, for as long as the connection lives."""
        self.lasting = lasting
        self.deadline: float = math.inf
        self.spun = 0.0
        self._connection = connection
        self._plain = dict(connection.table)
        self._counters = {opcode: Counter() for opcode in self._plain}
        self._processes = Processes()
        self._began = _clock()
        self._cpu_began = _cpu_clock()
        self._since = time.time()
        self._snapshot = 0
        self._text = b""
        self.keep()
        connection.counting = self
        connection.table.update({opcode: self._timed(opcode, handler) for opcode, handler in self._plain.items()})

    def keep(self) -> None:
        """Postpone the end of counting to `KEEP_SECONDS` from now."""
        if not self.lasting:
            self.deadline = _clock() + KEEP_SECONDS * BILLION

    def stop(self) -> None:
        """Put the plain handlers back into the table; called when no query has come for `KEEP_SECONDS`."""
        if self._connection.counting is self:
            self._connection.counting = None
            self._connection.table.update(self._plain)

    def _timed(self, opcode: int, handler: Handler) -> Handler:
        counter, transferred = self._counters[opcode], TRANSFERRED.get(opcode)
        histogram, clock, process = counter.histogram, _clock, self._processes.count

        ended = 0 if opcode in WITHOUT_ANSWER else 1

        def timed(connection: Connection, request: Request) -> Answer:
            pid = request.pid  # the handler may replace the message
            begin = clock()
            counts = 1
            moved = 0
            try:
                body = handler(connection, request)
                if transferred is not None:
                    moved = transferred(body)
                    counter.bytes += moved
                if body is None:
                    counts -= ended  # `work_ended` counts it
                return body
            except FsError:
                counter.errors += 1
                raise
            finally:
                end = clock()
                if counts:
                    taken = end - begin
                    histogram[taken.bit_length()] += 1
                    counter.nanoseconds += taken
                    if taken > counter.longest:
                        counter.longest, counter.longest_by = taken, pid
                    process(pid, opcode, taken, moved)
                if end > self.deadline:
                    self.stop()

        return timed

    def work_ended(self, work: Work, body: Answer) -> None:
        """Count a request that has taken several steps; None: it has failed."""
        counter, transferred = self._counters[work.opcode], TRANSFERRED.get(work.opcode)
        taken = int(work.seconds * BILLION)
        counter.histogram[taken.bit_length()] += 1
        counter.nanoseconds += taken
        moved = transferred(body) if transferred is not None else 0
        pid = abi.IN_HEADER.read(work.message, 0).pid
        if taken > counter.longest:
            counter.longest, counter.longest_by = taken, pid
        self._processes.count(pid, work.opcode, taken, moved)
        counter.errors += body is None
        counter.bytes += moved

    def piece(self, snapshot: int, offset: int, *, fresh: bool) -> bytes:
        """Return a piece of a snapshot; ESTALE if another query has made a new snapshot since."""
        if not offset:
            self._snapshot = self._snapshot + 1 & 0xFFFFFFFF
            self._text = json.dumps(self._as_json(fresh), separators=(",", ":")).encode()
        elif snapshot != self._snapshot:
            raise FsError(errno.ESTALE)
        return PIECE_HEADER.pack(self._snapshot, len(self._text)) + self._text[offset : offset + ROOM]

    def _as_json(self, fresh: bool) -> dict[str, Any]:
        core = self._connection.core
        files = core.statistics()
        return {
            "since": self._since,
            "seconds": (_clock() - self._began) / BILLION,
            "lasting": self.lasting,
            "fresh": fresh,
            "session": {"spun": self.spun, "cpu": _cpu_clock() - self._cpu_began},
            "operations": {
                Opcode(opcode).name: counter.as_json()
                for opcode, counter in sorted(self._counters.items())
                if any(counter.histogram)
            },
            "files": {
                **{name: value for name, value in files._asdict().items() if name not in {"holding", "journal", "bad"}},
                **self._connection.scheduler.counts(),
                "refused_opens": self._connection.open_limit.refused,
            },
            "processes": {pid: process.as_json() for pid, process in self._processes.items()},
            "holding": [each._asdict() for each in files.holding],
            "journal": asdict(files.journal) if files.journal is not None else None,
            "bad": files.bad,
            "tiers": core.tier_use()._asdict() if core.storages else None,
        }


def query(connection: Connection, request: Request, given: memoryview) -> bytes:
    """Answer the ioctl `STATISTICS`.

    A process that can open the root directory may query; only one of root or the daemon's user starts or prolongs the
    counting.

    Raises:
        FsError: ENOTTY, not the root directory; EINVAL, a short argument; EPERM, the caller may not start the counting;
            ESTALE, the snapshot is no longer the newest one.
    """
    if request.node != abi.ROOT_ID:
        raise FsError(errno.ENOTTY)
    if len(given) < QUESTION.size:
        raise FsError(errno.EINVAL, "the argument is cut short")
    snapshot, offset = QUESTION.unpack_from(given)
    may_count = request.uid in (0, os.geteuid())
    counting = connection.counting
    fresh = counting is None
    if counting is None:
        if not may_count:
            raise FsError(errno.EPERM, "only root and the daemon's user start the counting")
        if offset:
            raise FsError(errno.ESTALE)
        counting = Counting(connection)
    elif may_count:
        counting.keep()
    return counting.piece(snapshot, offset, fresh=fresh)
