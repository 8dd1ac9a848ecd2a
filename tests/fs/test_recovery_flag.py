"""The feature flag needs_recovery in the pool's own superblock: stored durably, and mended when it is torn."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from crash_rig import image, torn_superblock

from daxfs.fs.filesystem import FileSystem
from daxfs.tools import check
from support import HANG_SECONDS, fsck, tool

MENDED = (0, 1)


def preen(path: Path, *more: str) -> int:
    """``e2fsck -p``; its exit code."""
    command = [tool("e2fsck"), "-p", *more, str(path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG_SECONDS, check=False)
    return done.returncode


@pytest.mark.parametrize("by_mount", [True, False], ids=["mount", "check"])
def test_a_torn_flag_is_mended_by_a_mount_and_by_check(tmp_path: Path, by_mount: bool) -> None:
    """The flag's word has reached the medium, and the checksum's has not."""
    content = bytearray(image("4k"))
    content[1024 + 0x60] ^= 4
    assert torn_superblock(content)
    path = tmp_path / "pool"
    path.write_bytes(content)
    assert preen(path) not in MENDED
    path.write_bytes(content)
    if by_mount:
        with FileSystem.open(path):
            pass
    else:
        assert check.check(str(path), ["-p"]) == 1
    fsck(path)
