"""Layer 3: the fields of on-disk structures: how they are declared, checked, and made into properties.

A record class (`daxfs.ext4.record`) lists its fields (``i_mode = u16(0x00)``). When the class is made, `complete`
checks the offsets (alignment, overlap, bounds), and every field becomes a ``property`` whose getter indexes a cast of
the bound memory. `field_source`, `joined_source` and `binding_source` return the Python of these properties; the build
of the compiled core (``scripts/compile_core.py``) puts the same text into the class. The modules of the structures
declare fields; only records and the build call the rest.

The casts are native-endian, so the module requires a little-endian machine. jbd2's big-endian records don't use it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if sys.byteorder != "little":
    raise ImportError("daxfs reads ext4 through native memory views and needs a little-endian machine")

_VIEWS = {1: ("buffer", "B"), 2: ("halves", "H"), 4: ("words", "I"), 8: ("quads", "Q")}


class FieldInfo(NamedTuple):
    """The place of a field: ``offset`` and ``size`` in bytes, and ``read``, the expression that reads it."""

    name: str
    offset: int
    size: int
    read: str


class FieldValue(NamedTuple):
    """One line of a dump: a field, its offset and size in bytes, and its value."""

    name: str
    offset: int
    size: int
    value: int | bytes


class Declared:
    """A field in a class body; when the class is made, a property replaces it."""

    __slots__ = ("offset", "signed", "size", "through", "within")

    def __init__(self, offset: int, size: int, *, signed: bool = False, within: str = "", through: str = "") -> None:
        self.offset = offset
        self.size = size
        self.signed = signed
        self.within = within
        self.through = through


class IntField(Declared):
    """A declared integer; instances read and assign an ``int``."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type | None = None) -> int: ...

        def __set__(self, instance: object, value: int) -> None: ...


class RawField(Declared):
    """Declared bytes; reading gives a copy, assigning takes a buffer of exactly the declared length."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type | None = None) -> bytes: ...

        def __set__(self, instance: object, value: bytes | bytearray | memoryview) -> None: ...


class JoinedField:
    """An integer whose halves lie in two fields of the record, or another name for one field (``high`` is empty)."""

    __slots__ = ("high", "low")

    def __init__(self, low: str, high: str) -> None:
        self.low = low
        self.high = high

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type | None = None) -> int: ...

        def __set__(self, instance: object, value: int) -> None: ...


def u8(offset: int) -> IntField:
    """Declare an unsigned byte at ``offset``."""
    return IntField(offset, 1)


def u16(offset: int, *, within: str = "", through: str = "") -> IntField:
    """Declare a little-endian u16; `u32` describes the options."""
    return IntField(offset, 2, within=within, through=through)


def u32(offset: int, *, within: str = "", through: str = "") -> IntField:
    """Declare a little-endian u32.

    Args:
        offset: Bytes from the start of the record.
        within: Name of an instance attribute that holds the byte where the record ends. A field that ends
            after it reads as 0, and assignments to the field are ignored.
        through: Name of a method that assignments call instead of storing into the field.
    """
    return IntField(offset, 4, within=within, through=through)


def u64(offset: int) -> IntField:
    """Declare a little-endian u64."""
    return IntField(offset, 8)


def i16(offset: int) -> IntField:
    """Declare a two's complement 16-bit integer."""
    return IntField(offset, 2, signed=True)


def raw(offset: int, length: int) -> RawField:
    """Declare ``length`` bytes that have no structure."""
    return RawField(offset, length)


def joined(low: str, high: str = "") -> JoinedField:
    """Declare an integer over two fields, or another name for one field, of this class or of a base class."""
    return JoinedField(low, high)


# Making them


def describe(name: str, item: Declared) -> FieldInfo:
    """Return the place of a declared field."""
    if isinstance(item, RawField):
        return FieldInfo(name, item.offset, item.size, f"bytes(self.buffer[{item.offset}:{item.offset + item.size}])")
    read = f"self.{_VIEWS[item.size][0]}[{item.offset // item.size}]"
    return FieldInfo(name, item.offset, item.size, read)


