"""Keeping a pool off the descriptors of standard streams.

A process that starts with a closed standard stream gets the first file that it opens as descriptor 0, 1 or 2. A pool
there takes whatever the process prints: the interpreter's last words would overwrite the boot block and the superblock.
Programs call `fill_standard` before they open anything; the library, which must leave the streams of its caller alone,
opens pools inside `above_standard`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

STANDARD = 3
"""Descriptors below this number are standard streams."""


def fill_standard() -> None:
    """Open /dev/null for each standard stream that is closed. Programs that are run inherit it.

    Raises:
        OSError: there is no /dev/null.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < STANDARD:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


@contextmanager
def above_standard() -> Iterator[None]:
    """Files opened inside get descriptors from 3 on; closed standard streams are closed again afterwards.

    A duplicate that ``fcntl(F_DUPFD_CLOEXEC, 3)`` makes is not enough: ``mmap.mmap`` keeps a duplicate of its own.
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
