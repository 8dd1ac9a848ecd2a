"""What a power cut may leave of a record of stores: cache lines of 64 bytes, in words of 8 bytes.

The model is the one of `recorder`. Between two fences each line that was stored to has its durable content
and a version for each store; the medium may hold any of them, word by word. A line that was flushed is durable from the
next fence on. `cuts` stops before each fence, where most is undecided: what an earlier cut leaves is among its choices.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from recorder import CACHE_LINE, WORD, Event, Fence, Flush, Store

_WORDS = tuple(slice(at, at + WORD) for at in range(0, CACHE_LINE, WORD))
_MASKS = tuple(
    sum(((1 << 8 * WORD) - 1) << 8 * word.start for number, word in enumerate(_WORDS) if chosen >> number & 1)
    for chosen in range(1 << len(_WORDS))
)
"""The bits of the words of a line that a choice of them has: bit n for word n."""

Chosen = list[tuple[int, bytes]]
"""Pieces of an image: byte offset and content."""


class Line(NamedTuple):
    """An undecided cache line: its byte offset, its durable content and what stores have made of it, oldest first."""

    offset: int
    durable: bytes
    versions: tuple[bytes, ...]


class Cut(NamedTuple):
    """A power cut after ``position`` events, with the lines that it leaves undecided."""

    position: int
    lines: tuple[Line, ...]


class _Pending:
    """A line's versions; the first ``flushed`` of them were written back before the next fence."""

    __slots__ = ("flushed", "versions")

    def __init__(self) -> None:
        self.versions: list[bytes] = []
        self.flushed = 0


def lines_of(offset: int, length: int) -> range:
    """The byte offsets of the lines that a range touches."""
    return range(offset - offset % CACHE_LINE, offset + length, CACHE_LINE)


def cuts(events: Iterable[Event], durable: bytearray, start: int = 0) -> Iterator[Cut]:
    """The cuts before each fence, and at the end of the record.

    Args:
        events: the record.
        durable: the bytes that the record began with. It is kept at what is durable at the cut that was yielded last.
        start: cuts before this many events are left out.
    """
    pending: dict[int, _Pending] = {}
    for position, event in enumerate((*events, Fence())):
        if isinstance(event, Store):
            _store(pending, durable, event)
        elif isinstance(event, Flush):
            for at in lines_of(event.offset, event.length) if event.length else ():
                if at in pending:
                    pending[at].flushed = len(pending[at].versions)
        elif isinstance(event, Fence):
            if position >= start:
                yield Cut(position, tuple(_undecided(pending, durable)))
            pending = _fence(pending, durable)


def _undecided(pending: dict[int, _Pending], durable: bytearray) -> Iterator[Line]:
    """The lines that may hold something else than what is durable."""
    for at, line in sorted(pending.items()):
        before = bytes(durable[at : at + CACHE_LINE])
        if any(version != before for version in line.versions):
            yield Line(at, before, tuple(line.versions))


def _store(pending: dict[int, _Pending], durable: bytearray, store: Store) -> None:
    offset, data = store
    end = offset + len(data)
    for at in lines_of(offset, len(data)) if data else ():
        line = pending.get(at)
        if line is None:
            line = pending[at] = _Pending()
        before = line.versions[-1] if line.versions else durable[at : at + CACHE_LINE]
        low, high = max(offset, at), min(end, at + CACHE_LINE)
        line.versions.append(
            bytes(before[: low - at]) + data[low - offset : high - offset] + bytes(before[high - at :])
        )


def _fence(pending: dict[int, _Pending], durable: bytearray) -> dict[int, _Pending]:
    """What is still undecided after a fence; the rest is durable."""
    left: dict[int, _Pending] = {}
    for at, line in pending.items():
        if line.flushed:
            durable[at : at + CACHE_LINE] = line.versions[line.flushed - 1]
        if line.flushed < len(line.versions):
            left[at] = later = _Pending()
            later.versions = line.versions[line.flushed :]
    return left


class Choices(NamedTuple):
    """Images with a common ``ground``: each is the durable bytes, with the ground and then its own pieces put on."""

    ground: Chosen
    images: list[tuple[str, Chosen]]


def choices(lines: tuple[Line, ...], rng: random.Random, *, alone: int, subsets: int) -> Iterator[Choices]:
    """What the medium may hold of the lines.

    None of them, all of them, all but one, only one, and random subsets of lines and of words (a word has any of its
    versions).

    Args:
        lines: undecided.
        rng: where samples come from; the same seed gives the same choices.
        alone: lines that go missing alone, and that are there alone, at most; of more a sample is taken.
        subsets: random subsets of either kind.
    """
    singles: list[Line] = []
    if len(lines) > 1:
        singles = list(lines) if len(lines) <= alone else rng.sample(lines, alone)
    only = [(f"only the line at {line.offset:#x}", [(line.offset, line.versions[-1])]) for line in singles]
    yield Choices([], [("none", []), *only])
    if lines:
        but = [(f"all but the line at {line.offset:#x}", [(line.offset, line.durable)]) for line in singles]
        yield Choices(joined((line.offset, line.versions[-1]) for line in lines), [("all", []), *but])
    for number in range(subsets if lines else 0):
        some = joined((line.offset, line.versions[-1]) for line in lines if rng.getrandbits(1))
        yield Choices([], [(f"lines, subset {number}", some)])
        words = joined((line.offset, _words(line, rng)) for line in lines)
        yield Choices([], [(f"words, subset {number}", words)])


def joined(pieces: Iterable[tuple[int, bytes]]) -> Chosen:
    """The same bytes in as few pieces as possible."""
    runs: list[tuple[int, list[bytes]]] = []
    end = -1
    for offset, data in sorted(pieces):
        if offset == end:
            runs[-1][1].append(data)
        else:
            runs.append((offset, [data]))
        end = offset + len(data)
    return [(offset, b"".join(parts)) for offset, parts in runs]


def _words(line: Line, rng: random.Random) -> bytes:
    """Each word in any of its versions."""
    if len(line.versions) == 1:
        durable, stored = (int.from_bytes(content, "little") for content in (line.durable, line.versions[0]))
        return (durable ^ (durable ^ stored) & _MASKS[rng.getrandbits(len(_WORDS))]).to_bytes(CACHE_LINE, "little")
    taken = rng.choices((line.durable, *line.versions), k=len(_WORDS))
    return b"".join(version[word] for version, word in zip(taken, _WORDS, strict=True))
