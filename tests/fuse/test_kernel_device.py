"""The device, the loop that serves it, and the CPU latency request, over a socket that keeps message boundaries."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from fake_core import FakeCore
from message_rig import ALL, ROOT, Rig, check, pack, unpack
from sleep_rig import asleep
from trio.testing import wait_all_tasks_blocked

from daxfs.errors import FsError
from daxfs.fuse.kernel import cpu_latency, dispatch, statistics
from daxfs.fuse.kernel import session as session_module
from daxfs.fuse.kernel.abi import Opcode
from daxfs.fuse.kernel.connection import Connection
from daxfs.fuse.kernel.cpu_latency import CpuLatencyRequest
from daxfs.fuse.kernel.device import Device
from daxfs.fuse.kernel.session import CROWDED, DENSE, SPARSE, SPARSE_SECONDS, TURN_SECONDS, Session
from support import HANG_SECONDS

GETATTR = pack("getattr_in")


class Kernel:
    """The kernel's end of the device, and a session on the other end.

    Attributes:
        device, core, connection, session: of the session.
        wakeful: the calls of the CPU latency request.
        failing: an errno for each of the session's next writes; 0: no error.
        unreadable: an errno for each of the session's next reads; 0: no error.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, spin_seconds: float = 0.0) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        self.device = Device(os.dup(self.theirs.fileno()), 1 << 16, spin_seconds)
        self.core = FakeCore()
        self.connection = Connection(self.core, dispatch.TABLE, self.device.notify)  # type: ignore[arg-type]
        self.wakeful: list[str] = []
        self.session = Session(self.device, self.connection, self)  # type: ignore[arg-type]
        self.failing: list[int] = []
        self.unreadable: list[int] = []
        self.rig = Rig(FakeCore())
        readv, writev = os.readv, os.writev

        def reading(descriptor: int, buffers: Any) -> int:
            if self.unreadable and (number := self.unreadable.pop(0)):
                raise OSError(number, os.strerror(number))
            return readv(descriptor, buffers)

        def writing(descriptor: int, parts: Any) -> int:
            if self.failing and (number := self.failing.pop(0)):
                raise OSError(number, os.strerror(number))
            return writev(descriptor, parts)

        monkeypatch.setattr(session_module, "LINGER_MILLISECONDS", 10)
        monkeypatch.setattr(session_module, "readv", reading)
        monkeypatch.setattr(session_module, "writev", writing)

    def hold(self) -> None:
        self.wakeful.append("hold")

    def release(self) -> None:
        self.wakeful.append("release")

    def finish(self) -> None:
        """Run turns until all requests are answered: on a busy machine one turn may not be enough."""
        while self.session.turn():
            pass

    def ask(self, opcode: int, node: int = ROOT, body: bytes = b"") -> bytes:
        """Queue a request."""
        message = self.rig.message(opcode, node, body)
        self.ours.send(message)
        return message

    def answers(self) -> list[bytes]:
        """Return the answers since the last call."""
        found = []
        while True:
            try:
                found.append(self.ours.recv(1 << 17))
            except BlockingIOError:
                return found

    def init(self) -> None:
        """Send INIT and return its answer."""
        body = pack("init_in", major=7, minor=45, flags=ALL & 0xFFFFFFFF, flags2=ALL >> 32)
        self.ask(Opcode.INIT, 0, body)
        self.finish()
        assert len(self.answers()) == 1
        self.core.calls.clear()

    def close(self) -> None:
        self.device.close()
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made = Kernel(monkeypatch)
    yield made
    made.close()


def names(kernel: Kernel) -> list[str]:
    """Return the names of the core's calls since INIT."""
    return [name for name, _ in kernel.core.calls]


# The device


def test_the_descriptor_does_not_block(kernel: Kernel) -> None:
    assert not os.get_blocking(kernel.device.descriptor)
    assert not kernel.device.poll(0)
    kernel.ask(Opcode.GETATTR)
    assert kernel.device.poll(0)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EINTR, errno.ENOENT])
