"""Records: layout checks when a class is made, bindings, and the properties that fields become."""

from __future__ import annotations

import pytest

from daxfs.ext4.field import i16, joined, raw, u8, u16, u32, u64
from daxfs.ext4.record import Record


class Sample(Record):
    SIZE = 48
    __slots__ = ("end",)

    a = u8(0)
    b = u8(1)
    c = u16(2)
    d = u32(4)
    e = u64(8)
    f = i16(16)
    tail = u16(18, within="end")
    g = u32(20)
    h = raw(25, 3)
    low = u16(28)
    high = u16(30)
    routed = u32(32, through="route")
    both = joined("low", "high")
    again = joined("c")

    def route(self, value: int) -> None:
        self.words[8] = value * 2


def bound() -> tuple[bytearray, Sample]:
    memory = bytearray(range(64))
    record = Sample(memoryview(memory), 8)
    record.end = 48
    return memory, record


def test_fields_read_little_endian_at_their_offsets() -> None:
    memory, record = bound()
    part = memory[8:]
    assert (record.a, record.b) == (part[0], part[1])
    assert record.c == int.from_bytes(part[2:4], "little") == record.again
    assert record.d == int.from_bytes(part[4:8], "little")
    assert record.e == int.from_bytes(part[8:16], "little")
    assert record.h == bytes(part[25:28])
    assert record.both == int.from_bytes(part[28:32], "little")


def test_assignments_reach_the_buffer_and_nothing_else() -> None:
    for name, offset, size, _ in Sample.FIELDS:
        memory, record = bound()
        before = bytearray(memory)
        value: int | bytes = b"xyz" if name == "h" else 0x7B
        setattr(record, name, value)
        expected = 0xF6 if name == "routed" else value
        stored = expected if isinstance(expected, bytes) else expected.to_bytes(size, "little")
        before[8 + offset : 8 + offset + size] = stored
        assert memory == before, name


@pytest.mark.parametrize("value", [-1, -0x8000, 0x7FFF, 0])
def test_signed_fields_round_trip(value: int) -> None:
    _, record = bound()
    record.f = value
    assert record.f == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a", 256),
        ("a", -1),
        ("c", 1 << 16),
        ("d", 1 << 32),
        ("e", 1 << 64),
        ("f", 1 << 15),
        ("f", -(1 << 15) - 1),
        ("both", 1 << 32),
        ("both", -1),
        ("h", b"four"),
    ],
)
def test_values_out_of_range_change_nothing(name: str, value: object) -> None:
    memory, record = bound()
    before = bytes(memory)
    with pytest.raises(ValueError, match=r"invalid value|different structures"):
        setattr(record, name, value)
    assert memory == before


def test_a_field_beyond_the_end_reads_zero_and_ignores_assignments() -> None:
    memory, record = bound()
    record.end = 19
    before = bytes(memory)
    assert record.tail == 0
    record.tail = 5
    assert memory == before
    record.end = 20
    record.tail = 5
    assert record.tail == 5


@pytest.mark.parametrize("offset", [1, 4, 24, 64, -8])
def test_bindings_out_of_place_are_refused(offset: int) -> None:
    with pytest.raises(ValueError, match="cannot be bound"):
        Sample(memoryview(bytearray(64)), offset)


def test_a_longer_structure_binds_all_its_bytes() -> None:
    memory = memoryview(bytearray(64))
    assert len(Sample(memory, 0, 64).buffer) == 64
    with pytest.raises(ValueError, match="cannot be bound"):
        Sample(memory, 8, 64)


def test_read_only_memory_reads_and_refuses_assignments() -> None:
    record = Sample(memoryview(bytes(64)))
    assert record.d == 0
    with pytest.raises(TypeError):
        record.d = 1


def test_layout_mistakes_are_found_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match="overlaps a"):
        type("Bad", (Record,), {"SIZE": 8, "__slots__": (), "a": u32(0), "b": u16(2)})
    with pytest.raises(TypeError, match="not aligned"):
        type("Bad", (Record,), {"SIZE": 8, "__slots__": (), "a": u32(2)})
    with pytest.raises(TypeError, match="beyond SIZE"):
        type("Bad", (Record,), {"SIZE": 8, "__slots__": (), "a": raw(6, 3)})
    with pytest.raises(TypeError, match="multiple"):
        type("Bad", (Record,), {"SIZE": 6, "__slots__": (), "a": u32(0)})
    with pytest.raises(TypeError, match="__slots__"):
        type("Bad", (Record,), {"SIZE": 8, "a": u32(0)})
    with pytest.raises(KeyError, match="hgih"):
        type("Typo", (Record,), {"SIZE": 4, "__slots__": (), "a": u16(0), "b": u16(2), "c": joined("a", "hgih")})
    with pytest.raises(TypeError, match="no fields"):
        Record(memoryview(b""))


def test_a_subclass_keeps_and_extends_the_fields() -> None:
    class Longer(Sample):
        SIZE = 56
        __slots__ = ()

        more = u64(48)

    memory = memoryview(bytearray(range(56)))
    record = Longer(memory)
    assert record.a == 0
    assert record.more == int.from_bytes(memory[48:56], "little")
    assert len(Longer.FIELDS) == len(Sample.FIELDS) + 1


def test_the_field_table_lists_everything_in_order() -> None:
    _, record = bound()
    rows = list(record.field_table())
    assert [row.offset for row in rows] == sorted(row.offset for row in rows)
    assert {row.name for row in rows} == {info.name for info in Sample.FIELDS}
    assert "d=0xf0e0d0c" in repr(record)
