"""Reading beside the process that stores: each content is that of the snapshot, or there is an error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from store_rig import HEADER, RUNS, SIZE, new_store, noise

from daxfs.errors import FsError
from daxfs.pmem.memory import MemoryPool
from daxfs.runs import ByteRange
from daxfs.snapshots import format as layout
from daxfs.snapshots.format import NotAStore
from daxfs.snapshots.reading import Chain, Follower
from daxfs.snapshots.store import ChunkRun, Store

NEWER = [ChunkRun(80, 20)]


def overwrite(pool: MemoryPool, store: Store, chunk: int) -> None:
    """Copy a chunk, then overwrite it."""
    store.append([chunk])
    pool.write(chunk * SIZE, b"!" * SIZE)


def never() -> None:
    """Call it done."""


def test_what_was_overwritten_since_the_table_was_read_comes_from_the_store() -> None:
    base = noise()
    pool = MemoryPool(base)
    store = new_store(pool)
    chain = Chain(pool, [store])
    for chunk in (3, 4, 9):
        overwrite(pool, store, chunk)
    for offset, length in ((0, 20 * SIZE), (3 * SIZE + 7, 100), (2 * SIZE - 5, 2 * SIZE), (9 * SIZE, SIZE), (5, 1)):
        assert chain.read(offset, length) == base[offset : offset + length]


def follower(pool: MemoryPool, present: Callable[[], list[Store]], confirm: Callable[[], None] = never) -> Follower:
    return Follower(lambda: Chain(pool, [Store(pool, each.bits, each.runs) for each in present()]), confirm)


def test_a_newer_snapshot_is_followed_and_left_again() -> None:
    base = noise()
    pool = MemoryPool(base)
    first = new_store(pool)
    stores = [first]
    past = follower(pool, lambda: stores)
    assert past.read(0, 12 * SIZE) == base[: 12 * SIZE]
    newer = Store(pool, first.bits, NEWER)
    newer.create(HEADER._replace(serial=2))
    first.set_role(layout.FOLLOWED)
    stores.append(newer)
    overwrite(pool, newer, 7)
    assert past.read(0, 12 * SIZE) == base[: 12 * SIZE]
    first.append([7], {7: base[7 * SIZE : 8 * SIZE]})  # merged
    newer.set_role(layout.LEAVING)
    first.set_role(layout.NEWEST)
    stores.remove(newer)
    pool.write(NEWER[0].start * SIZE, b"?" * SIZE * NEWER[0].length)
    overwrite(pool, first, 8)
    assert past.read(0, 12 * SIZE) == base[: 12 * SIZE]


def test_a_lost_snapshot_is_an_error() -> None:
    pool = MemoryPool(noise())
    store = new_store(pool)

    def present() -> list[Store]:
        if not pool.memory[RUNS[0].start * SIZE + layout.VALID_AT]:
            asked.append(1)
        return [store]

    asked: list[int] = []
    past = follower(pool, present)
    past.read(0, SIZE)
    store.invalidate(1)
    with pytest.raises(NotAStore):
        past.read(0, SIZE)
    assert asked


def test_many_ranges_are_confirmed_once_and_read_again_together() -> None:
    base = noise()
    pool = MemoryPool(base)
    store = new_store(pool)
    confirmed = []
    past = follower(pool, lambda: [store], lambda: confirmed.append(1))
    ranges = [ByteRange(at * SIZE, (at + 1) * SIZE - at) for at in range(0, 12, 2)]
    expected = [base[begin:end] for begin, end in ranges]
    assert past.read_all(ranges) == expected
    overwrite(pool, store, 4)
    store.set_role(layout.FOLLOWED)
    store.set_role(layout.NEWEST)
    assert past.read_all(ranges) == expected
    assert len(confirmed) == 2
    assert past.read_all([]) == []


def test_what_nobody_confirms_is_an_error() -> None:
    def gone() -> None:
        raise FsError(5, "the daemon has ended")

    pool = MemoryPool(noise())
    store = new_store(pool)
    with pytest.raises(FsError, match="has ended"):
        follower(pool, lambda: [store], gone).read(0, SIZE)
