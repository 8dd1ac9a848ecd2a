"""``daxfs tier`` on a live mount."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cli_rig
import mount_rig
from in_memory import tmp_path
from tier_rig import MEMORY, MIB, STORAGE, Members, tiered

from support import mke2fs

__all__ = ["tiered", "tmp_path"]


def daxfs(*arguments: str | Path, code: int = 0) -> str:
    return cli_rig.daxfs("tier", *arguments, code=code)


def test_a_file_goes_down_and_comes_up(tiered: Members) -> None:
    content = os.urandom(2 * MIB + 7)
    with mount_rig.mounted_unchecked(tiered.pool) as mounted:
        top, path = mounted.place, mounted.place / "file"
        path.write_bytes(content)
        assert "2 MiB demoted\n" in daxfs("--demote", path).replace("2.0", "2")
        os.sync()
        found = json.loads(daxfs(top, "--json"))
        assert found["storage"] - found["storage_free"] == found["demoted"] == 2 * MIB + 4096
        assert (found["memory"], found["storage"]) == (MEMORY, STORAGE)
        assert [(path, failed) for path, _, _, failed in found["members"]] == [(str(tiered.storage), "")]
        assert path.read_bytes() == content
        assert json.loads(daxfs(top, "--json"))["read"] >= len(content)
        shown = daxfs(top)
        assert f"member:    {tiered.storage}, 64 MiB, " in shown
        assert "storage:   64 MiB, " in shown
        assert "promoted" in daxfs("--promote", path)
        with path.open("rb") as file:
            os.fsync(file.fileno())  # blocks become free with the commit
        assert json.loads(daxfs(top, "--json"))["storage_free"] == STORAGE
        assert path.read_bytes() == content
        assert "name a mountpoint" in daxfs(code=64)
        assert "No such file" in daxfs("--demote", top / "nothing", code=66)
        assert "is not a regular file" in daxfs("--demote", top, code=66)
    tiered.check()


def test_a_pool_without_storage_is_refused(tmp_path: Path) -> None:
    pool = mke2fs(tmp_path / "pool")
    with mount_rig.mounted(pool) as mounted:
        (mounted.place / "file").write_bytes(b"content")
        for arguments in ((mounted.place,), ("--demote", mounted.place / "file")):
            assert "its pool has no storage" in daxfs(*arguments, code=69)
    assert "it is not on a mount of daxfs" in daxfs("--demote", pool, code=69)
