"""Streams of snapshots: what was written is read again, and nothing else is taken for it."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from daxfs.snapshots import stream
from daxfs.snapshots.stream import Begin, DamagedStream, Position, Record

BEGIN = Begin(12, 1 << 20, 5 << 12, b"u" * 16, b"b" * 16)
PARTS = [(4096, b"a" * 4096), (5 * 4096, b"b" * 12288), (0, b"s" * 4096)]


def made() -> list[bytes]:
    return list(stream.written(BEGIN, PARTS))


def read(content: bytes, position: Position = Position()) -> list[Record]:  # noqa: B008 (immutable)
    return list(stream.records(io.BytesIO(content).read, position))


def test_what_was_written_is_read() -> None:
    whole = b"".join(made())
    first, *rest, last = read(whole)
    assert stream.begin_of(first) == BEGIN
    assert [(each.offset, each.payload) for each in rest] == PARTS
    assert last.kind == stream.END
    assert last.after[:2] == (len(whole), len(PARTS) + 2)
    assert len(whole) < (5 << 12) + 300


def test_it_goes_on_at_any_record() -> None:
    whole = b"".join(made())
    for before in read(whole)[:-1]:
        rest = read(whole[before.after.offset :], before.after)
        assert rest == read(whole)[before.after.number :]


def test_any_other_byte_is_found() -> None:
    whole = b"".join(made())
    for at in [*range(150), *range(150, len(whole), 97), *range(len(whole) - 40, len(whole))]:
        changed = bytearray(whole)
        changed[at] ^= 1
        with pytest.raises(DamagedStream):
            read(bytes(changed))


@pytest.mark.parametrize("end", [0, 1, 31, 32, 80, 5000, 20_000])
def test_a_part_is_no_stream(end: int) -> None:
    with pytest.raises(DamagedStream, match="ends"):
        read(b"".join(made())[:end])


def swapped(parts: list[bytes]) -> None:
    parts[1], parts[2] = parts[2], parts[1]


def left_out(parts: list[bytes]) -> None:
    del parts[2]


def repeated(parts: list[bytes]) -> None:
    parts.insert(2, parts[1])


def of_another(parts: list[bytes]) -> None:
    parts[2] = list(stream.written(BEGIN._replace(uuid=b"v" * 16), PARTS))[2]


@pytest.mark.parametrize("change", [swapped, left_out, repeated, of_another])
def test_another_order_is_found(change: Callable[[list[bytes]], None]) -> None:
    parts = made()
    change(parts)
    with pytest.raises(DamagedStream):
        read(b"".join(parts))


@pytest.mark.parametrize("begin", [BEGIN._replace(chunk_bits=9), BEGIN._replace(size=4096)])
def test_an_impossible_beginning_is_refused(begin: Begin) -> None:
    (first, *_) = read(b"".join(stream.written(begin, [])))
    with pytest.raises(DamagedStream, match="impossible"):
        stream.begin_of(first)
