"""Requests counted and timed by opcode, when somebody wants to know.

The handlers of a connection are a table. Counting puts others into it, which time the plain ones. So what is not asked
for costs nothing, not even a comparison. Counting goes on as long as somebody asks, and ends `KEEP_SECONDS` after the
last question; with the mount option ``stats`` it begins with the mount and does not end.

What is timed is a handler's own time, from the request in the buffer to the body of its answer. The system calls around
it, with the kernel's copy of what was read or is written, are not in it.

The question is an ioctl on the root directory (`STATISTICS`), its answer JSON. A restricted ioctl carries less than
16 KiB, so a longer answer is fetched in pieces, which name the snapshot that they belong to.
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
from daxfs.fuse.kernel.abi import Opcode

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Answer, Connection, Handler
    from daxfs.fuse.kernel.request import Request

KEEP_SECONDS = 300
CLASSES = 64
"""Of durations: class n holds those of less than 2**n ns that are in no class before it."""
BILLION = 10**9

PIECE = 8192
STATISTICS = 0xC000DA01 | PIECE << 16
"""_IOWR(0xda, 1, char[PIECE])."""
QUESTION = Struct("=I4xQ")  # snapshot offset; a question for offset 0 makes a new snapshot
PIECE_HEADER = Struct("=I4xQ")  # snapshot length, then as much of the text from the offset on as there is room for
ROOM = PIECE - PIECE_HEADER.size

_clock = time.perf_counter_ns


class Counter:
    """What one opcode's requests came to; times in nanoseconds."""

    __slots__ = ("bytes", "errors", "histogram", "longest", "nanoseconds")

    def __init__(self) -> None:
        self.bytes = self.errors = self.longest = self.nanoseconds = 0
        self.histogram = [0] * CLASSES

    def as_json(self) -> dict[str, Any]:
        """For JSON; the histogram without the classes after the last that has anything."""
        histogram = self.histogram[: max(n + 1 for n, number in enumerate(self.histogram) if number)]
        return {
            "count": sum(histogram),
            "errors": self.errors,
            "bytes": self.bytes,
            "nanoseconds": self.nanoseconds,
            "longest": self.longest,
            "histogram": histogram,
        }


def bytes_written(body: Answer) -> int:
    """The bytes that a WRITE or COPY_FILE_RANGE has moved."""
    (size,) = abi.WRITE_OUT.unpack(body or bytes(abi.WRITE_OUT.size))
    return int(size)


def bytes_copied(body: Answer) -> int:
    """The same for COPY_FILE_RANGE_64."""
    (size,) = abi.COPY_FILE_RANGE_OUT.unpack(body or bytes(abi.COPY_FILE_RANGE_OUT.size))
    return int(size)


def bytes_read(body: Answer) -> int:
    """The bytes that a READ has delivered."""
    return len(body or b"")


TRANSFERRED: dict[int, Callable[[Answer], int]] = {
    Opcode.READ: bytes_read,
    Opcode.WRITE: bytes_written,
    Opcode.COPY_FILE_RANGE: bytes_written,
    Opcode.COPY_FILE_RANGE_64: bytes_copied,
}
"""How many bytes of files a request has moved, for those that do."""


class Counting:
    """One connection's counters, from the moment they are made. A request that runs twice (ENOSPC) counts twice."""

    def __init__(self, connection: Connection, *, lasting: bool = False) -> None:
        """Begin to count; ``lasting``: for as long as the connection lives."""
        self.lasting = lasting
        self.deadline: float = math.inf
        self._connection = connection
        self._plain = dict(connection.table)
        self._counters = {opcode: Counter() for opcode in self._plain}
        self._began = _clock()
        self._since = time.time()
        self._snapshot = 0
        self._text = b""
        self.keep()
        connection.counting = self
        connection.table.update({opcode: self._timed(opcode, handler) for opcode, handler in self._plain.items()})

    def keep(self) -> None:
        """Somebody has asked."""
        if not self.lasting:
            self.deadline = _clock() + KEEP_SECONDS * BILLION

    def stop(self) -> None:
        """Put the plain handlers back into the table; called when nobody has asked for `KEEP_SECONDS`."""
        if self._connection.counting is self:
            self._connection.counting = None
            self._connection.table.update(self._plain)

    def _timed(self, opcode: int, handler: Handler) -> Handler:
        counter, transferred = self._counters[opcode], TRANSFERRED.get(opcode)
        histogram, clock = counter.histogram, _clock

        def timed(connection: Connection, request: Request) -> Answer:
            begin = clock()
            try:
                body = handler(connection, request)
                if transferred is not None:
                    counter.bytes += transferred(body)
                return body
            except FsError:
                counter.errors += 1
                raise
            finally:
                end = clock()
                taken = end - begin
                histogram[taken.bit_length()] += 1
                counter.nanoseconds += taken
                if taken > counter.longest:  # noqa: PLR1730 (max() takes three times as long)
                    counter.longest = taken
                if end > self.deadline:
                    self.stop()

        return timed

    def piece(self, snapshot: int, offset: int, *, fresh: bool) -> bytes:
        """A piece of the answer; ESTALE: somebody else has asked since the snapshot was made."""
        if not offset:
            self._snapshot = self._snapshot + 1 & 0xFFFFFFFF
            self._text = json.dumps(self._as_json(fresh), separators=(",", ":")).encode()
        elif snapshot != self._snapshot:
            raise FsError(errno.ESTALE)
        return PIECE_HEADER.pack(self._snapshot, len(self._text)) + self._text[offset : offset + ROOM]

    def _as_json(self, fresh: bool) -> dict[str, Any]:
        files = self._connection.core.statistics()
        return {
            "since": self._since,
            "seconds": (_clock() - self._began) / BILLION,
            "lasting": self.lasting,
            "fresh": fresh,
            "operations": {
                Opcode(opcode).name: counter.as_json()
                for opcode, counter in sorted(self._counters.items())
                if any(counter.histogram)
            },
            "files": {name: value for name, value in files._asdict().items() if name not in {"holding", "journal"}},
            "holding": [each._asdict() for each in files.holding],
            "journal": asdict(files.journal) if files.journal is not None else None,
        }


def query(connection: Connection, request: Request, given: memoryview) -> bytes:
    """The command `STATISTICS`. Whoever may read the root directory may look; root and the daemon's user count."""
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
            raise FsError(errno.EPERM, "only root and the daemon's user begin to count")
        if offset:
            raise FsError(errno.ESTALE)
        counting = Counting(connection)
    elif may_count:
        counting.keep()
    return counting.piece(snapshot, offset, fresh=fresh)
