"""The daemon is killed amid parallel work, again and again: each time the pool mounts and what was synced is there."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_rig import daxfs
from mount_rig import SESSIONS, Mounted, mountpoint
from stress_rig import Client, Notes, WorkerThread

from daxfs.fs.filesystem import FileSystem
from daxfs.fuse import mounts
from support import HANG_SECONDS, fsck, mke2fs, tool

WORKERS = 3
KILLS_IN_ALL = 1000
FORMATS = (("-b", "4096"), ("-b", "1024", "-J", "size=1"), ("-O", "orphan_file"))


def killed_amid_work(pool: Path, options: tuple[str, ...], seed: int) -> Iterator[Notes]:
    """Mount, work, kill; yields what was promised to each worker, all of which have come to an end."""
    chance = random.Random(seed)
    with mountpoint() as place:
        mount = Mounted(pool, place, options)
        try:
            client = Client(place, "client", seed)
            client.start()  # before there are threads, since it is a fork
            workers = [WorkerThread(place, f"w{number}", seed) for number in range(WORKERS)]
            for worker in workers:
                worker.start()
            time.sleep(0.1 + chance.random() * 0.5)
            killed = chance.randrange(3)
            if killed == 0:
                client.kill()
            mount.daemon.kill()
            if killed == 1:
                client.kill()
            mount.daemon.wait(HANG_SECONDS)
            for ended in (*workers, client):
                ended.end()
                yield ended.notes
        finally:
            mount.down()
            if mounts.top_mount(str(place)) is not None:
                subprocess.run([tool("umount"), "-l", place], timeout=HANG_SECONDS, check=True)


def kill_again_and_again(pool: Path, options: tuple[str, ...], turns: int, seed: int) -> int:
    """Each turn goes on with what the last one left. Returns how many fsyncs were held to."""
    syncs = 0
    for turn in range(turns):
        promised = list(killed_amid_work(pool, options, seed + turn))
        with FileSystem.open(pool) as fs:
            for notes in promised:
                for name, content in notes.synced.items():
                    if name not in notes.unsure:
                        assert fs.tree.read_bytes(name) == content, f"turn {turn}: {name} was synced"
        fsck(pool)
        syncs += sum(notes.syncs for notes in promised)
    return syncs


def test_a_killed_daemon(session: str, pool: Callable[..., Path]) -> None:
    assert kill_again_and_again(pool("-b", "4096", size="48M"), SESSIONS[session], 4, 1) > 4


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("options", FORMATS)
def test_a_killed_daemon_many_times(session: str, pool: Callable[..., Path], options: tuple[str, ...]) -> None:
    turns = -(-KILLS_IN_ALL // (len(FORMATS) * len(SESSIONS)))
    assert kill_again_and_again(pool(*options, size="48M"), SESSIONS[session], turns, 1000) > turns


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
