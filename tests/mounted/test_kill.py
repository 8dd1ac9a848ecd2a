"""The daemon is killed amid parallel work, again and again: each time the pool mounts and what was synced is there."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mount_rig import SESSIONS, Mounted, daxfs, mountpoint

from daxfs.fs.filesystem import FileSystem
from daxfs.fuse import mounts
from support import HANG_SECONDS, fsck, mke2fs, tool

WORKERS = 3
Synced = dict[str, bytes]
"""Path below the root -> the content that the last fsync that returned has promised."""


class Worker(threading.Thread):
    """Files of its own, changed until the daemon is gone.

    ``synced``: what fsync has promised; a file in ``unsure`` was touched after that, and may be as it was then or not.
    """

    def __init__(self, root: Path, number: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.root = root
        self.name = f"w{number}"
        self.chance = random.Random(seed * 100 + number)
        self.synced: Synced = {}
        self.unsure: set[str] = set()
        self.syncs = 0
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.root / self.name)
            while True:
                self.step()
        except OSError:
            pass  # the daemon is gone: ENOTCONN, ECONNABORTED
        except BaseException as error:  # the test reports it
            self.failed = error

    def step(self) -> None:
        name = f"{self.name}/{self.chance.randrange(12)}"
        path = self.root / name
        choice = self.chance.randrange(10)
        if choice < 6:
            self.write(name, path)
        elif choice == 6:
            self.unsure.add(name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        elif choice == 7:
            other = f"{self.name}/{self.chance.randrange(12)}"
            self.unsure.update((name, other))
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, self.root / other)
        elif choice == 8:
            self.unsure.add(name)
            with contextlib.suppress(FileNotFoundError):
                os.truncate(path, self.chance.randrange(60_000))
        else:
            for number in range(10):
                (self.root / self.name / f"d{number}").mkdir(exist_ok=True)
            for number in range(10):
                (self.root / self.name / f"d{number}").rmdir()

    def write(self, name: str, path: Path) -> None:
        """New content all over, in pieces; made durable each second time."""
        self.unsure.add(name)
        content = self.chance.randbytes(self.chance.choice((10, 4096, 30_000, 200_000)))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(descriptor, 0)
            for at in range(0, len(content), 50_000):
                os.pwrite(descriptor, content[at : at + 50_000], at)
            if self.chance.randrange(2):
                (os.fsync if self.chance.randrange(2) else os.fdatasync)(descriptor)
                self.synced[name] = content
                self.unsure.discard(name)
                self.syncs += 1
        finally:
            os.close(descriptor)


def killed_amid_work(pool: Path, options: tuple[str, ...], seed: int) -> list[Worker]:
    """Mount, work, kill; returns the workers, which have come to an end."""
    chance = random.Random(seed)
    with mountpoint() as place:
        mount = Mounted(pool, place, options)
        try:
            workers = [Worker(place, number, seed) for number in range(WORKERS)]
            for worker in workers:
                worker.start()
            time.sleep(0.1 + chance.random() * 0.5)
            mount.daemon.kill()
            mount.daemon.wait(HANG_SECONDS)
            for worker in workers:
                worker.join(20)
                assert not worker.is_alive(), "a request was never answered"
                assert worker.failed is None, worker.failed
        finally:
            mount.down()
            if mounts.top_mount(str(place)) is not None:
                subprocess.run([tool("umount"), "-l", place], timeout=HANG_SECONDS, check=True)
    return workers


def kill_again_and_again(pool: Path, options: tuple[str, ...], turns: int, seed: int) -> int:
    """Each turn goes on with what the last one left. Returns how many fsyncs were held to."""
    syncs = 0
    for turn in range(turns):
        workers = killed_amid_work(pool, options, seed + turn)
        with FileSystem.open(pool) as fs:
            for worker in workers:
                for name, content in worker.synced.items():
                    if name not in worker.unsure:
                        assert fs.tree.read_bytes(name) == content, f"turn {turn}: {name} was synced"
        fsck(pool)
        syncs += sum(worker.syncs for worker in workers)
    return syncs


def test_a_killed_daemon(session: str, pool: Callable[..., Path]) -> None:
    assert kill_again_and_again(pool("-b", "4096", size="48M"), SESSIONS[session], 5, 1) > 5


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("options", [("-b", "4096"), ("-b", "1024", "-J", "size=1"), ("-O", "orphan_file")])
def test_a_killed_daemon_many_times(session: str, pool: Callable[..., Path], options: tuple[str, ...]) -> None:
    assert kill_again_and_again(pool(*options, size="48M"), SESSIONS[session], 60, 1000) > 60


@pytest.mark.parametrize("session", SESSIONS)
def test_nothing_is_mounted_over_the_mountpoint_of_a_daemon_that_ended(tmp_path: Path, session: str) -> None:
    """Also not after a listing, which lets the kernel answer opens of directories by itself."""
    pool = mke2fs(tmp_path / "pool", size="16M")
    with mountpoint() as place:
        mount = Mounted(pool, place, SESSIONS[session])
        try:
            os.listdir(place)
            os.listdir(place)
            mount.daemon.kill()
            mount.daemon.wait(HANG_SECONDS)
            assert "is left from a daemon that ended; first: daxfs umount" in daxfs("mount", pool, place, code=32)
            daxfs("umount", place)
            assert mounts.top_mount(str(place)) is None
        finally:
            mount.down()
    with FileSystem.open(pool):
        pass
    fsck(pool)
