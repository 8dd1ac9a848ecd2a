"""mkfs and mount refuse, with one line, a pool that a less trusted user can change."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_rig import daxfs
from mount_rig import mountpoint

from daxfs.errors import PoolError
from daxfs.fuse import mounts
from daxfs.pmem import ownership
from daxfs.tools import mkfs
from support import fsck

SOMEBODY = 4711

Pool = Callable[..., Path]


def judge(path: Path) -> None:
    """Check the owners of a pool as a mount by this process does."""
    ownership.refuse(str(path), os.stat(path), "say so")


def others_own(path: Path) -> None:
    os.chown(path, SOMEBODY, 0)


def group_writes(path: Path) -> None:
    os.chown(path, 0, SOMEBODY)
    path.chmod(0o660)


def everybody_writes(path: Path) -> None:
    path.chmod(0o606)


def others_own_the_folder(path: Path) -> None:
    os.chown(path.parent, SOMEBODY, 0)


def everybody_writes_to_the_folder(path: Path) -> None:
    path.parent.chmod(0o777)


WAYS = [others_own, group_writes, everybody_writes, others_own_the_folder, everybody_writes_to_the_folder]


@pytest.fixture
def made(tmp_path: Path, pool: Pool) -> Path:
    """Make a pool in a folder that only this user can change."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "pool"
    pool("-b", "4096", size="16M").rename(path)
    path.chmod(0o600)
    judge(path)
    return path


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_pool_that_others_can_change_is_refused(made: Path, way: Callable[[Path], None]) -> None:
    way(made)
    with pytest.raises(PoolError, match="or say so"):
        judge(made)
    before = made.read_bytes()
    with mountpoint() as place:
        output = daxfs("mount", str(made), str(place), code=32)
        assert "--trust-owner" in output
        assert len(output.splitlines()) == 1
        assert mounts.top_mount(str(place)) is None
    assert "--trust-owner" in daxfs("mkfs", str(made), "-F", code=32)
    assert made.read_bytes() == before


def test_in_a_sticky_folder_what_counts_is_the_owner(made: Path) -> None:
    made.parent.chmod(0o1777)
    judge(made)
    others_own(made)
    with pytest.raises(PoolError):
        judge(made)


def test_links_are_judged_where_they_lead_and_where_they_lie(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    (folder / "link").symlink_to(made)
    ownership.refuse(str(folder / "link"), os.stat(made), "say so")
    folder.chmod(0o777)
    with pytest.raises(PoolError, match="can be replaced"):
        ownership.refuse(str(folder / "link"), os.stat(made), "say so")


def test_a_trusted_owner_s_mount_knows_no_set_id_programs(made: Path) -> None:
    others_own(made)
    with mountpoint() as place:
        daxfs("mount", "--trust-owner", "-o", "suid,dev", str(made), str(place))
        try:
            flags = os.statvfs(place).f_flag
            assert flags & os.ST_NOSUID
            assert flags & os.ST_NODEV
        finally:
            daxfs("umount", str(place))
    fsck(made)


def test_mkfs_takes_reading_away_from_others(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    path.touch()
    path.chmod(0o644)
    os.truncate(path, 16 << 20)
    mkfs.make_pool(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    output = daxfs("mkfs", str(path), "-F", "--keep-mode")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert "every user who may read it can read every file" in output


def test_the_group_of_disks_is_root(made: Path) -> None:
    import grp

    os.chown(made, 0, grp.getgrnam("disk").gr_gid)
    made.chmod(0o660)
    judge(made)
