"""What waits: requests in several steps, requests behind them, and those that wait until files are forgotten."""

from __future__ import annotations

import errno

import pytest
from message_rig import ROOT, Rig, pack, unpack

from daxfs import protocol
from daxfs.errors import FsError, MissingMemory
from daxfs.fs.steps import interruption
from daxfs.fuse.kernel import connection as connection_module
from daxfs.fuse.kernel import dispatch, remount
from daxfs.fuse.kernel import files as files_module
from daxfs.fuse.kernel import scheduling as scheduling_module
from daxfs.fuse.kernel import turns as turns_module
from daxfs.fuse.kernel.abi import Opcode
from daxfs.fuse.kernel.connection import FORGETS_AT_ONCE
from daxfs.fuse.kernel.files import LARGEST_AT_ONCE
from daxfs.fuse.kernel.scheduling import FITRIM, PATIENCE_SECONDS, WORKS, Scheduler
from daxfs.fuse.kernel.statistics import Counting

MKDIR = pack("mkdir_in", mode=0o755) + b"d\0"


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(scheduling_module, "perf_counter", found)
    return found


@pytest.fixture
def full(fake: Rig, clock: Clock) -> Rig:
    """Return a connection to a full pool with a removed file that the kernel is about to forget."""
    assert clock.now
    fake.core.refuse = {"mkdir": FsError(errno.ENOSPC), "write": FsError(errno.ENOSPC)}
    fake.core.holds_forgettable = True
    return fake


def put_off(rig: Rig) -> Scheduler:
    """Send a request and check that it is not answered now."""
    assert rig.answer(rig.message(Opcode.MKDIR, ROOT, MKDIR)) is None
    return rig.connection.scheduler


def times(rig: Rig, name: str) -> int:
    return sum(call == name for call, _ in rig.core.calls)


@pytest.mark.parametrize("forgets", [0, 3])
def test_only_the_core_tries_again(full: Rig, forgets: int) -> None:
    """The core retries once, if the session had waiting forgets; the session itself never retries."""
    full.core.holds_forgettable = False
    node, fh = full.create(b"file")
    for _ in range(forgets):
        full.forget(ROOT)
    body = pack("write_in", fh=fh, size=4) + b"data"
    assert full.refused(Opcode.WRITE, node.nodeid, body) == errno.ENOSPC
    assert times(full, "write") == (2 if forgets else 1)
    assert times(full, "unpin") == forgets
    assert not full.connection.forgets