def test_reads_that_bring_nothing(kernel: Kernel, number: int) -> None:
    kernel.device.not_received(OSError(number, ""))
    assert not kernel.device.ended


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN])
def test_reads_that_tell_of_the_end(kernel: Kernel, number: int) -> None:
    kernel.device.not_received(OSError(number, ""))
    assert kernel.device.ended


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.EBADF, errno.ENOMEM])
def test_other_errors_are_ours(kernel: Kernel, number: int) -> None:
    with pytest.raises(OSError, match="ours"):
        kernel.device.not_received(OSError(number, "ours"))
    with pytest.raises(OSError, match="ours"):
        kernel.device.not_sent(OSError(number, "ours"))


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EINTR, errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN])
def test_answers_that_nobody_wants(kernel: Kernel, number: int) -> None:
    kernel.device.not_sent(OSError(number, ""))


def test_a_notification_to_the_byte(kernel: Kernel) -> None:
    kernel.device.notify(2, b"body of it")
    assert kernel.answers() == [struct.pack("=IiQ", 26, 2, 0) + b"body of it"]


def test_spinning_ends_when_something_comes_and_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, spin_seconds=0.02)
    begin = time.perf_counter()
    assert kernel.device.spin() is False
    assert time.perf_counter() - begin >= 0.02
    kernel.ask(Opcode.GETATTR)
    assert kernel.device.spin() is True
    kernel.close()


# A turn


def test_a_turn_answers_what_is_there_in_order(kernel: Kernel) -> None:
    kernel.init()
    asked = [kernel.ask(Opcode.GETATTR, ROOT, GETATTR) for _ in range(5)]
    asked.append(kernel.ask(Opcode.READLINK, 99))
    assert kernel.session.turn() is False
    found = [check(message, reply) for message, reply in zip(asked, kernel.answers(), strict=True)]
    assert [answer.error for answer in found if answer] == [0] * 5 + [errno.ESTALE]
    assert kernel.session.turn() is False
    assert kernel.answers() == []


def test_what_wants_no_answer_gets_none(kernel: Kernel) -> None:
    kernel.init()
    kernel.ask(Opcode.FORGET, 99, pack("forget_in", nlookup=1))
    kernel.ask(Opcode.INTERRUPT, 0, pack("interrupt_in", unique=4))
    kernel.ours.send(b"short")
    assert kernel.session.turn() is False
    assert kernel.answers() == []


def test_a_turn_ends_in_time_however_many_requests_there_are(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.init()
    clock = [100.0]

    def later() -> float:
        clock[0] += TURN_SECONDS / 24
        return clock[0]

    monkeypatch.setattr(session_module, "perf_counter", later)
    for _ in range(20):
        kernel.ask(Opcode.GETATTR, ROOT, GETATTR)
    assert kernel.session.turn() is True
    first = len(kernel.answers())
    assert 5 <= first <= 10
    while kernel.session.turn():
        pass
    assert first + len(kernel.answers()) == 20


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EINTR, errno.ENOENT])
def test_a_request_that_was_taken_back_before_it_was_read(kernel: Kernel, number: int) -> None:
    kernel.init()
    kernel.unreadable = [number]
    kernel.ask(Opcode.GETATTR, ROOT, GETATTR)
    assert kernel.session.turn() is False
    assert len(kernel.answers()) == 1


def test_a_turn_ends_with_the_device(kernel: Kernel) -> None:
    kernel.unreadable = [errno.ENODEV]
    assert kernel.session.turn() is True
    assert kernel.device.ended


def test_a_failure_of_the_device_is_no_silence(kernel: Kernel) -> None:
    kernel.unreadable = [errno.EIO]
    with pytest.raises(OSError, match="Input/output"):
        kernel.session.turn()


