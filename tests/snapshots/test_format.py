"""The layout of exception stores: places, capacities and headers."""

from __future__ import annotations

import struct

import pytest

from daxfs.snapshots import format as layout
from daxfs.snapshots.format import Header, NotAStore

HEADER = Header(True, 0, 12, 7, 1_700_000_000 * 10**9, 768, bytes(range(16)))
ENTRIES = layout.entries_per_area(4096)


def test_the_first_bytes_are_what_the_kernel_reads() -> None:
    # struct disk_header in drivers/md/dm-snap-persistent.c
    assert struct.unpack_from("<4I", HEADER.pack()) == (0x70416E53, 1, 1, 8)


def test_a_header_is_read_as_it_was_written() -> None:
    assert Header.unpack(HEADER.pack()) == HEADER
    large = HEADER._replace(chunk_bits=16, valid=False, reason=2, mapped=3, skipped=1 << 40)
    assert Header.unpack(large.pack()) == large


@pytest.mark.parametrize("at", [0, 8, 12, layout.OWN_AT, layout.OWN_AT + 8, layout.OWN_AT + 12, layout.OWN_AT + 20])
def test_a_damaged_header_is_refused(at: int) -> None:
    content = bytearray(HEADER.pack())
    content[at] ^= 0x40
    with pytest.raises(NotAStore):
        Header.unpack(bytes(content))


def test_a_short_header_is_refused() -> None:
    with pytest.raises(NotAStore):
        Header.unpack(b"SnAp")


def test_areas_lie_where_the_kernel_looks_for_them() -> None:
    assert ENTRIES == 256
    assert [layout.area_chunk(area, ENTRIES) for area in range(3)] == [1, 258, 515]
    data = [layout.data_chunk(index, ENTRIES) for index in range(600)]
    assert data[:2] == [2, 3]
    assert data[255:257] == [257, 259]
    assert data == [chunk for chunk in range(data[-1] + 1) if chunk > 1 and chunk % (ENTRIES + 1) != 1]


def test_a_store_has_room_as_long_as_its_table_ends_inside_it() -> None:
    for chunks in range(2, 1200):
        room = layout.capacity(chunks, ENTRIES)
        terminator_area = layout.area_chunk(room // ENTRIES, ENTRIES)
        assert terminator_area < chunks
        assert room == 0 or layout.data_chunk(room - 1, ENTRIES) < chunks
        more = room + 1
        assert layout.area_chunk(more // ENTRIES, ENTRIES) >= chunks or layout.data_chunk(room, ENTRIES) >= chunks
        assert layout.chunks_for(room, ENTRIES) <= chunks < layout.chunks_for(more, ENTRIES)
    assert layout.capacity(1, ENTRIES) == layout.capacity(0, ENTRIES) == 0
