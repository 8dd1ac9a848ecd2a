"""`daxfs.direct.units`: which units of a pool a mapping has, for every page of a file alike."""

from __future__ import annotations

import itertools
import random

from daxfs.direct.units import Piece, choose

UNIT, PAGE = 8, 1


def test_whole_units_and_the_rest() -> None:
    pieces = [Piece(0, 5, 3), Piece(5, 20, 12), Piece(25, 7, None)]
    assert choose(pieces, 0, 32, UNIT) == [Piece(0, 9, None), Piece(9, 16, 16), Piece(25, 7, None)]
    assert choose(pieces, 10, 12, UNIT) == [Piece(9, 8, 16)]
    assert choose(pieces, 2, 5, UNIT) == [Piece(2, 3, None)]


def test_mappings_of_a_file_agree() -> None:
    """With one distance between file and pool, whether a page is memory does not depend on the mapping."""
    chance = random.Random(5)
    for _ in range(300):
        shift = chance.randrange(100)
        borders = sorted({0, 64, *(chance.randrange(64) for _ in range(6))})
        pieces = [
            Piece(low, high - low, low + shift if chance.random() < 0.7 else None)
            for low, high in itertools.pairwise(borders)
        ]
        whole = places(choose(pieces, 0, 64, UNIT))
        for _ in range(10):
            begin, end = sorted(chance.sample(range(65), 2))
            found = choose(pieces, begin, end, UNIT)
            part = places(found)
            assert {page: whole[page] for page in range(begin, end)} == {page: part[page] for page in range(begin, end)}
            assert [piece.start for piece in found[1:]] == [piece.start + piece.length for piece in found[:-1]]
            for piece in found:
                assert piece.place is None or piece.place % UNIT == piece.length % UNIT == 0


def places(pieces: list[Piece]) -> dict[int, int | None]:
    """Return the pool offset of each page."""
    return {
        piece.start + page: None if piece.place is None else piece.place + page
        for piece in pieces
        for page in range(piece.length)
    }