def test_an_unknown_exception_ends_the_session(kernel: Kernel) -> None:
    kernel.init()
    kernel.core.refuse = {"getattr": ZeroDivisionError()}
    kernel.ask(Opcode.GETATTR, ROOT, GETATTR)
    with pytest.raises(ZeroDivisionError):
        kernel.session.turn()


# Forgetting


def test_forgets_wait_for_a_pause(kernel: Kernel) -> None:
    kernel.init()
    kernel.ask(Opcode.MKDIR, ROOT, pack("mkdir_in", mode=0o755) + b"d\0")
    assert kernel.session.turn() is False
    kernel.ask(Opcode.FORGET, 12, pack("forget_in", nlookup=1))
    kernel.ask(Opcode.GETATTR, ROOT, GETATTR)
    kernel.ask(Opcode.GETATTR, ROOT, GETATTR)
    kernel.core.calls.clear()
    assert kernel.session.turn() is False
    assert names(kernel) == ["getattr", "getattr", "unpin"]
    assert kernel.core.pins == {}


def test_a_full_pool_does_not_wait_for_a_pause(kernel: Kernel) -> None:
    kernel.init()
    kernel.core.refuse = {"mkdir": FsError(errno.ENOSPC)}
    kernel.ask(Opcode.FORGET, ROOT, pack("forget_in", nlookup=1))
    kernel.ask(Opcode.MKDIR, ROOT, pack("mkdir_in", mode=0o755) + b"d\0")
    kernel.ask(Opcode.GETATTR, ROOT, GETATTR)
    assert kernel.session.turn() is False
    assert names(kernel) == ["mkdir", "unpin", "mkdir", "getattr"]


MKDIR = pack("mkdir_in", mode=0o755) + b"d\0"


def test_a_full_pool_waits_for_what_was_removed_to_be_forgotten(kernel: Kernel) -> None:
    """The kernel forgets a removed file some time after it sent the request that needs the file's blocks."""
    kernel.init()
    kernel.core.refuse = {"mkdir": FsError(errno.ENOSPC)}
    kernel.core.holds_forgettable = True
    kernel.ask(Opcode.MKDIR, ROOT, MKDIR)
    assert kernel.session.turn() is True
    assert kernel.answers() == []
    kernel.core.refuse = {}
    kernel.core.holds_forgettable = False
    kernel.ask(Opcode.FORGET, ROOT, pack("forget_in", nlookup=1))
    assert kernel.session.turn() is False
    (answer,) = kernel.answers()
    assert unpack("out_header", answer).error == 0
    assert names(kernel) == ["mkdir", "unpin", "mkdir"]


def test_a_full_pool_does_not_wait_for_long(kernel: Kernel) -> None:
    kernel.init()
    kernel.core.refuse = {"mkdir": FsError(errno.ENOSPC)}
    kernel.core.holds_forgettable = True
    kernel.ask(Opcode.MKDIR, ROOT, MKDIR)
    begin = time.monotonic()
    while kernel.session.turn():
        assert time.monotonic() - begin < HANG_SECONDS
    (answer,) = kernel.answers()
    assert unpack("out_header", answer).error == -errno.ENOSPC
    assert names(kernel) == ["mkdir", "mkdir"]


def test_waiting_in_vain_is_not_repeated(kernel: Kernel) -> None:
    """After a wait in vain no request waits until a name is removed, whose file may be forgotten soon."""
    kernel.init()
    kernel.core.refuse = {"mkdir": FsError(errno.ENOSPC)}
    kernel.core.holds_forgettable = True
    kernel.ask(Opcode.MKDIR, ROOT, MKDIR)
    while kernel.session.turn():
        pass
    kernel.core.calls.clear()
    kernel.ask(Opcode.MKDIR, ROOT, MKDIR)
    assert kernel.session.turn() is False
    assert names(kernel) == ["mkdir"]
    kernel.core.refuse["unlink"] = FsError(errno.ENOENT)
    kernel.ask(Opcode.UNLINK, ROOT, b"f\0")
    kernel.ask(Opcode.MKDIR, ROOT, MKDIR)
    while len(names(kernel)) < 3:
        assert kernel.session.turn() is True
    assert names(kernel) == ["mkdir", "unlink", "mkdir"]


