"""Find the holes of an open file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from daxfs.runs import ByteRange


def data_extents(descriptor: int, length: int) -> Iterator[ByteRange]:
    """Yield the ranges [first, end) of the first ``length`` bytes that are not holes, in order (lseek(2), SEEK_DATA).

    Where the file system does not know its holes, all is data.
    """
    position = 0
    while position < length:
        try:
            first = os.lseek(descriptor, position, os.SEEK_DATA)
            end = os.lseek(descriptor, first, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole follows
                return
            first, end = position, length
        if first >= length:
            return
        yield ByteRange(first, min(end, length))
        position = end
