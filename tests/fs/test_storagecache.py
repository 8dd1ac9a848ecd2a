"""Copies of storage in DRAM: bounded, never older than what lies there, and shared by readers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from daxfs.errors import FsError, OnStorage
from daxfs.fs import storagecache
from daxfs.fs.steps import finish
from daxfs.fs.storagecache import UNIT, StorageCache
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
    calls: list[int] = []
    read_storage = cache.queues[0].storage.read
    monkeypatch.setattr(
        cache.queues[0].storage, "read", lambda offset, length: calls.append(offset) or read_storage(offset, length)
    )
    for unit in (0, 1, 0, 2, 0, 1):
        assert read(cache, unit * UNIT, unit * UNIT + 1) == bytes([unit])
    assert calls == [0, UNIT, 2 * UNIT, UNIT]


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
