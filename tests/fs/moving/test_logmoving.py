"""The journal moves out of a part of the pool that goes: it is used at its new place, or stays and is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_memory import tmp_path
from kernel_rig import kernel_mount
from resizing_rig import LARGE, MIB, made

from daxfs.errors import Corrupt, FsError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.moving import logmoving
from daxfs.fs.steps import finish
from daxfs.runs import BlockRun
from daxfs.structures import blocks
from support import fsck, run

__all__ = ["tmp_path"]


@pytest.mark.parametrize("options", [(), ("-O", "^metadata_csum"), ("-b", "1024"), ("-O", "^64bit,fast_commit")])
def test_the_journal_moves(options: tuple[str, ...], tmp_path: Path) -> None:
    """mke2fs puts it in the middle. It is used at its new place, by daxfs and by the kernel."""
    path = made(tmp_path / "pool", *options, size="80M")
    with FileSystem.open(path) as fs:
        block_size = fs.statfs().block_size
        area = fs.volume.log_area
        assert area is not None
        before, end = area.runs, sum(area.runs[-1]) - 100
        for number in range(20):
            fs.tree.write_bytes(f"/{number}", bytes([number]) * 50_000)
        assert fs.resize(end).blocks <= end
        assert fs.volume.log_area is not None
        assert fs.volume.log_area.runs != before
        assert fs.volume.log_area.blocks == area.blocks
        for number in range(20):
            fs.tree.write_bytes(f"/{number}", bytes([number]) * 60_000)
            fs.sync()
        fs.check()
    fsck(path)
    assert path.stat().st_size <= end * block_size
    with kernel_mount(path) as place:
        assert (place / "7").read_bytes() == b"\7" * 60_000
        (place / "kernel").write_bytes(b"k")
    fsck(path)
    with FileSystem.open(path) as fs:
        assert fs.tree.read_bytes("/kernel") == b"k"


def test_its_place_is_taken_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of the new place is had in steps; the log goes to what is free after them."""
    monkeypatch.setattr(logmoving, "BYTES_PER_STEP", MIB)
    path = made(tmp_path / "pool", size="80M")
    with FileSystem.open(path) as fs:
        area, had = fs.volume.log_area, list[tuple[int, int]]()
        assert area is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fs.volume.pool, "make_room", lambda offset, length: had.append((offset, length)))
            steps = fs.steps.resize(sum(area.runs[-1]) - 100)
            while not had:
                next(steps)
            assert had == [(had[0][0], MIB)]
        taken = BlockRun(had[0][0] // 4096, 1)
        with fs.volume.handle(8) as tx:
            assert blocks.take_run(tx, taken)
        finish(steps)
        assert fs.volume.log_area is not None
        assert fs.volume.log_area.runs != area.runs
        assert not any(start <= taken.start < start + length for start, length in fs.volume.log_area.runs)
        with fs.volume.handle(8) as tx:
            blocks.free(tx, *taken)
        fs.check()
    fsck(path)


def test_a_journal_that_can_not_move(tmp_path: Path) -> None:
    """One without extents is named, and nothing has changed."""
    path = made(tmp_path / "pool", "-O", "^extent,^64bit", size="80M")
    with FileSystem.open(path) as fs:
        area = fs.volume.log_area
        assert area is not None
        with pytest.raises(FsError, match="past the new end stay the journal"):
            fs.resize(max(map(sum, area.runs)) - 4)
        fs.check()
        assert fs.size == LARGE // 4096
    fsck(path)


def test_a_torn_inode_is_mended(tmp_path: Path) -> None:
    """By a mount, if a move was cut off, from the superblock's copy; without a copy, the mount is refused."""
    path = made(tmp_path / "pool")
    run("debugfs", "-w", "-R", "set_inode_field <8> checksum 0x1234", path)
    with pytest.raises(Corrupt, match="inode checksum"):
        FileSystem.open(path)
    run("debugfs", "-w", "-R", "set_super_value state 3", path)
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("/file", b"content")
    run("e2fsck", "-fp", path, code=0)
    fsck(path)
    run("debugfs", "-w", "-R", "set_super_value state 3", path)
    run("debugfs", "-w", "-R", "set_inode_field <8> checksum 0x1234", path)
    run("debugfs", "-w", "-R", "set_super_value jnl_backup_type 0", path)
    with pytest.raises(Corrupt, match="inode checksum"):
        FileSystem.open(path)
