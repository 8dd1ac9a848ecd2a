"""``daxfs mkfs --tier``, and ``info``, ``check`` and ``mount`` of pools with storage."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import mount_rig
import pytest
import tier_rig
from cli_rig import daxfs
from in_memory import tmp_path
from mount_rig import mountpoint
from tier_rig import GROUP, MEMORY, MIB, OPTIONS, STORAGE, Members

from daxfs.fs import opening
from daxfs.fs.filesystem import FileSystem
from daxfs.fuse import alone
from daxfs.fuse.kernel import poolfile
from daxfs.pmem.storage import CONTENT
from daxfs.tools import tiermaking
from support import run

__all__ = ["tmp_path"]


@pytest.fixture
def tiered(tmp_path: Path) -> Members:
    return tier_rig.make(tmp_path)


def test_made_by_the_command_line(tmp_path: Path) -> None:
    made = Members(tmp_path / "pool", tmp_path / "slow")
    size = f"{(STORAGE + CONTENT) >> 20}M"
    daxfs("mkfs", made.pool, "--size", f"{MEMORY >> 20}M", "--tier", f"{made.storage}:{size}", *OPTIONS)
    for path, length in ((made.pool, MEMORY), (made.storage, STORAGE + CONTENT)):
        status = path.stat()
        assert status.st_size == length
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert status.st_blocks * 512 >= length, "all of it is allocated"
    made.check()
    whole = made.join()
    features = run("dumpe2fs", "-h", whole)
    assert "sparse_super2" in features
    assert "resize_inode" in features, "more storage may join"
    reserved = int(features.split("Reserved block count:")[1].split()[0])
    assert reserved <= MEMORY // 4096 // 20 + 1, "five percent of the memory"
    for line in run("dumpe2fs", whole).splitlines():
        if "Inode table at" in line or "bitmap at" in line:
            assert int(line.split(" at ")[1].split("-")[0].split()[0]) < MEMORY >> 12


def test_existing_files_are_used_and_content_is_not_overwritten(tmp_path: Path) -> None:
    pool, slow = tmp_path / "pool", tmp_path / "slow"
    slow.write_bytes(bytes(STORAGE + CONTENT))
    daxfs("mkfs", pool, "--size", f"{MEMORY >> 20}M", "--sparse", "--tier", slow, *OPTIONS)
    pool.unlink()
    again = ("mkfs", pool, "--size", f"{MEMORY >> 20}M", "--sparse", "--tier", slow, *OPTIONS)
    assert "holds the storage of a pool" in daxfs(*again, code=1)
    assert not pool.exists()
    daxfs(*again, "-F")
    FileSystem.open(pool).close()
    Members(pool, slow).check()


REFUSED = {
    "no size": (("slow",), "does not exist; give its size"),
    "twice": (("slow:66M", "--tier", "slow:66M"), "given twice"),
    "the pool": (("pool:66M",), "given twice"),
    "bad size": (("slow:much",), "is not a size"),
    "block size": (("slow:66M", "-b", "1024"), "blocks of 4096"),
    "rehearsal": (("slow:66M", "-n"), "without --tier"),
    "too little memory": (("slow:66M", "-g", "32768"), "128 MiB of memory at least"),
    "metadata on storage": (("slow:66M", "-N", "120000"), "the metadata needs"),
    "a folder that is not there": (("nothing/slow:66M",), "does not exist"),
    "tiny": (("slow:1M",), "too few"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, text = REFUSED[name]
    before = set(os.listdir())
    code = 64 if name == "bad size" else 32 if name in ("tiny", "a folder that is not there") else 1
    line = daxfs("mkfs", "pool", "--size", f"{MEMORY >> 20}M", *OPTIONS, "--tier", *arguments, "--sparse", code=code)
    assert text in line
    assert line.count("\n") == 1
    assert set(os.listdir()) == before


def test_storage_with_other_content_is_refused(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    with slow.open("wb") as file:
        file.truncate(STORAGE)
    run("mke2fs", "-q", "-t", "ext4", slow)
    before = slow.read_bytes()
    line = daxfs("mkfs", tmp_path / "pool", "--size", f"{MEMORY >> 20}M", "--tier", slow, *OPTIONS, code=1)
    assert "holds an ext2, ext3 or ext4 file system" in line
    assert slow.read_bytes() == before
    assert not (tmp_path / "pool").exists()


def test_info_shows_the_storage(tiered: Members) -> None:
    found = json.loads(daxfs("info", tiered.pool, "--json"))["storage"]
    assert found == [{"path": str(tiered.storage), "size": STORAGE, "free": STORAGE, "state": "present"}]
    assert f"{tiered.storage}, 64 MiB, 64 MiB free\n" in daxfs("info", tiered.pool)
    tiered.storage.unlink()
    assert "does not exist" in daxfs("info", tiered.pool)


def test_check_gives_e2fsck_both_members(tiered: Members) -> None:
    with FileSystem.open(tiered.pool) as fs:
        fs.tree.write_bytes("/f", b"x" * 4096)
    daxfs("check", tiered.pool, "-fn")
    whole = tiered.join()
    run("debugfs", "-w", "-R", "sif /f links_count 3", whole)
    with whole.open("rb") as file, tiered.pool.open("r+b") as pool:
        pool.write(file.read(MEMORY))
    daxfs("check", tiered.pool, "-fy", code=1)
    tiered.check()
    tiered.storage.unlink()
    line = daxfs("check", tiered.pool, "-fn", code=8)
    assert "does not exist" in line


def test_what_does_not_exist_yet_is_refused(tiered: Members) -> None:
    line = daxfs("export", tiered.pool, tiered.pool.with_name("copy"), code=1)
    assert "can't be exported" in line
    assert not tiered.pool.with_name("copy").exists()
    assert daxfs("snapshot", "list", tiered.pool) == ""


def void(_: object) -> None:
    """Return nothing."""


def test_e2fsck_reads_and_writes_past_the_border(tiered: Members) -> None:
    """One file shows the memory and then the storage; a read or write may have parts of both."""
    script = f"""
        [ $(stat -c %s "$1") = {MEMORY + STORAGE} ]
        dd if=/dev/zero bs=1M count=2 | tr '\\0' x | dd of="$1" bs=64K seek=31M oflag=seek_bytes conv=notrunc
        [ $(dd if="$1" bs=64K skip=31M count=32 iflag=skip_bytes | tr -dc x | wc -c) = {2 * MIB} ]
    """
    before = tiered.pool.read_bytes(), tiered.storage.read_bytes()
    with opening.open_pool(str(tiered.pool)) as pool:
        command = ["/bin/sh", "-ec", script, "sh", pool.path]
        code = alone.run(command, pool.path, lambda descriptor: void(poolfile.serve(pool, descriptor)))
    assert code == 0
    assert tiered.pool.read_bytes() == before[0][: 31 * MIB] + b"x" * MIB
    assert tiered.storage.read_bytes() == before[1][:CONTENT] + b"x" * MIB + before[1][CONTENT + MIB :]


def test_a_mount_serves_it_and_refuses_a_wrong_member(tiered: Members) -> None:
    with mount_rig.mounted_unchecked(tiered.pool) as mounted:
        (mounted.place / "f").write_bytes(b"content")
        assert MEMORY < os.statvfs(mounted.place).f_blocks << 12 < MEMORY + STORAGE
        assert "mounted" in json.loads(daxfs("info", mounted.place, "--json"))["state"]
    tiered.check()
    with mountpoint() as place:
        assert "session=kernel" in mount_rig.daxfs("mount", tiered.pool, place, "-o", "session=pyfuse3", code=1)
        tiered.storage.chmod(0o666)
        assert "--trust-owner" in mount_rig.daxfs("mount", tiered.pool, place, code=32)
    os.truncate(tiered.storage, GROUP)
    with mountpoint() as place:
        line = mount_rig.daxfs("mount", tiered.pool, place, code=32)
    assert f"the storage of {tiered.pool}: {tiered.storage} was cut" in line
    assert line.count("\n") == 1


def test_the_arguments() -> None:
    assert tiermaking.parse("/a:b:10M") == tiermaking.Tier("/a:b", 10 * MIB)
    assert tiermaking.parse("/a") == tiermaking.Tier("/a", None)
