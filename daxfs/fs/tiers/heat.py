"""How often pieces of files are read and written: which of them should lie in memory (docs/TIERS.md).

A piece is 2 MiB of a file. `Heat` counts the uses of pieces in the running period of a minute and in the one before it.
A read or write that goes on where the last one of its piece has ended is the same use, so a scan uses each piece once.
Of periods that are over only the time of the last use of each file is kept. All of that is bounded, lies in DRAM, and
begins anew with each mount. Only volumes with storage have a `Heat`.
"""

from __future__ import annotations

from time import monotonic

from daxfs.fs import clock
from daxfs.runs import ByteRange

PIECE_BITS = 21
PIECE = 1 << PIECE_BITS
"""Bytes of a piece."""
PERIOD_SECONDS = 60.0
"""The length of a period: what is used twice within a minute has two uses for a minute at least."""
MOST_PIECES = 16384
"""Pieces with uses in one period; if there are more of them the period ends early (a piece takes about 150 bytes)."""
MOST_FILES = 4096
"""Files of which the last use is kept after its period."""

_FILE_BITS = 24
"""A key is an inode number and, in so many bits, a piece: a file has less than 2**44 bytes."""
_END_BITS = PIECE_BITS + 1
"""A value is a number of uses and, in so many bits, where in the piece the last one has ended."""
_END = (1 << _END_BITS) - 1


class Heat:
    """The uses of pieces of one volume.

    Attributes:
        reads: reads so far; each goes through `was_read` when it succeeds.
    """

    def __init__(self) -> None:
        self.reads = 0
        self._running: dict[int, int] = {}
        self._earlier: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._end = monotonic() + PERIOD_SECONDS

    def was_read(self, ino: int, begin: int, end: int) -> None:
        """Count a read of the bytes [begin, end) of a file, which are not none."""
        self.reads += 1
        self.was_used(ino, begin, end)

    def was_used(self, ino: int, begin: int, end: int) -> None:
        """Count a read or write of the bytes [begin, end) of a file, which are not none."""
        running = self._running
        while begin < end:
            key = ino << _FILE_BITS | begin >> PIECE_BITS
            first = begin & PIECE - 1
            stop = min(end - begin + first, PIECE)
            held = running.get(key, 0)
            if not held:
                if len(running) >= MOST_PIECES:
                    self._end_period()
                    running = self._running
                held = self._earlier.get(key, 0) & _END
            reached = held & _END
            count = held >> _END_BITS
            if not reached or reached != first:
                count += 1
            running[key] = count << _END_BITS | stop
            begin += stop - first

    def forget(self, ino: int, begin: int, end: int) -> None:
        """Forget the uses of the pieces that have some of the bytes [begin, end): what goes to storage begins anew."""
        for piece in pieces_of(begin, end):
            key = ino << _FILE_BITS | piece
            self._running.pop(key, None)
            self._earlier.pop(key, None)

    def uses(self, ino: int, piece: int) -> int:
        """Return how often a piece was used in the last minute or two."""
        key = ino << _FILE_BITS | piece
        return (self._running.get(key, 0) >> _END_BITS) + (self._earlier.get(key, 0) >> _END_BITS)

    def warm(self) -> dict[int, dict[int, int]]:
        """Return inode number -> piece -> uses, of all that were used in the last minute or two."""
        found: dict[int, dict[int, int]] = {}
        for counts in (self._running, self._earlier):
            for key, value in counts.items():
                pieces = found.setdefault(key >> _FILE_BITS, {})
                piece = key & (1 << _FILE_BITS) - 1
                pieces[piece] = pieces.get(piece, 0) + (value >> _END_BITS)
        return found

    def last_use(self, ino: int) -> int:
        """Return when a file was used last, in nanoseconds since 1970, to the minute; 0: not, as far as is known."""
        return self._last.get(ino, 0)

    def tick(self) -> None:
        """End the period if it is over; called at least every few seconds."""
        if monotonic() >= self._end:
            self._end_period()

    def _end_period(self) -> None:
        now, last = clock.now(), self._last
        for key in self._running:
            ino = key >> _FILE_BITS
            last.pop(ino, None)
            last[ino] = now
        while len(last) > MOST_FILES:
            del last[next(iter(last))]
        self._earlier = self._running
        self._running = {}
        self._end = monotonic() + PERIOD_SECONDS


def pieces_of(begin: int, end: int) -> range:
    """Return the pieces that have some of the bytes [begin, end)."""
    return range(begin >> PIECE_BITS, end + PIECE - 1 >> PIECE_BITS)


def bytes_of(piece: int) -> ByteRange:
    """Return the bytes of a piece."""
    return ByteRange(piece << PIECE_BITS, piece + 1 << PIECE_BITS)
