"""A pool that others can change is made and mounted only with ``--trust-owner``; a new pool is private."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_rig import daxfs
from mount_rig import NOBODY, as_user, mountpoint

from daxfs.fuse import mounts
from daxfs.tools.mkfs import make_pool
from support import run, tool

Pool = Callable[..., Path]
MIB = 1 << 20


def mount_flags(place: Path) -> set[str]:
    """Return the options of a mount, as the kernel shows them."""
    line = next(line.split() for line in Path("/proc/self/mounts").read_text().splitlines() if f" {place} " in line)
    return set(line[3].split(","))


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Make a directory like /dev/shm, with an empty file of an ordinary user."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o111 != 0o111:
            folder.chmod(folder.stat().st_mode | 0o111)
    place = tmp_path / "shm"
    place.mkdir()
    place.chmod(0o1777)
    assert as_user((place / "pool").touch) == 0
    return place


def test_a_pool_that_a_user_has_planted(shared: Path) -> None:
    pool = shared / "pool"
    said = daxfs("mkfs", pool, "--size", "16M", code=32)
    assert "belongs to user" in said
    assert "--trust-owner" in said
    assert said.count("\n") == 1
    assert pool.stat().st_size == 0
    daxfs("mkfs", pool, "--size", "16M", "--trust-owner")
    assert stat.S_IMODE(pool.stat().st_mode) == 0o600
    before = pool.read_bytes()
    with mountpoint() as place:
        for arguments in (("mount", pool, place), ("mount", "-f", pool, place), ("mount", pool, place, "-o", "ro")):
            said = daxfs(*arguments, code=32)
            assert f"{pool} belongs to user" in said
            assert said.count("\n") == 1
        assert pool.read_bytes() == before, "nothing was replayed or marked"


@pytest.mark.parametrize("given", [("--trust-owner",), ("-o", "trust_owner"), ("-o", "trust_owner,suid,dev")])
def test_a_planted_program_has_no_power(shared: Path, given: tuple[str, ...]) -> None:
    """A set-uid root program that the pool's owner puts into it between two mounts has no privileges."""
    pool, program = shared / "pool", shared.parent / "id"
    make_pool(pool, 16 * MIB, trust_owner=True)
    program.write_bytes(Path(tool("id")).read_bytes())
    run("debugfs", "-w", "-R", f"write {program} id", pool)
    for field, value in (("mode", "0104755"), ("uid", "0"), ("gid", "0")):
        run("debugfs", "-w", "-R", f"set_inode_field id {field} {value}", pool)
    with mountpoint() as place:
        daxfs("mount", pool, place, *given)
        try:
            assert {"nosuid", "nodev"} <= mount_flags(place)
            said = run("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", str(place / "id"))
            assert "euid=0" not in said
        finally:
            daxfs("umount", place)


def test_a_pool_that_everybody_may_write(pool: Pool) -> None:
    path = pool()
    path.chmod(0o666)
    with mountpoint() as place:
        assert f"chmod go-w {path}" in daxfs("mount", path, place, code=32)
        assert f"chmod go-w {path}" in daxfs("mkfs", "-F", path, code=32)
        path.chmod(0o644)
        daxfs("mount", path, place)
        assert "nosuid" not in mount_flags(place)
        daxfs("umount", place)


def test_a_link_in_a_place_for_all(shared: Path, pool: Pool) -> None:
    """A symbolic link in a world-writable directory is refused: its owner would choose the pool that root mounts."""
    path, link = pool(), shared / "link"
    assert as_user(lambda: link.symlink_to(path)) == 0
    with mountpoint() as place:
        said = daxfs("mount", link, place, code=32)
        assert mounts.top_mount(str(place)) is None
        # With fs.protected_symlinks the kernel itself refuses to follow it.
        assert "belongs to user" in said or "no permission" in said


def test_a_pool_by_a_relative_path_and_a_link_of_ones_own(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pool()
    monkeypatch.chdir(path.parent)
    os.symlink(path.name, "link")
    with mountpoint() as place:
        for name in (path.name, "link", f"../{path.parent.name}/link"):
            daxfs("mount", name, place)
            found = mounts.top_mount(str(place))
            assert found is not None
            assert found.source == str(path)
            daxfs("umount", place)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o600, 0o755])
def test_mkfs_makes_a_file_private_or_says_that_it_did_not(tmp_path: Path, mode: int) -> None:
    pool = tmp_path / "pool"
    pool.write_bytes(bytes(16 * MIB))
    pool.chmod(mode)
    said = daxfs("mkfs", pool, "--keep-mode")
    assert stat.S_IMODE(pool.stat().st_mode) == mode
    assert (f"keeps its mode {mode:04o}" in said) is (mode != 0o600)
    said = daxfs("mkfs", pool, "-F")
    assert stat.S_IMODE(pool.stat().st_mode) == 0o600
    assert "keeps its mode" not in said


def test_a_refused_mkfs_leaves_the_mode(pool: Pool) -> None:
    path = pool()
    path.chmod(0o644)
    assert "add -F" in daxfs("mkfs", path, code=1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
