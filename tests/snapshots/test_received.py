"""The record of a received image: one of its two copies survives whatever cuts the other."""

from __future__ import annotations

import pytest

from daxfs.pmem.memory import MemoryPool
from daxfs.snapshots import received
from daxfs.snapshots.received import INCOMPLETE, WHOLE, Received
from daxfs.snapshots.stream import NO_BASE, Begin, Position

BEGIN = Begin(12, 1 << 20, 1 << 16, b"u" * 16, NO_BASE)
OLD = Received(INCOMPLETE, 6, BEGIN, Position(1000, 3, 77, 900))
NEW = Received(WHOLE, 7, BEGIN._replace(base=b"b" * 16), Position(2000, 5, 88, 1900), 99)


def test_what_was_stored_is_found() -> None:
    pool = MemoryPool(bytearray(4096))
    assert received.found(pool) is None
    for record in (OLD, NEW):
        received.store(pool, record)
        assert received.found(pool) == record
    assert not any(pool.memory[:512])
    assert not any(pool.memory[1024:])


@pytest.mark.parametrize("cut", [1, 12, 40, 100, len(NEW.pack()) - 1])
def test_a_torn_copy_leaves_the_other(cut: int) -> None:
    pool = MemoryPool(bytearray(4096))
    received.store(pool, OLD)
    place = received.PLACES[NEW.generation % 2]
    pool.memory[place : place + cut] = NEW.pack()[:cut]
    assert received.found(pool) == OLD


def test_a_change_of_the_superblock_shows() -> None:
    pool = MemoryPool(bytearray(4096))
    before = received.superblock_of(pool)
    pool.memory[1024 + 0x34] = 1
    assert received.superblock_of(pool) != before