# Answers that can't be delivered


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EINTR, errno.ECONNABORTED])
def test_what_nobody_wanted_is_undone(kernel: Kernel, number: int) -> None:
    kernel.init()
    kernel.failing = [number]
    kernel.ask(Opcode.CREATE, ROOT, pack("create_in", flags=2, mode=0o100644) + b"f\0")
    kernel.finish()
    assert names(kernel) == ["create", "open_file", "release", "unpin"]
    assert kernel.core.pins == {}
    assert kernel.connection.files == {}


def test_what_was_wanted_is_not_undone(kernel: Kernel) -> None:
    kernel.init()
    kernel.ask(Opcode.CREATE, ROOT, pack("create_in", flags=2, mode=0o100644) + b"f\0")
    kernel.failing = [0, errno.ENOENT]
    kernel.ask(Opcode.GETATTR, ROOT, GETATTR)
    kernel.finish()
    assert names(kernel) == ["create", "open_file", "getattr"]
    assert kernel.core.pins == {12: 1}


def test_undoing_may_be_refused(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    """If the pool proves to be damaged, the refusal is logged and the session goes on."""
    kernel.init()
    kernel.failing = [errno.ENOENT]
    kernel.core.refuse = {"release": FsError(errno.EUCLEAN)}
    kernel.ask(Opcode.CREATE, ROOT, pack("create_in", flags=2, mode=0o100644) + b"f\0")
    kernel.ask(Opcode.GETATTR, ROOT, GETATTR)
    kernel.finish()
    assert names(kernel)[-1] == "getattr"
    assert os.strerror(errno.EUCLEAN) in caplog.text


def test_an_answer_that_the_kernel_refuses_is_our_mistake(kernel: Kernel) -> None:
    kernel.init()
    kernel.failing = [errno.EINVAL]
    kernel.ask(Opcode.GETATTR, ROOT, GETATTR)
    with pytest.raises(OSError, match="Invalid"):
        kernel.session.turn()


# The loop


@pytest.mark.trio
async def test_others_run_while_requests_keep_coming(kernel: Kernel) -> None:
    ran = 0
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.session.serve)
            while ran < 5:
                kernel.ask(Opcode.STATFS)
                await trio.lowlevel.checkpoint()
                ran += 1
            kernel.session.stop()


@pytest.mark.trio
async def test_a_task_that_waits_for_a_time_runs_then_while_requests_keep_coming(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "OTHERS_SECONDS", 10 * HANG_SECONDS)
    end = time.monotonic() + HANG_SECONDS
    poll = kernel.device.poll

    def coming(milliseconds: int) -> list[tuple[int, int]]:
        assert time.monotonic() < end, "no other task runs"
        kernel.answers()
        kernel.ask(Opcode.STATFS)
        return poll(milliseconds)

    async def task() -> None:
        for _ in range(3):
            await trio.sleep(2 * TURN_SECONDS)
        kernel.session.stop()

    monkeypatch.setattr(kernel.device, "poll", coming)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(task)
        nursery.start_soon(kernel.session.serve)


@pytest.mark.trio
async def test_a_sleeping_session_costs_nothing_and_wakes_up(kernel: Kernel) -> None:
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.session.serve)
            await wait_all_tasks_blocked()
            await asleep()
            message = kernel.ask(Opcode.STATFS)
            await trio.lowlevel.wait_readable(kernel.ours)
            assert check(message, kernel.answers()[0]) is not None
            await wait_all_tasks_blocked()
            kernel.session.stop()


@pytest.mark.trio
async def test_the_loop_ends_with_the_mount(kernel: Kernel) -> None:
    with trio.fail_after(HANG_SECONDS):
        kernel.unreadable = [errno.ENODEV]
        kernel.ask(Opcode.STATFS)
        await kernel.session.serve()


