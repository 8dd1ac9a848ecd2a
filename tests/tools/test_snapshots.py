"""``daxfs snapshot`` on pools that are not mounted: what is shown, and what is refused with one line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from cli_rig import daxfs
from crash_rig import image
from mount_rig import mounted, mountpoint
from snapshot_rig import keeper
from tree_rig import QUIET

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.snapshots import catalogue
from daxfs.tools import snapshots
from support import fsck, mke2fs, run


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A pool with two snapshots."""
    path = tmp_path / "pool"
    path.write_bytes(image("4k"))
    with FileSystem.open(path, QUIET) as fs:
        for name in (b"one", b"two"):
            fs.create_snapshot(name)
            fs.tree.write_bytes("f", name)
    return path


def lose(pool: Path, *, newest: bool) -> None:
    """Have a snapshot marked as lost, as when the pool was full."""
    with FileSystem.open(pool, QUIET) as fs:
        keeper(fs).kept[-1 if newest else 0].store.invalidate(catalogue.FULL)


def test_the_list(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshots.show(str(pool))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d +[0-9.]+ [KM]iB  one  [0-9.]+ KiB copied", lines[0]
    )
    snapshots.show(str(pool), as_json=True)
    first, second = json.loads(capsys.readouterr().out)
    assert (first["name"], second["name"]) == ("one", "two")
    assert first["created_ns"] <= second["created_ns"]
    assert len(bytes.fromhex(first["uuid"])) == 16
    assert first["uuid"] != second["uuid"]
    assert (first["mapped"], first["skipped"]) == (0, 0)
    lose(pool, newest=True)
    snapshots.show(str(pool))
    first_line, second_line = capsys.readouterr().out.splitlines()
    assert first_line.endswith(f"  one  lost: {catalogue.REASONS[catalogue.OLDER]}")
    assert second_line.endswith(f"  two  lost: {catalogue.REASONS[catalogue.FULL]}")


def test_a_lost_snapshot_is_refused_by_all_that_read_it(pool: Path) -> None:
    lose(pool, newest=False)
    other = pool.with_name("other")
    before = pool.read_bytes()
    with mountpoint() as place:
        for arguments in (
            ("export", pool, "one", other),
            ("send", pool, "one", other),
            ("send", pool, "two", other, "--since", "one"),
            ("mount", pool, "one", place),
        ):
            said = daxfs("snapshot", *arguments, code=1)
            assert said == f"daxfs: {pool}: snapshot one is lost: {catalogue.REASONS[catalogue.FULL]}\n"
    assert not other.exists()
    assert pool.read_bytes() == before
    daxfs("snapshot", "export", pool, "two", other)
    fsck(other)


@pytest.mark.parametrize("name", ["three", "", "a/b", "..", "n" * 300])
def test_an_unknown_name_is_refused_by_all(pool: Path, name: str) -> None:
    other = pool.with_name("other")
    before = pool.read_bytes()
    for arguments in (("export", pool, name, other), ("send", pool, name, other)):
        said = daxfs("snapshot", *arguments, code=1)
        assert said.endswith(": there is no snapshot of this name\n")
        assert said.count("\n") == 1
    assert not other.exists()
    assert pool.read_bytes() == before


def test_what_is_no_pool_is_refused(tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.write_bytes(os.urandom(1 << 20))
    for code, place, words in (
        (1, noise, "not an ext4 pool"),
        (32, tmp_path / "none", "does not exist"),
        (66, tmp_path, "no daxfs is mounted"),
    ):
        for arguments in (
            ("list", place),
            ("export", place, "one", tmp_path / "o"),
            ("send", place, "one", tmp_path / "o"),
        ):
            said = daxfs("snapshot", *arguments, code=code)
            assert words in said
            assert said.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_a_pool_without_snapshots_or_without_a_journal_has_an_empty_list(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    mke2fs(path, "-O", "^has_journal", size="16M")
    assert daxfs("snapshot", "list", path) == ""
    assert daxfs("snapshot", "list", path, "--json") == "[]\n"
    with mounted(path) as mount:
        assert "the pool has no journal" in daxfs("snapshot", "create", mount.place, "s", code=1)


def test_a_full_pool_is_refused_whole(pool: Path) -> None:
    with mounted(pool) as mount:
        try:
            with (mount.place / "filler").open("wb") as file:
                while True:
                    file.write(b"x" * 65536)
        except OSError:
            pass
        before = daxfs("snapshot", "list", mount.place, "--json")
        names = [row["name"] for row in json.loads(before)]
        said = daxfs("snapshot", "create", mount.place, "three", code=1)
        assert said == f"daxfs: {mount.place}: snapshot three: the pool has no room for it\n"
        assert [row["name"] for row in json.loads(daxfs("snapshot", "list", mount.place, "--json"))] == names


def test_a_killed_mount_is_read_with_its_log(pool: Path) -> None:
    """The log is replayed in memory: the pool itself waits for its next mount."""
    with FileSystem.open(pool, QUIET) as fs:
        fs.tree.write_bytes("g", b"later" * 1000)
        fs.sync()
        cut = pool.with_name("cut")
        cut.write_bytes(bytes(fs.volume.pool.memory))
    before = cut.read_bytes()
    assert "needs_recovery" in run("dumpe2fs", "-h", cut)
    assert " two " in daxfs("snapshot", "list", cut)
    daxfs("snapshot", "export", cut, "two", pool.with_name("image"))
    fsck(pool.with_name("image"))
    assert cut.read_bytes() == before
