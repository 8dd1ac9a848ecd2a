"""Recall: grants of a range are taken back, from clients that renew and from those that do not."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from damage_rig import stopped_by_damage
from lease_rig import EXTEND, FILL, RENEW, WRITE, Client, another, check, client, entry_of, make
from recall_clock import Clock

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.grants import recall
from daxfs.fs.grants.recall import State
from daxfs.fs.types import ROOT_INO, Options
from daxfs.protocol import ENDED, Flag
from support import fsck

OpenFs = Callable[..., FileSystem]
BLOCK = 4096
STORE = WRITE | FILL


@pytest.fixture
def fs(open_fs: OpenFs) -> FileSystem:
    return open_fs(size="32M")


def refused(one: Client, offset: int, length: int, flags: Flag) -> bool:
    """Return whether a request is answered with EAGAIN."""
    try:
        one.ask(offset, length, flags)
    except FsError as error:
        assert error.errno == errno.EAGAIN
        return True
    return False


def test_a_file_that_nobody_was_granted(fs: FileSystem, clock: Clock) -> None:
    held = client(fs, content=b"x" * 8 * BLOCK)
    with fs.grants.recalls.begin(held.file.ino, 0, BLOCK) as taken:
        assert taken.state() is State.CLEAR
        assert refused(held, 0, BLOCK, STORE), "nobody gets it while its owner is at work"
        clock.now += 100
        assert refused(held, 0, BLOCK, STORE)
    assert taken.state() is State.ENDED
    assert not refused(held, 0, BLOCK, STORE)
    held.close()


@pytest.mark.usefixtures("clock")
def test_a_busy_client(fs: FileSystem) -> None:
    """The client sees the new epoch in its next operation and asks again: refused in the range, granted outside it."""
    held = client(fs, content=b"x" * 8 * BLOCK)
    answer = held.ask(0, 8 * BLOCK, STORE)
    with fs.grants.recalls.begin(held.file.ino, 2 * BLOCK + 5, 3 * BLOCK) as taken:
        assert (taken.begin, taken.end) == (2 * BLOCK, 3 * BLOCK)
        assert not held.current, "the epoch has ended"
        assert taken.state() is State.WAITING
        assert refused(held, 0, 8 * BLOCK, STORE | RENEW)
        assert taken.state() is State.CLEAR
        assert taken.mapped == ()
        assert not refused(held, 4 * BLOCK, 4 * BLOCK, STORE)
        assert not refused(held, 0, 2 * BLOCK, STORE)
        assert refused(held, 2 * BLOCK, 1, STORE)
        assert taken.state() is State.CLEAR, "grants outside of the range don't matter"
    assert held.ask(0, 8 * BLOCK, STORE | RENEW).pieces == answer.pieces
    check(fs, [held])
    held.close()


def test_a_sleeping_client(fs: FileSystem, clock: Clock) -> None:
    """After a second the client counts as mapped, until it renews; grants resume."""
    asleep = client(fs, content=b"x" * 8 * BLOCK)
    asleep.ask(0, 8 * BLOCK, STORE)
    awake = another(asleep, holder=2)
    awake.ask(0, 8 * BLOCK, STORE)
    ino, recalls = asleep.file.ino, fs.grants.recalls
    with recalls.begin(ino, 0, BLOCK) as taken:
        assert refused(awake, 0, BLOCK, STORE | RENEW)
        clock.now += 0.9 * recall.PATIENCE_SECONDS
        assert taken.state() is State.WAITING
        assert refused(awake, 0, BLOCK, STORE)
        clock.now += 0.2 * recall.PATIENCE_SECONDS
        assert not refused(awake, 0, BLOCK, STORE), "grants resume"
        assert taken.state() is State.MAPPED
        assert [(holder.number, holder.pid) for holder in taken.mapped] == [(1, asleep.file.caller.pid)]
        fs.check()
    assert [holder.number for holder in recalls.mapped_by(ino, 0, 1)] == [1]
    assert not recalls.mapped_by(ino, BLOCK, 8 * BLOCK)
    asleep.ask(0, 8 * BLOCK, STORE | RENEW)
    assert not recalls.mapped_by(ino, 0, BLOCK)
    check(fs, [asleep, awake])
    asleep.close()
    awake.close()


@pytest.mark.parametrize("way", ["renew", "close"])
def test_a_client_that_wakes_in_time(fs: FileSystem, clock: Clock, way: str) -> None:
    held = client(fs, content=b"x" * 8 * BLOCK)
    held.ask(0, 8 * BLOCK, STORE)
    ino = held.file.ino
    with fs.grants.recalls.begin(ino, 0, BLOCK) as taken:
        clock.now += 0.5 * recall.PATIENCE_SECONDS
        if way == "renew":
            held.renew()
        else:
            held.close()
        assert taken.state() is State.CLEAR
        clock.now += 2 * recall.PATIENCE_SECONDS
        assert taken.state() is State.CLEAR
    assert not fs.grants.recalls.mapped_by(ino, 0, BLOCK)
    if way == "renew":
        held.close()


@pytest.mark.usefixtures("clock")
def test_a_client_that_makes_the_file_longer(fs: FileSystem) -> None:
    """The extender is refused, so that its preallocation past EOF is freed."""
    held = client(fs, content=b"x" * BLOCK)
    held.ask(0, 9 * BLOCK, STORE | EXTEND)
    with fs.grants.recalls.begin(held.file.ino, 4 * BLOCK, 5 * BLOCK) as taken:
        assert refused(held, 0, 9 * BLOCK, STORE | EXTEND | RENEW)
        assert taken.state() is State.CLEAR
        assert not fs.grants.by_ino
        assert len(fs.describe(held.file.ino)) == 1
        assert fs.describe(held.file.ino)[0].length == 1
    held.ask(0, 9 * BLOCK, STORE | EXTEND)
    held.close()


@pytest.mark.usefixtures("clock")
def test_two_recalls_of_one_file(fs: FileSystem) -> None:
    held = client(fs, content=b"x" * 8 * BLOCK)
    held.ask(0, 8 * BLOCK, STORE)
    first = fs.grants.recalls.begin(held.file.ino, 0, 2 * BLOCK)
    second = fs.grants.recalls.begin(held.file.ino, BLOCK, 3 * BLOCK)
    assert refused(held, 0, BLOCK, STORE | RENEW)
    assert first.state() is second.state() is State.CLEAR
    with first:
        pass
    assert not refused(held, 0, BLOCK, STORE)
    assert refused(held, BLOCK, BLOCK, STORE)
    with second:
        pass
    assert not refused(held, 0, 8 * BLOCK, STORE)
    held.close()


@pytest.mark.usefixtures("clock")
def test_a_client_that_renews_outside_of_the_range(fs: FileSystem) -> None:
    """The client holds grants of the epoch that the recall began, which do not concern the recall."""
    held = client(fs, content=b"x" * 8 * BLOCK)
    held.ask(0, 8 * BLOCK, STORE)
    with fs.grants.recalls.begin(held.file.ino, 0, BLOCK) as taken:
        held.ask(4 * BLOCK, BLOCK, STORE | RENEW)
        assert taken.state() is State.CLEAR
    held.close()


@pytest.mark.usefixtures("clock")
def test_readers_are_waited_for_too(fs: FileSystem) -> None:
    held = client(fs, content=b"x" * 8 * BLOCK)
    held.ask(0, 8 * BLOCK)
    with fs.grants.recalls.begin(held.file.ino, 0, BLOCK) as taken:
        assert taken.state() is State.WAITING
        assert refused(held, 0, BLOCK, RENEW)
        assert taken.state() is State.CLEAR
    held.close()


def test_stale_clients_can_not_be_asked(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    held = client(fs, content=b"x" * 8 * BLOCK)
    monkeypatch.setattr(fs.grants.epochs, "stale", True)
    with fs.grants.recalls.begin(held.file.ino, 0, BLOCK) as taken:
        assert taken.state() is State.MAPPED
        assert taken.mapped == ()
    monkeypatch.undo()
    held.close()


@pytest.mark.parametrize("way", ["mounted so", "damaged"])
def test_holders_of_a_read_only_volume_count_as_mapped(fs: FileSystem, clock: Clock, way: str) -> None:
    """The holders have no status entry that would show the end of an epoch, so that the range is never clear."""
    fs.release(make(fs, b"f", b"x" * 8 * BLOCK))
    fs.sync()
    if way == "mounted so":
        fs.remount(Options(read_only=True))
    else:
        stopped_by_damage(fs)
    held = Client(fs, fs.open_file(fs.lookup(ROOT_INO, b"f").ino))
    assert held.ask(0, 8 * BLOCK).pieces
    with fs.grants.recalls.begin(held.file.ino, 0, BLOCK) as taken:
        assert taken.state() is State.WAITING
        clock.now += 2 * recall.PATIENCE_SECONDS
        assert taken.state() is State.MAPPED
        assert [holder.number for holder in taken.mapped] == [held.holder]
    held.close()
    with fs.grants.recalls.begin(held.file.ino, 0, BLOCK) as taken:
        assert taken.state() is State.CLEAR


def test_a_pool_that_has_another_owner_gets_one_last_word(
    pool: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pool("-b", "4096", size="32M")
    fs = FileSystem.open(path)
    held = client(fs, content=b"x" * 8 * BLOCK)
    answer = held.ask(0, 8 * BLOCK, STORE)
    fs.volume.disown("another")
    assert entry_of(fs, answer.entry).epoch == ENDED
    stores: list[int] = []
    for name in ("write", "zero", "store_word"):
        monkeypatch.setattr(fs.volume.pool, name, lambda offset, *_: stores.append(offset))
    fs.read(held.file, 0, 100)
    held.close()
    fs.close()
    assert not stores
    monkeypatch.undo()
    FileSystem.open(path).close()
    fsck(path)
