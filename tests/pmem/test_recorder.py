"""The crash model: which stores must, may and must not be in the image after a power cut."""

from __future__ import annotations

import random

import pytest
from recorder import CrashImage, Fence, Flush, Mark, RecordingPool, Store

SIZE = 64 << 10


def images(pool: RecordingPool, **options: int) -> list[CrashImage]:
    return list(pool.crash_images(random.Random(7), **options))


def test_events() -> None:
    pool = RecordingPool(SIZE)
    pool.write(10, b"abc")
    pool.mark("stored")
    pool.zero(100, 4)
    pool.store_word(200, 0x01020304)
    pool.flush(0, 64)
    pool.fence()
    assert pool.events == [
        Store(10, b"abc"), Flush(10, 3), Mark("stored"), Store(100, bytes(4)), Flush(100, 4),
        Store(200, b"\x04\x03\x02\x01"), Flush(200, 4), Flush(0, 64), Fence(),
    ]  # fmt: skip
    assert bytes(pool.memory[10:13]) == b"abc"
    with pytest.raises(TypeError, match="read-only"):
        pool.memory[0] = 1
    with pytest.raises(ValueError, match="outside"):
        pool.flush(SIZE, 1)
    count = len(pool.events)
    with pytest.raises(ValueError, match="structures"):
        pool.write(SIZE - 1, b"xx")
    assert len(pool.events) == count, "a store that failed is not in the record"


def test_fenced_is_durable_and_the_future_is_not_there() -> None:
    pool = RecordingPool(SIZE)
    pool.write(0, b"A" * 4096)
    pool.fence()
    pool.mark("first")
    pool.write(8192, b"B" * 4096)
    pool.fence()
    pool.mark("second")
    for crash in images(pool):
        first, second = bytes(crash.image[:4096]), bytes(crash.image[8192:12288])
        assert set(first) <= {0, ord("A")}
        assert set(second) <= {0, ord("B")}
        if crash.label in ("first", "second"):
            assert first == b"A" * 4096
        else:
            assert not any(second)
        if crash.label == "second":
            assert second == b"B" * 4096
    assert {crash.label for crash in images(pool)} == {"", "first", "second"}
    assert {crash.label for crash in images(pool, start=len(pool.events))} == {"second"}


def test_words_are_whole_and_lines_are_torn() -> None:
    pool = RecordingPool(b"." * SIZE)
    pool.write(4, b"12345678" * 16)  # across words and lines
    seen: set[bytes] = set()
    for crash in images(pool, subsets=60):
        got = bytes(crash.image[: 4 + 128 + 4])
        assert got[:4] == b"...."
        assert got[-4:] == b"...."
        wanted = b"...." + b"12345678" * 16 + b"...."
        for word in range(0, len(got), 8):
            assert got[word : word + 8] in (b"." * 8, wanted[word : word + 8])
        seen.add(got)
    assert len(seen) > 20


def test_an_atomic_word_has_two_outcomes() -> None:
    pool = RecordingPool(SIZE)
    pool.store_word(64, 7)
    pool.fence()
    values = [int.from_bytes(crash.image[64:68], "little") for crash in images(pool, subsets=50)]
    assert values == [0, 7]


def test_store_after_the_flush_is_not_durable() -> None:
    pool = RecordingPool(SIZE)
    pool.write(0, b"old value")
    pool.events.append(Store(0, b"new value"))  # a store without its flush
    pool.fence()
    pool.mark("fenced")
    pool.write(4096, b"x")
    pool.fence()
    late = [bytes(crash.image[:9]) for crash in images(pool, subsets=40) if crash.label == "fenced"]
    assert b"old value" in late
    assert b"new value" in late
    assert not any(value.startswith(b"\0") for value in late)


def test_flush_takes_whole_lines_and_cuts_stores() -> None:
    pool = RecordingPool(SIZE)
    pool.events += [Store(0, b"s" * 256), Flush(70, 1), Fence(), Mark("fenced")]
    for crash in images(pool, subsets=40):
        if crash.label == "fenced":
            assert bytes(crash.image[64:128]) == b"s" * 64
    assert any(not any(crash.image[:64]) for crash in images(pool, subsets=40) if crash.label == "fenced")


def test_ordered_prefixes() -> None:
    pool = RecordingPool(SIZE)
    for number in range(20):
        pool.write(number * 64, b"x")
    pool.fence()
    shown = [crash for crash in images(pool, prefixes=5, subsets=0) if crash.choice.startswith("the first")]
    assert len(shown) == 5
    for crash in shown:
        count = sum(crash.image) // ord("x")
        assert all(crash.image[number * 64] for number in range(count))


def test_same_seed_same_images() -> None:
    pool = RecordingPool(SIZE)
    for number in range(30):
        pool.write(number * 100, bytes([number + 1]) * 90)
        if number % 7 == 0:
            pool.fence()
    assert images(pool) == images(pool)
    assert images(pool) != list(pool.crash_images(random.Random(8)))


def test_restart() -> None:
    pool = RecordingPool(SIZE)
    pool.write(0, b"before")
    pool.restart()
    assert pool.events == []
    assert [bytes(crash.image[:6]) for crash in images(pool)] == [b"before"]
