"""The kernel's own ext4 on a pool, through a loop device: the peer that daxfs must agree with.

Every mount is taken down whatever happens, and every command has a time limit. A machine without loop devices or
without ext4 in its kernel fails these tests; they are never skipped.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from support import HANG_SECONDS, run, tool

FS_IOC_SHUTDOWN = 0x8004587D
LOG_FLUSH = 1
"""EXT4_GOING_FLAGS_LOGFLUSH: the journal is committed, nothing is written home, and the file system stops."""
NO_LOG_FLUSH = 2
"""EXT4_GOING_FLAGS_NOLOGFLUSH: the file system stops where it stands, as at a power cut."""


@contextlib.contextmanager
def kernel_mount(pool: Path, *options: str) -> Iterator[Path]:
    """Mount a pool by the kernel; at the end it is unmounted and its loop device is gone. No umask meanwhile."""
    with tempfile.TemporaryDirectory(prefix="daxfs-kernel-") as name:
        place = Path(name)
        run("mount", "-t", "ext4", "-o", ",".join(("loop", *options)), pool, place, limit=HANG_SECONDS)
        umask = os.umask(0)
        try:
            yield place
            run("umount", place, limit=HANG_SECONDS)
        finally:
            os.umask(umask)
            if os.path.ismount(place):
                subprocess.run([tool("umount"), "-l", place], timeout=HANG_SECONDS, check=True)
            wait_for_loop(pool)


@contextlib.contextmanager
def loop_device(pool: Path) -> Iterator[str]:
    """A loop device of a pool that can be written to, also by a mount for reading; at the end it is gone."""
    device = run("losetup", "--find", "--show", pool).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)
        wait_for_loop(pool)


def wait_for_loop(pool: Path, limit: float = HANG_SECONDS) -> None:
    """An unmounted loop device lets go of its file a moment later."""
    end = time.monotonic() + limit
    while any(backing(device) == str(pool) for device in Path("/sys/block").glob("loop*")):
        assert time.monotonic() < end, f"a loop device holds {pool}"
        time.sleep(0.01)


def backing(device: Path) -> str:
    """Return the file that a loop device shows, "" if there is none."""
    try:
        return (device / "loop/backing_file").read_text().strip()
    except OSError:
        return ""


def shut_down(root: Path, how: int) -> None:
    """Stop the mounted file system at once (how: `LOG_FLUSH`, `NO_LOG_FLUSH`); unmounting then writes nothing."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("<I", how))
    finally:
        os.close(descriptor)


def sync(root: Path) -> None:
    """Make everything on the mounted file system durable."""
    run("sync", "-f", root, limit=HANG_SECONDS)


def copy(pool: Path, name: str) -> Path:
    """A copy of a pool beside it."""
    target = pool.with_name(f"{pool.name}-{name}")
    run("cp", "--sparse=always", pool, target)
    return target


def needs_recovery(pool: Path) -> bool:
    """Whether the pool's journal is to be replayed, as dumpe2fs sees it."""
    return "needs_recovery" in run("dumpe2fs", "-h", pool)
