"""A pool on each kind of persistent memory: made, mounted, filled, unmounted, mounted again, checked."""

from __future__ import annotations

from pathlib import Path

import pytest
from device_rig import KINDS, checked, mkfs, mounted, plant
from mount_rig import SESSIONS
from tree_rig import kernel_tree, same


@pytest.mark.parametrize("ground", KINDS, indirect=True)
def test_a_tree_is_the_same_after_a_remount(ground: Path) -> None:
    pool = mkfs(ground)
    with mounted(pool, "noatime") as mount:
        plant(mount.place)
        before = kernel_tree(mount.place)
    checked(pool)
    for session in SESSIONS.values():
        with mounted(pool, "noatime", *session) as mount:
            found = kernel_tree(mount.place)
            found[b""] = found[b""]._replace(ino=before[b""].ino)  # pyfuse3 numbers the root directory 1
            same(found, before)
    checked(pool)
