"""Growth of file systems in use, in every format: what e2fsck, resize2fs and the kernel say of the result."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import weakref
from pathlib import Path

import pytest
from in_memory import tmp_path
from kernel_rig import kernel_mount
from resizing_rig import KIB, LARGE, MIB, SMALL, SPECIAL, counts, fill, is_filled, made, refused

from daxfs.errors import Corrupt, FsError
from daxfs.ext4.group import descriptor
from daxfs.ext4.superblock import Superblock
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.steps import finish
from daxfs.fs.types import Options
from daxfs.pmem import region
from daxfs.structures import growth
from support import fsck, mke2fs, run

__all__ = ["tmp_path"]


def check_growth(path: Path, *options: str) -> None:
    """Grow a pool in three calls, across descriptor blocks, while files are used; compare it with resize2fs's."""
    made(path, *options)
    twin = Path(shutil.copy(path, path.with_name("twin")))
    with FileSystem.open(path) as fs:
        block_size = fs.statfs().block_size
        fill(fs)
        for size in (SMALL + 300 * KIB, 24 * MIB, LARGE):
            free = fs.statfs().free
            assert finish(fs.steps.resize(size // block_size)).blocks == size // block_size
            assert fs.statfs().free > free
            fs.check()
            assert is_filled(fs)
        fs.tree.write_bytes("/large", b"x" * (40 * MIB))
        fs.tree.mkdir("/more")
        for number in range(300):  # more than the old groups have inodes
            fs.tree.write_bytes(f"/more/{number}", b"")
    fsck(path)
    with FileSystem.open(path) as fs:
        assert is_filled(fs)
        for number in range(300):
            fs.tree.unlink(f"/more/{number}")
        fs.tree.rmdir("/more")
        fs.tree.unlink("/large")
        for number in range(20):
            fs.tree.unlink(f"/d/{number}")
        fs.tree.rmdir("/d")
    fsck(path)
    run("truncate", "-s", str(LARGE), twin)
    run("resize2fs", "-f", twin)
    ours, theirs = counts(path), counts(twin)
    assert ours["Block count"] == theirs["Block count"]
    assert ours["Inode count"] == theirs["Inode count"]
    assert ours["Free inodes"] == theirs["Free inodes"]
    if not any(each in text for each in ("sparse_super2", "^resize_inode") for text in options):
        assert ours["Free blocks"] == theirs["Free blocks"]
        assert ours.get("Reserved GDT blocks") == theirs.get("Reserved GDT blocks")


def test_every_format_grows(any_format: tuple[str, ...], tmp_path: Path) -> None:
    check_growth(tmp_path / "pool", *any_format)


@pytest.mark.parametrize("name", SPECIAL)
def test_every_layout_of_groups_grows(name: str, tmp_path: Path) -> None:
    check_growth(tmp_path / "pool", *SPECIAL[name])


def test_reserved_descriptor_blocks_run_out(tmp_path: Path) -> None:
    """Then descriptors go into the new groups (meta_bg), as the kernel has it online; the kernel mounts the result."""
    path = made(tmp_path / "pool", "-E", f"resize={70 * MIB // 4096}")
    assert counts(path)["Reserved GDT blocks"] == 1
    with FileSystem.open(path) as fs:
        fill(fs)
        assert fs.resize(256 * 150).blocks == 256 * 150
        fs.tree.write_bytes("/large", b"x" * (120 * MIB))
        assert is_filled(fs)
    fsck(path)
    assert counts(path)["First meta block group"] == 2
    features = run("dumpe2fs", "-h", path)
    assert "meta_bg" in features
    assert "resize_inode" not in features
    with kernel_mount(path) as place:
        (place / "large").unlink()
        (place / "of the kernel").write_bytes(b"y" * (30 * MIB))
    fsck(path)
    with FileSystem.open(path) as fs:
        assert fs.tree.stat("/of the kernel").size == 30 * MIB
        assert fs.resize(256 * 200).blocks == 256 * 200
        fs.tree.write_bytes("/last", b"z" * (60 * MIB))
    fsck(path)


def test_backups_are_whole(tmp_path: Path) -> None:
    """e2fsck repairs the pool from any of them."""
    path = made(tmp_path / "pool")
    with FileSystem.open(path) as fs:
        fill(fs)
        fs.resize(LARGE // 4096)
        geometry = fs.volume.geometry
        backups = geometry.backups(geometry.groups_count)
    assert 49 in backups
    content = memoryview(path.read_bytes())
    for group in backups:
        descriptors = content[(group * 256 + 1) * 4096 : (group * 256 + 1 + geometry.desc_blocks) * 4096]
        for number in range(geometry.groups_count):
            descriptor(descriptors, number * geometry.desc_size, geometry).verify(number, geometry)
    for group in backups:
        copy = Path(shutil.copy(path, tmp_path / "copy"))
        with copy.open("r+b") as file:
            file.write(bytes(4096 * (1 + geometry.desc_blocks)))  # the superblock and all descriptors
        run("e2fsck", "-fy", "-b", str(group * 256), "-B", "4096", copy, code=1)
        fsck(copy)
        assert counts(copy)["Block count"] == LARGE // 4096
        with FileSystem.open(copy) as fs:
            assert is_filled(fs)


def test_a_backup_in_a_group_whose_number_does_not_fit(tmp_path: Path) -> None:
    """The field has 16 bits; groups 5**7 = 78125 and later have backups nevertheless."""
    with FileSystem.open(made(tmp_path / "pool")) as fs:
        sb = Superblock(memoryview(growth._superblock_for(fs.volume.view, 5**7))[: Superblock.SIZE])
        assert sb.s_block_group_nr == 5**7 - (1 << 16)
        assert not sb.is_torn()


def test_all_of_a_longer_file(tmp_path: Path) -> None:
    path = made(tmp_path / "pool")
    os.truncate(path, LARGE + 700)
    with FileSystem.open(path) as fs:
        assert fs.resize() == (SMALL // 4096, LARGE // 4096)
        assert fs.resize() == (LARGE // 4096, LARGE // 4096)
    assert path.stat().st_size == LARGE + 700


def test_a_last_group_without_room_is_left_out(tmp_path: Path) -> None:
    path = made(tmp_path / "pool")
    with FileSystem.open(path) as fs:
        assert fs.resize(SMALL // 4096 + 1).blocks == SMALL // 4096
        assert fs.resize(SMALL // 4096 + 256 + 5).blocks == SMALL // 4096 + 256


def test_what_is_refused_changes_nothing(tmp_path: Path) -> None:
    path = made(tmp_path / "pool", "-O", "^64bit")
    with FileSystem.open(path) as fs:
        fs.sync()
        assert refused(fs, 100) == "EINVAL"
        assert refused(fs, 1 << 32) == "EFBIG"
        steps = fs.steps.resize(LARGE // 4096)
        next(steps)
        assert refused(fs, LARGE // 4096) == "EBUSY"
        steps.close()
        between = fs.volume.geometry.blocks_count
        assert SMALL // 4096 < between < LARGE // 4096
        fs.create_snapshot(b"monday")
        with pytest.raises(FsError, match="monday"):
            fs.resize(LARGE // 4096)
        fs.delete_snapshot(b"monday")
        with fs.volume.handle(1) as tx:
            tx.edit_superblock().s_state |= 2
        assert refused(fs, LARGE // 4096) == "EUCLEAN"
        with fs.volume.handle(1) as tx:
            tx.edit_superblock().s_state &= ~2
        assert fs.volume.geometry.blocks_count == between
    fsck(path)
    with FileSystem.open(path, Options(read_only=True)) as fs:
        assert refused(fs, LARGE // 4096) == "EROFS"


def test_a_file_that_was_cut(tmp_path: Path) -> None:
    """What is missing must not become a hole that reads as zeros."""
    path = made(tmp_path / "pool")
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("/large", b"x" * (10 * MIB))
        size = fs.size
        os.truncate(path, 8 * MIB)
        for blocks in (size * 2, size - 100, size):
            with pytest.raises(FsError, match="was cut to") as caught:
                fs.resize(blocks)
            assert caught.value.errno == errno.EIO
        for change in (fs.volume.pool.extend, fs.volume.pool.shorten):
            with pytest.raises(FsError, match="was cut to"):
                change((size - 100) * 4096)
        assert path.stat().st_size == 8 * MIB
        os.truncate(path, SMALL)


def test_a_journal_that_is_too_small(tmp_path: Path) -> None:
    """A group with backups reserves as many blocks as each has, in one transaction: the tool is told before."""
    path = mke2fs(tmp_path / "pool", "-b", "1024", "-g", "512", "-J", "size=1", "-N", "512", size="6M")
    assert counts(path)["Reserved GDT blocks"] == 256
    with FileSystem.open(path) as fs:
        with pytest.raises(FsError, match="a transaction of this journal holds 255"):
            fs.resize(20_000)
        assert path.stat().st_size == 6 * MIB
        assert fs.resize(7000).blocks == 7000
    fsck(path)


def test_a_snapshot_in_the_middle_ends_it(tmp_path: Path) -> None:
    path = made(tmp_path / "pool")
    with FileSystem.open(path) as fs:
        steps = fs.steps.resize(LARGE // 4096)
        next(steps)
        fs.create_snapshot(b"monday")
        between = fs.volume.geometry.blocks_count
        with pytest.raises(FsError, match="monday"):
            finish(steps)
        assert fs.volume.geometry.blocks_count == between
    fsck(path)


def test_a_damaged_resize_inode(tmp_path: Path) -> None:
    """A handle that fails is undone, and so is what follows the superblock in DRAM."""
    path = made(tmp_path / "pool")
    run("debugfs", "-w", "-R", "set_inode_field <7> block[DIND] 8", path)
    with FileSystem.open(path) as fs:
        with pytest.raises(Corrupt, match="resize inode"):
            fs.resize(LARGE // 4096)
        assert fs.volume.geometry.blocks_count == SMALL // 4096
        assert fs.volume.geometry.groups_count == 16
        fill(fs)
        assert is_filled(fs)


def test_a_failure_in_the_middle_of_a_handle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new size is undone in DRAM too."""
    path = made(tmp_path / "pool")

    def fail(*_: object) -> None:
        raise FsError(errno.ENOSPC)

    with FileSystem.open(path) as fs:
        fill(fs)
        before = fs.statfs()
        with monkeypatch.context() as patches:
            patches.setattr(growth, "_make_group", fail)
            assert refused(fs, LARGE // 4096) == "ENOSPC"
        assert fs.statfs() == before
        assert fs.volume.geometry.blocks_count == SMALL // 4096
        fs.tree.mkdir("/more")
        assert fs.resize(LARGE // 4096).blocks == LARGE // 4096
    fsck(path)


def test_reserved_addresses_that_do_not_suffice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool moves to other addresses; views of the old ones stay valid, and the daemon keeps none."""
    monkeypatch.setattr(region, "ROOM", 0)
    path = made(tmp_path / "pool")
    with FileSystem.open(path) as fs:
        fill(fs)
        old = weakref.ref(fs.volume.pool._addresses._token)  # type: ignore[attr-defined]
        with fs.tree.open("/d/9") as file:
            view = file.view(0, 100)
            fs.resize(LARGE // 4096)
            assert bytes(view) == bytes([10]) * 100
            fs.tree.write_bytes("/large", b"x" * (40 * MIB))
            assert is_filled(fs)
            fs.sync()
            os.truncate(path, SMALL)
            with pytest.raises(FsError):
                fs.tree.read_bytes("/large")
            os.truncate(path, LARGE)
            view.release()
        gc.collect()
        assert old() is None, "a fault there would end the process"
