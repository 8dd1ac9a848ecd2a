"""Mount options on a live mount: what the kernel shows and does, and what the log says."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_rig import daxfs
from mount_rig import mounted

Pool = Callable[..., Path]


def shown(place: Path) -> set[str]:
    """The options in /proc/mounts."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return set(next(fields[3] for fields in lines if fields[1] == str(place)).split(","))


def test_the_kernel_shows_the_options_in_force(pool: Pool) -> None:
    with mounted(pool(), "sync,noatime,nodiratime,nosuid,nodev,noexec,nosymfollow") as mount:
        assert {"rw", "sync", "noatime", "nodiratime", "nosuid", "nodev", "noexec", "nosymfollow"} <= shown(mount.place)
    with mounted(pool()) as mount:
        assert {"rw", "relatime"} <= shown(mount.place)
        assert not {"sync", "noatime", "nosuid", "nosymfollow"} & shown(mount.place)


def test_nosymfollow(pool: Pool) -> None:
    with mounted(pool(), "nosymfollow") as mount:
        (mount.place / "file").write_bytes(b"x")
        (mount.place / "link").symlink_to("file")
        assert os.readlink(mount.place / "link") == "file"
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            (mount.place / "link").read_bytes()


def test_directories_keep_their_time_of_access(pool: Pool) -> None:
    path = pool()
    for options, moves in (("strictatime,nodiratime", False), ("strictatime", True)):
        with mounted(path, options) as mount:
            directory, file = mount.place / options, mount.place / f"file-{options}"
            directory.mkdir()
            file.write_bytes(b"x")
            for place in (directory, file):
                os.utime(place, (1, 1))
            os.listdir(directory)
            file.read_bytes()
            assert (directory.stat().st_atime != 1) == moves
            assert file.stat().st_atime != 1


def test_options_of_other_fstabs_are_accepted_and_logged_once(pool: Pool) -> None:
    text = "acl,user_xattr,errors=remount-ro,data=ordered,discard,barrier=1,lazytime,x-systemd.automount,nofail"
    with mounted(pool(), text) as mount:
        (mount.place / "file").write_bytes(b"x")
        said = mount.said()
    for option in ("acl", "user_xattr", "data=ordered", "barrier=1"):
        assert said.count(f"mount option {option} is always so: ") == 1
    assert "errors=" not in said
    assert said.count("mount option discard is without effect: ") == 1
    assert "nofail" not in said


def test_a_refused_option_names_its_reason(pool: Pool, tmp_path: Path) -> None:
    said = daxfs("mount", pool(), tmp_path, "-o", "usrquota", code=1)
    assert said == "daxfs: refused mount option: usrquota; no quota is enforced\n"
    assert subprocess.run(["mountpoint", "-q", tmp_path], check=False).returncode != 0
