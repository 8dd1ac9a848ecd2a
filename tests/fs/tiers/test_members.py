"""Pools with storage: what a mount finds and refuses, and that metadata and new data stay in memory."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tier_rig
from tier_rig import GROUP, MIB, Members

from daxfs.errors import FsError, MissingMemory, PoolError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.tiers import members
from daxfs.fs.types import ROOT_INO, Options
from daxfs.pmem.opening import open_pool
from daxfs.pmem.storage import CONTENT
from daxfs.structures import inodes, mapping
from support import run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Members:
    """Make a pool, and move it: nothing is left where its record says that the storage is."""
    folder = tmp_path_factory.mktemp("tiered")
    made = tier_rig.make(folder)
    moved = folder.rename(tmp_path_factory.mktemp("moved") / "tiered")
    return Members(moved / made.pool.name, moved / made.storage.name)


@pytest.fixture
def tiered(made: Members, tmp_path: Path) -> Members:
    """Return a copy of the pool, whose storage is found beside it."""
    for path in made:
        run("cp", "--sparse=always", path, tmp_path)
    return Members(tmp_path / made.pool.name, tmp_path / made.storage.name)


def test_metadata_stays_in_memory(tiered: Members) -> None:
    with FileSystem.open(tiered.pool) as fs:
        assert fs.storages == [str(tiered.storage)]
        before = fs.statfs()
        assert before.blocks << 12 > tier_rig.STORAGE, "what is free on storage counts"
        fs.tree.mkdir("/d")
        with pytest.raises(FsError) as full:
            fill(fs)
        assert full.value.errno == errno.ENOSPC
        fs.volume.check()
        view, border = fs.volume.view, tier_rig.MEMORY >> 12
        assert any(run.pblk >= border for name in fs.tree.listdir("/d") for run in _runs(fs, b"d", name))
        folder = mapping.runs(view, inodes.read(view, fs.lookup(ROOT_INO, b"d").ino))
        assert max(run.pblk + run.length for run in folder) <= border
        assert all(inodes.position(view, ino)[0] < border for ino in range(1, fs.statfs().files))
        for name in fs.tree.listdir("/d"):
            fs.tree.unlink(f"/d/{name.decode()}")
        fs.sync()
        assert before.free - fs.statfs().free < 16
        assert view.geometry.blocks_count << 12 == tier_rig.MEMORY + tier_rig.STORAGE
    tiered.check()


def fill(fs: FileSystem) -> None:
    for number in range(tier_rig.MEMORY // MIB * 4):
        fs.tree.write_bytes(f"/d/{number}", os.urandom(MIB - number))


def _runs(fs: FileSystem, folder: bytes, name: bytes) -> list[mapping.Extent]:
    ino = fs.lookup(fs.lookup(ROOT_INO, folder).ino, name).ino
    return mapping.runs(fs.volume.view, inodes.read(fs.volume.view, ino))


def test_what_lies_on_storage_has_no_memory(tiered: Members) -> None:
    """Code that does not know about storage gets EIO, and nothing is stored."""
    before = tiered.storage.read_bytes()
    with FileSystem.open(tiered.pool) as fs:
        pool = fs.volume.pool
        assert pool.size == tier_rig.MEMORY + tier_rig.STORAGE
        with pytest.raises(MissingMemory) as load, pool.faults.checked():
            bytes(pool.memory[tier_rig.MEMORY + 5000 : tier_rig.MEMORY + 5001])
        assert "lies on storage" in str(load.value)
        with pytest.raises(MissingMemory) as store:
            pool.write(pool.size - 1, b"x")
        assert store.value.errno == errno.EIO
        assert not pool.bad
        fs.tree.write_bytes("/f", b"content")
    assert tiered.storage.read_bytes() == before
    tiered.check()


def test_a_power_cut_in_the_middle_of_a_commit(tiered: Members) -> None:
    """The root's inode, whose attribute names the storage, may be torn; the log has it whole."""
    fs = FileSystem.open(tiered.pool)
    fs.tree.mkdir("/d")
    fs.sync()
    block, offset = inodes.position(fs.volume.view, ROOT_INO)
    torn = bytearray(tiered.pool.read_bytes())
    fs.close()
    torn[(block << 12) + offset + 0x18] ^= 0xFF
    tiered.pool.write_bytes(torn)
    with FileSystem.open(tiered.pool) as fs:
        assert fs.storages
        assert fs.tree.listdir("/d") == []
    tiered.check()


