"""What tests of every layer call: the e2fsprogs tools, and pools made by them.

A missing tool is an error, never a skip: a test that did not run proves nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from daxfs.fs import clock

HANG_SECONDS = 60.0
"""A limit that only a hang exceeds: on a loaded machine what takes a second otherwise may take many."""
ZEROS = bytes(1 << 16)
PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def tool(name: str) -> str:
    """The path of a program that the tests can't do without."""
    found = shutil.which(name, path=PATHS)
    assert found, f"{name} is not installed: run make setup as root"
    return found


def run(*command: str | Path, code: int = 0, limit: float = HANG_SECONDS, stdin: str | None = None) -> str:
    """Run a program, expect its exit code, return its output (standard output, then standard error)."""
    done = subprocess.run(
        [tool(str(command[0])), *map(str, command[1:])],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=limit,
        input=stdin if stdin is not None else "",
        check=False,
    )
    assert done.returncode == code, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def fsck(pool: Path) -> None:
    """The oracle: ``e2fsck -fn`` finds nothing."""
    run("e2fsck", "-fn", pool)


def bytes_of(size: str) -> int:
    """Return the number of bytes that a size such as ``64M`` or ``2500K`` names."""
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(size[-1])
    return int(size) if unit is None else int(size[:-1]) * unit


def write_image(path: Path, content: bytes | bytearray | memoryview) -> None:
    """Store the bytes of a pool in a file, whose holes are what is zero: e2fsck reads it as any other, and sooner."""
    view = memoryview(content)
    with path.open("wb", buffering=0) as file:
        for begin in range(0, len(view), len(ZEROS)):
            piece = view[begin : begin + len(ZEROS)].tobytes()
            if piece != ZEROS:
                os.pwrite(file.fileno(), piece, begin)
        file.truncate(len(view))


def mke2fs(pool: Path, *options: str, size: str = "64M") -> Path:
    """Make an ext4 image with e2fsprogs' own defaults and these options."""
    with pool.open("wb") as file:
        file.truncate(bytes_of(size))
    kind = () if "-t" in options else ("-t", "ext4")
    run("mke2fs", "-q", "-F", *kind, *options, pool)
    return pool


@contextlib.contextmanager
def tmpfs(place: Path, options: str) -> Iterator[Path]:
    """Mount a tmpfs with these options ("size=16m") on a folder, as long as the block runs."""
    run("mount", "-t", "tmpfs", "-o", options, "daxfs-test", place)
    try:
        yield place
    finally:
        run("umount", "-l", place)


def wait_a_tick() -> None:
    """Return when the clock of inode times has moved on, so that the next time that is taken is a later one."""
    begin = clock.now()
    while clock.now() == begin:
        time.sleep(0.001)
