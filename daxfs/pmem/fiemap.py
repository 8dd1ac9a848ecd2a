"""Where an open file has blocks: FS_IOC_FIEMAP.

Source: Documentation/filesystems/fiemap.rst; include/uapi/linux/fiemap.h.
"""

from __future__ import annotations

import fcntl
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

_FS_IOC_FIEMAP = 0xC020660B  # include/uapi/linux/fs.h
_REQUEST = struct.Struct("=QQIIII")  # struct fiemap: start, length, flags, mapped extents, room for extents, reserved
_EXTENT = struct.Struct("=QQQ16xI12x")  # struct fiemap_extent: logical, physical, length, flags
_AT_ONCE = 256  # extents in one answer
_LAST = 0x1
_NO_PLACE = 0x2 | 0x4 | 0x8 | 0x100 | 0x200  # unknown, delayed, encoded, not aligned, inline


class Blocks(NamedTuple):
    """Contiguous blocks of a file, in bytes; ``placed``: ``physical`` is where they lie on the device."""

    logical: int
    physical: int
    length: int
    placed: bool


def blocks(descriptor: int, begin: int, end: int) -> Iterator[Blocks]:
    """Yield the blocks that overlap [begin, end) of an open file, in order; nothing if the file system can't tell."""
    with suppress(OSError):
        while begin < end:
            answer = bytearray(_REQUEST.size + _AT_ONCE * _EXTENT.size)
            _REQUEST.pack_into(answer, 0, begin, end - begin, 0, 0, _AT_ONCE, 0)
            fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, answer)
            mapped = _REQUEST.unpack_from(answer)[3]
            for number in range(mapped):
                logical, physical, length, flags = _EXTENT.unpack_from(answer, _REQUEST.size + number * _EXTENT.size)
                yield Blocks(logical, physical, length, not flags & _NO_PLACE)
                begin = logical + length
                if flags & _LAST:
                    return
            if not mapped:
                return


def is_allocated(descriptor: int, begin: int, end: int) -> bool:
    """Return whether [begin, end) of an open file has no hole; False if the file system can't tell."""
    for found in blocks(descriptor, begin, end):
        if found.logical > begin:
            return False
        begin = found.logical + found.length
    return begin >= end