def test_readers_share_the_storage_and_a_writer_does_not(tiered: Members) -> None:
    options = Options(read_only=True)
    with FileSystem.open(tiered.pool, options) as fs, FileSystem.open(tiered.pool, options) as other:
        assert fs.storages == other.storages != []
        assert fs.volume.pool.storages[0].read_only


def replaced(tiered: Members, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = tier_rig.make(tmp_path / "other")
    other.storage.replace(tiered.storage)


WRONG: dict[str, tuple[Callable[[Members, Path], object], str]] = {
    "missing": (lambda tiered, _: tiered.storage.unlink(), "does not exist"),
    "of another pool": (replaced, "is that of another pool"),
    "no label": (lambda tiered, _: tiered.storage.write_bytes(bytes(CONTENT + MIB)), "has no label"),
    "cut": (lambda tiered, _: os.truncate(tiered.storage, CONTENT + GROUP), "was cut"),
    "cut to nothing": (lambda tiered, _: os.truncate(tiered.storage, 0), "has 0 bytes, too few for storage$"),
    "a directory": (
        lambda tiered, _: (tiered.storage.unlink(), tiered.storage.mkdir()),
        "is a directory; the storage of a pool is a file or a block device$",
    ),
    "the pool itself": (
        lambda tiered, _: (tiered.storage.unlink(), tiered.storage.symlink_to(tiered.pool)),
        "is the memory",
    ),
    "memory that was cut": (lambda tiered, _: os.truncate(tiered.pool, tier_rig.MEMORY - GROUP), "it was cut"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_members_are_refused(tiered: Members, tmp_path: Path, name: str) -> None:
    spoil, text = WRONG[name]
    spoil(tiered, tmp_path)
    before = tiered.pool.read_bytes()
    with pytest.raises(PoolError, match=text) as refused:
        FileSystem.open(tiered.pool)
    assert refused.value.code == 32
    assert "\n" not in str(refused.value)
    assert tiered.pool.read_bytes() == before


def test_storage_in_use_or_read_only(tiered: Members, tmp_path: Path) -> None:
    shutil.copy(tiered.pool, tmp_path / "copy")
    with FileSystem.open(tiered.pool), pytest.raises(PoolError, match="in use"):
        FileSystem.open(tmp_path / "copy")
    run("chattr", "+i", tiered.storage)
    try:
        with pytest.raises(PoolError, match="no permission"):
            FileSystem.open(tiered.pool)
        with FileSystem.open(tiered.pool, Options(read_only=True)) as fs:
            assert fs.storages
    finally:
        run("chattr", "-i", tiered.storage)


def test_a_record_that_cant_be_right_is_none(tiered: Members) -> None:
    """The pool is then too small for its file system, as one that was cut."""
    with open_pool(tiered.pool) as pool:
        (found,) = members.records(pool)
    for label in (found.label._replace(size=found.label.size - 4096), found.label._replace(begin=-1)):
        _set_record(tiered, members.value_of((found._replace(label=label),)))
        with open_pool(tiered.pool) as pool:
            assert members.records(pool) == ()
    second = b"00 8192 4096 /b"
    assert len(members.records_in(b"00 4096 4096 /a\0" + second)) == 2
    for value in (b"", b"x y z /slow", b"00 1 2", b"00 4096 0 /a", b"00 4096 8192 /a\0" + second, second + b"\0"):
        assert members.records_in(value) == ()


def _set_record(tiered: Members, value: bytes) -> None:
    with open_pool(tiered.pool) as pool:
        pool.attach(tier_rig.MEMORY, tier_rig.STORAGE)
        with FileSystem.open(pool) as fs:
            fs.setxattr(ROOT_INO, members.ATTRIBUTE, value)


def test_what_does_not_exist_yet_is_refused(tiered: Members) -> None:
    with FileSystem.open(tiered.pool) as fs:
        with pytest.raises(FsError, match="storage") as error:
            fs.create_snapshot(b"s")
        assert error.value.errno == errno.EOPNOTSUPP