@pytest.mark.trio
async def test_the_loop_ends_with_destroy(kernel: Kernel) -> None:
    with trio.fail_after(HANG_SECONDS):
        message = kernel.ask(Opcode.DESTROY, 0)
        await kernel.session.serve()
    assert check(message, kernel.answers()[0]) == (0, b"")


@pytest.mark.trio
async def test_stopped_before_it_began(kernel: Kernel) -> None:
    with trio.fail_after(HANG_SECONDS):
        kernel.session.stop()
        await kernel.session.serve()


# Spinning


class Waits:
    """The session's waits: how often it looked and spun; what comes in each sleep in poll(2), first ones first."""

    def __init__(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looked = 0
        self.spun = 0
        self.coming: list[float | None] = []
        poll = kernel.device.poll

        def spin() -> bool:
            self.spun += 1
            return bool(poll(0))

        def sleep(milliseconds: int) -> list[tuple[int, int]]:
            self.looked += not milliseconds
            if milliseconds and self.coming and (after := self.coming.pop(0)) is not None:
                time.sleep(after)
                kernel.ask(Opcode.STATFS)
            return poll(milliseconds)

        monkeypatch.setattr(kernel.device, "spin", spin)
        monkeypatch.setattr(kernel.device, "poll", sleep)


def test_requests_that_come_now_and_then_are_not_spun_for(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, spin_seconds=0.005)
    waits = Waits(kernel, monkeypatch)
    for _ in range(3):
        kernel.ask(Opcode.STATFS)
        assert kernel.session.turn() is False
    assert waits.spun == 1, "it spins after the first request only"
    assert waits.looked == 1, "a sleep in poll(2) needs no look before it"
    kernel.close()


def test_the_time_of_spinning_is_counted_while_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, spin_seconds=0.005)
    kernel.ask(Opcode.STATFS)
    assert kernel.session.turn() is False
    kernel.session._near = True
    counting = statistics.Counting(kernel.connection)
    kernel.ask(Opcode.STATFS)
    assert kernel.session.turn() is False
    assert counting.spun >= 0.005
    before = counting.spun
    counting.stop()
    kernel.session._near = True
    kernel.ask(Opcode.STATFS)
    assert kernel.session.turn() is False
    assert counting.spun == before
    kernel.close()


def test_a_session_whose_processor_others_want_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, spin_seconds=0.005)
    waits = Waits(kernel, monkeypatch)
    kernel.session._contention.present = True
    kernel.ask(Opcode.STATFS)
    assert kernel.session.turn() is False
    assert (waits.spun, waits.looked) == (0, 0)
    kernel.close()


def test_time_asleep_is_not_lost_and_time_of_others_is(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, spin_seconds=1e-9)
    waits = Waits(kernel, monkeypatch)
    seen = []
    watch = kernel.session._contention.watch
    monkeypatch.setattr(
        kernel.session._contention,
        "watch",
        lambda awake, had, switches, *, spun: (seen.append((awake, had)), watch(awake, had, switches, spun=spun)),
    )
    pause = 50 * TURN_SECONDS  # much longer than a busy machine keeps the processor from the test
    waits.coming = [0.0, pause]
    kernel.ask(Opcode.STATFS)
    kernel.session._near = False
    assert kernel.session.turn() is True
    waits.coming = [0.0] * 10_000
    monkeypatch.setattr(kernel.device, "spin", lambda: bool(time.sleep(2 * TURN_SECONDS)))
    for _ in range(SPARSE + 1):
        kernel.ask(Opcode.STATFS)
    kernel.session._near = True
    assert kernel.session.turn() is True
    (slept, _), (lost, had) = seen[0], seen[-1]
    assert slept < pause / 2, "poll(2) gives the processor away"
    assert lost - had > TURN_SECONDS, "spinning wants it"
    kernel.close()


