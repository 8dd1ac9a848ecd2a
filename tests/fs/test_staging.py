"""Staged content: what is put is what is found, and the bounds hold."""

from __future__ import annotations

import errno
import random

import pytest
from range_rig import refused

from daxfs.fs import atomic, staging
from daxfs.fs.staging import MOST_PAGES, MOST_PAGES_OF_USER, PAGE, Staging

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
    for offset, content in staged.pieces():
        assert offset >= end, "in order, without overlap"
        end = offset + len(content)
        rebuilt[offset:end] = content
        covered[offset:end] = b"\1" * len(content)
    assert (rebuilt, covered) == (model, known)
    assert staged.end == end
    kept.check()


def test_ranges_of_a_page() -> None:
    page = staging.Page()
    assert list(page.ranges()) == []
    page.staged = 0b1101
    assert list(page.ranges()) == [(0, 1), (2, 4)]
    page.staged = staging.WHOLE
    assert list(page.ranges()) == [(0, PAGE)]
    page.staged = 1 << PAGE - 1
    assert list(page.ranges()) == [(PAGE - 1, PAGE)]


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
    assert len(staged.pieces()) == MOST_PAGES + 1
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
