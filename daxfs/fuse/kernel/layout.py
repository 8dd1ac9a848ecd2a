"""The layout of a request's header or arguments: a named type with the fields of the C structure in their order.

One declaration serves both ways to read a request. `Layout.read` returns all fields by name. `Layout.index` has the
index of each field, for a handler that reads a few fields in place in a tenth of the time.
"""

from __future__ import annotations

from operator import floordiv
from struct import Struct, calcsize
from typing import Annotated, Generic, TypeVar, get_type_hints

U16 = Annotated[int, "H"]
U32 = Annotated[int, "I"]
U64 = Annotated[int, "Q"]
"""The type of a field: an integer, annotated with its format character of the module struct."""

Fields = TypeVar("Fields", bound=tuple[int, ...])


class Layout(Generic[Fields]):
    """The layout of one structure in a message.

    Attributes:
        size: bytes of the structure.
        struct: the fields in the machine's byte order, without gaps.
        index: for each field its index in the message, counted in units of the field's own width: a field of 8 bytes
            is item ``index.name`` of the message cast to ``Q``.
    """

    __slots__ = ("_fields", "index", "size", "struct")

    def __init__(self, fields: type[Fields], begin: int, unused: int = 0) -> None:
        """Compute the layout of the fields.

        Args:
            fields: a named tuple of `U16`, `U32` and `U64`; padding is a field too.
            begin: the structure's offset in the message.
            unused: bytes of the structure after the last field.
        """
        codes = [hint.__metadata__[0] for hint in get_type_hints(fields, include_extras=True).values()]
        self._fields = fields
        self.struct = Struct(f"={''.join(codes)}{unused}x")
        self.size = self.struct.size
        places = (begin + calcsize(f"={''.join(codes[:number])}") for number in range(len(codes)))
        self.index = tuple.__new__(fields, map(floordiv, places, map(calcsize, codes)))

    def read(self, message: memoryview | bytes, at: int) -> Fields:
        """Return the fields of the structure at offset ``at`` of the message."""
        return tuple.__new__(self._fields, self.struct.unpack_from(message, at))
