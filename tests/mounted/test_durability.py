"""What makes changes durable: the daemon is killed right after, and the next mount has them."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_rig import daxfs
from mount_rig import COMMAND, SESSIONS, Mounted, as_user, mounted, mountpoint

from daxfs.fs.filesystem import FileSystem
from daxfs.fuse import mounts
from daxfs.tools.sync import sync
from support import HANG_SECONDS, fsck, run

OLD = 10**9


def killed_after(pool: Path, options: tuple[str, ...], work: Callable[[Path], None]) -> FileSystem:
    """Mount, work, kill the daemon; the file system of the next mount."""
    with mountpoint() as place:
        mount = Mounted(pool, place, options)
        try:
            place.chmod(0o777)
            work(place)
            mount.daemon.kill()
            mount.daemon.wait(HANG_SECONDS)
        finally:
            mount.down()
            if mounts.top_mount(str(place)) is not None:
                run("umount", "-l", place)
    return FileSystem.open(pool)


def change(place: Path) -> None:
    """A new file with something in it."""
    (place / "file").write_bytes(bytes(8192))
    with open(place / "file", "r+b") as file:
        os.pwrite(file.fileno(), b"written", 4096)


@pytest.mark.parametrize("session", SESSIONS)
@pytest.mark.parametrize("user", [False, True])
def test_daxfs_sync(pool: Callable[..., Path], session: str, user: bool) -> None:
    def work(place: Path) -> None:
        change(place)
        if user:
            assert as_user(lambda: sync(str(place))) == 0
        else:
            assert daxfs("sync", place) == ""

    path = pool("-b", "4096")
    with killed_after(path, (*SESSIONS[session], "commit=1000"), work) as fs:
        assert fs.tree.read_bytes("/file")[4096:4103] == b"written"
    fsck(path)


def test_stores_through_a_mapping_and_times_are_among_everything(pool: Callable[..., Path]) -> None:
    """The kernel writes pages back first; times of files that were only overwritten wait for a commit of their own."""

    def work(place: Path) -> None:
        change(place)
        daxfs("sync", place)
        os.utime(place / "file", (OLD, OLD))
        daxfs("sync", place)
        with open(place / "file", "r+b") as file, mmap.mmap(file.fileno(), 8192) as mapping:
            mapping[:6] = b"stored"
            daxfs("sync", place)

    path = pool("-b", "4096")
    with killed_after(path, ("commit=1000",), work) as fs:
        assert fs.tree.read_bytes("/file")[:6] == b"stored"
        assert fs.tree.stat("/file").mtime_ns > OLD * 10**9
    fsck(path)


def test_sync_names_what_it_refuses(tmp_path: Path) -> None:
    assert "no daxfs is mounted" in daxfs("sync", tmp_path, code=66)


def test_the_table_says_what_the_kernel_does(pool: Callable[..., Path]) -> None:
    """`daxfs info` says of syncfs(2) what a file shows that was made before it."""
    path = pool("-b", "4096")
    said: dict[str, str] = {}

    def work(place: Path) -> None:
        said.update(json.loads(daxfs("info", "--json", place))["mount"]["durability"])
        assert "daxfs sync" in daxfs("info", place)
        change(place)
        descriptor = os.open(place, os.O_RDONLY)
        assert ctypes.CDLL(None).syncfs(descriptor) == 0
        os.close(descriptor)

    with killed_after(path, ("commit=1000",), work) as fs:
        there = exists(fs)
    assert said["syncfs"].startswith("everything") is there
    assert said["sync"] == said["syncfs"]


def exists(fs: FileSystem) -> bool:
    """Whether the file of `change` is there."""
    try:
        fs.tree.stat("/file")
    except OSError:
        return False
    return True


def test_a_line_on_the_terminal_of_who_mounts(pool: Callable[..., Path]) -> None:
    """Only there: what mount(8) and scripts read stays empty, and the log has the line."""
    ours, theirs = os.openpty()
    with mountpoint() as place:
        try:
            command = [*COMMAND, "mount", str(pool("-b", "4096")), str(place)]
            subprocess.run(command, stdin=subprocess.DEVNULL, stderr=theirs, timeout=HANG_SECONDS, check=True)
            said = json.loads(daxfs("info", "--json", place))["mount"]["durability"]
            os.set_blocking(ours, False)
            try:
                shown = os.read(ours, 4096).decode()
            except BlockingIOError:
                shown = ""
            assert ("make nothing durable" in shown) is said["sync"].startswith("nothing")
            assert shown.count("\n") == bool(shown)
        finally:
            daxfs("umount", place)
            os.close(ours)
            os.close(theirs)


def test_a_line_at_the_mount(pool: Callable[..., Path]) -> None:
    with mounted(pool("-b", "4096")) as mount:
        said = json.loads(daxfs("info", "--json", mount.place))["mount"]["durability"]
        assert ("make nothing durable" in mount.said()) is said["sync"].startswith("nothing")
    with mounted(pool("-b", "4096"), "ro") as mount:
        assert json.loads(daxfs("info", "--json", mount.place))["mount"]["durability"] == {}
        assert "make nothing durable" not in mount.said()
