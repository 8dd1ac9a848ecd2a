"""Copies of storage in DRAM: bounded, never older than what lies there, and shared by readers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from daxfs.errors import FsError, OnStorage
from daxfs.fs.steps import finish
from daxfs.fs.tiers import storagecache
from daxfs.fs.tiers.heat import Heat
from daxfs.fs.tiers.storagecache import UNIT, StorageCache
from daxfs.pmem import storagequeue
from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.storage import CONTENT, Storage
from daxfs.pmem.storagequeue import Ticket
from daxfs.runs import BlockRun, ByteRange

BEGIN = 4 * UNIT


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[StorageCache]:
    """Return a cache of 8 units, each filled with its number, after 4 units of memory."""
    (tmp_path / "slow").write_bytes(bytes(CONTENT) + b"".join(bytes([number]) * UNIT for number in range(8)))
    pool = MemoryPool(12 * UNIT)
    pool.memory_size = BEGIN
    storage = Storage(str(tmp_path / "slow"))
    storage.place = ByteRange(BEGIN, 12 * UNIT)
    pool.storages = (storage,)
    cache = StorageCache(pool)
    yield cache
    cache.close()
    pool.close()


def read(cache: StorageCache, begin: int, end: int) -> bytes:
    """Read bytes of the storage as often as needed."""
    while True:
        found = cache.content(BEGIN + begin, BEGIN + end)
        try:
            cache.finish_read()
        except OnStorage as error:
            finish(error.bring())
        else:
            return bytes(found)


def test_parts_of_units(cache: StorageCache) -> None:
    assert read(cache, UNIT - 1, 2 * UNIT + 1) == b"\0" + b"\1" * UNIT + b"\2"
    assert cache.holds(BEGIN)
    assert not cache.holds(BEGIN - 1)


def test_what_was_read_is_kept_and_the_oldest_is_dropped(cache: StorageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storagecache, "MOST_UNITS", 2)
    calls = watched(cache, monkeypatch)
    for unit in (0, 2, 0, 4, 0, 2):
        assert read(cache, unit * UNIT, unit * UNIT + 1) == bytes([unit])
    assert calls == [(0, 1), (2, 1), (4, 1), (2, 1)]


def watched(cache: StorageCache, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list to which each call adds its first unit and their number."""
    calls: list[tuple[int, int]] = []
    read_storage = cache.queues[0].storage.read

    def noting(offset: int, length: int) -> bytes:
        calls.append((offset // UNIT, length // UNIT))
        return read_storage(offset, length)

    monkeypatch.setattr(cache.queues[0].storage, "read", noting)
    return calls


def test_units_that_follow_each_other_are_one_call(cache: StorageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watched(cache, monkeypatch)
    assert read(cache, 3 * UNIT, 3 * UNIT + 1) == b"\3"
    assert read(cache, 0, 7 * UNIT) == b"".join(bytes([unit]) * UNIT for unit in range(7))
    assert calls == [(3, 1), (0, 3), (4, 4)], "the last one goes on from the first"
    assert cache.waits == 2


def test_a_call_is_bounded(cache: StorageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storagecache, "MOST_AT_ONCE", 3 * UNIT)
    calls = watched(cache, monkeypatch)
    read(cache, 0, 8 * UNIT)
    assert sorted(calls) == [(0, 3), (3, 3), (6, 2)]


def test_a_call_that_goes_on_from_another_reads_ahead(cache: StorageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watched(cache, monkeypatch)
    read(cache, UNIT, 2 * UNIT)
    read(cache, 5 * UNIT, 6 * UNIT)
    assert calls == [(1, 1), (5, 1)]
    read(cache, 2 * UNIT, 3 * UNIT)
    assert calls[2:] == [(2, 3)], "up to what is there"
    read(cache, 6 * UNIT, 6 * UNIT + 1)
    assert calls[3:] == [(6, 2)], "up to the end of the storage"
    assert read(cache, UNIT, 8 * UNIT) == b"".join(bytes([unit]) * UNIT for unit in range(1, 8))
    assert len(calls) == 4


def test_readers_of_the_same_units_share_a_call(cache: StorageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watched(cache, monkeypatch)
    brought = []
    for end in (3, 2):
        cache.want(BEGIN, BEGIN + end * UNIT)
        with pytest.raises(OnStorage) as needed:
            cache.finish_read()
        brought.append(needed.value.bring())
    waiting = [next(steps) for steps in brought]
    assert waiting[0] is waiting[1]
    for steps in brought:
        finish(steps)
    assert calls == [(0, 3)]
    assert cache.read == 3 * UNIT


def test_what_waits_for_the_policy_is_bounded(cache: StorageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storagecache, "MOST_NOTED", 2)
    heat = Heat()
    for ino in (11, 12, 13):
        for _ in range(2):
            heat.was_read(ino, 5, 6)
        cache.met(ino, 5, 6, heat)
    assert list(cache.misplaced) == [11, 12]
    assert list(cache.rising) == [(11, 0), (12, 0)]


def test_a_call_that_is_under_way_when_its_blocks_change_is_not_kept(cache: StorageCache) -> None:
    cache.content(BEGIN, BEGIN + 1)
    with pytest.raises(OnStorage) as first:
        cache.finish_read()
    steps = first.value.bring()
    waiting = next(steps, None)
    cache.forget(BEGIN, BEGIN + 1)
    if waiting is not None:
        waiting.wait()
    finish(steps)
    cache.queues[0].storage.write(0, b"new")
    assert read(cache, 0, 3) == b"new"


def test_blocks_of_an_abandoned_call_stay_occupied(cache: StorageCache) -> None:
    held = BlockRun(100, 1)
    ticket = cache.queues[0].read(0, 1)
    ticket.wait()
    finish(cache.occupying(held, ticket))
    assert not cache.busy
    cache.queues[0].limit_seconds = float("inf")
    pending = Ticket(cache.queues[0], lambda: None)
    steps = cache.occupying(held, pending)
    assert next(steps) is pending
    steps.close()
    assert cache.busy == [held]


def test_after_a_failure_nothing_is_asked(cache: StorageCache) -> None:
    cache.queues[0].fail("it did not answer")
    cache.content(BEGIN, BEGIN + 1)
    with pytest.raises(FsError, match="did not answer"):
        cache.finish_read()


def test_a_call_that_waits_for_others_has_time_as_long_as_they_return(
    cache: StorageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(storagequeue, "monotonic", lambda: now)
    waiting = Ticket(cache.queues[0], lambda: None)
    now += cache.queues[0].limit_seconds - 1
    Ticket(cache.queues[0], lambda: None).make()
    now += cache.queues[0].limit_seconds - 1
    assert not waiting.due
    now += 1
    assert waiting.due
    waiting.make()
    assert waiting.result() is None
