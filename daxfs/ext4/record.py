"""Layer 3: on-disk structures as classes whose fields are properties over memoryview casts.

A class lists its fields (`daxfs.ext4.field`). Binding a record makes the casts. A record copies nothing: it reads and
writes the buffer that it is bound to, which may be the pool or a transaction's copy of a block. This module knows
nothing of checksums, journals or meaning: the modules of the structures do. Every layer may bind records, and may read
``buffer``, ``halves`` and ``words`` directly in hot loops.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from daxfs.compiled import mypyc_attr
from daxfs.ext4.field import FieldInfo, FieldValue, complete


@mypyc_attr(allow_interpreted_subclasses=True)
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
        complete(cls)

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
