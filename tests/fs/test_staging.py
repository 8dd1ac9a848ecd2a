"""Staged content: what is put is what is found, and the bounds hold."""

from __future__ import annotations

import errno
import random

import pytest
from range_rig import refused

from daxfs.fs import atomic, staging
from daxfs.fs.staging import MOST_BATCHES_OF_USER, MOST_PAGES, MOST_PAGES_OF_USER, PAGE, Staging

INO, OTHER = 12, 13


def test_random_content_equals_a_bytearray() -> None:
    chance = random.Random(3)
    kept = Staging()
    staged = kept.begin(INO, object(), 1000)
    model, known = bytearray(100_000), bytearray(100_000)
    for _ in range(400):
        offset = chance.randrange(90_000)
        new = chance.randbytes(chance.choice((1, 2, 100, 4096, 9000)))
        kept.put(staged, offset, memoryview(new))
        model[offset : offset + len(new)] = new
        known[offset : offset + len(new)] = b"\1" * len(new)
        if chance.random() < 0.1:
            found = bytearray(50_000)
            staged.overlay(20_000, found)
            assert found == model[20_000:70_000]
    rebuilt, covered = bytearray(100_000), bytearray(100_000)
    end = 0
    file = chance.randbytes(100_000)
    for offset, content in staged.pieces(lambda begin, end: file[begin:end]):
        assert offset >= end, "in order, without overlap"
        end = offset + len(content)
        rebuilt[offset:end] = content
        covered[offset:end] = b"\1" * len(content)
    assert all(covered[at] for at in range(100_000) if known[at])
    for at in range(100_000):
        assert rebuilt[at] == (model[at] if known[at] else file[at] if covered[at] else 0)
    assert staged.end == end
    kept.check()


def test_the_span_of_a_page() -> None:
    page = staging.Page()
    page.staged = 0b1101
    assert (page.span, page.has_gaps) == ((0, 4), True)
    page.staged = 0b1100
    assert (page.span, page.has_gaps) == ((2, 4), False)
    page.staged = (1 << PAGE) - 1
    assert (page.span, page.has_gaps) == ((0, PAGE), False)
    page.staged = 1 << PAGE - 1
    assert (page.span, page.has_gaps) == ((PAGE - 1, PAGE), False)


def test_a_page_is_one_piece_however_many_gaps_it_has() -> None:
    kept = Staging()
    staged = kept.begin(INO, object(), 0)
    for at in range(1, PAGE, 2):
        kept.put(staged, PAGE + at, memoryview(b"n"))
    read: list[tuple[int, int]] = []

    def old(begin: int, end: int) -> bytes:
        read.append((begin, end))
        return b"o" * (end - begin)

    assert staged.pieces(old) == [(PAGE + 1, b"no" * (PAGE // 2 - 1) + b"n")]
    assert read == [(PAGE + 1, 2 * PAGE)]


def test_the_batches_of_a_user_are_bounded() -> None:
    kept = Staging()
    for ino in range(MOST_BATCHES_OF_USER):
        kept.begin(ino, object(), 1000)
    with refused(errno.ENOMEM):
        kept.begin(MOST_BATCHES_OF_USER, object(), 1000)
    kept.begin(MOST_BATCHES_OF_USER, object(), 0)
    kept.end(0)
    kept.begin(0, object(), 1000)
    kept.check()


def test_one_batch_of_a_file() -> None:
    kept = Staging()
    kept.begin(INO, object(), 0)
    with refused(errno.EBUSY):
        kept.begin(INO, object(), 0)
    kept.begin(OTHER, object(), 0)
    kept.end(INO)
    kept.begin(INO, object(), 0)
    kept.check()


def test_the_pages_of_a_batch_are_bounded() -> None:
    """Single bytes far apart cost a page each; what is refused stages nothing."""
    assert MOST_PAGES * PAGE == atomic.MOST_BYTES
    kept = Staging()
    staged = kept.begin(INO, object(), 0)
    for number in range(MOST_PAGES):
        kept.put(staged, number * 2 * PAGE, memoryview(b"x"))
    with refused(errno.EFBIG):
        kept.put(staged, PAGE - 1, memoryview(b"xx"))
    kept.put(staged, 5, memoryview(b"y"))
    assert len(staged.pages) == MOST_PAGES
    kept.check()
    kept.end(INO)
    assert not kept.pages


@pytest.mark.parametrize("uid", [0, 1000])
def test_the_pages_of_a_user_are_bounded(uid: int) -> None:
    kept = Staging()
    whole = memoryview(bytes(MOST_PAGES * PAGE))
    count = MOST_PAGES_OF_USER // MOST_PAGES
    for ino in range(count):
        kept.put(kept.begin(ino, object(), uid), 0, whole)
    last = kept.begin(count, object(), uid)
    with refused(errno.ENOMEM):
        kept.put(last, 0, memoryview(b"x"))
    kept.put(kept.begin(count + 1, object(), uid + 1), 0, memoryview(b"x"))
    kept.end(0)
    kept.put(last, 0, memoryview(b"x"))
    kept.check()


@pytest.mark.interpreted
def test_pages_that_no_memory_is_left_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the content is staged, and nothing is counted."""
    kept = Staging()
    staged = kept.begin(INO, object(), 1000)
    kept.put(staged, 0, memoryview(b"x"))

    def page() -> staging.Page:
        made.append(None)
        if len(made) == 2:
            raise MemoryError
        return original()

    made: list[None] = []
    original = staging.Page
    monkeypatch.setattr(staging, "Page", page)
    with pytest.raises(MemoryError):
        kept.put(staged, PAGE, memoryview(bytes(3 * PAGE)))
    assert staged.pages.keys() == {0}
    kept.check()
