"""A pool file on xfs with dax and with reflink: a clone of the pool is a snapshot that stays as it is."""

from __future__ import annotations

from pathlib import Path

from device_rig import checked, kernel_mounted, mkfs, mounted, plant
from tree_rig import kernel_tree, same

from support import run


def test_a_clone_of_a_pool(devices: dict[str, Path]) -> None:
    run("mkfs.xfs", "-q", "-f", "-m", "reflink=1", devices["host"])
    with kernel_mounted(devices["host"], "dax=always", kind="xfs") as host:
        pool, clone = mkfs(host / "pool"), host / "clone"
        with mounted(pool, "noatime") as mount:
            plant(mount.place)
            before = kernel_tree(mount.place)
        run("cp", "--reflink=always", pool, clone)
        with mounted(pool, "noatime") as mount:
            for path in (mount.place / "files").iterdir():
                path.write_bytes(b"other content")
            (mount.place / "new").write_bytes(bytes(300_000))
            after = kernel_tree(mount.place)
        checked(pool)
        checked(clone)
        with mounted(clone, "noatime") as mount:
            same(kernel_tree(mount.place), before)
        with mounted(pool, "noatime") as mount:
            same(kernel_tree(mount.place), after)
