"""A pool that records every store, flush and fence, and shows what a power cut could have left of them.

For crash tests of the layers above: run something on a ``RecordingPool``, then check each image of
``crash_images``. Its memory is read-only to everyone else, so a store that goes around the pool's operations
fails the test at once. Nothing outside tests uses it.

The model of the medium, which is the weakest one that real hardware and msync keep to:

1. A store is durable when its cache lines were flushed after it and a fence came after the flush. ``write``,
   ``zero`` and ``store_word`` flush their own lines.
2. Every other store may or may not have reached the medium, each aligned 8-byte word on its own and in any
   order. Stores to the same word keep their order: the medium holds the old value or that of one of them.
3. An aligned word is never torn.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import NamedTuple, TypeAlias

import crc32c
import numpy as np
import numpy.typing as npt

from daxfs.pmem import persist
from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.persist import Buffer, Operations

CACHE_LINE = 64
WORD = 8


class Store(NamedTuple):
    """Bytes stored at a byte offset."""

    offset: int
    data: bytes


class Flush(NamedTuple):
    """Write-back of a range was started; it covers whole cache lines."""

    offset: int
    length: int


class Fence(NamedTuple):
    """Everything flushed before is durable."""


class Mark(NamedTuple):
    """The test's own note of what had happened by then ("mkdir returned")."""

    label: str


Event: TypeAlias = Store | Flush | Fence | Mark


class CrashImage(NamedTuple):
    """What a power cut may leave.

    Attributes:
        image: the pool's bytes; give it to ``MemoryPool`` or write it to a file.
        position: how many events had happened.
        label: of the last mark before the cut, "" before the first.
        choice: which of the undecided stores are in it, for the message of a failed test.
    """

    image: bytearray
    position: int
    label: str
    choice: str


class _Pending(NamedTuple):
    """A store, or a piece of one, that is not known to be durable."""

    offset: int
    data: bytes
    flushed: bool


Taken: TypeAlias = npt.NDArray[np.bool_] | None
"""Which bytes of a piece are stored; None: all."""
_Piece: TypeAlias = tuple[int, bytes, Taken]
"""Byte offset, content, and which bytes of it."""


