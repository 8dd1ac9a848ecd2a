"""The copier: what is overwritten was copied first, once, at every store that may be the last."""

from __future__ import annotations

import errno
import random
from itertools import pairwise

import pytest
from recorder import Fence, RecordingPool
from recorder import Store as Stored
from store_rig import (
    CHUNKS,
    ORIGIN,
    RUNS,
    SIZE,
    Watched,
    after_cut,
    content,
    new_store,
    noise,
    opened,
)

from daxfs.errors import MissingMemory
from daxfs.pmem.memory import MemoryPool
from daxfs.runs import ByteRange
from daxfs.snapshots.copier import Copier
from daxfs.snapshots.store import ChunkRun

FIRST = noise()[: ORIGIN * SIZE]


def watched(*, filled: int = 0) -> tuple[RecordingPool, Watched]:
    """A recording pool with a copier; ``filled`` exceptions of the highest chunks are in the table already."""
    pool = RecordingPool(noise())
    store = new_store(pool)
    store.append(list(range(ORIGIN - filled, ORIGIN)))
    pool.restart()
    return pool, Watched(pool, store)


def overwrite(pool: RecordingPool | MemoryPool, rng: random.Random, times: int) -> None:
    """Some stores of all kinds to the origin."""
    for _ in range(times):
        at = rng.randrange(100 * SIZE)
        kind = rng.randrange(4)
        if kind == 0:
            pool.write(at, rng.randbytes(rng.choice((1, 100, SIZE, 3 * SIZE))))
        elif kind == 1:
            pool.zero(at, rng.choice((8, SIZE, 2 * SIZE)))
        elif kind == 2:
            pool.store_word(at & -8, rng.getrandbits(63), 8)
        else:
            pool.replace(at & -SIZE, rng.randbytes(SIZE))
        if rng.random() < 0.5:
            pool.fence()


@pytest.mark.parametrize("filled", [0, 253])
@pytest.mark.parametrize("seed", range(3))
def test_every_power_cut_leaves_the_snapshot_whole(seed: int, filled: int) -> None:
    pool, _ = watched(filled=filled)
    rng = random.Random(seed)
    overwrite(pool, rng, 12)
    pool.hook.before_all(ByteRange(at * SIZE, at * SIZE + 100) for at in (150, 120, 151, 133))  # type: ignore[union-attr]
    for left in pool.crash_images(rng, prefixes=8, subsets=9):
        assert after_cut(left.image) == FIRST, f"cut at {left.position}: {left.choice}"


@pytest.mark.parametrize("filled", [0, 253])
def test_a_snapshot_goes_on_after_every_power_cut(filled: int) -> None:
    pool, _ = watched(filled=filled)
    rng = random.Random(7)
    overwrite(pool, rng, 6)
    for number, left in enumerate(pool.crash_images(rng, prefixes=4, subsets=6)):
        second = RecordingPool(left.image)
        Watched(second, opened(second))
        overwrite(second, random.Random(number), 5)
        assert content(second, opened(MemoryPool(second.image()))) == FIRST
        for again in second.crash_images(rng, prefixes=1, subsets=1):
            assert after_cut(again.image) == FIRST, f"cut at {left.position} ({left.choice}), then {again.position}"


def test_what_was_copied_is_not_copied_again() -> None:
    pool, watch = watched()
    for _ in range(3):
        pool.write(5 * SIZE + 100, b"new" * 2000)
    assert watch.copier.copied == 2
    assert watch.copier.store.count == 2
    pool.write((ORIGIN + 350) * SIZE, b"not needed")
    pool.store_word(RUNS[1].start * SIZE, 1)
    assert watch.copier.copied == 2


