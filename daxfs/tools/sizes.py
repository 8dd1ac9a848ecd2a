"""Parse and format sizes as people write them: 512M, 1G, 1.5TiB."""

from __future__ import annotations

import os
import re
from fractions import Fraction

from daxfs.errors import UserError

_UNITS = "KMGTPE"
_LARGEST = 1 << 63


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``4096``, ``512M``, ``1.5G``, ``1TiB``.

    As in coreutils, ``M`` and ``MiB`` are powers of 1024 and ``MB`` is a power of 1000; case does not matter.

    Raises:
        UserError: it is not a size, has a fraction of a byte, is 0, or is more than a file can have.
    """
    match = re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) *(?:([KMGTPE])(I?B)?|B)?", text.strip().upper(), re.ASCII)
    if match is None:
        raise UserError(f"{text!r} is not a size; write it as 512M, 1G or 1.5TiB", os.EX_USAGE)
    number, unit, suffix = match.groups()
    factor = (1000 if suffix == "B" else 1024) ** (_UNITS.index(unit) + 1) if unit else 1
    size = Fraction(number) * factor
    if size.denominator != 1 or not 0 < size < _LARGEST:
        raise UserError(
            f"{text!r} is not a whole number of bytes that a file can have; write it as 512M or 1G", os.EX_USAGE
        )
    return int(size)


def format_size(size: int) -> str:
    """Format a size in its largest binary unit, with one decimal if it is not a whole number: ``1.5 GiB``."""
    value, unit = Fraction(size), "bytes"
    for name in _UNITS:
        if value < 1024:
            break
        value, unit = value / 1024, name + "iB"
    return f"{int(value)} {unit}" if value.denominator == 1 else f"{float(value):.1f} {unit}"