def test_while_requests_wait_a_session_that_does_not_spin_looks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, spin_seconds=0.005)
    sleeps = []
    poll = kernel.device.poll
    monkeypatch.setattr(session_module, "TURN_SECONDS", 60)
    monkeypatch.setattr(session_module, "SHORTEST_SLEEP", 60)
    monkeypatch.setattr(kernel.device, "poll", lambda milliseconds: sleeps.append(milliseconds) or poll(milliseconds))
    kernel.session._contention.present = True
    for _ in range(20):
        kernel.ask(Opcode.STATFS)
    assert kernel.session.turn() is False
    assert len(kernel.answers()) == 20
    assert len(sleeps) == CROWDED + 1, "after the first requests, and after the last one"
    kernel.close()


@pytest.mark.parametrize("spinning", [False, True])
def test_a_read_is_not_tried_before_requests_wait_again_and_again(
    monkeypatch: pytest.MonkeyPatch, spinning: bool
) -> None:
    kernel = Kernel(monkeypatch, spin_seconds=0.005)
    waits = Waits(kernel, monkeypatch)
    monkeypatch.setattr(session_module, "TURN_SECONDS", 60)
    monkeypatch.setattr(session_module, "SHORTEST_SLEEP", 60)
    kernel.session._contention.present = not spinning
    waits.coming = [None] * 10
    for number in range(CROWDED - 1):
        for _ in range(2):
            kernel.ask(Opcode.STATFS)
        kernel.unreadable = [0, 0, errno.EIO]  # another read would fail
        assert kernel.session.turn() is False
        assert len(kernel.answers()) == 2, number
    kernel.close()


def test_it_spins_again_after_a_short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, spin_seconds=0.5)
    waits = Waits(kernel, monkeypatch)
    monkeypatch.setattr(session_module, "TURN_SECONDS", 60)
    kernel.session._near = False
    waits.coming = [0.0, None]
    kernel.ask(Opcode.STATFS)
    assert kernel.session.turn() is False
    assert waits.spun == 1
    kernel.close()


def test_a_long_wait_ends_the_spinning_within_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, spin_seconds=0.001)
    waits = Waits(kernel, monkeypatch)
    monkeypatch.setattr(session_module, "TURN_SECONDS", 60)
    waits.coming = [0.005, None]
    kernel.ask(Opcode.STATFS)
    assert kernel.session.turn() is False
    assert waits.spun == 1, "before the long wait"
    kernel.close()


# Sparse requests


