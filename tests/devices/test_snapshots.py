"""Snapshots on devices: the kernel reads a store by dm-snapshot, and daxfs mounts, sends and receives."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from device_rig import checked, daxfs, kernel_mounted, mkfs, mounted, plant
from mount_rig import mountpoint
from tree_rig import kernel_tree, same

from daxfs.ext4.geometry import Geometry
from daxfs.fs import mounting
from daxfs.fs.snapshots import catalogue
from daxfs.journal.view import PoolView
from daxfs.pmem.opening import open_pool
from daxfs.tools import snapshots
from support import run

SECTOR_BITS = 9


def tables(pool: Path) -> tuple[str, str]:
    """The tables of dm-linear for the newest snapshot's store, and of dm-snapshot on it (dmsetup(8))."""
    with open_pool(pool, read_only=True) as opened:
        view = PoolView(opened, Geometry.of(mounting.read_superblock(opened)))
        store = catalogue.judged(opened, view)[-1].kept.store
        view.release()
        shift = store.bits - SECTOR_BITS
        lines = []
        sectors = 0
        for start, length in store.runs:
            lines.append(f"{sectors} {length << shift} linear {pool} {start << shift}")
            sectors += length << shift
        size = opened.size >> SECTOR_BITS
        return "\n".join(lines), f"0 {size} snapshot {pool} /dev/mapper/daxfs-cow P {1 << shift}"


@contextmanager
def device(name: str, table: str) -> Iterator[Path]:
    """A read-only device of the device mapper."""
    run("dmsetup", "create", "--readonly", name, stdin=table)
    try:
        yield Path("/dev/mapper", name)
    finally:
        run("dmsetup", "remove", name)


def test_dmsetup_shows_the_tree_of_the_newest_snapshot(
    devices: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("dm_mod", "dm_snapshot"):
        run("modprobe", "-C", "/dev/null", module)
    monkeypatch.setenv("DM_DISABLE_UDEV", "1")  # none runs here: dmsetup makes the nodes itself
    pool = mkfs(devices["fsdax"])
    with mounted(pool, "noatime") as mount:
        plant(mount.place)
        snapshots.create(str(mount.place), "older")
        (mount.place / "files" / "5000").write_bytes(b"between")
        expected = kernel_tree(mount.place)
        snapshots.create(str(mount.place), "newest")
        for number in range(1, 30, 2):
            (mount.place / "many" / (f"n{number:03}" * 10)).write_bytes(b"later" * number)
        (mount.place / "files" / "70000").unlink()
        (mount.place / "files" / "new").write_bytes(b"new" * 100_000)
    cow, snapshot = tables(pool)
    with device("daxfs-cow", cow), device("daxfs-snapshot", snapshot) as shown:
        assert " P " in run("dmsetup", "table", "daxfs-snapshot")
        assert "Invalid" not in run("dmsetup", "status", "daxfs-snapshot")
        with kernel_mounted(shown, "ro", "noload", "noatime") as place:
            found = kernel_tree(place)
        for tree in (found, expected):
            del tree[b".daxfs/snapshots/older"]  # a store, whose blocks the newer snapshot does not keep
        same(found, expected)


def test_a_snapshot_of_a_devdax_is_mounted_beside_it_and_received_on_another(devices: dict[str, Path]) -> None:
    pool = mkfs(devices["devdax-4K"])
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as stream, mountpoint() as place:
        with mounted(pool, "noatime") as mount:
            plant(mount.place)
            expected = kernel_tree(mount.place)
            daxfs("snapshot", "create", mount.place, "s")
            (mount.place / "files" / "5000").write_bytes(b"later")
            daxfs("snapshot", "mount", mount.place, "s", place, "-o", "noatime")
            same(kernel_tree(place), expected)
            daxfs("umount", place)
            daxfs("snapshot", "send", mount.place, "s", stream.name, "--force")
        target = devices["devdax-2M"]
        daxfs("snapshot", "receive", target, stream.name, "--force")
    with mounted(target, "ro", "noatime") as mount:
        same(kernel_tree(mount.place), expected)
    checked(target)
