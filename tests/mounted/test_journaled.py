"""chattr +j on a mount: writes and stores through mappings are there whole or not at all when the daemon was killed."""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cli_rig import daxfs
from mount_rig import NOBODY, Mounted, as_user, mounted, mountpoint

from daxfs.ext4.inode import EXT4_JOURNAL_DATA_FL
from daxfs.fs.filesystem import FileSystem
from support import HANG_SECONDS, mke2fs

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
MIB = 1 << 20
SIZE = 3 * MIB


def chattr(path: Path, *, on: bool) -> None:
    """chattr +j or -j."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        (flags,) = struct.unpack("=I4x", fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, bytes(8)))
        flags = flags | EXT4_JOURNAL_DATA_FL if on else flags & ~EXT4_JOURNAL_DATA_FL
        fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, struct.pack("=I4x", flags))
    finally:
        os.close(descriptor)


def writes(place: Path) -> int:
    """How many WRITE requests the daemon has answered."""
    found: int = json.loads(daxfs("stats", place, "--total", "--json"))["operations"]["WRITE"]["count"]
    return found


def killed(pool: Path, change: Callable[[Path, int], None], *options: str) -> bytes:
    """What a file of SIZE bytes "o" with chattr +j holds if the daemon is killed after a change of the open file."""
    with mountpoint() as place:
        mount = Mounted(pool, place, ("commit=300", "stats", *options))
        try:
            path = place / "f"
            path.write_bytes(b"o" * SIZE)
            chattr(path, on=True)
            descriptor = os.open(path, os.O_RDWR)
            try:
                os.fsync(descriptor)
                change(place, descriptor)
                mount.daemon.kill()
                mount.daemon.wait(HANG_SECONDS)
            finally:
                with suppress(OSError):
                    os.close(descriptor)
        finally:
            mount.down()
    with FileSystem.open(pool) as fs:
        return fs.tree.read_bytes("f")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return mke2fs(tmp_path / "pool", size="64M")


def test_the_safe_size_is_one_request(pool: Path) -> None:
    """From a buffer that does not begin with a page, too."""
    with mounted(pool, "stats") as mount:
        said = json.loads(daxfs("info", "--json", mount.place))["mount"]["atomic_write"]
        assert "to files with chattr +j" in daxfs("info", mount.place)
        path = mount.place / "f"
        path.write_bytes(b"o" * SIZE)
        chattr(path, on=True)
        memory = mmap.mmap(-1, said + mmap.PAGESIZE)
        descriptor = os.open(path, os.O_WRONLY)
        try:
            for begin in (0, 1, mmap.PAGESIZE - 1):
                before = writes(mount.place)
                with memoryview(memory) as view:
                    assert os.pwrite(descriptor, view[begin : begin + said], 777) == said
                assert writes(mount.place) == before + 1
        finally:
            os.close(descriptor)


@pytest.mark.parametrize("size", [100, 8192, 100_000, MIB - 4096])
def test_a_write_is_whole(pool: Path, size: int) -> None:
    """Without fsync none of it is there, with fsync all of it."""

    def write(_: Path, descriptor: int) -> None:
        assert os.pwrite(descriptor, b"n" * size, 5000) == size

    def write_durably(place: Path, descriptor: int) -> None:
        write(place, descriptor)
        os.fdatasync(descriptor)

    assert killed(pool, write) == b"o" * SIZE
    assert killed(pool, write_durably) == b"o" * 5000 + b"n" * size + b"o" * (SIZE - 5000 - size)


@pytest.mark.parametrize("options", [(), ("dax=never",)], ids=["dax", "page cache"])
def test_what_the_kernel_writes_back_is_whole(pool: Path, options: tuple[str, ...]) -> None:
    """A run of pages that were stored to through a mapping arrives as one request."""

    def store(place: Path, descriptor: int) -> None:
        before = writes(place)
        with mmap.mmap(descriptor, SIZE) as memory:
            memory[4096 : 4096 + 40_960] = b"n" * 40_960
            memory.flush()
            assert writes(place) == before + 1

    content = killed(pool, store, *options)
    expected = b"o" * 4096 + b"n" * 40_960 + b"o" * (SIZE - 4096 - 40_960)
    assert content in (b"o" * SIZE, expected), "msync(2) asks for durability where the kernel passes it on"


def test_its_owner_sets_it(pool: Path) -> None:
    with mounted(pool, "allow_other") as mount:
        path = mount.place / "f"
        path.write_bytes(b"o")
        path.chmod(0o644)
        assert as_user(lambda: chattr(path, on=True)) == errno.EPERM
        os.chown(path, NOBODY, NOBODY)
        assert as_user(lambda: chattr(path, on=True)) == 0
        assert as_user(lambda: chattr(path, on=False)) == 0
