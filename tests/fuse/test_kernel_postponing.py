"""A full pool: retries by the core, and requests that wait until the kernel forgets removed files."""

from __future__ import annotations

import errno

import pytest
from message_rig import ROOT, Rig, pack

from daxfs.errors import FsError, MissingMemory
from daxfs.fuse.kernel import postponing as postponing_module
from daxfs.fuse.kernel.abi import Opcode
from daxfs.fuse.kernel.postponing import PATIENCE_SECONDS, Postponing

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
    monkeypatch.setattr(postponing_module, "perf_counter", found)
    return found


@pytest.fixture
def full(fake: Rig, clock: Clock) -> Rig:
    """Return a connection to a full pool with a removed file that the kernel is about to forget."""
    assert clock.now
    fake.core.refuse = {"mkdir": FsError(errno.ENOSPC), "write": FsError(errno.ENOSPC)}
    fake.core.holds_forgettable = True
    return fake


def put_off(rig: Rig) -> Postponing:
    """Send a request and check that it is not answered now."""
    assert rig.answer(rig.message(Opcode.MKDIR, ROOT, MKDIR)) is None
    return rig.connection.postponing


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


def test_a_request_waits_until_nothing_is_left_to_forget(full: Rig) -> None:
    postponing = put_off(full)
    assert not postponing.due
    full.core.holds_forgettable = False
    assert postponing.due
    assert [message[40:] for message in postponing.last_chances()] == [MKDIR]
    assert not postponing.due


def test_all_wait_as_long_as_the_first(full: Rig, clock: Clock) -> None:
    postponing = put_off(full)
    clock.now += PATIENCE_SECONDS
    put_off(full)
    assert not postponing.due
    clock.now += 0.001
    assert postponing.due
    assert len(list(postponing.last_chances())) == 2


def test_the_last_chance_is_one(full: Rig) -> None:
    """The second attempt is final. If it fails, no further request waits until a name is removed."""
    postponing = put_off(full)
    for message in postponing.last_chances():
        answer = full.answer(message)
        assert answer is not None
        assert answer.error == errno.ENOSPC
    assert postponing.messages == []
    assert full.refused(Opcode.MKDIR, ROOT, MKDIR) == errno.ENOSPC
    full.core.refuse["unlink"] = FsError(errno.ENOENT)
    assert full.refused(Opcode.UNLINK, ROOT, b"f\0") == errno.ENOENT
    put_off(full)


def test_a_last_chance_that_is_taken_leaves_hope(full: Rig) -> None:
    postponing = put_off(full)
    refused, full.core.refuse = full.core.refuse, {}
    for message in postponing.last_chances():
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
    assert not full.connection.postponing.messages
