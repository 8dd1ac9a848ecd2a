"""An ordinary user who may open a device makes, mounts, fills and unmounts a pool on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_rig import BLOCK, DEVDAX, checked, daxfs, said
from mount_rig import NOBODY, as_user, mountpoint

from daxfs.tools import cli


@pytest.fixture
def own(devices: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Path]:
    """A device that belongs to the user, and a way to this checkout."""
    device = devices[request.param]
    for folder in Path(cli.__file__).parents:
        if (mode := folder.stat().st_mode) & 0o055 != 0o055:
            folder.chmod(mode | 0o055)
    os.chown(device, NOBODY, NOBODY)
    yield device
    os.chown(device, 0, 0)


def as_nobody(*arguments: str | Path, code: int = 0) -> str:
    """Run the command line as the user."""

    def action() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        os.chdir("/")
        os.environ["HOME"] = "/tmp"
        sys.argv = ["daxfs", *map(str, arguments)]
        cli.main()

    return said(action, code)


@pytest.mark.parametrize("own", [*DEVDAX, *BLOCK], indirect=True)
def test_a_user_with_a_device(own: Path) -> None:
    as_nobody("mkfs", own, "-F")
    with mountpoint() as place:
        os.chown(place, NOBODY, NOBODY)
        as_nobody("mount", own, place)
        assert as_user(lambda: (place / "file").write_bytes(b"content of a user")) == 0
        assert as_user((place / "file").read_bytes) == 0
        as_nobody("umount", place)
    checked(own)


def test_a_device_of_root_is_refused(devices: dict[str, Path]) -> None:
    device = devices["devdax-4K"]
    device.chmod(0o600)
    daxfs("mkfs", device, "-F")
    with mountpoint() as place:
        os.chown(place, NOBODY, NOBODY)
        assert "no permission" in as_nobody("mount", device, place, code=32)
