"""Damaged metadata below a mount: what users and the administrator see of it, until ``daxfs check`` has repaired it."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
from cli_rig import daxfs
from mount_rig import SESSIONS, mounted, mounted_unchecked

from support import fsck, run


def error_of_mkdir(place: Path) -> int:
    """The errno of mkdir(2), 0 if it succeeds."""
    try:
        place.mkdir()
    except OSError as error:
        assert error.errno
        return error.errno
    return 0


def overwrite(file: Path) -> None:
    """Store into blocks that the file has."""
    with file.open("r+b") as opened:
        opened.write(b"changed")


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A pool of daxfs mkfs with a file and a damaged inode bitmap."""
    made = tmp_path / "pool"
    daxfs("mkfs", made, "--size", "32M")
    with mounted(made) as mount:
        (mount.place / "file").write_bytes(b"content")
    found = re.search(r"(?m)^Inode bitmap at (\d+)|Inode bitmap at (\d+)", run("dumpe2fs", made))
    assert found
    with made.open("r+b") as file:
        file.seek(int(found[1] or found[2]) * 4096 + 100)
        file.write(b"\x5a")
    return made


@pytest.mark.parametrize("session", SESSIONS)
def test_a_pool_of_mkfs_becomes_read_only(damaged: Path, session: str) -> None:
    with mounted_unchecked(damaged, *SESSIONS[session]) as mount:
        assert error_of_mkdir(mount.place / "new") == errno.EUCLEAN
        assert error_of_mkdir(mount.place / "new") == errno.EROFS
        assert (mount.place / "file").read_bytes() == b"content"
        assert mount.said().count("the volume is read-only from now on, run: daxfs check -y") == 1
        shown = daxfs("info", mount.place)
        assert re.search(r"(?m)^on errors: +remount-ro$", shown)
        assert re.search(r"(?m)^errors: +1$", shown)
        assert re.search(r"(?m)^first error: +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d, inode bitmap checksum$", shown)
        wanted = "mounted, and read-only since an error" if session == "kernel" else "with errors"
        assert re.search(rf"(?m)^state: +{wanted}", shown)
    assert "with errors: run daxfs check" in daxfs("info", damaged)
    daxfs("check", "-y", damaged, code=1)
    facts = json.loads(daxfs("info", damaged, "--json"))
    assert (facts["state"], facts["errors"], facts["first_error"], facts["last_error"]) == ("clean", 0, None, None)
    fsck(damaged)


def test_a_mount_that_goes_on(damaged: Path) -> None:
    with mounted_unchecked(damaged, "errors=continue") as mount:
        assert error_of_mkdir(mount.place / "new") == errno.EUCLEAN
        assert error_of_mkdir(mount.place / "new") == errno.ENOSPC  # the only group is unusable
        overwrite(mount.place / "file")
        facts = json.loads(daxfs("info", mount.place, "--json"))
        assert (facts["on_errors"], facts["errors"]) == ("continue", 1)
        assert "errors=continue" in facts["mount"]["options"]
        assert facts["first_error"]["where"] == "inode bitmap checksum"
        daxfs("mount", "-o", "remount,errors=remount-ro", mount.place)
        assert error_of_mkdir(mount.place / "new") == errno.ENOSPC  # damage that is known is no new error
        overwrite(mount.place / "file")
        os.stat(mount.place / "file")
    daxfs("check", "-y", damaged, code=1)
    with mounted(damaged) as mount:
        assert (mount.place / "file").read_bytes() == b"changed"
