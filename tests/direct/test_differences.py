"""What docs/EXEC.md says differs from the kernel: still so, and no more than that."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount_rig import SESSIONS, mounted
from preload_rig import Agent, agent, compile_library

from support import tool

IN_MODIFY = 2
WARM = """
import mmap
fd = os.open({path}, os.O_RDWR)
for _ in range(4):
    os.pwrite(fd, b'warm', 0)
place = mmap.mmap(fd, 65536)
"""


@pytest.fixture
def path(pool: Callable[..., Path]) -> Iterator[Path]:
    """A file of 64 KiB on a mount."""
    with mounted(pool("-b", "4096"), *SESSIONS["kernel"]) as mount:
        made = mount.place / "file"
        made.write_bytes(bytes(65536))
        yield made


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Agent]:
    """An agent below the library."""
    with agent(compile_library(tmp_path / "preload.so")) as made:
        yield made


def test_stores_raise_no_event(path: Path, worker: Agent) -> None:
    worker(WARM, path=str(path))
    libc = ctypes.CDLL(None)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    try:
        assert libc.inotify_add_watch(watch, os.fsencode(path), IN_MODIFY) > 0
        assert worker("direct(lambda: os.pwrite(fd, b'x', 5))") == (1, 0)
        worker("place[7:8] = b'x'; place.flush(); os.fsync(fd)")
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
        worker("os.ftruncate(fd, 70000)")
        assert struct.unpack_from("iI", os.read(watch, 4096))[1] == IN_MODIFY
    finally:
        os.close(watch)


def test_an_immutable_file_is_not_written_but_by_an_older_mapping(path: Path, worker: Agent) -> None:
    worker(WARM, path=str(path))
    subprocess.run([tool("chattr"), "+i", path], check=True)
    try:
        for call in ("os.pwrite(fd, b'x', 100)", "os.write(fd, b'x')"):
            with pytest.raises(PermissionError):
                worker(call)
        worker("place[200:201] = b'm'; place.flush()")
        assert path.read_bytes() == b"warm" + bytes(196) + b"m" + bytes(65536 - 201)
    finally:
        subprocess.run([tool("chattr"), "-i", path], check=True)
