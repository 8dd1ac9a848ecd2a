"""A full pool: space that a file has reserved can still be stored to, and what is left free is what ext4 says.

Storing into the middle of an unwritten extent splits it, which may need a tree block: ext4 keeps some for that.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from kernel_rig import kernel_mount
from mount_rig import SESSIONS, mounted

from support import fsck

Pool = Callable[..., Path]
RESERVED = 8 << 20
PIECE = 65_536
NOBODY = 65_534
libc = ctypes.CDLL(None, use_errno=True)


def fill(place: Path) -> None:
    """Write until nothing more goes in, in large pieces and then in single blocks."""
    descriptor = os.open(place / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        for size in (1 << 20, 4096, 1024):
            with suppress(OSError):
                while os.write(descriptor, b"f" * size) == size:
                    pass
    finally:
        os.close(descriptor)


def pieces() -> Iterator[tuple[int, bytes]]:
    """Every other 64 KiB."""
    for at in range(0, RESERVED, 2 * PIECE):
        yield at, (b"%08d" % at) * (PIECE // 8)


def by_write(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        for at, content in pieces():
            assert os.pwrite(descriptor, content, at) == PIECE
    finally:
        os.close(descriptor)


def by_mapping(path: Path) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), RESERVED) as memory:
        for at, content in pieces():
            memory[at : at + PIECE] = content
        memory.flush()


def reserve(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        os.posix_fallocate(descriptor, 0, RESERVED)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("store", [by_write, by_mapping], ids=lambda store: store.__name__)
@pytest.mark.parametrize("block", ["1024", "4096"])
def test_reserved_space_takes_stores_on_a_full_pool(pool: Pool, store: Callable[[Path], None], block: str) -> None:
    made = pool("-b", block, "-m", "0", size="64M")
    with mounted(made, *SESSIONS["kernel"]) as mount:
        reserve(mount.place / "f")
        fill(mount.place)
        assert os.statvfs(mount.place).f_bavail == 0
        store(mount.place / "f")
    with mounted(made, *SESSIONS["kernel"]) as mount:
        content = (mount.place / "f").read_bytes()
        assert all(content[at : at + PIECE] == expected for at, expected in pieces())


def test_punching_holes_into_a_full_pool(pool: Pool) -> None:
    made = pool("-b", "1024", "-m", "0", size="32M")
    with mounted(made, *SESSIONS["kernel"]) as mount:
        reserve(mount.place / "f")
        fill(mount.place)
        descriptor = os.open(mount.place / "f", os.O_RDWR)
        try:
            for at in range(0, RESERVED, 2 * PIECE):
                assert libc.fallocate(descriptor, 3, ctypes.c_long(at), ctypes.c_long(PIECE)) == 0
        finally:
            os.close(descriptor)


@pytest.mark.parametrize(
    "options",
    [("-b", "4096"), ("-b", "1024", "-m", "0"), ("-b", "4096", "-m", "10"), ("-b", "4096", "-O", "^extent,^64bit")],
    ids=" ".join,
)
def test_free_space_is_the_kernel_s(pool: Pool, options: tuple[str, ...]) -> None:
    made = pool(*options, size="64M")
    with kernel_mount(made) as place:
        (place / "file").write_bytes(b"x" * 3_000_000)
    with mounted(made, *SESSIONS["kernel"]) as mount:
        mine = os.statvfs(mount.place)
    with kernel_mount(made) as place:
        theirs = os.statvfs(place)
    for name in ("f_bsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree"):
        assert getattr(mine, name) == getattr(theirs, name), name


def store_one_more_block(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_SYNC)
    try:
        os.write(descriptor, b"l" * 4096)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("block", ["1024", "4096"])
def test_reserved_space_past_the_end_on_a_full_pool(pool: Pool, block: str) -> None:
    """Every other piece makes the file longer and splits what is reserved, the rest then joins it (generic/274)."""
    path = pool("-b", block, "-m", "0", size="64M")
    order = [*range(1, RESERVED // PIECE + 1, 2), *range(2, RESERVED // PIECE + 1, 2)]
    with mounted(path, *SESSIONS["kernel"]) as mount:
        file = mount.place / "file"
        file.write_bytes(b"0" * PIECE)
        descriptor = os.open(file, os.O_RDWR)
        try:
            keep_size = 1
            assert libc.fallocate(descriptor, keep_size, ctypes.c_long(PIECE), ctypes.c_long(RESERVED)) == 0
            fill(mount.place)
            os.sync()
            with pytest.raises(OSError, match="No space"):
                store_one_more_block(mount.place / "last")
            for number in order:
                assert os.pwrite(descriptor, b"%08d" % number * (PIECE // 8), number * PIECE) == PIECE, number
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    fsck(path)
    with mounted(path, *SESSIONS["kernel"]) as mount:
        content = (mount.place / "file").read_bytes()
    assert len(content) == PIECE + RESERVED
    for number in order:
        assert content[number * PIECE : number * PIECE + PIECE] == b"%08d" % number * (PIECE // 8), number


def test_stores_through_a_mapping_that_find_no_room_are_not_lost_silently(pool: Pool) -> None:
    """Write-back of a page that has no room fails, and so does the msync(2) or fsync(2) that waits for it."""
    path = pool(size="16M")
    size = 20 << 20
    with mounted(path, *SESSIONS["kernel"]) as mount, open(mount.place / "f", "w+b") as file:
        file.truncate(size)
        content = b"".join(b"%4096d" % number for number in range(size >> 12))
        failed = False
        with mmap.mmap(file.fileno(), size) as memory:
            memory[:] = content
            try:
                memory.flush()
                os.fsync(file.fileno())
            except OSError as error:
                failed = error.errno == errno.ENOSPC
        assert failed
        found = os.pread(file.fileno(), 4096, 0)
        assert found == content[:4096]
    fsck(path)
