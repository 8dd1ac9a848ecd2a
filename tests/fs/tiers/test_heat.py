"""How often pieces of files are used: what counts as one use, for how long it counts, and how much is kept."""

from __future__ import annotations

import pytest

from daxfs.fs.tiers import heat
from daxfs.fs.tiers.heat import PIECE, Heat, bytes_of, pieces_of

INO, OTHER = 12, 13
KIB = 1 << 10


def test_each_read_is_a_use_of_each_piece_that_it_touches() -> None:
    kept = Heat()
    kept.was_read(INO, PIECE - 1, PIECE + 1)
    kept.was_read(INO, 3 * PIECE, 3 * PIECE + 1)
    kept.was_read(INO, 3 * PIECE, 3 * PIECE + 1)
    kept.was_used(OTHER, 5, 6)
    assert [kept.uses(INO, piece) for piece in range(5)] == [1, 1, 0, 2, 0]
    assert kept.warm() == {INO: {0: 1, 1: 1, 3: 2}, OTHER: {0: 1}}
    assert kept.reads == 3


def test_a_scan_is_one_use_of_each_piece_and_a_second_scan_another() -> None:
    kept = Heat()
    for scan in (1, 2):
        for offset in range(0, 3 * PIECE, 128 * KIB):
            kept.was_read(INO, offset, offset + 128 * KIB)
            kept.was_read(OTHER, offset, offset + 128 * KIB)
        assert [kept.uses(INO, piece) for piece in range(4)] == [scan, scan, scan, 0]


def test_the_beginning_of_a_piece_is_used_again_and_again() -> None:
    kept = Heat()
    for _ in range(3):
        kept.was_read(INO, 0, 4 * KIB)
    assert kept.uses(INO, 0) == 3


def test_what_was_forgotten_begins_anew() -> None:
    kept = Heat()
    for piece in range(4):
        kept.was_read(INO, piece * PIECE, piece * PIECE + 1)
    kept.forget(INO, PIECE + 1, 2 * PIECE + 1)
    assert kept.warm() == {INO: {0: 1, 3: 1}}


@pytest.mark.interpreted
def test_uses_count_for_a_minute_at_least_and_for_two_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(heat, "monotonic", lambda: now)
    monkeypatch.setattr(heat.clock, "now", lambda: int(now * 1e9))
    kept = Heat()
    now += 59
    kept.tick()
    kept.was_read(INO, 0, 1)
    now += 59
    kept.tick()
    assert kept.uses(INO, 0) == 1
    assert kept.last_use(INO) == int((now) * 1e9)
    kept.was_read(INO, 0, 1)
    kept.was_read(OTHER, 0, 1)
    assert kept.uses(INO, 0) == 2
    now += 60
    kept.tick()
    assert kept.uses(INO, 0) == 1
    now += 60
    kept.tick()
    assert not kept.warm()
    assert kept.last_use(OTHER) == int((now - 60) * 1e9)


@pytest.mark.interpreted
def test_a_scan_that_goes_on_in_the_next_period_is_no_further_use(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(heat, "monotonic", lambda: now)
    kept = Heat()
    kept.was_read(INO, 0, KIB)
    now += 61
    kept.tick()
    kept.was_read(INO, KIB, 2 * KIB)
    assert kept.uses(INO, 0) == 1
    kept.was_read(INO, KIB, 2 * KIB)
    assert kept.uses(INO, 0) == 2


@pytest.mark.interpreted
def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heat, "MOST_PIECES", 4)
    monkeypatch.setattr(heat, "MOST_FILES", 3)
    kept = Heat()
    for ino in range(20, 40):
        kept.was_read(ino, 0, 1)
    assert sorted(kept.warm()) == list(range(32, 40))
    assert [ino for ino in range(20, 40) if kept.last_use(ino)] == [33, 34, 35]


def test_pieces_of_bytes() -> None:
    assert list(pieces_of(0, 1)) == list(pieces_of(PIECE - 1, PIECE)) == [0]
    assert list(pieces_of(PIECE - 1, 3 * PIECE + 1)) == [0, 1, 2, 3]
    assert bytes_of(2) == (2 * PIECE, 3 * PIECE)
