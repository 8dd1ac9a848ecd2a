"""Hands on the directory of the stores: what root and users may do there costs no file anything."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest
from crash_rig import OPERATIONS, Workbench, image
from range_rig import refused
from snapshot_rig import differences, keeper, remounted, tree, unmounted
from tree_rig import QUIET

from daxfs.ext4.inode import EXT4_IMMUTABLE_FL
from daxfs.fs import clock
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.snapshots import catalogue
from daxfs.fs.types import ROOT_INO, Caller, RenameFlags, SetAttributes
from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.opening import open_pool
from daxfs.snapshots.format import Header
from support import fsck, mke2fs

STORES = ".daxfs/snapshots"
USER = Caller(uid=1000, gid=1000)


@pytest.fixture
def fs() -> FileSystem:
    return FileSystem.open(MemoryPool(bytearray(image("4k"))), QUIET)


def busy(fs: FileSystem, *names: str) -> None:
    for name in names:
        OPERATIONS[name](Workbench(fs))


def lost(fs: FileSystem) -> dict[bytes, str]:
    return {found.name: found.lost for found in fs.list_snapshots()}


@pytest.mark.parametrize("name", [b".", b"..", b"", b"dir", b"fifo", b"link", b"a/b", b"n" * 256])
def test_only_files_are_deleted(name: bytes, fs: FileSystem, tmp_path: Path) -> None:
    fs.create_snapshot(b"s")
    folder = fs.tree.resolve(STORES)
    fs.mkdir(fs.mkdir(folder, b"dir", 0o755).ino, b"below", 0o755)
    fs.mknod(folder, b"fifo", stat.S_IFIFO | 0o600)
    fs.symlink(folder, b"link", b"s")
    with refused(errno.ENOENT):
        fs.delete_snapshot(name)
    fs.check()
    path = tmp_path / "pool"
    path.write_bytes(unmounted(fs))
    fsck(path)


def test_a_store_stays_immutable_until_its_snapshot_is_lost_or_deleted(fs: FileSystem) -> None:
    """Its blocks take copies: another file must never get them."""
    fs.create_snapshot(b"s")
    ino = fs.tree.resolve(f"{STORES}/s")
    flags = fs.get_flags(ino)
    with refused(errno.EBUSY):
        fs.set_flags(ino, flags & ~EXT4_IMMUTABLE_FL)
    assert fs.get_flags(ino) == flags
    keeper(fs)._lost(True)
    fs.set_flags(ino, flags & ~EXT4_IMMUTABLE_FL)
    fs.unlink(*fs.tree.parent(f"{STORES}/s"))
    fs.check()


def test_the_way_to_the_stores_keeps_its_names(fs: FileSystem) -> None:
    fs.mkdir(ROOT_INO, b"other", 0o755)
    fs.rename(ROOT_INO, b"other", ROOT_INO, b"o", RenameFlags(0))
    fs.create_snapshot(b"s")
    above, folder = fs.tree.resolve(".daxfs"), fs.tree.resolve(STORES)
    for parent, name in ((ROOT_INO, b".daxfs"), (above, b"snapshots")):
        with refused(errno.EBUSY):
            fs.rename(parent, name, ROOT_INO, b"moved", RenameFlags(0))
        for one, two in (((parent, name), (ROOT_INO, b"o")), ((ROOT_INO, b"o"), (parent, name))):
            with refused(errno.EBUSY):
                fs.rename(*one, *two, RenameFlags.EXCHANGE)
    assert fs.tree.resolve(STORES) == folder
    fs.delete_snapshot(b"s")
    fs.rename(ROOT_INO, b".daxfs", ROOT_INO, b"moved", RenameFlags(0))
    fs.check()


def test_a_copy_of_a_store_is_no_snapshot(fs: FileSystem, tmp_path: Path) -> None:
    expected = tree(fs)
    fs.create_snapshot(b"s")
    content = fs.tree.read_bytes(f"{STORES}/s")
    busy(fs, "overwrite", "overwrite moved")
    fs.tree.write_bytes(f"{STORES}/copy", content)
    fs = remounted(fs)
    assert lost(fs) == {b"copy": catalogue.REASONS[catalogue.DAMAGED], b"s": ""}
    assert not differences(fs, b"s", expected, tmp_path)
    fs.delete_snapshot(b"copy")
    fs.check()


def test_what_a_user_has_made_there_is_not_believed(fs: FileSystem, tmp_path: Path) -> None:
    """A forged store that is believed would get the old content of everybody's files."""
    above = fs.mkdir(ROOT_INO, b".daxfs", 0o755, USER).ino
    folder = fs.mkdir(above, b"snapshots", 0o755, USER).ino
    size = fs.volume.pool.size
    forged = Header(True, 0, 12, 77, 1 << 60, size >> 12, bytes(15) + b"x").pack() + bytes(400 << 12)
    fs.tree.write_bytes(f"{STORES}/mine", forged)
    with refused(errno.EACCES):
        fs.create_snapshot(b"s")
    assert keeper(fs).kept == []
    fs.setattr(above, SetAttributes(uid=0, gid=0))
    with refused(errno.EACCES):
        fs.create_snapshot(b"s")
    fs.setattr(folder, SetAttributes(uid=0, gid=0))
    expected = tree(fs)
    fs.create_snapshot(b"s")
    busy(fs, "overwrite", "unlink")
    fs = remounted(fs)
    assert lost(fs) == {b"mine": catalogue.REASONS[catalogue.DAMAGED], b"s": ""}
    assert fs.tree.read_bytes(f"{STORES}/mine") == forged
    assert not differences(fs, b"s", expected, tmp_path)


