"""A pool on a partition of a device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from device_rig import checked, daxfs, kernel_mounted, mkfs, mounted, plant
from tree_rig import kernel_tree, same

from support import run

TABLE = "label: gpt\nstart=2MiB, size=100MiB\nstart=110MiB, size=100MiB\n"


@pytest.fixture
def partitions(devices: dict[str, Path]) -> Iterator[list[Path]]:
    """Two partitions of the device; no partition table at the end."""
    device = devices["fsdax"]
    run("sfdisk", "--quiet", "--wipe", "always", device, stdin=TABLE)
    try:
        yield [Path(f"{device}p{number}") for number in (1, 2)]
    finally:
        run("sfdisk", "--delete", device)
        run("wipefs", "--all", device)


def test_two_pools_on_two_partitions(partitions: list[Path]) -> None:
    for pool in partitions:
        mkfs(pool)
    with mounted(partitions[0], "noatime") as first, mounted(partitions[1], "noatime") as second:
        plant(first.place)
        (second.place / "file").write_bytes(b"content of the second")
        before = kernel_tree(first.place)
    for pool in partitions:
        checked(pool)
    with kernel_mounted(partitions[0], "dax", "noatime") as place:
        same(kernel_tree(place), before)
    with mounted(partitions[1]) as second:
        assert (second.place / "file").read_bytes() == b"content of the second"


def test_the_whole_device_is_in_use_with_its_partition(partitions: list[Path], devices: dict[str, Path]) -> None:
    mkfs(partitions[0])
    with mounted(partitions[0]):
        assert "in use" in daxfs("mkfs", devices["fsdax"], "-F", code=32)
