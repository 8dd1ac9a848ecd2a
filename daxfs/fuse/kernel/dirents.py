"""Encode the names of a directory as READDIR returns them, as many as there is room for.

A listing of a large directory is little else. So the module is compiled, and it has one loop over plain values, which
makes no object for a name but its bytes. It knows neither nodes nor attributes (`daxfs.fuse.kernel.directories`).
"""

from __future__ import annotations

from daxfs.fs.types import DirEntry
from daxfs.fuse.kernel.abi import DIRENT

_HEAD = 24
_head = DIRENT.pack
PADDING = tuple(bytes(length) for length in range(8))
DT_OF_FILE_TYPE = (0, 8, 4, 2, 6, 1, 12, 10)
"""d_type by ext4's file type: unknown, regular, directory, character, block, FIFO, socket, symbolic link."""


def d_type(file_type: int) -> int:
    """Convert ext4's file type to the d_type of getdents(2); 0 (DT_UNKNOWN) for an unknown one."""
    return DT_OF_FILE_TYPE[file_type] if file_type < len(DT_OF_FILE_TYPE) else 0


def encoded(found: list[DirEntry], room: int) -> bytes:
    """Return the fuse_dirent of the first names that fit into ``room`` bytes."""
    parts: list[bytes] = []
    known = len(DT_OF_FILE_TYPE)
    for name, ino, file_type, cookie in found:
        length = len(name)
        rest = -length & 7
        room -= _HEAD + length + rest
        if room < 0:
            break
        parts.append(_head(ino, cookie, length, DT_OF_FILE_TYPE[file_type] if file_type < known else 0))
        parts.append(name)
        if rest:
            parts.append(PADDING[rest])
    return b"".join(parts)


def split(found: list[DirEntry], room: int, head: int) -> list[bytes]:
    """Return the fuse_dirent of each of the first names that fit into ``room`` bytes, ``head`` bytes before each."""
    parts: list[bytes] = []
    for entry in found:
        made = encoded([entry], _HEAD + 256)
        room -= head + len(made)
        if room < 0:
            break
        parts.append(made)
    return parts