def test_a_store_to_a_chunk_that_was_copied_does_not_call_the_copier(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = MemoryPool(noise())
    calls = []
    before = Copier.before

    def counted(self: Copier, offset: int, length: int) -> None:
        calls.append(offset)
        before(self, offset, length)

    monkeypatch.setattr(Copier, "before", counted)
    Watched(pool, new_store(pool))
    for _ in range(2):
        pool.write(5 * SIZE + 10, b"new")
        pool.store_word(6 * SIZE, 1)
        pool.write((ORIGIN + 350) * SIZE, bytes(SIZE))
        pool.write(16 * SIZE + 10, bytes(20 * SIZE))
        pool.write(24 * SIZE, bytes(16 * SIZE))  # the bytes of their bits have no others
    assert calls == [5 * SIZE + 10, 6 * SIZE, 16 * SIZE + 10, 24 * SIZE]


@pytest.mark.parametrize("length", [3, 40])
@pytest.mark.parametrize("filled", [0, 254])
def test_a_batch_is_in_the_table_as_a_whole_or_not_at_all(filled: int, length: int) -> None:
    pool, _ = watched(filled=filled)
    pool.write(20 * SIZE, bytes(length * SIZE))
    counts = {opened(MemoryPool(left.image)).count for left in pool.crash_images(random.Random(1), subsets=9)}
    assert counts == {filled, filled + length}


def test_pages_of_a_store_are_mapped_before_they_are_stored_to(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _ = watched()
    mapped: set[int] = set()
    monkeypatch.setattr(pool, "prefault", lambda offset, size: mapped.update(range(offset, offset + size, SIZE)))
    own = {at * SIZE for start, length in RUNS for at in range(start, start + length)}
    tables = {RUNS[0].start * SIZE + SIZE}  # mapped when it was cleared
    for at in range(0, 300, 15):
        pool.write(at * SIZE, bytes(SIZE))
        pool.write((at + 1) * SIZE, bytes(14 * SIZE))
    stored = {event.offset & -SIZE for event in pool.events if isinstance(event, Stored)}
    assert stored & own - tables <= mapped


def test_a_batch_takes_two_fences() -> None:
    pool, watch = watched()
    watch.copier.before_all(ByteRange(at * SIZE, (at + 1) * SIZE) for at in range(0, 300, 2))
    assert watch.copier.copied == 150
    assert sum(isinstance(event, Fence) for event in pool.events) == 2


def test_the_second_word_of_an_entry_is_stored_after_a_fence_and_before_one() -> None:
    pool, _ = watched()
    pool.write(7 * SIZE, b"x")
    kinds = [event for event in pool.events if isinstance(event, Stored | Fence)]
    table = (RUNS[0].start + 1) * SIZE
    at = next(n for n, event in enumerate(kinds) if isinstance(event, Stored) and event.offset == table + 8)
    assert isinstance(kinds[at - 1], Fence)
    assert isinstance(kinds[at + 1], Fence)
    assert kinds[at + 2] == Stored(7 * SIZE, b"x")


def test_stores_outside_of_the_pool_are_refused_as_without_a_copier() -> None:
    pool, watch = watched()
    for call in (
        lambda: pool.write(CHUNKS * SIZE, b"x"),
        lambda: pool.write(CHUNKS * SIZE - 1, b"xy"),
        lambda: pool.write(1 << 50, b"x"),
        lambda: pool.zero(1 << 50, 10_000),
        lambda: pool.store_word(1 << 50, 1),
    ):
        with pytest.raises(ValueError, match=r"outside|no aligned word|lvalue|assignment"):
            call()
    assert watch.copier.copied == 0


def test_a_full_store_gives_the_snapshot_up_and_not_the_write() -> None:
    pool = MemoryPool(noise())
    watch = Watched(pool, new_store(pool, (ChunkRun(400, 5),)), reserve=2)
    pool.write(0, bytes(3 * SIZE))
    assert watch.calls == ["low"]
    pool.write(3 * SIZE, b"one more")
    assert watch.calls == ["low", "room for 1", "full"]
    assert pool.memory[3 * SIZE : 3 * SIZE + 8] == b"one more"
    assert pool.hook is None


def test_room_is_asked_for_once_and_again_after_the_store_has_grown() -> None:
    pool = MemoryPool(noise())
    watch = Watched(pool, new_store(pool, (ChunkRun(400, 10),)), reserve=6)
    pool.write(0, bytes(4 * SIZE))
    assert watch.calls == ["low"]
    watch.copier.store.set_runs((ChunkRun(400, 14),))
    watch.copier.grown()
    watch.copier.check_room()
    assert watch.calls == ["low"]
    pool.write(5 * SIZE, bytes(3 * SIZE))
    assert watch.calls == ["low", "low"]


def test_memory_that_is_missing_gives_the_snapshot_up() -> None:
    pool = MemoryPool(noise())
    watch = Watched(pool, new_store(pool))

    def fail(*_: object) -> None:
        raise MissingMemory(errno.EIO)

    pool.unhooked = pool.unhooked._replace(write=fail)
    pool.write(0, b"x")
    assert watch.calls == ["missing"]
    assert pool.memory[:1] == b"x"


def test_a_file_system_below_the_pool_without_room_gives_the_snapshot_up() -> None:
    pool = MemoryPool(noise())
    watch = Watched(pool, new_store(pool))

    def fail(*_: object) -> None:
        raise MissingMemory(errno.ENOSPC)

    pool.reserve = fail
    pool.write(0, b"x")
    assert watch.calls == ["missing"]
    assert pool.memory[:1] == b"x"


def test_only_what_nobody_needs_may_be_given_back_to_the_system() -> None:
    pool, watch = watched()
    watch.copier.before(3 * SIZE, 2 * SIZE)
    ranges = list(watch.copier.unneeded(2 * SIZE, 6 * SIZE))
    assert ranges == [ByteRange(3 * SIZE, 5 * SIZE)]
    end = (ORIGIN + 9) * SIZE
    assert list(watch.copier.unneeded((ORIGIN - 2) * SIZE, end)) == [ByteRange(ORIGIN * SIZE, end)]
    assert list(watch.copier.unneeded(SIZE, SIZE)) == []
    pool.discard(10 * SIZE, SIZE)
    assert watch.copier.store.table()[0].tolist() == [3, 4, 10]


def test_a_pool_without_a_hook_has_its_own_operations() -> None:
    pool = MemoryPool(noise())
    own = pool.write, pool.zero, pool.store_word
    Watched(pool, new_store(pool))
    assert (pool.write, pool.zero, pool.store_word) != own
    pool.hook_stores(None)
    assert (pool.write, pool.zero, pool.store_word) == own
    assert all(first != second for first, second in pairwise(own))
