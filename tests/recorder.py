"""A pool that records every store, flush and fence, and shows what a power cut could have left of them.

For crash tests of the floors above: run something on a ``RecordingPool``, then check each image of
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
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import crc32c
import numpy as np

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

    def crash_images(
        self, rng: random.Random, *, start: int = 0, prefixes: int = 4, subsets: int = 4
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
                    # A single pending word has two outcomes, however often the coin is thrown.
                    seen = {crc32c.crc32c(durable)} if shown_whole else set()
                    for choice, image in _choices(durable, pending, rng, prefixes, subsets):
                        digest = crc32c.crc32c(image)
                        if digest not in seen:
                            seen.add(digest)
                            yield CrashImage(image, position, label, choice)
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

        return Operations(persist.VOLATILE, write, zero, store_word, flush, fence, plain.retire)

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


def _choices(
    durable: bytearray,
    pending: list[_Pending],
    rng: random.Random,
    prefixes: int,
    subsets: int,
) -> Iterator[tuple[str, bytearray]]:
    count = len(pending)
    yield "none", bytearray(durable)
    if not count:
        return
    inner = range(1, count)
    for length in inner if count - 1 <= prefixes else sorted(rng.sample(inner, prefixes)):
        image = bytearray(durable)
        for piece in pending[:length]:
            image[piece.offset : piece.offset + len(piece.data)] = piece.data
        yield f"the first {length} of {count}", image
    for number in range(subsets):
        # Each grain in turn: protocol errors show when stores go missing whole, missing checksums when torn.
        grain = (0, CACHE_LINE, WORD)[number % 3]
        image = bytearray(durable)
        for piece in pending:
            _apply_some(image, piece, grain, rng)
        name = {0: "whole stores", CACHE_LINE: "cache lines", WORD: "words"}[grain]
        yield f"random {name} of {count}, number {number}", image
    image = bytearray(durable)
    for piece in pending:
        image[piece.offset : piece.offset + len(piece.data)] = piece.data
    yield f"all {count}", image


def _apply_some(image: bytearray, piece: _Pending, grain: int, rng: random.Random) -> None:
    """Put a random choice of the piece's grains into the image (grain 0: the piece as one)."""
    offset, length = piece.offset, len(piece.data)
    if grain == 0 or (offset // grain == (offset + length - 1) // grain):
        if rng.getrandbits(1):
            image[offset : offset + length] = piece.data
        return
    first = offset // grain
    grains = (offset + length - 1) // grain - first + 1
    coins = np.frombuffer(rng.randbytes(-(-grains // 8)), np.uint8)
    taken = np.repeat(np.unpackbits(coins, count=grains).view(bool), grain)[offset % grain :][:length]
    target = np.frombuffer(image, np.uint8)[offset : offset + length]
    target[taken] = np.frombuffer(piece.data, np.uint8)[taken]
