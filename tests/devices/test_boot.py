"""Mounting at boot: lines of fstab and the helper of mount(8)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_rig import mkfs
from mount_rig import mountpoint

from support import run

FSTAB = Path("/etc/fstab")
HELPER = Path("/sbin/mount.fuse.daxfs")


@pytest.fixture
def helper() -> Iterator[None]:
    """The helper linked into /sbin, as README.md says."""
    HELPER.unlink(missing_ok=True)
    HELPER.symlink_to(Path(sys.prefix) / "bin" / HELPER.name)
    yield
    HELPER.unlink()


@pytest.fixture
def fstab() -> Iterator[Path]:
    """An fstab of the test's own."""
    before = FSTAB.read_text() if FSTAB.exists() else ""
    yield FSTAB
    FSTAB.write_text(before)


@pytest.mark.usefixtures("helper")
def test_lines_of_fstab(devices: dict[str, Path], fstab: Path) -> None:
    with mountpoint() as first, mountpoint() as second:
        pools = {mkfs(devices["devdax-2M"]): first, mkfs(devices["fsdax"]): second}
        fstab.write_text("".join(f"{pool} {place} fuse.daxfs defaults,commit=5 0 0\n" for pool, place in pools.items()))
        run("mount", "-a", limit=280)
        for place in pools.values():
            (place / "file").write_bytes(b"content")
            run("umount", place)
        run("mount", first, limit=280)
        assert (first / "file").read_bytes() == b"content"
        run("umount", first)
