"""Append numbered records to a file: append.py FILE WHO RECORDS LENGTH HOW [LOG].

HOW: ``plain``, ``fsync`` or ``fdatasync`` after each record, or ``fork``: a child appends too, by the same descriptor.
LOG gets a byte for each record that was synchronised.
"""

from __future__ import annotations

import os
import sys


def record(who: str, number: int, length: int) -> bytes:
    """Return the same text for the same number, so that a torn record is found."""
    return (f"{who}:{number:07d}|".encode() * (length // 10 + 1))[:length]


def main(path: str, who: str, records: int, length: int, how: str, log: str = "/dev/null") -> None:
    """Append all records."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    child = 0
    if how == "fork":
        os.write(file, record(who, 0, length))
        child = os.fork()
        who = who.lower() if child == 0 else who
    counted = os.open(log, os.O_WRONLY | os.O_APPEND)
    for number in range(1 if how == "fork" and child else 0, records):
        content = record(who, number, length)
        assert os.write(file, content) == len(content)
        if how in ("fsync", "fdatasync"):
            getattr(os, how)(file)
            os.write(counted, b".")
    if child:
        assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