def complete(record: type[Any]) -> None:
    """Make the declared fields of a new record class into properties, and set what follows from its fields.

    Raises:
        TypeError: A field is misaligned, out of bounds or overlaps another.
    """
    declared = {name: item for name, item in record.__dict__.items() if isinstance(item, Declared)}
    joins = {name: item for name, item in record.__dict__.items() if isinstance(item, JoinedField)}
    if declared and "__slots__" not in record.__dict__:
        raise TypeError(f"{record.__name__} must declare __slots__, or each binding pays for a dict")
    infos = [describe(name, item) for name, item in declared.items()]
    record.FIELDS = fields = tuple(sorted((*record.FIELDS, *infos), key=lambda info: info.offset))
    _check_layout(record)
    for name, item in declared.items():
        setattr(record, name, _made(field_source(name, item), name))
    for name, join in joins.items():
        setattr(record, name, _made(joined_source(name, join, fields), name))
    record.ALIGNMENT = alignment(fields)
    if record.SIZE % record.ALIGNMENT:
        raise TypeError(f"{record.__name__}.SIZE {record.SIZE} is no multiple of its alignment {record.ALIGNMENT}")
    if declared and "__init__" not in record.__dict__:
        record.__init__ = _made(binding_source(record.__name__, record.SIZE, fields), "__init__")


def alignment(fields: Iterable[FieldInfo]) -> int:
    """Return the alignment of a record with these fields, in bytes."""
    return max(_widths(fields), default=1)


def field_source(name: str, item: Declared) -> str:
    """Return the Python of a field's property; literal offsets make it as fast as hand-written code."""
    place = describe(name, item).read
    read, store = place, f"{place} = value"
    if isinstance(item, RawField):
        store = f"{place[6:-1]} = value"
    elif item.signed:
        sign = 1 << (8 * item.size - 1)
        read = f"({place} ^ {sign}) - {sign}"
        store = f"{place} = value + {2 * sign} if -{sign} <= value < 0 else value if value < {sign} else -1"
    if item.within:
        end = item.offset + item.size
        read = f"{place} if self.{item.within} >= {end} else 0"
        store = f"if self.{item.within} >= {end}: {store}"
    if item.through:
        store = f"self.{item.through}(value)"
    return _property(name, read, store, isinstance(item, RawField))


def joined_source(name: str, join: JoinedField, fields: Iterable[FieldInfo]) -> str:
    """Return the Python of the property of an integer over two of the fields."""
    by_name = {info.name: info for info in fields}
    low = by_name[join.low]
    if not join.high:
        return _property(name, low.read, f"{low.read} = value")
    high, bits = by_name[join.high], 8 * low.size
    # The high half first: storing it fails for values out of range, before anything has changed.
    store = f"{high.read} = value >> {bits}\n    {low.read} = value & {(1 << bits) - 1}"
    return _property(name, f"{low.read} | {high.read} << {bits}", store)


def binding_source(name: str, size: int, fields: Iterable[FieldInfo]) -> str:
    """Return the Python of a record's ``__init__``: one slice, and one cast for each width that its fields use."""
    fields = tuple(fields)
    casts = "".join(
        f"    self.{_VIEWS[width][0]} = buffer.cast({_VIEWS[width][1]!r})\n" for width in sorted(_widths(fields) - {1})
    )
    return (
        f"def __init__(self, buf: memoryview, offset: int = 0, size: int = {size}) -> None:\n"
        f"    self.buffer = buffer = buf[offset : offset + size]\n"
        f"    if offset & {alignment(fields) - 1} or len(buffer) < {size} or len(buffer) < size:\n"
        f"        raise ValueError('{name} of %d bytes cannot be bound at offset %d of %d bytes'\n"
        f"                         % (size, offset, len(buf)))\n" + casts
    )


def _property(name: str, read: str, store: str, raw: bool = False) -> str:
    result, value = ("bytes", "bytes | bytearray | memoryview") if raw else ("int", "int")
    return (
        f"@property\n"
        f"def {name}(self) -> {result}:\n"
        f"    return {read}\n"
        f"@{name}.setter\n"
        f"def {name}(self, value: {value}) -> None:\n"
        f"    {store}\n"
    )


def _made(source: str, name: str) -> Any:
    """Return what the source defines."""
    namespace: dict[str, Any] = {"__name__": __name__}
    exec(source, namespace)
    return namespace[name]


def _widths(fields: Iterable[FieldInfo]) -> set[int]:
    return {info.size for info in fields if "[" in info.read and ":" not in info.read}


def _check_layout(record: type[Any]) -> None:
    end, last = 0, ""
    for name, offset, size, read in record.FIELDS:
        if offset < end:
            raise TypeError(f"{record.__name__}.{name} at {offset:#x} overlaps {last}, which ends at {end:#x}")
        if ":" not in read and offset % size:
            raise TypeError(f"{record.__name__}.{name} at {offset:#x} is not aligned to {size} bytes")
        end, last = offset + size, name
    if end > record.SIZE:
        raise TypeError(f"{record.__name__}.{last} ends at {end:#x}, beyond SIZE {record.SIZE:#x}")
