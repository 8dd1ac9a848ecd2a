"""What all tests share: the e2fsprogs tools, and pools that must be clean when a test is done with them.

A missing tool is an error, never a skip: a test that did not run proves nothing.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def tool(name: str) -> str:
    """The path of a program that the tests can't do without."""
    found = shutil.which(name, path=PATHS)
    assert found, f"{name} is not installed: run make setup as root"
    return found


def run(*command: str | Path, code: int = 0, limit: float = 60, stdin: str | None = None) -> str:
    """Run a program, expect its exit code, return its output (standard error behind standard output)."""
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


def mke2fs(pool: Path, *options: str, size: str = "64M") -> Path:
    """Make an ext4 image with e2fsprogs' own defaults and these options."""
    with pool.open("wb"):
        pass
    run("truncate", "-s", size, pool)
    run("mke2fs", "-q", "-F", "-t", "ext4", *options, pool)
    return pool


@pytest.fixture
def pool(tmp_path: Path) -> Callable[..., Path]:
    """Make a pool: ``pool("-O", "^metadata_csum", size="32M")``."""
    made = 0

    def make(*options: str, size: str = "64M") -> Path:
        nonlocal made
        made += 1
        return mke2fs(tmp_path / f"pool{made}", *options, size=size)

    return make
