"""Tests on persistent-memory devices, which run in the guest of scripts/guest only: `make test-pmem`.

pyproject.toml keeps other runs out of this folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

DEVICES = Path("/run/devices.json")


def pytest_configure() -> None:
    """Refuse to run elsewhere: these tests make file systems on whole devices."""
    if not DEVICES.exists():
        raise pytest.UsageError("tests/devices run in the guest: make test-pmem")


@pytest.fixture(scope="session")
def devices() -> dict[str, Path]:
    """The device of each namespace by its name."""
    return {name: Path(device) for name, device in json.loads(DEVICES.read_text()).items()}


@pytest.fixture
def ground(request: pytest.FixtureRequest, devices: dict[str, Path]) -> Iterator[Path]:
    """Where a pool of a kind (the test's parameter) is made: a device, or a file on a host file system with dax.

    The name of a new file does not exist yet.
    """
    from device_rig import kernel_mounted

    kind: str = request.param
    if kind in devices:
        yield devices[kind]
        return
    make, options = HOSTS[kind]
    from support import run

    run(*make, devices["host"])
    with kernel_mounted(devices["host"], *options, kind=kind.partition("-")[0]) as place:
        yield place / "pool"


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of the test's ``ground``."""
    name: str = request.node.callspec.params["ground"]
    return name


HOSTS = {
    "ext4-dax": (("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096"), ("dax",)),
    "xfs-dax": (("mkfs.xfs", "-q", "-f", "-m", "reflink=0"), ("dax=always",)),
}
"""The host file systems: how to make them, and their mount options."""
