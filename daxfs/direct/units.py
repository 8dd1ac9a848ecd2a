"""Which bytes of a file a pool can map that is mapped in units larger than pages (devdax), and which the kernel maps.

A unit can be mapped if all of it belongs to the file, in one piece. Whether it does depends on the file alone and not
on the mapping: two mappings of one file show the same memory. A mapping that begins or ends inside of a unit maps all
of that unit, and shows a part.
"""

from __future__ import annotations

from typing import NamedTuple


class Piece(NamedTuple):
    """A piece of a file or mapping, in bytes."""

    start: int  # in the file, or from the mapping's first byte
    length: int
    place: int | None  # pool offset; None: it is mapped from the file


def choose(pieces: list[Piece], begin: int, end: int, unit: int) -> list[Piece]:
    """Return the pieces, without gaps, of a mapping that shows [begin, end) of a file.

    The first one may begin before ``begin`` and the last one may end after ``end``, if they are memory.

    Args:
        pieces: of the file, from one unit before ``begin`` to one unit after ``end``.
        begin: the first byte that is shown; the start of a page.
        end: the end of the last page that is shown.
        unit: bytes.
    """
    runs = [run for piece in pieces if (run := _whole_units(piece, begin, end, unit)) is not None]
    largest = max(runs, key=lambda run: run.length, default=None)
    chosen: list[Piece] = []
    at = begin
    for run in runs:
        # All units lie at addresses that are congruent to their pool offsets.
        if largest is None or _distance(run, unit) != _distance(largest, unit):
            continue
        if at < run.start:
            chosen.append(Piece(at, run.start - at, None))
        chosen.append(run)
        at = run.start + run.length
    if at < end:
        chosen.append(Piece(at, end - at, None))
    return chosen


def _whole_units(piece: Piece, begin: int, end: int, unit: int) -> Piece | None:
    """Return the whole units of a piece that [begin, end) touches; None: there are none."""
    if piece.place is None:
        return None
    low = piece.start + -piece.place % unit
    high = piece.start + piece.length
    low += max(begin - low, 0) // unit * unit
    high = min(high, end + -(end - low) % unit)
    length = (high - low) // unit * unit
    return Piece(low, length, piece.place + low - piece.start) if length > 0 and low < end else None


def _distance(run: Piece, unit: int) -> int:
    return ((run.place or 0) - run.start) % unit