def test_a_request_that_finds_the_pool_full_waits_for_some_of_many_forgets(
    full: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them may free large files. So the request is tried again after each part, while it finds no room."""
    monkeypatch.setattr(connection_module, "RECLAIM_SECONDS", -1.0)
    full.core.holds_forgettable = False
    node, fh = full.create(b"file")
    for _ in range(3 * FORGETS_AT_ONCE):
        full.forget(ROOT)
    body = pack("write_in", fh=fh, size=4) + b"data"
    assert full.refused(Opcode.WRITE, node.nodeid, body) == errno.ENOSPC
    assert times(full, "write") == 4
    assert times(full, "unpin") == 3 * FORGETS_AT_ONCE
    unpin = full.core.unpin

    def frees(ino: int, lookups: int) -> None:
        full.core.refuse.pop("write", None)
        unpin(ino, lookups)

    monkeypatch.setattr(full.core, "unpin", frees)
    for _ in range(3 * FORGETS_AT_ONCE):
        full.forget(ROOT)
    full.done(Opcode.WRITE, node.nodeid, body)
    assert len(full.connection.forgets) == 2 * FORGETS_AT_ONCE


def test_a_request_waits_until_nothing_is_left_to_forget(full: Rig) -> None:
    scheduler = put_off(full)
    assert not scheduler.due
    full.core.holds_forgettable = False
    assert scheduler.due
    assert [message[40:] for message in scheduler.last_chances()] == [MKDIR]
    assert not scheduler.due


def test_all_wait_as_long_as_the_first(full: Rig, clock: Clock) -> None:
    scheduler = put_off(full)
    clock.now += PATIENCE_SECONDS
    put_off(full)
    assert not scheduler.due
    clock.now += 0.001
    assert scheduler.due
    assert len(list(scheduler.last_chances())) == 2


def test_the_last_chance_is_one(full: Rig) -> None:
    """The second attempt is final. If it fails, no further request waits until a name is removed."""
    scheduler = put_off(full)
    for message in scheduler.last_chances():
        answer = full.answer(message)
        assert answer is not None
        assert answer.error == errno.ENOSPC
    assert scheduler.postponed == []
    assert full.refused(Opcode.MKDIR, ROOT, MKDIR) == errno.ENOSPC
    full.core.refuse["unlink"] = FsError(errno.ENOENT)
    assert full.refused(Opcode.UNLINK, ROOT, b"f\0") == errno.ENOENT
    put_off(full)


def test_an_announced_write_is_still_atomic_at_its_last_chance(full: Rig) -> None:
    node, fh = full.create(b"file")
    full.connection.announced.add(fh, 0, 512, 0)
    body = pack("write_in", fh=fh, size=512) + bytes(512)
    assert full.answer(full.message(Opcode.WRITE, node.nodeid, body)) is None
    for message in full.connection.scheduler.last_chances():
        answer = full.answer(message)
        assert answer is not None
        assert answer.error == errno.ENOSPC
    assert [given[-1] for call, given in full.core.calls if call == "write"] == ["atomic", "atomic"]
    assert not full.connection.announced.by_handle


def test_a_last_chance_that_is_taken_leaves_hope(full: Rig) -> None:
    scheduler = put_off(full)
    refused, full.core.refuse = full.core.refuse, {}
    for message in scheduler.last_chances():
        answer = full.answer(message)
        assert answer is not None
        assert answer.error == 0
    full.core.refuse = refused
    put_off(full)


def test_other_refusals_do_not_wait(full: Rig) -> None:
    full.core.refuse = {"mkdir": FsError(errno.EDQUOT)}
    assert full.refused(Opcode.MKDIR, ROOT, MKDIR) == errno.EDQUOT
    full.core.refuse = {"mkdir": FsError(errno.ENOSPC)}
    full.core.holds_forgettable = False
    assert full.refused(Opcode.MKDIR, ROOT, MKDIR) == errno.ENOSPC


def test_a_full_file_system_below_the_pool_is_not_waited_for(full: Rig) -> None:
    """What the kernel forgets frees blocks of the pool, not of the file system that holds the pool's file."""
    full.core.refuse = {"mkdir": MissingMemory(errno.ENOSPC)}
    assert full.refused(Opcode.MKDIR, ROOT, MKDIR) == errno.ENOSPC
    assert not full.connection.scheduler.postponed


# Requests in several steps


FALLOCATE = int(Opcode.FALLOCATE)


@pytest.fixture
def slow(fake: Rig, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Return a connection whose operations in steps take three steps after the first, each longer than a slice."""
    monkeypatch.setattr(scheduling_module, "SLICE_SECONDS", 0.0)
    fake.core.steps.yields = 4
    return fake


def lease(flags: int) -> bytes:
    """A lease request."""
    return protocol.Lease(1, 0, 4096, flags).pack()


def begin(rig: Rig, opcode: int, node: int, body: bytes, **who: int) -> int:
    """Send a request that is not answered at once; return its number."""
    message = rig.message(opcode, node, body, **who)
    assert rig.answer(message) is None
    return unpack("in_header", message).unique


def arrive(rig: Rig, message: bytes) -> None:
    """Have the session read a message ahead."""
    rig.buffer[: len(message)] = message
    assert rig.connection.scheduler.arrived(rig.request, len(message))


def turn(rig: Rig) -> tuple[int, int] | None:
    """Take a turn as the session does; return (unique, errno) of the answer, if there was one."""
    scheduler = rig.connection.scheduler
    found = scheduler.next()
    assert found is not None
    user, what, _ = found
    reply = None
    if isinstance(what, bytes):
        rig.buffer[: len(what)] = what
        if scheduler.was_interrupted(what):
            user.begun(len(what))
            reply = dispatch.refusal(interruption(), rig.request.opcode, rig.request.unique)
        elif not scheduler.blocks(rig.request, user, what):
            reply = dispatch.answer(rig.connection, rig.request, len(what), rig.connection.table)
    else:
        reply = dispatch.proceed(rig.connection, rig.request, what, 0.0, lambda _: False)
    scheduler.had_turn(user, what, 1.0)
    if reply is None:
        return None
    head = unpack("out_header", reply[0])
    return head.unique, -head.error


def turns(rig: Rig) -> list[tuple[int, int]]:
    """Take turns until nothing waits; return the answers."""
    answers = []
    while rig.connection.scheduler.works or rig.connection.scheduler.queued:
        found = turn(rig)
        if found is not None:
            answers.append(found)
    assert rig.connection.scheduler.next() is None
    assert not rig.connection.scheduler.waiting
    return answers


def test_a_long_request_is_answered_in_the_end(slow: Rig) -> None:
    node, fh = slow.create(b"f")
    unique = begin(slow, FALLOCATE, node.nodeid, pack("fallocate_in", fh=fh, length=1))
    assert slow.connection.scheduler.waiting == {WORKS}
    assert turns(slow) == [(unique, 0)]
    assert slow.core.steps.yielded == 4


def test_a_long_read_is_answered_in_the_end(slow: Rig) -> None:
    node, fh = slow.create(b"f")
    slow.write(node.nodeid, fh, b"content")
    assert slow.read(node.nodeid, fh, 0, LARGEST_AT_ONCE) == b"content"
    unique = begin(slow, Opcode.READ, node.nodeid, pack("read_in", fh=fh, offset=3, size=LARGEST_AT_ONCE + 1))
    assert slow.connection.scheduler.waiting == {WORKS}
    assert slow.read(node.nodeid, fh) == b"content", "in between"
    assert turns(slow) == [(unique, 0)]


def test_a_short_request_is_answered_at_once(fake: Rig) -> None:
    node, fh = fake.create(b"f")
    fake.core.steps.yields = 4
    fake.done(FALLOCATE, node.nodeid, pack("fallocate_in", fh=fh, length=1))
    assert not fake.connection.scheduler.waiting


def test_others_are_answered_in_between(slow: Rig) -> None:
    """A stat of the same file, too; what changes the file follows the request that changes it, in order."""
    node, fh = slow.create(b"f")
    other, other_fh = slow.create(b"g")
    first = begin(slow, FALLOCATE, node.nodeid, pack("fallocate_in", fh=fh, length=1), uid=1)
    writes = [slow.message(Opcode.WRITE, node.nodeid, pack("write_in", fh=fh, size=1) + b"x", uid=2) for _ in range(2)]
    stat = slow.message(Opcode.GETATTR, node.nodeid, pack("getattr_in"), uid=2)
    elsewhere = slow.message(Opcode.WRITE, other.nodeid, pack("write_in", fh=other_fh, size=1) + b"x", uid=2)
    for message in (*writes, stat, elsewhere):
        arrive(slow, message)
    assert slow.connection.scheduler.queued == 4
    answered = [unique for unique, error in turns(slow) if not error]
    uniques = [unpack("in_header", message).unique for message in (stat, elsewhere)]
    assert answered == [*uniques, first, *(unpack("in_header", message).unique for message in writes)]


def test_one_work_after_the_other_on_the_same_file(slow: Rig) -> None:
    node, fh = slow.create(b"f")
    body = pack("fallocate_in", fh=fh, length=1)
    first = begin(slow, FALLOCATE, node.nodeid, body)
    messages = [slow.message(FALLOCATE, node.nodeid, body) for _ in range(3)]
    for message in messages:
        arrive(slow, message)
    assert turns(slow) == [(first, 0), *((unpack("in_header", message).unique, 0) for message in messages)]


def test_an_error_of_a_later_step_is_the_answer(slow: Rig) -> None:
    node, fh = slow.create(b"f")
    slow.core.refuse = {"fallocate": FsError(errno.EIO)}
    unique = begin(slow, FALLOCATE, node.nodeid, pack("fallocate_in", fh=fh, length=1))
    assert turns(slow) == [(unique, errno.EIO)]


def test_a_full_pool_at_a_later_step_postpones(slow: Rig, clock: Clock) -> None:
    node, fh = slow.create(b"f")
    slow.core.refuse = {"fallocate": FsError(errno.ENOSPC)}
    slow.core.holds_forgettable = True
    message = slow.message(FALLOCATE, node.nodeid, pack("fallocate_in", fh=fh, length=1))
    assert slow.answer(message) is None
    while slow.connection.scheduler.works:
        assert turn(slow) is None
    assert slow.connection.scheduler.postponed == [message]
    assert clock.now


@pytest.mark.parametrize(("opcode", "error"), [(FALLOCATE, errno.EINTR), (int(Opcode.SETATTR), 0)])
def test_an_interrupt_shortens_only_what_may_be_short(slow: Rig, opcode: int, error: int) -> None:
    node, fh = slow.create(b"f")
    body = pack("fallocate_in", fh=fh, length=1) if opcode == FALLOCATE else pack("setattr_in", valid=8, size=0)
    unique = begin(slow, opcode, node.nodeid, body)
    assert slow.answer(slow.message(Opcode.INTERRUPT, 0, pack("interrupt_in", unique=unique))) is None
    assert turns(slow) == [(unique, error)]
    assert len(slow.core.steps.interrupted) == (error != 0)


def test_an_interrupt_of_what_has_not_begun(slow: Rig) -> None:
    """An fallocate ends, be it queued or blocked; a stat goes on, as on ext4."""
    node, fh = slow.create(b"f")
    other, other_fh = slow.create(b"g")
    body = pack("fallocate_in", fh=fh, length=1)
    first = begin(slow, FALLOCATE, node.nodeid, body)
    blocked = slow.message(FALLOCATE, node.nodeid, body)
    queued = slow.message(FALLOCATE, other.nodeid, pack("fallocate_in", fh=other_fh, length=1))
    stat = slow.message(Opcode.GETATTR, node.nodeid, pack("getattr_in"))
    arrive(slow, blocked)
    while slow.connection.scheduler.queued and not slow.connection.scheduler._blocked:
        turn(slow)
    arrive(slow, queued)
    arrive(slow, stat)
    for message in (blocked, queued, stat):
        slow.answer(slow.message(Opcode.INTERRUPT, 0, pack("interrupt_in", unique=unpack("in_header", message).unique)))
    found = dict(turns(slow))
    numbers = [unpack("in_header", message).unique for message in (blocked, queued, stat)]
    assert [found[number] for number in numbers] == [errno.EINTR, errno.EINTR, 0]
    assert found[first] == 0


@pytest.mark.parametrize(
    ("command", "argument", "error"),
    [
        (FITRIM, bytes(24), errno.EINTR),
        (FITRIM, b"", errno.EINTR),
        (protocol.IOC_LEASE, lease(protocol.Flag.WRITE | protocol.Flag.FILL), errno.EINTR),
        (protocol.IOC_SHORT_LEASE, lease(protocol.Flag.WRITE | protocol.Flag.FILL), errno.EINTR),
        (protocol.IOC_LEASE, lease(protocol.Flag.WRITE), errno.EINVAL),
        (protocol.IOC_LEASE, lease(protocol.Flag.FILL)[:-1], errno.EINVAL),
        (remount.REMOUNT, lease(protocol.Flag.FILL), errno.EINVAL),
    ],
)
def test_an_interrupt_of_an_ioctl_that_has_not_begun(slow: Rig, command: int, argument: bytes, error: int) -> None:
    """A trim and a lease that is filled end; other commands go on, here to a refusal of their argument."""
    node, fh = slow.create(b"f")
    begin(slow, FALLOCATE, node.nodeid, pack("fallocate_in", fh=fh, length=1))
    body = pack("ioctl_in", cmd=command, in_size=1 << 13) + argument
    queued = slow.message(Opcode.IOCTL, ROOT, body)
    arrive(slow, queued)
    unique = unpack("in_header", queued).unique
    slow.answer(slow.message(Opcode.INTERRUPT, 0, pack("interrupt_in", unique=unique)))
    assert dict(turns(slow))[unique] == error


def test_a_copy_ends_when_its_time_is_up(slow: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "COPY_SECONDS", 0.0)
    node, fh = slow.create(b"f")
    body = pack("copy_file_range_in", fh_in=fh, nodeid_out=node.nodeid, fh_out=fh, len=1)
    assert slow.refused(Opcode.COPY_FILE_RANGE, node.nodeid, body) == errno.EINTR  # the core returns a count instead
    assert slow.core.steps.yielded == len(slow.core.steps.interrupted) == 1


def test_what_closed_files_leave_is_freed_between_requests(slow: Rig) -> None:
    _, fh = slow.create(b"f")
    slow.core.steps.unfinished = True
    slow.done(Opcode.RELEASE, ROOT, pack("release_in", fh=fh))
    assert slow.connection.scheduler.waiting == {WORKS}
    assert turns(slow) == []
    assert slow.core.steps.yielded == 4
    assert not slow.core.steps.unfinished


def test_requests_of_one_user_are_bounded(slow: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "MOST_MESSAGES", 1)
    node, fh = slow.create(b"f")
    begin(slow, FALLOCATE, node.nodeid, pack("fallocate_in", fh=fh, length=1), uid=1)
    scheduler = slow.connection.scheduler
    for uid, room in ((1, True), (1, False), (2, True)):
        message = slow.message(Opcode.GETATTR, ROOT, pack("getattr_in"), uid=uid)
        slow.buffer[: len(message)] = message
        assert scheduler.arrived(slow.request, len(message)) == room
    assert scheduler.refused == 1


def test_a_remount_waits_for_no_work(slow: Rig) -> None:
    node, fh = slow.create(b"f")
    begin(slow, Opcode.SETATTR, node.nodeid, pack("setattr_in", valid=8, size=0))
    slow.done(Opcode.RELEASE, ROOT, pack("release_in", fh=fh))
    text = b"ro".ljust(remount.SIZE, b"\0")
    body = pack("ioctl_in", cmd=remount.REMOUNT, in_size=len(text)) + text
    assert slow.refused(Opcode.IOCTL, ROOT, body) == errno.EBUSY


def test_a_long_request_is_counted_when_it_ends(slow: Rig) -> None:
    """Once, with the time of all its slices; meanwhile it is one of those in progress."""
    counting = Counting(slow.connection, lasting=True)
    node, fh = slow.create(b"f")
    begin(slow, FALLOCATE, node.nodeid, pack("fallocate_in", fh=fh, length=1))
    assert slow.connection.scheduler.counts() == {
        "long_requests": 1,
        "queued_requests": 0,
        "postponed_requests": 0,
        "refused_requests": 0,
    }
    assert not any(counting._counters[FALLOCATE].histogram)
    turns(slow)
    counted = counting._counters[FALLOCATE].as_json()
    assert (counted["count"], counted["errors"]) == (1, 0)
    assert counted["nanoseconds"] == counted["longest"] > 0
