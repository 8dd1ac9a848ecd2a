"""Exception stores: what is added is found again, damage is refused, nothing outside of the store is touched."""

from __future__ import annotations

import struct

import pytest
from recorder import RecordingPool
from recorder import Store as Stored
from store_rig import BITS, CHUNKS, HEADER, RUNS, SIZE, new_store, noise, opened

from daxfs.pmem.memory import MemoryPool
from daxfs.snapshots.format import NotAStore
from daxfs.snapshots.store import ChunkRun, Store


def pool() -> MemoryPool:
    return MemoryPool(noise())


def test_exceptions_are_found_again_with_their_content() -> None:
    base = noise()
    made = pool()
    store = new_store(made)
    old = [3, 4, 5, 300, 7, 0, 200]
    store.append(old)
    store.append([9], {9: b"given".ljust(SIZE, b"\0")})
    again = opened(made)
    found, new = (column.tolist() for column in again.table())
    assert found == [*old, 9]
    assert again.count == 8
    for chunk, place in zip(found[:7], new, strict=False):
        assert again.content(place) == base[chunk * SIZE : (chunk + 1) * SIZE]
    assert bytes(again.content(new[7])).rstrip(b"\0") == b"given"
    assert again.table(7)[0].tolist() == [9]


def test_the_table_is_laid_out_as_the_kernel_reads_it() -> None:
    made = pool()
    store = new_store(made)
    store.append(list(range(300)))
    first = RUNS[0].start * SIZE
    assert struct.unpack_from("<4Q", made.memory, first + SIZE) == (0, 2, 1, 3)
    # The second area is chunk 258 of the store: 28 chunks in the first run, the others in the second.
    second = (RUNS[1].start + 258 - RUNS[0].length) * SIZE
    assert struct.unpack_from("<2Q", made.memory, second) == (256, 259)
    assert opened(made).count == 300


def test_a_store_takes_as_much_as_it_has_room_for() -> None:
    made = pool()
    store = new_store(made)
    room = store.room
    assert room == 325
    store.append(list(range(room)))
    assert store.room == 0
    with pytest.raises(ValueError, match="has room for 0"):
        store.append([350])
    assert opened(made).count == room


def test_a_store_that_has_grown_goes_on() -> None:
    made = pool()
    store = new_store(made, (ChunkRun(400, 10),))
    store.append(list(range(store.room)))
    store.set_runs((ChunkRun(400, 10), ChunkRun(600, 5)))
    store.append([50, 51, 52, 53, 54])
    assert opened(made, store.runs).table()[0].tolist() == [*range(8), 50, 51, 52, 53, 54]


def test_stores_reach_no_chunk_but_their_own() -> None:
    made = RecordingPool(noise())
    store = new_store(made)
    store.append(list(range(290)))
    own = [range(start * SIZE, (start + length) * SIZE) for start, length in RUNS]
    for event in made.events:
        if isinstance(event, Stored):
            assert any(event.offset in run and event.offset + len(event.data) - 1 in run for run in own)


def test_an_invalid_snapshot_says_why() -> None:
    made = pool()
    store = new_store(made)
    store.invalidate(2)
    assert store.header() == HEADER._replace(valid=False, reason=2)


def test_the_last_chunk_of_the_pool_may_be_incomplete() -> None:
    size = CHUNKS * SIZE + 1024
    made = MemoryPool(noise(CHUNKS + 1)[:size])
    store = Store(made, BITS, RUNS)
    store.create(HEADER._replace(origin_chunks=CHUNKS + 1))
    store.append([CHUNKS])
    _, new = store.table()
    assert store.content(int(new[0]))[:1024] == made.memory[CHUNKS * SIZE :]


@pytest.mark.parametrize("entry", [(CHUNKS, 2), (5, 1), (5, 258), (5, 328), (5, 1 << 40), (1 << 60, 3)])
def test_a_table_that_names_what_is_not_there_is_refused(entry: tuple[int, int]) -> None:
    made = pool()
    new_store(made)
    made.write((RUNS[0].start + 1) * SIZE, struct.pack("<2Q", *entry))
    with pytest.raises(NotAStore):
        opened(made)


def test_a_table_without_an_end_is_refused() -> None:
    made = pool()
    new_store(made, (ChunkRun(400, 10),))
    made.write(401 * SIZE, struct.pack("<2Q", 0, 2) * 256)
    with pytest.raises(NotAStore):
        opened(made, (ChunkRun(400, 10),))


def test_a_store_of_another_pool_is_refused() -> None:
    made = pool()
    store = new_store(made)
    store.create(HEADER._replace(origin_chunks=CHUNKS + 1))
    with pytest.raises(NotAStore):
        opened(made)
    with pytest.raises(NotAStore):
        Store(made, BITS, (ChunkRun(3, 1),)).open()
