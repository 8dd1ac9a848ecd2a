"""Encode the names of a directory as READDIR and READDIRPLUS return them, as many as there is room for.

A listing of a large directory is little else. So the module is compiled, and it has one loop over columns, which writes
machine words and makes no object for a name. It knows neither nodes nor attributes (`daxfs.fuse.kernel.directories`).

Source: ``include/uapi/linux/fuse.h`` (struct fuse_dirent: u64 ino, u64 off, u32 namelen, u32 type, the name, padding to
8 bytes).
"""

from __future__ import annotations

from librt.strings import BytesWriter, write_i32_le, write_i64_le
from mypy_extensions import i64

from daxfs.ext4.inode import FT_MAX
from daxfs.fs.types import DirListing

HEAD = 24
"""Bytes of a fuse_dirent before the name."""
PADDING = tuple(bytes(length) for length in range(8))
DT_OF_FILE_TYPE = (0, 8, 4, 2, 6, 1, 12, 10)
"""d_type by ext4's file type: unknown, regular, directory, character, block, FIFO, socket, symbolic link."""


def d_type(file_type: int) -> int:
    """Convert ext4's file type to the d_type of getdents(2); 0 (DT_UNKNOWN) for an unknown one."""
    return DT_OF_FILE_TYPE[file_type] if file_type < len(DT_OF_FILE_TYPE) else 0


def fitting(found: DirListing, room: int, head: int = 0) -> int:
    """Return how many of the first names fit into ``room`` bytes, with ``head`` bytes before each fuse_dirent."""
    left: i64 = room
    each: i64 = head + HEAD
    count = 0
    for name in found.names:
        length: i64 = len(name)
        left -= each + (length + 7 & ~7)
        if left < 0:
            break
        count += 1
    return count


def encoded(found: DirListing, count: int, before: list[bytes] | None = None) -> bytes:
    """Return the fuse_dirent of the first ``count`` names, each after what READDIRPLUS has ``before`` it."""
    made = BytesWriter()
    names, inos, file_types, cookies = found.names, found.inos, found.file_types, found.cookies
    kinds = [d_type(file_type) for file_type in range(FT_MAX)]
    for at in range(count):
        if before is not None:
            made.write(before[at])
        name = names[at]
        write_i64_le(made, inos[at])
        write_i64_le(made, cookies[at])
        write_i32_le(made, len(name))
        file_type = file_types[at]
        write_i32_le(made, kinds[file_type] if file_type < FT_MAX else 0)
        made.write(name)
        rest = -len(name) & 7
        if rest:
            made.write(PADDING[rest])
    return made.getvalue()
