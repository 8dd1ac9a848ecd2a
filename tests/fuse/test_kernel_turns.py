"""Whose turn it is: users by the time that they have had, messages and works of one user likewise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from daxfs.fuse.kernel import turns as turns_module
from daxfs.fuse.kernel.turns import Turns
from daxfs.fuse.kernel.work import Work


def endless() -> Iterator[None]:
    while True:
        yield


def work() -> Work:
    steps: Any = endless()
    return Work(steps, lambda _: b"")


def taken(turns: Turns, times: int, message_seconds: float = 1.0, work_seconds: float = 1.0) -> list[int]:
    """Take so many turns, each as long as given; return whose they were."""
    whose = []
    for _ in range(times):
        found = turns.next()
        assert found is not None
        user, what, _ = found
        if isinstance(what, bytes):
            user.answering += message_seconds
        else:
            user.working += work_seconds
            user.works.append(what)
        whose.append(user.number)
    return whose


def test_nothing_waits() -> None:
    turns = Turns()
    turns.user(1)
    assert turns.next() is None


def test_one_users_messages_keep_their_order() -> None:
    turns = Turns()
    turns.user(1).messages.extend([b"a", b"b", b"c"])
    assert [found[1] for found in iter(turns.next, None)] == [b"a", b"b", b"c"]


def test_many_requests_of_one_do_not_delay_the_other() -> None:
    """Turns go by time, not by the number of requests."""
    turns = Turns()
    turns.user(1).messages.extend([b"a"] * 100)
    turns.user(2).messages.extend([b"b"] * 2)
    assert sorted(taken(turns, 4)) == [1, 1, 2, 2]


def test_costly_requests_have_fewer_turns() -> None:
    turns = Turns()
    turns.user(1).works.append(work())
    turns.user(2).messages.extend([b"b"] * 100)
    whose = taken(turns, 44, message_seconds=1.0, work_seconds=10.0)
    assert whose.count(1) == 4


def test_nobody_saves_time_up() -> None:
    turns = Turns()
    turns.user(1).works.append(work())
    turns.user(2).messages.append(b"b")
    taken(turns, 50)
    turns.user(2).messages.extend([b"b"] * 20)
    whose = taken(turns, 20)
    assert whose[0] == 2, "who comes is next"
    assert 9 <= whose.count(2) <= 11


def test_messages_and_works_of_one_user_share_its_time() -> None:
    turns = Turns()
    user = turns.user(1)
    user.messages.extend([b"a"] * 100)
    user.works.extend([work(), work()])
    taken(turns, 40)
    assert user.answering == user.working == 20


def test_a_slice_ends_when_another_user_is_next() -> None:
    turns = Turns()
    turns.user(1).works.append(work())
    turns.user(2).works.append(work())
    turns.user(2).working += 3.0
    found = turns.next()
    assert found is not None
    assert (found[0].number, found[2]) == (1, 3.0)


def test_what_one_user_keeps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "MOST_MESSAGES", 2)
    monkeypatch.setattr(turns_module, "MOST_BYTES", 1000)
    user = Turns().user(1)
    assert user.keep(900)
    assert not user.keep(101)
    assert user.keep(100)
    assert not user.keep(0)
    user.begun(900)
    assert user.keep(500)
