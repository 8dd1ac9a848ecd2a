"""Counting requests: the counters, the begin and the end of counting, permissions, and the pieces of the answer."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from daxfs.errors import FsError
from daxfs.fs.types import Deferral, Statistics
from daxfs.fuse.kernel import abi, dispatch, ioctls, statistics
from daxfs.fuse.kernel.abi import Opcode
from daxfs.fuse.kernel.processes import MOST_PROCESSES, Processes
from daxfs.fuse.kernel.statistics import KEEP_SECONDS, PIECE, PIECE_HEADER, QUESTION, ROOM, Counting

STRANGER = os.geteuid() + 1000
SENT: Any = SimpleNamespace(pid=77)
"""A request of process 77."""


class Clock:
    """A clock in nanoseconds that the test advances."""

    def __init__(self) -> None:
        self.now = 10**12

    def __call__(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 10**9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(statistics, "_clock", made)
    monkeypatch.setattr(statistics, "_cpu_clock", lambda: 5.0)
    return made


def connection_with(table: dict[int, Callable[..., Any]]) -> Any:
    """Return the part of a connection that the module uses."""
    counts = Statistics(1, 2, 3, 4, 5, 6, 7, 8192, 2, 4096, 16384, (Deferral(7, 8, 9, 6),), None, ())
    core = SimpleNamespace(statistics=lambda: counts, storages=())
    return SimpleNamespace(
        core=core,
        table=table,
        counting=None,
        scheduler=SimpleNamespace(counts=lambda: {"w": 1}),
        open_limit=SimpleNamespace(refused=2),
    )


def test_the_busiest_processes_are_kept() -> None:
    found = Processes()
    for pid in range(MOST_PROCESSES):
        found.count(pid, Opcode.READ, 100 - (pid == 30), 0)
    found.count(1000, Opcode.WRITE, 1, 20)
    found.count(1000, Opcode.READ, 0, 3)
    assert len(found) == MOST_PROCESSES
    assert 30 not in found
    assert found[1000].as_json() == {
        "count": 2, "bytes": 23, "nanoseconds": 1, "longest": 1, "longest_is": "WRITE", "histogram": [1, 1]
    }  # fmt: skip


def query(connection: Any, snapshot: int = 0, offset: int = 0, *, uid: int = 0, node: int = abi.ROOT_ID) -> bytes:
    request: Any = SimpleNamespace(uid=uid, node=node)
    return statistics.query(connection, request, memoryview(QUESTION.pack(snapshot, offset).ljust(PIECE, b"\0")))


def whole_answer(connection: Any) -> dict[str, Any]:
    """Query statistics that fit into one piece."""
    answer = query(connection)
    _, length = PIECE_HEADER.unpack_from(answer)
    text = answer[PIECE_HEADER.size :]
    assert len(text) == length
    found: dict[str, Any] = json.loads(text)
    return found


def test_requests_are_counted_and_timed(clock: Clock) -> None:
    def read(_connection: object, request: Any) -> bytes:
        clock.sleep(request.seconds)
        return bytes(request.size)

    def write(*_: object) -> bytes:
        return abi.WRITE_OUT.pack(100)

    def forget(*_: object) -> None:
        return None

    connection = connection_with({Opcode.READ: read, Opcode.WRITE: write, Opcode.FORGET: forget, Opcode.MKDIR: forget})
    Counting(connection)
    for seconds, size in ((1e-6, 10), (1023e-9, 20), (1024e-9, 0), (1e-3, 5)):
        body = connection.table[Opcode.READ](connection, SimpleNamespace(seconds=seconds, size=size, pid=5))
        assert body == bytes(size)
    assert connection.table[Opcode.WRITE](connection, SENT) == abi.WRITE_OUT.pack(100)
    assert connection.table[Opcode.FORGET](connection, SENT) is None
    clock.sleep(1)
    found = whole_answer(connection)
    assert found["seconds"] == pytest.approx(1.001003047)
    assert not found["fresh"]
    assert found["operations"].keys() == {"READ", "WRITE", "FORGET"}
    read_histogram = found["operations"]["READ"].pop("histogram")
    assert {n: number for n, number in enumerate(read_histogram) if number} == {10: 2, 11: 1, 20: 1}
    assert found["operations"]["READ"] == {
        "count": 4, "errors": 0, "bytes": 35, "nanoseconds": 1_003_047, "longest": 1_000_000, "longest_by": 5
    }  # fmt: skip
    assert found["operations"]["WRITE"]["bytes"] == 100
    assert found["operations"]["FORGET"]["histogram"] == [1]
    assert found["files"] == {
        "open_files": 1,
        "remembered": 2,
        "lazy_times": 3,
        "nameless": 4,
        "leases": 5,
        "deferred": 6,
        "memory_errors": 7,
        "bad_bytes": 8192,
        "snapshots": 2,
        "snapshot_copied": 4096,
        "snapshot_mapped": 16384,
        "w": 1,
        "refused_opens": 2,
    }
    assert found["holding"] == [{"ino": 7, "uid": 8, "pid": 9, "size": 6}]
    assert found["journal"] is None
    assert found["processes"] == {
        "5": {
            "count": 4,
            "bytes": 35,
            "nanoseconds": 1_003_047,
            "longest": 1_000_000,
            "longest_is": "READ",
            "histogram": read_histogram,
        },
        "77": {"count": 2, "bytes": 100, "nanoseconds": 0, "longest": 0, "longest_is": "FORGET", "histogram": [2]},
    }
    assert found["session"] == {"spun": 0.0, "cpu": 0.0}


@pytest.mark.parametrize("error", [FsError(errno.ENOSPC), RuntimeError("unknown")])
def test_exceptions_pass(clock: Clock, error: Exception) -> None:
    def refuse(*_: object) -> None:
        clock.sleep(1e-6)
        raise error

    connection = connection_with({Opcode.MKDIR: refuse})
    Counting(connection)
    with pytest.raises(type(error)) as caught:
        connection.table[Opcode.MKDIR](connection, SENT)
    assert caught.value is error
    found = whole_answer(connection)["operations"]["MKDIR"]
    assert (found["count"], found["nanoseconds"]) == (1, 1000)
    assert found["errors"] == isinstance(error, FsError)


@pytest.mark.parametrize(
    ("opcode", "body", "size"),
    [
        (Opcode.READ, memoryview(bytes(70_000)), 70_000),
        (Opcode.READ, b"", 0),
        (Opcode.WRITE, abi.WRITE_OUT.pack(12), 12),
        (Opcode.COPY_FILE_RANGE, abi.WRITE_OUT.pack(13), 13),
        (Opcode.COPY_FILE_RANGE_64, abi.COPY_FILE_RANGE_OUT.pack(1 << 40), 1 << 40),
        (Opcode.READDIR, bytes(50), 0),
    ],
)
def test_bytes_of_files(opcode: Opcode, body: bytes | memoryview, size: int) -> None:
    connection = connection_with({opcode: lambda *_: body})
    Counting(connection)
    assert connection.table[opcode](connection, SENT) is body
    assert whole_answer(connection)["operations"][opcode.name]["bytes"] == size


def test_every_handler_is_timed_or_none() -> None:
    plain = dispatch.TABLE
    connection = connection_with(dict(plain))
    Counting(connection)
    assert connection.table.keys() == plain.keys()
    assert not set(connection.table.values()) & set(plain.values())
    connection.counting.stop()
    assert connection.table == plain
    assert connection.counting is None


def test_counting_ends_when_nobody_asks(clock: Clock) -> None:
    connection = connection_with({Opcode.READ: lambda *_: b"12345"})
    plain = dict(connection.table)
    assert whole_answer(connection)["fresh"]
    for _ in range(3):
        clock.sleep(KEEP_SECONDS - 1)
        timed = connection.table[Opcode.READ]
        timed(connection, SENT)
        assert connection.table != plain
        assert not whole_answer(connection)["fresh"]
    clock.sleep(KEEP_SECONDS + 1)
    assert timed(connection, SENT) == b"12345"
    assert connection.table == plain
    assert connection.counting is None
    assert whole_answer(connection)["operations"] == {}
    again, table = connection.counting, dict(connection.table)
    timed(connection, SENT)  # a call of an old timing handler does not end the new counting
    assert connection.counting is again
    assert connection.table == table


def test_lasting_counting_does_not_end(clock: Clock) -> None:
    connection = connection_with({Opcode.READ: lambda *_: b"12345"})
    Counting(connection, lasting=True)
    clock.sleep(100 * KEEP_SECONDS)
    connection.table[Opcode.READ](connection, SENT)
    found = whole_answer(connection)
    clock.sleep(100 * KEEP_SECONDS)
    connection.table[Opcode.READ](connection, SENT)
    assert found["lasting"]
    assert whole_answer(connection)["operations"]["READ"]["count"] == 2


def test_who_may_begin(clock: Clock) -> None:
    connection = connection_with({Opcode.READ: lambda *_: b""})
    plain = dict(connection.table)
    with pytest.raises(FsError) as caught:
        query(connection, uid=STRANGER)
    assert caught.value.errno == errno.EPERM
    assert connection.table == plain
    query(connection, uid=os.geteuid())
    assert connection.counting
    clock.sleep(KEEP_SECONDS - 1)
    assert PIECE_HEADER.unpack_from(query(connection, uid=STRANGER))[1]
    clock.sleep(2)
    connection.table[Opcode.READ](connection, SENT)
    assert connection.counting is None, "a stranger's question keeps it going"


def test_only_the_root_directory_answers() -> None:
    with pytest.raises(FsError) as caught:
        query(connection_with({}), node=12)
    assert caught.value.errno == errno.ENOTTY


def test_a_question_cut_short() -> None:
    request: Any = SimpleNamespace(uid=0, node=abi.ROOT_ID)
    with pytest.raises(FsError) as caught:
        statistics.query(connection_with({}), request, memoryview(bytes(QUESTION.size - 1)))
    assert caught.value.errno == errno.EINVAL


def test_a_long_answer_comes_in_pieces_of_one_snapshot(clock: Clock) -> None:
    connection = connection_with({opcode: lambda *_: None for opcode in Opcode if opcode not in statistics.TRANSFERRED})
    Counting(connection)
    for handler in connection.table.values():
        clock.sleep(1e-3)
        handler(connection, SENT)
    for counter in connection.counting._counters.values():
        counter.histogram[:60] = [1 << 60] * 60
    first = query(connection)
    assert len(first) == PIECE
    snapshot, length = PIECE_HEADER.unpack_from(first)
    text = first[PIECE_HEADER.size :]
    while len(text) < length:
        clock.sleep(1)  # the text of the snapshot does not change
        piece = query(connection, snapshot, len(text))
        assert PIECE_HEADER.unpack_from(piece) == (snapshot, length)
        text += piece[PIECE_HEADER.size :]
    assert length > 3 * ROOM
    assert len(json.loads(text)["operations"]) == len(connection.table)
    query(connection)
    with pytest.raises(FsError) as caught:
        query(connection, snapshot, ROOM)
    assert caught.value.errno == errno.ESTALE
    assert query(connection, snapshot + 1, length + 5) == PIECE_HEADER.pack(snapshot + 1, length)


def test_a_piece_of_a_counting_that_has_ended() -> None:
    with pytest.raises(FsError) as caught:
        query(connection_with({}), 1, ROOM)
    assert caught.value.errno == errno.ESTALE


def test_the_command_is_a_restricted_ioctl() -> None:
    assert ioctls.COMMANDS[statistics.STATISTICS] is statistics.query
    direction, size = statistics.STATISTICS >> 30, statistics.STATISTICS >> 16 & 0x3FFF
    assert (direction, size) == (3, PIECE)
