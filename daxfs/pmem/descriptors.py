"""Keep a pool's descriptor from becoming a standard stream.

A process that starts with a closed standard stream gets descriptor 0, 1 or 2 for the first file that it opens. If that
file is a pool, whatever the process prints goes into the pool: an error message of the interpreter would overwrite the
boot block and the superblock. Programs call `fill_standard` before they open anything. The library must leave the
streams of its caller alone, so it opens pools inside `above_standard`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

STANDARD = 3
"""Descriptors below this number are standard streams."""


def fill_standard() -> None:
    """Open /dev/null for each standard stream that is closed; programs that this process starts inherit it.

    Raises:
        OSError: there is no /dev/null.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < STANDARD:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


@contextmanager
def above_standard() -> Iterator[None]:
    """Give files opened inside descriptors from 3 on; standard streams that were closed are closed again afterwards.

    Duplicating the descriptor with ``fcntl(F_DUPFD_CLOEXEC, 3)`` is not enough, because ``mmap.mmap`` makes a duplicate
    of its own.
    """
    taken: list[int] = []
    try:
        while not taken or taken[-1] < STANDARD:
            taken.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        os.close(taken.pop())
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