class RecordingPool(MemoryPool):
    """A memory pool that records; ``events`` holds what happened, ``base`` the bytes it began with."""

    def __init__(self, content: int | bytes | bytearray, *, path: str = "<recorder>") -> None:
        self.events: list[Event] = []
        super().__init__(content, path=path)
        self.base = self.image()

    def mark(self, label: str) -> None:
        """Note in the record that ``label`` holds from here on."""
        self.events.append(Mark(label))

    def restart(self) -> None:
        """Forget the record; everything stored so far counts as durable."""
        self.events.clear()
        self.base = self.image()

    def store_bit(self, offset: int, bit: int, value: bool) -> int:
        """As the pool's, noted like any store of a word; nobody else changes the word meanwhile."""
        now = int.from_bytes(self.memory[offset : offset + 4], "little")
        after = now | 1 << bit if value else now & ~(1 << bit)
        self.store_word(offset, after)
        return after

    def store_by_another(self, offset: int, value: int) -> None:
        """Store a word as another process does, which has not written its cache line back."""
        after = value.to_bytes(4, "little")
        self.store_word(offset, value)
        self.events[-2:] = [Store(offset, after)]

    def crash_images(
        self,
        rng: random.Random,
        *,
        start: int = 0,
        prefixes: int = 4,
        subsets: int = 4,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Iterator[CrashImage]:
        """The images that power cuts could leave, cut before each fence and at the end of the record.

        A cut just before a fence has the most undecided stores, and what an earlier cut leaves is among its
        choices. At each: none of the undecided stores, all of them, the first few in order, random subsets
        (of whole stores, of cache lines, of words). The same seed gives the same images.

        Args:
            rng: where the choices come from.
            start: images of cuts before this many events are left out.
            prefixes: how many ordered prefixes to show at each cut, at most.
            subsets: how many random subsets to show at each cut.
            wanted: called once for each image before it is built; False leaves the image out.
        """
        durable = bytearray(self.base)
        pending: list[_Pending] = []
        label = ""
        shown_whole = False  # the last cut showed all its stores, and they are what is durable now
        for position, event in enumerate((*self.events, Fence())):
            if isinstance(event, Store):
                pending.append(_Pending(event.offset, event.data, False))
            elif isinstance(event, Flush):
                pending = list(_flushed(pending, event))
            elif isinstance(event, Mark):
                label = event.label
                shown_whole = False  # the same bytes have to satisfy a new promise
            else:
                if position >= start and (pending or not shown_whole):
                    undecided = _Undecided(durable, pending)
                    # A single pending word has two outcomes, however often the coin is thrown.
                    seen = {undecided.digest([])} if shown_whole else set()
                    for choice, pieces in _choices(pending, rng, prefixes, subsets):
                        digest = undecided.digest(pieces)
                        if digest not in seen:
                            seen.add(digest)
                            if wanted():
                                yield CrashImage(undecided.image(pieces), position, label, choice)
                    shown_whole = True
                for piece in pending:
                    if piece.flushed:
                        durable[piece.offset : piece.offset + len(piece.data)] = piece.data
                pending = [piece for piece in pending if not piece.flushed]
                shown_whole = shown_whole and not pending

    def _operations(self, memory: memoryview) -> Operations:
        """The volatile operations, each noted after it was done."""
        plain = persist.volatile(memory)
        record = self.events.append

        def write(offset: int, data: Buffer) -> None:
            plain.write(offset, data)
            record(Store(offset, bytes(data)))
            record(Flush(offset, len(data)))

        def zero(offset: int, length: int) -> None:
            plain.zero(offset, length)
            record(Store(offset, bytes(length)))
            record(Flush(offset, length))

        def store_word(offset: int, value: int, size: int = 4) -> None:
            plain.store_word(offset, value, size)
            record(Store(offset, value.to_bytes(size, "little")))
            record(Flush(offset, size))

        def flush(offset: int, length: int) -> None:
            if offset < 0 or length < 0 or offset + length > len(memory):
                raise ValueError(f"{length} bytes at offset {offset} are outside the pool's {len(memory)} bytes")
            record(Flush(offset, length))

        def fence() -> None:
            record(Fence())

        return Operations(persist.VOLATILE, write, zero, store_word, flush, fence, plain.retire, plain.follow_size)

    def _visible(self, memory: memoryview, read_only: bool) -> memoryview:  # noqa: ARG002
        return memory.toreadonly()


def _flushed(pending: list[_Pending], flush: Flush) -> Iterator[_Pending]:
    """Mark what lies in the flushed cache lines; a store that reaches beyond them is cut in pieces."""
    if not flush.length:
        yield from pending
        return
    low = flush.offset - flush.offset % CACHE_LINE
    high = -(-(flush.offset + flush.length) // CACHE_LINE) * CACHE_LINE
    for piece in pending:
        first, data = piece.offset, piece.data
        end = first + len(data)
        if piece.flushed or end <= low or first >= high:
            yield piece
            continue
        left, right = max(first, low), min(end, high)
        if first < left:
            yield _Pending(first, data[: left - first], False)
        yield _Pending(left, data[left - first : right - first], True)
        if right < end:
            yield _Pending(right, data[right - first :], False)


class _Undecided:
    """The bytes of a cut that are undecided, without the rest of the pool: images that agree in them are the same."""

    def __init__(self, durable: bytearray, pending: list[_Pending]) -> None:
        self._durable = durable
        self._ranges: list[tuple[int, int, int]] = []  # pool offset, end, and where the range begins in ``_before``
        before = bytearray()
        for first, end in _united((piece.offset, piece.offset + len(piece.data)) for piece in pending):
            self._ranges.append((first, end, len(before)))
            before += durable[first:end]
        self._before = before

    def digest(self, pieces: Iterable[_Piece]) -> int:
        """The checksum of the undecided bytes with these pieces stored."""
        after = bytearray(self._before)
        for offset, data, taken in pieces:
            first, _, at = self._ranges[bisect_right(self._ranges, offset, key=itemgetter(0)) - 1]
            _put(after, at + offset - first, data, taken)
        return crc32c.crc32c(after)

    def image(self, pieces: Iterable[_Piece]) -> bytearray:
        """The pool with these pieces stored."""
        image = bytearray(self._durable)
        for piece in pieces:
            _put(image, *piece)
        return image


def _united(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The ranges in order, with those joined that overlap or touch."""
    first = end = -1
    for low, high in sorted(ranges):
        if low > end:
            if end >= 0:
                yield first, end
            first, end = low, high
        else:
            end = max(end, high)
    if end >= 0:
        yield first, end


def _put(target: bytearray, offset: int, data: bytes, taken: Taken) -> None:
    """Store the bytes of ``data`` that are taken."""
    if taken is None:
        target[offset : offset + len(data)] = data
        return
    view = np.frombuffer(target, np.uint8)[offset : offset + len(data)]
    view[taken] = np.frombuffer(data, np.uint8)[taken]


def _choices(
    pending: list[_Pending], rng: random.Random, prefixes: int, subsets: int
) -> Iterator[tuple[str, list[_Piece]]]:
    """Choices of the undecided stores: what each is called, and the pieces that are stored, in order."""
    count = len(pending)
    yield "none", []
    if not count:
        return
    whole: list[_Piece] = [(piece.offset, piece.data, None) for piece in pending]
    inner = range(1, count)
    for length in inner if count - 1 <= prefixes else sorted(rng.sample(inner, prefixes)):
        yield f"the first {length} of {count}", whole[:length]
    for number in range(subsets):
        # Each grain in turn: protocol errors show when stores go missing whole, missing checksums when torn.
        grain = (0, CACHE_LINE, WORD)[number % 3]
        name = {0: "whole stores", CACHE_LINE: "cache lines", WORD: "words"}[grain]
        yield f"random {name} of {count}, number {number}", list(_some_of(pending, grain, rng))
    yield f"all {count}", whole


def _some_of(pending: list[_Pending], grain: int, rng: random.Random) -> Iterator[_Piece]:
    """A random choice of the grains of each piece (grain 0: the piece as one)."""
    for piece in pending:
        offset, length = piece.offset, len(piece.data)
        if grain == 0 or (offset // grain == (offset + length - 1) // grain):
            if rng.getrandbits(1):
                yield offset, piece.data, None
            continue
        first = offset // grain
        grains = (offset + length - 1) // grain - first + 1
        coins = np.frombuffer(rng.randbytes(-(-grains // 8)), np.uint8)
        taken = np.repeat(np.unpackbits(coins, count=grains).view(bool), grain)[offset % grain :][:length]
        yield offset, piece.data, taken
