"""What each persistence requests from the library or the kernel, on fakes that record every call.

libpmem's flags and functions are those of libpmem(7): a copy or fill with the flag ``PMEM_F_MEM_NODRAIN`` alone is
written back when it returns, and durable after a drain.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daxfs import protocol
from daxfs.direct import pool as client
from daxfs.direct.missing import Guard
from daxfs.errors import FsError
from daxfs.pmem import persist
from daxfs.pmem.persist import Library, Operations

SIZE = 64 << 10
NODRAIN = 1
LARGE = 4096
"""The size in bytes from which on libpmem copies."""

Call = tuple[object, ...]


class FakeLibrary:
    """A fake of libpmem on a buffer; ``calls`` records the calls, with offsets instead of addresses."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.calls: list[Call] = []

    def flush(self, address: int, length: int) -> None:
        self.calls.append(("flush", address - self.base, length))

    def drain(self) -> None:
        self.calls.append(("drain",))

    def copy(self, address: int, source: object, length: int, flags: int) -> None:
        ctypes.memmove(address, source, length)  # type: ignore[arg-type]
        self.calls.append(("copy", address - self.base, length, flags))

    def fill(self, address: int, value: int, length: int, flags: int) -> None:
        ctypes.memset(address, value, length)
        self.calls.append(("fill", address - self.base, length, flags))

    def taken(self) -> list[Call]:
        """Return the calls since the last call of this method, and forget them."""
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def backed() -> tuple[bytearray, FakeLibrary, Operations]:
    memory = bytearray(SIZE)
    fake = FakeLibrary(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    return memory, fake, persist.libpmem(memoryview(memory), Library(fake.flush, fake.drain, fake.copy, fake.fill))


@pytest.mark.parametrize("length", [1, 8, 63, 64, LARGE - 1])
@pytest.mark.parametrize("offset", [0, 8, 100])
def test_libpmem_writes_back_what_it_stored(
    backed: tuple[bytearray, FakeLibrary, Operations], offset: int, length: int
) -> None:
    memory, fake, operations = backed
    operations.write(offset, b"x" * length)
    assert fake.taken() == [("flush", offset, length)]
    assert memory[offset : offset + length] == b"x" * length


@pytest.mark.parametrize("length", [LARGE, LARGE + 1, 3 * LARGE])
@pytest.mark.parametrize("kind", [bytes, bytearray, lambda data: memoryview(bytearray(data))])
def test_libpmem_copies_large_stores_past_the_caches(
    backed: tuple[bytearray, FakeLibrary, Operations], length: int, kind: Callable[[bytes], persist.Buffer]
) -> None:
    memory, fake, operations = backed
    operations.write(72, kind(b"y" * length))
    assert fake.taken() == [("copy", 72, length, NODRAIN)]
    assert memory[72 : 72 + length] == b"y" * length


def test_libpmem_writes_back_a_large_read_only_view(backed: tuple[bytearray, FakeLibrary, Operations]) -> None:
    memory, fake, operations = backed
    operations.write(72, memoryview(bytearray(b"z" * LARGE)).toreadonly())
    assert fake.taken() == [("flush", 72, LARGE)]
    assert memory[72 : 72 + LARGE] == b"z" * LARGE


def test_libpmem_writes_back_words_zeros_and_what_was_stored_by_others(
    backed: tuple[bytearray, FakeLibrary, Operations],
) -> None:
    _, fake, operations = backed
    operations.store_word(60, 1)
    operations.store_word(64, 1, 8)
    operations.zero(130, 7)
    operations.zero(8192, 20_000)
    operations.flush(300, 5)
    assert fake.taken() == [
        ("flush", 60, 4),
        ("flush", 64, 8),
        ("fill", 130, 7, NODRAIN),
        ("fill", 8192, 20_000, NODRAIN),
        ("flush", 300, 5),
    ]


def test_libpmem_drains_at_the_fence(backed: tuple[bytearray, FakeLibrary, Operations]) -> None:
    _, fake, operations = backed
    operations.fence()
    operations.write(0, b"x")
    operations.fence()
    operations.fence()
    assert fake.taken() == [("drain",), ("flush", 0, 1), ("drain",), ("drain",)]


class FakeMapping:
    """A mapping that records its msync calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def flush(self, offset: int, length: int) -> None:
        assert offset % mmap.PAGESIZE == 0
        self.calls.append((offset, length))


@pytest.fixture
def synced() -> tuple[FakeMapping, Operations]:
    mapping = FakeMapping()
    return mapping, persist.msync(memoryview(bytearray(SIZE)), mapping.flush)


STORES: dict[str, tuple[Callable[[Operations, int], object], int]] = {
    "write": (lambda operations, offset: operations.write(offset, b"12345678"), 8),
    "zero": (lambda operations, offset: operations.zero(offset, 8), 8),
    "word": (lambda operations, offset: operations.store_word(offset, 1), 4),
    "long word": (lambda operations, offset: operations.store_word(offset, 1, 8), 8),
    "flush": (lambda operations, offset: operations.flush(offset, 8), 8),
}
PLACES = (4104, 8192, 40_000, 49_152)


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("other", STORES)
@pytest.mark.parametrize("first", [0, 1])
def test_msync_takes_everything_since_the_last_fence(
    synced: tuple[FakeMapping, Operations], name: str, other: str, first: int
) -> None:
    """In any order of two stores, msync covers the range from the lower one's page to the higher one's end."""
    mapping, operations = synced
    low, high = PLACES[0], PLACES[2]
    stores = [(STORES[name], low), (STORES[other], high)]
    for (store, _), place in (stores[first], stores[1 - first]):
        store(operations, place)
    operations.fence()
    assert mapping.calls == [(4096, high + STORES[other][1] - 4096)]
    operations.fence()
    assert len(mapping.calls) == 1, "nothing was stored since"


def test_msync_begins_anew_after_a_fence(synced: tuple[FakeMapping, Operations]) -> None:
    mapping, operations = synced
    for place in PLACES:
        operations.write(place, b"x")
        operations.fence()
    assert mapping.calls == [(place & -mmap.PAGESIZE, place % mmap.PAGESIZE + 1) for place in PLACES]


# Persistence in a client, a program that maps the pool


@pytest.fixture
def mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], tuple[client.Pool, list[Call]]]]:
    """Map a file of 5 MiB as a pool of some persistence; write-backs are recorded with their offsets."""
    path = tmp_path / "pool"
    path.write_bytes(bytes(5 << 20))
    made: list[client.Pool] = []

    def make(persistence: int) -> tuple[client.Pool, list[Call]]:
        calls: list[Call] = []

        def library() -> Library:
            def flush(address: int, length: int) -> None:
                calls.append(("flush", address - made[0].address, length))

            def copy(address: int, _source: object, length: int, flags: int) -> None:
                calls.append(("copy", address - made[0].address, length, flags))

            return Library(flush, lambda: calls.append(("drain",)), copy, lambda *_: None)

        def write_back(address: int, length: int) -> None:
            assert not address % mmap.PAGESIZE
            calls.append(("msync", address - made[0].address, length))

        monkeypatch.setattr(persist, "load_libpmem", library)
        monkeypatch.setattr(client, "write_back", write_back)
        descriptor = os.open(path, os.O_RDWR)
        record = protocol.Pool(persistence, 0, 0, 0, 5 << 20, 4096, 7, bytes(16), b"")
        mapping = mmap.mmap(descriptor, 5 << 20)
        made.append(client.Pool(record, descriptor, mapping, Guard(mapping), mmap.MAP_SHARED))
        return made[0], calls

    yield make
    for one in made:
        one.memory.release()


def test_a_client_of_lines(mapped: Callable[[int], tuple[client.Pool, list[Call]]]) -> None:
    one, calls = mapped(protocol.Persistence.LINES)
    assert one.store is not None
    one.store(100, b"x" * 10)
    one.store(8192, b"x" * LARGE)
    one.sync()
    one.flush(one.address + 77, 100)
    assert calls == [
        ("flush", 100, 10),
        ("copy", 8192, LARGE, NODRAIN),
        ("drain",),
        ("flush", 77, 100),
        ("drain",),
    ]


def test_a_client_of_msync(mapped: Callable[[int], tuple[client.Pool, list[Call]]]) -> None:
    """A client flushes every chunk of 2 MiB that it stored to, each once; the last chunk ends with the pool."""
    one, calls = mapped(protocol.Persistence.MSYNC)
    assert one.store is not None
    one.store((2 << 20) - 1, b"xy")
    one.store((5 << 20) - 1, b"z")
    one.store(5, b"a")
    one.sync()
    assert sorted(calls) == [("msync", 0, 2 << 20), ("msync", 2 << 20, 2 << 20), ("msync", 4 << 20, 1 << 20)]
    calls.clear()
    one.sync()
    assert not calls
    one.flush(one.address + 5000, 9000)
    assert calls == [("msync", 4096, 5000 + 9000 - 4096)]


def test_a_client_of_a_medium_that_failed(
    mapped: Callable[[int], tuple[client.Pool, list[Call]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports an error once; every later sync reports it too."""
    one, _ = mapped(protocol.Persistence.MSYNC)
    assert one.store is not None

    def fail(*_: int) -> None:
        raise OSError(errno.EIO, "bad medium")

    monkeypatch.setattr(client, "write_back", fail)
    for _ in range(2):
        one.store(0, b"x")
        with pytest.raises(FsError) as caught:
            one.sync()
        assert caught.value.errno == errno.EIO
