"""Sizes as people write them: 512M, 1G, 1.5TiB. The command line's helper; nothing below the tools uses it."""

from __future__ import annotations

import re
from fractions import Fraction

from daxfs.errors import UserError

_UNITS = "KMGTPE"
_USAGE = 64  # EX_USAGE, sysexits.h
_LARGEST = 1 << 63


def parse_size(text: str) -> int:
    """Bytes of a size such as ``4096``, ``512M``, ``1.5G``, ``1TiB``.

    As in coreutils, ``M`` and ``MiB`` are powers of 1024 and ``MB`` is a power of 1000; capitals don't matter.

    Raises:
        UserError: not a size, a fraction of a byte, nothing, or more than a file can have.
    """
    match = re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) *(?:([KMGTPE])(I?B)?|B)?", text.strip().upper(), re.ASCII)
    if match is None:
        raise UserError(f"{text!r} is no size; write it as 512M, 1G or 1.5TiB", _USAGE)
    number, unit, suffix = match.groups()
    factor = (1000 if suffix == "B" else 1024) ** (_UNITS.index(unit) + 1) if unit else 1
    size = Fraction(number) * factor
    if size.denominator != 1 or not 0 < size < _LARGEST:
        raise UserError(f"{text!r} is not a whole number of bytes that a file can have; write it as 512M or 1G", _USAGE)
    return int(size)


def format_size(size: int) -> str:
    """The size in the largest unit of 1024 that leaves at least one, with one decimal where needed: ``1.5 GiB``."""
    value, unit = Fraction(size), "bytes"
    for name in _UNITS:
        if value < 1024:
            break
        value, unit = value / 1024, name + "iB"
    return f"{int(value)} {unit}" if value.denominator == 1 else f"{float(value):.1f} {unit}"
