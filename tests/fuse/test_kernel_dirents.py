"""The names of a directory as READDIR returns them."""

from __future__ import annotations

import pytest

from daxfs.ext4.inode import FT_DIR, FT_REG_FILE, FT_SYMLINK
from daxfs.fs.types import DirEntry
from daxfs.fuse.kernel import dirents
from daxfs.fuse.kernel.abi import DIRENT

FOUND = [
    DirEntry(b"a", 12, FT_DIR, 3),
    DirEntry(b"eightnam", 13, FT_REG_FILE, (1 << 63) - 1),
    DirEntry(b"\xff" * 255, (1 << 32) - 1, FT_SYMLINK, 5),
    DirEntry(b"of an unknown type", 14, 200, 6),
]
TYPES = [4, 8, 10, 0]


def parsed(encoded: bytes) -> list[tuple[bytes, int, int, int]]:
    """Return (name, inode, d_type, cookie) of each fuse_dirent, as the kernel's parse_dirfile reads them."""
    found = []
    at = 0
    while at < len(encoded):
        ino, cookie, length, kind = DIRENT.unpack_from(encoded, at)
        name = encoded[at + DIRENT.size : at + DIRENT.size + length]
        end = at + DIRENT.size + length
        at = end + -end % 8
        assert encoded[end:at] == bytes(at - end)
        found.append((name, ino, kind, cookie))
    assert at == len(encoded)
    return found


def test_each_name_is_encoded_as_the_kernel_reads_it() -> None:
    expected = [(name, ino, kind, cookie) for (name, ino, _, cookie), kind in zip(FOUND, TYPES, strict=True)]
    assert parsed(dirents.encoded(FOUND, 4096)) == expected
    assert b"".join(dirents.split(FOUND, 4096, 128)) == dirents.encoded(FOUND, 4096)
    assert [dirents.d_type(entry.file_type) for entry in FOUND] == TYPES
    assert dirents.encoded([], 4096) == b""


@pytest.mark.parametrize(("room", "count"), [(0, 0), (31, 0), (32, 1), (63, 1), (64, 2), (64 + 279, 2), (64 + 280, 3)])
def test_no_name_is_cut(room: int, count: int) -> None:
    assert len(parsed(dirents.encoded(FOUND, room))) == count
    assert len(dirents.split(FOUND, room + 100 * count, 100)) == count
