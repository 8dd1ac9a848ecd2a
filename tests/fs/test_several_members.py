"""Storage of several members: data lies on each, borders between them, and each fails alone."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tier_rig
from in_memory import tmp_path
from tier_rig import GROUP, MEMORY, MIB, Members

from daxfs.errors import FsError, PoolError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import ROOT_INO
from daxfs.pmem.storage import CONTENT
from daxfs.structures import inodes, mapping
from support import run

__all__ = ["tmp_path"]

SIZES = [GROUP, 2 * GROUP, GROUP]


@pytest.fixture
def tiered(tmp_path: Path) -> Members:
    return tier_rig.make_several(tmp_path, MEMORY, SIZES)


@pytest.fixture
def fs(tiered: Members) -> Iterator[FileSystem]:
    with FileSystem.open(tiered.pool) as fs:
        yield fs
        fs.volume.check()
    tiered.check()


def fill(fs: FileSystem, count: int = 10, size: int = 3 * MIB - 4096) -> dict[str, bytes]:
    """Make files that lie on storage, and so on all members, one after the other."""
    contents = {f"/{number}": os.urandom(size) for number in range(count)}
    for path, content in contents.items():
        fs.tree.write_bytes(path, content)
        assert not fs.demote(fs.lookup(ROOT_INO, path[1:].encode()).ino).stayed
        fs.sync()
    return contents


def used(fs: FileSystem) -> list[int]:
    return [each.size - each.free for each in fs.tier_use().members]


def test_files_lie_on_each_and_across_borders(fs: FileSystem) -> None:
    assert [each.size for each in fs.tier_use().members] == SIZES
    assert used(fs) == [0, 0, 0]
    contents = fill(fs)
    assert all(used(fs)), "each member is used"
    assert sum(used(fs)) == 10 * (3 * MIB - 4096)
    for path, content in contents.items():
        assert fs.tree.read_bytes(path) == content
    for path, content in contents.items():
        file = fs.open_file(fs.lookup(ROOT_INO, path[1:].encode()).ino, os.O_RDWR)
        assert fs.promote(file.ino).moved == len(content)
        fs.release(file)
        assert fs.tree.read_bytes(path) == content
        fs.tree.unlink(path)
    fs.sync()
    assert used(fs) == [0, 0, 0]


def test_a_run_past_borders_that_another_program_has_made(fs: FileSystem) -> None:
    """ext4 may give a file the last blocks of a member and the first of the next as one run."""
    content = os.urandom(2 * MIB)
    border = MEMORY + GROUP >> 12
    ino = _file_at(fs, border - 256, content)
    file = fs.open_file(ino, os.O_RDWR)
    assert bytes(fs.read(file, MIB - 100, 200)) == content[MIB - 100 : MIB + 100]
    fs.write(file, MIB - 2, b"new!")
    assert fs.promote(ino).moved + 8192 == 2 * MIB
    fs.release(file)
    assert fs.tree.read_bytes("/f") == content[: MIB - 2] + b"new!" + content[MIB + 2 :]


def _file_at(fs: FileSystem, pblk: int, content: bytes) -> int:
    """Make a file with one run that begins at a block."""
    from daxfs.fs.change import Change
    from daxfs.structures import blocks
    from daxfs.structures.blocks import BlockRun
    from daxfs.structures.mapping import Extent

    fs.tree.write_bytes("/f", content)
    ino, count = fs.lookup(ROOT_INO, b"f").ino, len(content) >> 12
    pool = fs.volume.pool
    for storage in pool.storages:
        low, high = max(pblk << 12, storage.place.begin), min(pblk + count << 12, storage.place.end)
        if low < high:
            storage.write(low - storage.place.begin, content[low - (pblk << 12) : high - (pblk << 12)])
    below = max(min(count, (pool.memory_size >> 12) - pblk), 0)
    if below:
        pool.write(pblk << 12, content[: below << 12])
    with fs.volume.handle(64) as tx, Change(fs.volume, tx, ino, dated=False) as change:
        at = 0
        while at < count:
            group = fs.volume.geometry.group_of_block(pblk + at)
            length = min(count - at, fs.volume.geometry.first_block(group + 1) - pblk - at)
            assert blocks.take_on_storage(tx, BlockRun(pblk + at, length))
            at += length
        inodes.add_blocks(change.inode, count, tx.geometry)
        change.move(0, count - 1, [Extent(0, pblk, count, False)])
        change.remaps()
    node = fs.volume.nodes.open.get(ino)
    if node is not None:
        node.moved(0, len(content))
    (run,) = mapping.runs(fs.volume.view, inodes.read(fs.volume.view, ino))
    assert run == Extent(0, pblk, count, False)
    return ino


def test_a_run_from_memory_to_storage(fs: FileSystem) -> None:
    content = os.urandom(2 * MIB)
    ino = _file_at(fs, (MEMORY >> 12) - 256, content)
    file = fs.open_file(ino, os.O_RDWR)
    assert bytes(fs.read(file, 0, 2 * MIB)) == content
    assert bytes(fs.read(file, MIB - 100, 200)) == content[MIB - 100 : MIB + 100]
    fs.write(file, MIB - 2, b"new!")
    fs.release(file)
    assert fs.tree.read_bytes("/f") == content[: MIB - 2] + b"new!" + content[MIB + 2 :]
    assert fs.demote(ino).moved == MIB + 4096
    assert fs.tree.read_bytes("/f") == content[: MIB - 2] + b"new!" + content[MIB + 2 :]


def test_each_fails_alone(fs: FileSystem) -> None:
    contents = fill(fs)
    tiers = fs.volume.tiers
    assert tiers is not None
    tiers.queues[1].fail("it did not answer")
    failed = 0
    for path, content in contents.items():
        try:
            assert fs.tree.read_bytes(path) == content
        except FsError as error:
            assert error.errno == errno.EIO
            assert "slow2 has failed" in str(error)
            failed += 1
    assert 0 < failed < len(contents)
    assert [bool(each.failed) for each in fs.tier_use().members] == [False, True, False]
    before = used(fs)
    fs.tree.write_bytes("/new", bytes(MIB))
    assert fs.demote(fs.lookup(ROOT_INO, b"new").ino).moved == MIB, "others have room"
    assert used(fs)[1] == before[1]


def test_members_that_were_exchanged(tiered: Members) -> None:
    first, third = tiered.storage, tiered.storage.with_name("slow3")
    away = first.rename(first.with_name("away"))
    third.rename(first)
    away.rename(third)
    with pytest.raises(PoolError, match=f"{first} is that of another pool"):
        FileSystem.open(tiered.pool)
    third.unlink()
    third.symlink_to(first)
    with pytest.raises(PoolError, match="slow"):
        FileSystem.open(tiered.pool)


def test_one_that_is_missing(tiered: Members) -> None:
    tiered.storage.with_name("slow3").unlink()
    with pytest.raises(PoolError, match="slow3 does not exist"):
        FileSystem.open(tiered.pool)


def test_the_file_system_below_a_member_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A member's file has holes. What does not fit goes to others, or stays, and nothing is lost."""
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", small)
    try:
        made = tier_rig.make_several(tmp_path, MEMORY, SIZES[:1])
        (small / "slow").write_bytes(b"")
        os.truncate(small / "slow", GROUP + CONTENT)
        with FileSystem.open(made.pool) as fs:
            fs.add_storage(str(small / "slow"))
            contents = {f"/{number}": os.urandom(MIB) for number in range(2 * GROUP // MIB)}
            for path, content in contents.items():
                fs.tree.write_bytes(path, content)
                fs.demote(fs.tree.resolve(path))
            assert 0 < used(fs)[1] < 6 * MIB
            assert caplog.text.count("nothing goes to its storage for 60 s") == 1
            assert not any(each.failed for each in fs.tier_use().members)
            for path, content in contents.items():
                assert fs.tree.read_bytes(path) == content
            with pytest.raises(FsError) as full:
                fs.tree.write_bytes("/more", bytes(MEMORY))
            assert full.value.errno == errno.ENOSPC
        with FileSystem.open(made.pool) as fs:
            for path, content in contents.items():
                assert fs.tree.read_bytes(path) == content
        made.check()
    finally:
        run("umount", small)


def test_a_member_that_is_cut_while_in_use(fs: FileSystem, tiered: Members) -> None:
    """What it had is EIO, all else goes on; more can go down, to what is left of it too."""
    contents = fill(fs)
    for number, size in enumerate(SIZES):
        os.truncate(tiered.storage.with_name("slow" if not number else f"slow{number + 1}"), CONTENT + size // 2)
    found = 0
    for path, content in contents.items():
        try:
            assert fs.tree.read_bytes(path) == content
            found += 1
        except FsError as error:
            assert error.errno == errno.EIO
            assert "has ended at byte" in str(error)
    assert 0 < found < len(contents)
    fs.tree.write_bytes("/new", contents[path])
    fs.demote(fs.tree.resolve("/new"))
    assert fs.tree.read_bytes("/new") == contents[path]
