"""FITRIM where nothing may change (the steps of xfstests generic/537), and the limits of its argument."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_rig import kernel_mount
from mount_rig import mounted

from daxfs.fs.filesystem import FileSystem
from support import fsck

FITRIM = 0xC0185879
WHOLE = (0, (1 << 64) - 1, 0)
MIB = 1 << 20
GROUP = 32768 * 4096


def fitrim(root: Path, start: int, length: int, least: int) -> str:
    """The errno's name, or "done"."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, FITRIM, struct.pack("=QQQ", start, length, least))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    finally:
        os.close(descriptor)
    return "done"


def crashed(path: Path, tmp_path: Path) -> Path:
    """A pool with a log to replay: files that were made and fsynced, and one that was deleted."""
    with FileSystem.open(path) as fs:
        for name in ("/stays", "/goes"):
            fs.tree.write_bytes(name, name.encode() * MIB)
        fs.sync()
        fs.tree.unlink("/goes")
        fs.sync()
        left = tmp_path / "left"
        left.write_bytes(path.read_bytes())
        left.chmod(0o600)
    return left


@pytest.mark.parametrize("option", ["noload", "norecovery"])
def test_without_recovery_nothing_is_trimmed(pool: Callable[..., Path], tmp_path: Path, option: str) -> None:
    """Bitmaps that the log has not mended do not say what is free. The kernel refuses it too."""
    left = crashed(pool("-b", "4096"), tmp_path)
    before, taken = left.read_bytes(), left.stat().st_blocks
    with mounted(left, "ro", option) as mount:
        assert fitrim(mount.place, *WHOLE) == "EROFS"
        assert (mount.place / "stays").read_bytes() == b"/stays" * MIB
    assert left.read_bytes() == before
    assert left.stat().st_blocks == taken
    with kernel_mount(left, "ro,noload") as place:
        assert fitrim(place, *WHOLE) == "EROFS"


def test_a_read_only_mount_is_not_trimmed(pool: Callable[..., Path], tmp_path: Path) -> None:
    left = crashed(pool("-b", "4096"), tmp_path)
    with mounted(left, "ro") as mount:
        replayed, taken = left.read_bytes(), left.stat().st_blocks
        assert fitrim(mount.place, *WHOLE) == "EROFS"
        assert left.read_bytes() == replayed
        assert left.stat().st_blocks == taken
    fsck(left)
    with mounted(left) as mount:
        assert fitrim(mount.place, *WHOLE) == "done"
        assert left.stat().st_blocks * 512 < taken * 512 - 4 * MIB
        assert (mount.place / "stays").read_bytes() == b"/stays" * MIB
    fsck(left)


def test_the_limits_of_the_argument(pool: Callable[..., Path]) -> None:
    path = pool("-b", "4096")
    size = path.stat().st_size
    questions = [
        *((0, length, 0) for length in (0, 1, 4095, 4096, size - 1, size, size + 1, (1 << 64) - 1)),
        *((start, (1 << 64) - 1, 0) for start in (1, 4095, size - 4096, size - 1, size, size + 1, (1 << 64) - 1)),
        *((0, (1 << 64) - 1, least) for least in (1, 4096, GROUP - 1, GROUP, GROUP + 4096, (1 << 64) - 1)),
    ]
    with mounted(path) as mount:
        ours = [fitrim(mount.place, *question) for question in questions]
    with kernel_mount(path) as place:
        theirs = [fitrim(place, *question) for question in questions]
    assert ours == theirs
    assert {"done", "EINVAL"} == set(ours)
    fsck(path)
