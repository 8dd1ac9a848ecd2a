"""Layer 3: on-disk structures as classes whose fields are compiled to properties over memoryview casts.

A class lists its fields (``i_mode = u16(0x00)``). When the class is made, the offsets are checked (alignment, overlap,
bounds), and every field becomes a ``property`` whose getter indexes a cast of the bound memory. Binding a record makes
the casts. A record copies nothing: it reads and writes the buffer that it is bound to, which may be the pool or a
transaction's copy of a block. This module knows nothing of checksums, journals or meaning: the modules of the
structures, the only callers of the declaring functions, do. Every layer may bind records, and may read ``buffer``,
``halves`` and ``words`` directly in hot loops.

The casts are native-endian, so the module requires a little-endian machine. jbd2's big-endian records don't use it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

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


class _Declared:
    """A field in a class body; when the class is made, a property replaces it."""

    __slots__ = ("offset", "signed", "size", "through", "within")

    def __init__(self, offset: int, size: int, *, signed: bool = False, within: str = "", through: str = "") -> None:
        self.offset = offset
        self.size = size
        self.signed = signed
        self.within = within
        self.through = through


class IntField(_Declared):
    """A declared integer; instances read and assign an ``int``."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type | None = None) -> int: ...

        def __set__(self, instance: object, value: int) -> None: ...


class RawField(_Declared):
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


class Record:
    """A structure bound to memory.

    Attributes:
        buffer: The bound bytes, format ``B``.
        halves, words, quads: The bound bytes as u16, u32 and u64. An attribute exists only if the class has a field of
            that width.
    """

    SIZE: ClassVar[int] = 0
    ALIGNMENT: ClassVar[int] = 1
    FIELDS: ClassVar[tuple[FieldInfo, ...]] = ()
    __slots__ = ("buffer", "halves", "quads", "words")

    buffer: memoryview
    halves: memoryview
    words: memoryview
    quads: memoryview

    def __init__(self, buf: memoryview, offset: int = 0, size: int = 0) -> None:  # noqa: ARG002
        """Bind to ``buf`` (format ``B``) at ``offset``.

        Args:
            buf: The memory; it must be writable for assignments.
            offset: The byte where the structure starts, a multiple of ``ALIGNMENT``.
            size: Bytes to bind, if the structure on disk is longer than the declared fields; 0 means ``SIZE``.

        Raises:
            ValueError: ``offset`` is not aligned, or the buffer ends before the structure does.
        """
        raise TypeError(f"{type(self).__name__} declares no fields")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__slots__" not in cls.__dict__:
            raise TypeError(f"{cls.__name__} must declare __slots__, or each binding pays for a dict")
        declared = {name: item for name, item in cls.__dict__.items() if isinstance(item, _Declared)}
        joins = {name: item for name, item in cls.__dict__.items() if isinstance(item, JoinedField)}
        infos = [_describe(name, item) for name, item in declared.items()]
        cls.FIELDS = tuple(sorted((*cls.FIELDS, *infos), key=lambda info: info.offset))
        _check_layout(cls)
        for name, item in declared.items():
            setattr(cls, name, _compile_field(name, item))
        by_name = {info.name: info for info in cls.FIELDS}
        for name, join in joins.items():
            high = by_name[join.high] if join.high else None
            setattr(cls, name, _compile_joined(name, by_name[join.low], high))
        widths = {info.size for info in cls.FIELDS if "[" in info.read and ":" not in info.read}
        cls.ALIGNMENT = max(widths, default=1)
        if cls.SIZE % cls.ALIGNMENT:
            raise TypeError(f"{cls.__name__}.SIZE {cls.SIZE} is no multiple of its alignment {cls.ALIGNMENT}")
        if declared and "__init__" not in cls.__dict__:
            setattr(cls, "__init__", _compile_binding(cls, widths))  # noqa: B010 (mypy forbids the plain form)

    def field_table(self) -> Iterator[FieldValue]:
        """Yield the fields with their values, in the order of their offsets (for dump tools)."""
        for info in self.FIELDS:
            yield FieldValue(info.name, info.offset, info.size, getattr(self, info.name))

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{row.name}={row.value:#x}" if isinstance(row.value, int) else f"{row.name}={row.value.hex()}"
            for row in self.field_table()
            if row.value and row.value != bytes(row.size)
        )
        return f"{type(self).__name__}({shown})"


def _describe(name: str, item: _Declared) -> FieldInfo:
    if isinstance(item, RawField):
        return FieldInfo(name, item.offset, item.size, f"bytes(self.buffer[{item.offset}:{item.offset + item.size}])")
    read = f"self.{_VIEWS[item.size][0]}[{item.offset // item.size}]"
    return FieldInfo(name, item.offset, item.size, read)


def _check_layout(cls: type[Record]) -> None:
    """Raise TypeError when a field of ``cls`` is misaligned, out of bounds or overlaps another."""
    end, last = 0, ""
    for name, offset, size, read in cls.FIELDS:
        if offset < end:
            raise TypeError(f"{cls.__name__}.{name} at {offset:#x} overlaps {last}, which ends at {end:#x}")
        if ":" not in read and offset % size:
            raise TypeError(f"{cls.__name__}.{name} at {offset:#x} is not aligned to {size} bytes")
        end, last = offset + size, name
    if end > cls.SIZE:
        raise TypeError(f"{cls.__name__}.{last} ends at {end:#x}, beyond SIZE {cls.SIZE:#x}")


def _function(source: str, name: str) -> Callable[..., Any]:
    """Compile one function; literal offsets in its code make it as fast as hand-written code."""
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    function: Callable[..., Any] = namespace[name]
    function.__module__ = __name__
    return function


def _compile_field(name: str, item: _Declared) -> property:
    place = _describe(name, item).read
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
    getter = _function(f"def {name}(self): return {read}", name)
    setter = _function(f"def {name}(self, value):\n    {store}", name)
    return property(getter, setter, doc=f"{item.size} bytes at {item.offset:#x}")


def _compile_joined(name: str, low: FieldInfo, high: FieldInfo | None) -> property:
    if high is None:
        return property(
            _function(f"def {name}(self): return {low.read}", name),
            _function(f"def {name}(self, value): {low.read} = value", name),
            doc=low.name,
        )
    bits = 8 * low.size
    getter = _function(f"def {name}(self): return {low.read} | {high.read} << {bits}", name)
    # The high half first: storing it fails for values out of range, before anything has changed.
    setter = _function(
        f"def {name}(self, value):\n    {high.read} = value >> {bits}\n    {low.read} = value & {(1 << bits) - 1}",
        name,
    )
    return property(getter, setter, doc=f"{low.name} and {high.name} joined")


def _compile_binding(cls: type[Record], widths: set[int]) -> Callable[..., None]:
    """Compile the ``__init__`` of ``cls``: one slice, and one cast for each width that its fields use."""
    casts = "".join(
        f"    self.{_VIEWS[width][0]} = buffer.cast({_VIEWS[width][1]!r})\n" for width in sorted(widths - {1})
    )
    return _function(
        f"def __init__(self, buf, offset=0, size={cls.SIZE}):\n"
        f"    self.buffer = buffer = buf[offset : offset + size]\n"
        f"    if offset & {cls.ALIGNMENT - 1} or len(buffer) < {cls.SIZE} or len(buffer) < size:\n"
        f"        raise ValueError('{cls.__name__} of %d bytes cannot be bound at offset %d of %d bytes'\n"
        f"                         % (size, offset, len(buf)))\n" + casts,
        "__init__",
    )
