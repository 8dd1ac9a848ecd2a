"""DAXFS_DIRECT_STATS=1: one line with true figures for each program that used files of daxfs, and none for others."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_rig import COMMAND, SESSIONS, Mounted, mounted

from support import mke2fs


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One mount for this module."""
    image = mke2fs(tmp_path_factory.mktemp("exec") / "pool", "-b", "4096")
    with mounted(image, *SESSIONS["kernel"]) as mount:
        (mount.place / "f").write_bytes(b"content\n" * (1 << 20))
        yield mount


def said(*command: str | Path) -> str:
    """Return what a program below ``daxfs exec --verbose`` prints on standard error."""
    return subprocess.run(
        [*COMMAND, "exec", "--verbose", *map(str, command)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stderr


def counts(line: str) -> dict[str, int]:
    """Return the figures of a line, by the word that follows each."""
    found = re.fullmatch(
        r"daxfs: process \d+: direct: (\d+) reads, (\d+) writes, (\d+) maps;"
        r" through the kernel: (\d+) calls, (\d+) maps; (\d+) leases asked for",
        line,
    )
    assert found, line
    return dict(zip(("reads", "writes", "maps", "calls", "plain", "leases"), map(int, found.groups()), strict=True))


def test_reads_are_counted(mount: Mounted) -> None:
    """The program closes standard error before it ends, as those of coreutils do."""
    started, line = said("dd", f"if={mount.place / 'f'}", "of=/dev/null", "bs=64K", "status=none").splitlines()
    assert started.startswith("daxfs: LD_PRELOAD=")
    found = counts(line)
    assert found["reads"] + found["calls"] == 129, "128 blocks and the end"
    assert found["reads"] >= 120
    assert 1 <= found["leases"] <= 3
    assert found["writes"] == found["maps"] == 0


def test_writes_are_counted(mount: Mounted) -> None:
    found = counts(
        said(
            "dd", "if=/dev/zero", f"of={mount.place / 'f'}", "bs=64K", "count=100", "conv=notrunc", "status=none"
        ).splitlines()[-1]
    )
    assert found["writes"] >= 95
    assert found["writes"] + found["calls"] == 100


def test_who_uses_no_file_of_a_mount_says_nothing() -> None:
    assert said("cat", "/dev/null").count("\n") == 1
