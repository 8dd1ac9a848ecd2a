"""A pool in use that somebody gives to the kernel through a loop device: prevented, or noticed before more is lost."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mount_rig import Mounted, mounted, mountpoint

from daxfs.fuse.serving import LOOK_SECONDS
from support import fsck, run, tool

Pool = Callable[..., Path]
SOON = LOOK_SECONDS + 20.0


def until(true: Callable[[], object], what: str) -> None:
    """Wait until it is so."""
    end = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def loops_of(pool: Path) -> list[str]:
    """The loop devices on a pool."""
    return run("losetup", "-n", "-O", "NAME", "-j", pool).split()


@contextmanager
def attached(pool: Path, *options: str) -> Iterator[str]:
    """A loop device on the pool."""
    device = run("losetup", "-f", "--show", *options, pool).strip()
    try:
        yield device
    finally:
        if device in loops_of(pool):
            run("losetup", "-d", device)
    until(lambda: device not in loops_of(pool), "the device stays")


def test_a_loop_device_that_nobody_uses_is_kept_from_being_mounted(pool: Pool) -> None:
    path = pool()
    with mounted(path) as mount, mountpoint() as place:
        with attached(path) as device:
            until(lambda: f"{device}; it can't be mounted" in mount.said(), "nothing was said")
            for command in (("mount", "-t", "ext4", device, place), ("e2fsck", "-p", device)):
                done = subprocess.run([tool(command[0]), *command[1:]], capture_output=True, text=True, check=False)
                assert done.returncode != 0
                assert "busy" in done.stderr + done.stdout or "in use" in done.stderr + done.stdout
            (mount.place / "file").write_bytes(b"still mine")
            time.sleep(2 * LOOK_SECONDS)
            assert mount.said().count(device) == 2  # one line, which names it twice
        (mount.place / "later").touch()


def test_a_loop_device_for_reading_is_nobody_s_business(pool: Pool) -> None:
    path = pool()
    with mounted(path) as mount:
        with attached(path, "-r"):
            time.sleep(3 * LOOK_SECONDS)
        assert "attached" not in mount.said()
        (mount.place / "file").touch()


def test_after_a_kernel_mount_nothing_is_stored(pool: Pool) -> None:
    path = pool()
    with mountpoint() as place, mountpoint() as other:
        mount = Mounted(path, place, ("commit=3600",))
        try:
            (place / "durable").write_bytes(b"durable")
            run("sync", "-f", place)
            with open(place / "durable", "rb") as file:
                os.fsync(file.fileno())
            (place / "not-committed").touch()
            for _ in range(10):  # a look at the right moment prevents the mount
                done = subprocess.run(
                    [tool("mount"), "-t", "ext4", "-o", "loop", path, other],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode == 0:
                    break
                time.sleep(2 * LOOK_SECONDS)
            assert done.returncode == 0, done.stderr
            until(lambda: "has another user, through /dev/loop" in mount.said(), "it was not noticed")
            with pytest.raises(OSError, match="Read-only") as caught:
                (place / "more").touch()
            assert caught.value.errno == errno.EROFS
            (other / "theirs").write_bytes(b"theirs" * 10_000)
            run("umount", other)
            mount.unmount()
        finally:
            mount.down()
    until(lambda: not loops_of(path), "the device stays")
    fsck(path)
    assert run("debugfs", "-R", "cat durable", path).startswith("durable")
    assert run("debugfs", "-R", "cat theirs", path).startswith("theirs")