def test_a_file_with_another_name_there_is_in_the_snapshot(fs: FileSystem, tmp_path: Path) -> None:
    """The blocks of stores are not copied, so nothing else may pass for one."""
    fs.create_snapshot(b"s")
    fs.link(fs.tree.resolve("f"), fs.tree.resolve(STORES), b"link")
    expected = {name: found for name, found in tree(fs).contents.items() if name == fs.tree.resolve("f")}
    fs.create_snapshot(b"t")
    busy(fs, "overwrite")
    image_of_it = tmp_path / "image"
    assert differences(fs, b"t", tree(fs), tmp_path), "the file has changed since"
    image_of_it.write_bytes((tmp_path / "snapshot").read_bytes())
    with FileSystem.open(image_of_it, QUIET) as shown:
        assert {ino: found for ino, found in tree(shown).contents.items() if ino in expected} == expected


def test_stores_that_were_away_are_lost(fs: FileSystem) -> None:
    """The record of mounts is that of the whole directory: a new snapshot must not make old stores valid again."""
    fs.create_snapshot(b"old")
    keeper(fs)._stop()  # a mount that had not found them
    assert lost(fs) == {b"old": catalogue.REASONS[catalogue.FOREIGN]}
    busy(fs, "overwrite", "unlink")
    fs.create_snapshot(b"new")
    for _ in range(2):
        assert lost(fs) == {b"old": catalogue.REASONS[catalogue.FOREIGN], b"new": ""}
        fs = remounted(fs)


@pytest.mark.parametrize("name", ["4k", "no-extents"])
def test_a_clock_that_is_set_back_does_not_make_a_damaged_store_an_older_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = FileSystem.open(MemoryPool(bytearray(image(name))), QUIET)
    now = 1_700_000_000 * 10**9
    for number in range(3):
        monkeypatch.setattr(clock, "now", lambda at=now - number * 10**9: at)
        fs.create_snapshot(b"%d" % number)
    monkeypatch.undo()
    place = keeper(fs).kept[1].store.runs[0].start << keeper(fs).kept[1].store.bits
    fs.volume.pool.unhooked.zero(place, 4096)
    found = lost(remounted(fs))
    assert found[b"1"] == catalogue.REASONS[catalogue.DAMAGED]
    assert found[b"0"] == catalogue.REASONS[catalogue.OLDER]
    if name == "4k":  # small inodes have seconds: what was made in the same one counts as older
        assert found[b"2"] == ""


def test_bad_memory_of_a_store_costs_its_snapshot_and_the_older_ones(tmp_path: Path) -> None:
    """The mount, the list and new snapshots go on."""
    path = mke2fs(tmp_path / "pool", "-b", "4096", size="16M")
    with FileSystem.open(path, QUIET) as fs:
        for name in (b"1", b"2", b"3"):
            fs.create_snapshot(name)
            place = keeper(fs).kept[min(1, len(keeper(fs).kept) - 1)].store.runs[0].start << 12
    pool = open_pool(path)
    pool.bad.add(place, place + 4096)
    pool.faults.avoid()
    with FileSystem.open(pool, QUIET) as fs:
        damaged = {b"1": catalogue.REASONS[catalogue.OLDER], b"2": catalogue.REASONS[catalogue.DAMAGED], b"3": ""}
        assert lost(fs) == damaged
        fs.create_snapshot(b"4")
        assert lost(fs) == damaged | {b"4": ""}
        fs.delete_snapshot(b"2")
        fs.check()
