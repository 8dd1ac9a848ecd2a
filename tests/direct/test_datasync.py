"""fdatasync(2) below the preload library: without a request where only this program's stores are to be made durable."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount_rig import SESSIONS, Mounted, mountpoint
from preload_rig import Agent, agent

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import ROOT_INO
from daxfs.tools.stats import look
from support import HANG_SECONDS, fsck

BLOCK = 4096
SIZE = 16 * BLOCK
COUNT = 300
OPTIONS = (*SESSIONS["kernel"], "commit=300")


@pytest.fixture
def memory(pool: Callable[..., Path]) -> Iterator[Path]:
    """Yield a pool whose stores need no msync(2)."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(shutil.copy(pool("-b", str(BLOCK), size="128M"), folder))


@pytest.fixture
def mount(memory: Path) -> Iterator[Mounted]:
    """Yield its mount, with a file that has content."""
    with mountpoint() as place:
        made = Mounted(memory, place, OPTIONS)
        (place / "file").write_bytes(bytes(SIZE))
        try:
            yield made
        finally:
            made.down()


@pytest.fixture
def worker(library: Path, mount: Mounted) -> Iterator[Agent]:
    """Yield an agent that stores to the file, and has made it durable."""
    with agent(library) as made:
        opened(made, mount)
        yield made


def opened(worker: Agent, mount: Mounted) -> None:
    """Open the file, store until memory is granted, move the times, and make everything durable."""
    worker("fd = os.open({path}, os.O_RDWR)", path=str(mount.place / "file"))
    worker("direct(lambda: os.pwrite(fd, b'x' * 4096, 4096))")
    worker("os.fsync(fd)")
    worker("os.fdatasync(fd)")


def requests(mount: Mounted) -> int:
    """Return how many requests of fsync(2) and of the library were counted."""
    found = look(str(mount.place)).operations
    return sum(found[name].count for name in ("FSYNC", "IOCTL") if name in found)


def test_unchanged_by_the_daemon_it_asks_nobody(mount: Mounted, worker: Agent) -> None:
    mount.daemon.kill()
    mount.daemon.wait(HANG_SECONDS)
    worker("os.fdatasync(fd)")
    with pytest.raises(OSError, match="not connected"):
        worker("os.fsync(fd)")
    with contextlib.suppress(OSError):
        worker("os.close(fd)")


def test_stores_are_reported_once_a_second(mount: Mounted, worker: Agent, library: Path) -> None:
    """Two programs that store to one file don't make each other ask each time."""
    with agent(library) as other:
        opened(other, mount)
        requests(mount)
        begin, before = time.monotonic(), requests(mount)
        for number in range(COUNT):
            who = (worker, other)[number % 2]
            who("os.pwrite(fd, b'y' * 100, {at})", at=number)
            who("os.fdatasync(fd)")
        asked = requests(mount) - before
        # Each second two reports, each of them a change for both; and the two questions.
        assert asked <= 8 + 6 * (time.monotonic() - begin + 1), f"{asked} requests"
        other("os.close(fd)")


def test_the_times_follow_after_a_second(mount: Mounted, worker: Agent) -> None:
    os.utime(mount.place / "file", (1, 1))
    worker("os.pwrite(fd, b'y', 0)")
    time.sleep(1.1)
    worker("os.fdatasync(fd)")
    assert os.stat(mount.place / "file").st_mtime > 1e9


CHANGES: dict[str, tuple[Callable[[Path], object], Callable[[FileSystem, int], bool]]] = {
    "attribute": (lambda path: os.setxattr(path, "user.a", b"b"), lambda fs, ino: fs.getxattr(ino, b"user.a") == b"b"),
    "link": (lambda path: os.link(path, f"{path}2"), lambda fs, ino: fs.lookup(ROOT_INO, b"file2").ino == ino),
    "size": (lambda path: os.truncate(path, 5000), lambda fs, ino: fs.getattr(ino).size == 5000),
    "blocks": (
        lambda path: os.posix_fallocate(descriptor := os.open(path, os.O_RDWR), SIZE, 1 << 20) or os.close(descriptor),
        lambda fs, ino: fs.getattr(ino).size == SIZE + (1 << 20),
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_changes_by_others_become_durable_too(mount: Mounted, worker: Agent, what: str) -> None:
    change, found = CHANGES[what]
    change(mount.place / "file")
    worker("os.pwrite(fd, b'z' * 100, 0)")
    worker("os.fdatasync(fd)")
    mount.daemon.kill()
    mount.daemon.wait(HANG_SECONDS)
    with contextlib.suppress(OSError):
        worker("os.close(fd)")
    mount.down()
    with FileSystem.open(mount.pool) as fs:
        ino = fs.lookup(ROOT_INO, b"file").ino
        assert found(fs, ino)
        file = fs.open_file(ino, os.O_RDONLY)
        assert bytes(fs.read(file, 0, 100)) == b"z" * 100
        fs.release(file)
    fsck(mount.pool)


@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
def test_stores_through_mappings_of_others_become_durable_too(mount: Mounted, worker: Agent, call: str) -> None:
    """Of a program without the library, whose dirty pages only the kernel knows: this one."""
    with open(mount.place / "file", "r+b") as file, mmap.mmap(file.fileno(), SIZE) as memory:
        for content in (b"first", b"later"):
            worker(f"for _ in range(3): os.{call}(fd)")  # from now on the daemon has not changed the file
            memory[40_000:40_005] = content
            worker("os.pwrite(fd, b'1', 0)")
            worker(f"os.{call}(fd)")
        mount.daemon.kill()
        mount.daemon.wait(HANG_SECONDS)
        with contextlib.suppress(OSError):
            worker("os.close(fd)")
        with FileSystem.open(mount.pool) as fs:
            assert fs.tree.read_bytes("/file")[40_000:40_005] == b"later"
    mount.down()
    fsck(mount.pool)