class Sparse:
    """A session that has served a turn of sparse requests. Only pauses take time.

    Attributes:
        now: the time in seconds.
        pause: before each request that comes, in seconds.
        coming: how many requests come.
    """

    def __init__(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.pause = 2 * TURN_SECONDS
        self.coming = 1
        poll = kernel.device.poll

        def sleep(milliseconds: int) -> list[tuple[int, int]]:
            if milliseconds and self.coming and not poll(0):
                self.coming -= 1
                self.now += self.pause
                kernel.ask(Opcode.STATFS)
            return poll(milliseconds)

        monkeypatch.setattr(kernel.device, "poll", sleep)
        monkeypatch.setattr(session_module, "perf_counter", lambda: self.now)
        kernel.ask(Opcode.STATFS)
        assert kernel.session.turn() is True, "the turns before are not known to be sparse"
        kernel.finish()
        kernel.answers()
        kernel.wakeful.clear()


def test_a_turn_of_sparse_requests_goes_on_after_each_pause(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = Sparse(kernel, monkeypatch)
    sparse.coming = 3
    kernel.ask(Opcode.STATFS)
    assert kernel.session.turn() is False
    assert len(kernel.answers()) == 4


def test_a_short_pause_ends_a_turn_of_sparse_requests(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = Sparse(kernel, monkeypatch)
    sparse.coming = 1
    sparse.pause = 0.9 * SPARSE_SECONDS
    kernel.ask(Opcode.STATFS)
    assert kernel.session.turn() is True
    assert len(kernel.answers()) == 1
    assert kernel.wakeful == [], "nothing is learned from it"
    assert kernel.session.turn() is False, "the next turn has the whole time"
    assert len(kernel.answers()) == 1


def test_a_turn_of_sparse_requests_ends_when_others_are_due(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = Sparse(kernel, monkeypatch)
    sparse.coming = 3
    kernel.ask(Opcode.STATFS)
    assert kernel.session.turn(sparse.now) is True
    assert len(kernel.answers()) == 1
    assert sparse.coming == 3, "the next request belongs to the next turn"


def test_a_pause_ends_a_turn_that_had_many_requests(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = Sparse(kernel, monkeypatch)
    sparse.coming = 3
    for _ in range(SPARSE + 1):
        kernel.ask(Opcode.STATFS)
    assert kernel.session.turn() is True
    assert kernel.wakeful == []
    assert kernel.session.turn() is True, "the turn before was not sparse"
    assert kernel.wakeful == ["release"]
    assert kernel.session.turn() is False


# The CPU latency request


def test_dense_requests_ask_for_quick_wake_ups(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]

    def later() -> float:
        clock[0] += TURN_SECONDS / (4 * DENSE)
        return clock[0]

    monkeypatch.setattr(session_module, "perf_counter", later)
    for _ in range(DENSE + 30):
        kernel.ask(Opcode.STATFS)
    assert kernel.session.turn() is True
    assert kernel.wakeful == ["hold"]


def test_few_requests_ask_for_nothing(kernel: Kernel) -> None:
    for _ in range(3):
        kernel.ask(Opcode.STATFS)
    assert kernel.session.turn() is False
    assert kernel.wakeful == []


def test_sparse_requests_end_the_latency_request(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn with few requests ends because its time is over, not because nothing came."""
    clock = [100.0]

    def later() -> float:
        clock[0] += TURN_SECONDS / 2
        return clock[0]

    monkeypatch.setattr(session_module, "perf_counter", later)
    for _ in range(5):
        kernel.ask(Opcode.STATFS)
    assert kernel.session.turn() is True
    assert kernel.wakeful == ["release"]


@pytest.mark.trio
async def test_a_pause_releases_the_latency_request(kernel: Kernel) -> None:
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.session.serve)
            await wait_all_tasks_blocked()
            assert kernel.wakeful == ["release"]
            kernel.session.stop()
    assert kernel.wakeful == ["release", "release"]


@pytest.fixture
def latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace /dev/cpu_dma_latency by a file, and return it."""
    place = tmp_path / "cpu_dma_latency"
    place.write_bytes(b"")
    monkeypatch.setattr(cpu_latency, "DEVICE", str(place))
    return place


def holders(place: Path) -> int:
    """Return how many descriptors of this process have the file open."""
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return sum(os.path.realpath(link) == str(place) for link in links)


@pytest.mark.parametrize("microseconds", [0, 2, 10_000])
def test_the_request_is_held_once_and_released(latency: Path, microseconds: int) -> None:
    request = CpuLatencyRequest(microseconds)
    request.release()
    for _ in range(3):
        request.hold()
        assert holders(latency) == 1
    assert latency.read_bytes() == struct.pack("=i", microseconds)
    for _ in range(2):
        request.release()
        assert holders(latency) == 0
    request.hold()
    assert holders(latency) == 1
    request.release()


def test_without_a_latency_nothing_is_opened(latency: Path) -> None:
    request = CpuLatencyRequest(None)
    request.hold()
    assert holders(latency) == 0
    request.release()


def test_a_missing_permission_is_logged_once(latency: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "daxfs.fuse")
    latency.unlink()
    request = CpuLatencyRequest(0)
    request.hold()
    latency.write_bytes(b"")
    request.hold()
    assert len(caplog.records) == 1
    assert holders(latency) == 0


def test_a_device_that_takes_no_number(latency: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = CpuLatencyRequest(0)

    def refuse(_descriptor: int, _data: bytes) -> int:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(os, "write", refuse)
    request.hold()
    assert holders(latency) == 0
