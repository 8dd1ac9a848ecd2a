"""The names of a directory as READDIR returns them."""

from __future__ import annotations

import pytest

from daxfs.ext4.inode import FT_DIR, FT_REG_FILE, FT_SYMLINK
from daxfs.fs.types import DirListing
from daxfs.fuse.kernel import dirents
from daxfs.fuse.kernel.abi import DIRENT

FOUND = DirListing(
    [b"a", b"eightnam", b"\xff" * 255, b"of an unknown type"],
    [12, 13, (1 << 32) - 1, 14],
    [FT_DIR, FT_REG_FILE, FT_SYMLINK, 200],
    [3, (1 << 63) - 1, 5, 6],
)
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
    assert parsed(dirents.encoded(FOUND, 4)) == list(zip(FOUND.names, FOUND.inos, TYPES, FOUND.cookies, strict=True))
    assert [dirents.d_type(file_type) for file_type in FOUND.file_types] == TYPES
    assert dirents.encoded(FOUND, 0) == b""


def test_what_readdirplus_puts_before_a_name_stands_before_it() -> None:
    alone = [dirents.encoded(FOUND.part(at, at + 1), 1) for at in range(3)]
    heads = [bytes((at,)) * 128 for at in range(3)]
    made = dirents.encoded(FOUND, 3, heads)
    assert made == b"".join(head + entry for head, entry in zip(heads, alone, strict=True))


@pytest.mark.parametrize(("room", "count"), [(0, 0), (31, 0), (32, 1), (63, 1), (64, 2), (64 + 279, 2), (64 + 280, 3)])
def test_no_name_is_cut(room: int, count: int) -> None:
    assert dirents.fitting(FOUND, room) == count
    assert dirents.fitting(FOUND, room + 100 * count, 100) == count
    assert len(dirents.encoded(FOUND, count)) <= room
