"""One pool on /dev/pmem for daxfs and for the guest kernel's ext4 with ``-o dax``, in turn."""

from __future__ import annotations

import os
from pathlib import Path

from device_rig import checked, kernel_mounted, mkfs, mounted, plant
from tree_rig import kernel_tree, same

from support import run


def test_the_kernel_reads_what_daxfs_wrote(devices: dict[str, Path]) -> None:
    pool = mkfs(devices["fsdax"])
    with mounted(pool, "noatime") as mount:
        plant(mount.place)
        written = kernel_tree(mount.place)
    with kernel_mounted(pool, "dax", "noatime") as place:
        same(kernel_tree(place), written)
        assert "dax=always" in run("findmnt", "-no", "OPTIONS", place)


def test_daxfs_reads_what_the_kernel_wrote(devices: dict[str, Path]) -> None:
    pool = mkfs(devices["fsdax"])
    with kernel_mounted(pool, "dax", "noatime") as place:
        plant(place)
        written = kernel_tree(place)
    with mounted(pool, "noatime") as mount:
        same(kernel_tree(mount.place), written)


def test_both_change_it_in_turn(devices: dict[str, Path]) -> None:
    pool = mkfs(devices["fsdax"])
    content = {}
    for turn in range(4):
        with mounted(pool) if turn % 2 else kernel_mounted(pool, "dax") as mount:
            place = mount if isinstance(mount, Path) else mount.place
            for name, expected in content.items():
                assert (place / name).read_bytes() == expected
            for name in list(content)[::2]:
                (place / name).unlink()
                del content[name]
            for number in range(6):
                name = f"{turn}-{number}"
                content[name] = os.urandom(number * 30_000)
                (place / name).write_bytes(content[name])
            for name in list(content)[::3]:
                with (place / name).open("ab") as file:
                    file.write(b"appended")
                content[name] += b"appended"
        checked(pool)
