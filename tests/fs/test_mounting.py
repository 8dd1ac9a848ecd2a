"""Pools that can't be mounted, or not for writing: each is refused with one named error and stays unchanged."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from damage_rig import digest, flip, refusal, reshape, superblock
from kernel_rig import copy

from daxfs.errors import Corrupt, FsError, Unsupported
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import Options, SetAttributes
from daxfs.pmem.memory import MemoryPool
from daxfs.structures import inodes
from support import fsck, run

MakePool = Callable[..., Path]


@pytest.mark.parametrize("content", ["zeros", "noise", "text", "other"])
def test_what_is_no_ext4(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pool"
    size = 1 << 20
    made = {
        "zeros": bytes(size),
        "noise": random.Random(1).randbytes(size),
        "text": b"not a pool at all\n" * (size // 18),
        "other": bytes(0x1FE) + b"\x55\xaa" + bytes(size),
    }
    path.write_bytes(made[content])
    error = refusal(path)
    assert isinstance(error, FsError)
    assert error.errno == errno.EINVAL
    assert str(path) in str(error)
    assert "not an ext4" in str(error)


@pytest.mark.parametrize("size", [0, 1, 1000, 1024, 1500, 2048])
def test_what_is_too_short_for_a_superblock(tmp_path: Path, size: int) -> None:
    path = tmp_path / "pool"
    path.write_bytes(bytes(size))
    assert str(path) in str(refusal(path))


@pytest.mark.parametrize("size", [4096, 1 << 20, (64 << 20) - 4096])
def test_a_truncated_pool(pool: MakePool, size: int) -> None:
    path = pool("-b", "4096")
    os.truncate(path, size)
    error = refusal(path)
    assert isinstance(error, Corrupt)
    assert error.kind == "pool size"
    assert str(64 << 20) in str(error)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"blocks_count": 0}, "superblock block"),
        ({"blocks_count": 5}, "superblock"),
        ({"blocks_count": 1 << 40}, "superblock|pool size"),
        ({"blocks_count": 20_000}, "pool size"),
        ({"s_inodes_count": 0}, "superblock"),
        ({"s_inodes_count": 7}, "superblock"),
        ({"s_inodes_per_group": 0}, "superblock"),
        ({"s_blocks_per_group": 0}, "superblock"),
        ({"s_blocks_per_group": 1 << 20}, "superblock"),
        ({"s_log_block_size": 60}, "superblock"),
        ({"s_log_block_size": 5}, "superblock|pool size"),
        ({"s_first_data_block": 9}, "superblock"),
        ({"s_inode_size": 100}, "superblock"),
        ({"s_inode_size": 8192}, "superblock"),
        ({"s_desc_size": 3}, "superblock"),
        ({"s_journal_inum": 3}, "journal|inode"),
        ({"s_journal_inum": 0xFFFFFFFF}, "inode number|journal"),
        ({"s_checksum_type": 9}, "superblock checksum type"),
        ({"s_rev_level": 77}, "superblock"),
    ],
    ids=str,
)
def test_a_superblock_that_makes_no_sense(pool: MakePool, fields: dict[str, int], kind: str) -> None:
    path = pool("-b", "4096")
    reshape(path, **fields)
    error = refusal(path)
    assert isinstance(error, Corrupt), repr(error)
    assert any(word in error.kind for word in kind.split("|")), str(error)


@pytest.mark.parametrize("offset", [0x0C, 0x68, 0x200, 0x3FC])
def test_a_superblock_with_a_bad_checksum(pool: MakePool, offset: int) -> None:
    path = pool("-b", "4096")
    flip(path, SUPERBLOCK_OFFSET + offset)
    error = refusal(path)
    assert isinstance(error, Corrupt)
    assert error.kind == "superblock checksum"


def test_a_descriptor_with_a_bad_checksum(pool: MakePool) -> None:
    """Readers get all, and nothing is taken from the group; with errors=remount-ro too the volume goes on."""
    path = pool("-b", "4096")
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("/file", b"content")
    flip(path, 4096 + 0x0C)
    with FileSystem.open(path, Options(errors="continue")) as fs:
        assert fs.tree.read_bytes("/file") == b"content"
        assert fs.metadata_errors().count == 1
        with pytest.raises(FsError) as refused:
            fs.tree.write_bytes("/new", b"content")
        assert refused.value.errno == errno.ENOSPC, "it is the only group"
        fs.tree.unlink("/file")
        assert fs.metadata_errors().count == 1
    with FileSystem.open(path, Options(errors="remount-ro")) as fs:
        assert fs.tree.listdir("/")
        assert not fs.read_only
    run("e2fsck", "-fy", path, code=1)
    fsck(path)


def test_a_root_that_can_not_be_read(pool: MakePool) -> None:
    path = pool("-b", "4096")
    with FileSystem.open(path) as fs:
        number, offset = inodes.position(fs.volume.view, ROOT_INO)
    flip(path, number * 4096 + offset + 4)
    error = refusal(path)
    assert isinstance(error, Corrupt)
    assert error.kind == "inode checksum"
    assert isinstance(refusal(path, Options(read_only=True)), Corrupt)


def test_a_read_only_mount_needs_no_journal(pool: MakePool) -> None:
    path = pool("-b", "4096")
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("/file", b"content")
        number, offset = inodes.position(fs.volume.view, 8)
    flip(path, number * 4096 + offset + 4)
    assert isinstance(refusal(path), Corrupt)
    with FileSystem.open(path, Options(read_only=True)) as fs:
        assert fs.tree.read_bytes("/file") == b"content"
        assert fs.statfs().blocks


def journal_block(path: Path, lblk: int) -> int:
    """Return the byte offset of a block of the journal."""
    return int(run("debugfs", "-R", f"bmap <8> {lblk}", path).split()[0]) * 4096


def test_a_journal_with_a_bad_superblock(pool: MakePool) -> None:
    path = pool("-b", "4096")
    FileSystem.open(path).close()  # the first mount gives the journal its checksums
    flip(path, journal_block(path, 0) + 0x18)
    error = refusal(path)
    assert isinstance(error, Corrupt)
    assert "journal" in error.kind


def test_a_journal_inode_with_a_bad_checksum(pool: MakePool) -> None:
    path = pool("-b", "4096")
    with FileSystem.open(path, Options(read_only=True)) as fs:
        block, offset = inodes.position(fs.volume.view, 8)
    flip(path, block * 4096 + offset + 0x64)
    error = refusal(path)
    assert isinstance(error, Corrupt)
    assert error.kind == "inode checksum"


@pytest.mark.parametrize(
    ("bit", "name"),
    [
        (0x0001, "compression"),
        (0x0008, "journal_dev"),
        (0x0100, "mmp"),
        (0x8000, "inline_data"),
        (0x10000, "encrypt"),
        (0x20000, "casefold"),
        (0x4000_0000, "FEATURE_I30"),
    ],
)
def test_an_unknown_incompat_feature_is_named(pool: MakePool, bit: int, name: str) -> None:
    path = pool("-b", "4096")
    reshape(path, s_feature_incompat=superblock(path).s_feature_incompat | bit)
    for mount in (None, Options(read_only=True)):
        error = refusal(path, mount)
        assert isinstance(error, Unsupported)
        assert error.features == (name,)
        assert name in str(error)


@pytest.mark.parametrize(("bit", "name"), [(0x0200, "bigalloc"), (0x8000, "verity"), (0x4000_0000, "FEATURE_R30")])
def test_an_unknown_ro_compat_feature_mounts_read_only(
    pool: MakePool, bit: int, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = pool("-b", "4096")
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("/f", b"content")
    reshape(path, s_feature_ro_compat=superblock(path).s_feature_ro_compat | bit)
    before = digest(path)
    with FileSystem.open(path) as fs:
        assert fs.tree.read_bytes("/f") == b"content"
        refuses_every_change(fs)
    assert name in caplog.text
    assert digest(path) == before


def refuses_every_change(fs: FileSystem) -> None:
    """Check that every change is refused with EROFS and that reads work."""
    root = ROOT_INO
    inode = fs.lookup(root, b"f").ino
    attempts: list[Callable[[], object]] = [
        lambda: fs.mknod(root, b"new", 0o644),
        lambda: fs.mkdir(root, b"new", 0o755),
        lambda: fs.symlink(root, b"new", b"target"),
        lambda: fs.create(root, b"new", 0o644),
        lambda: fs.link(inode, root, b"new"),
        lambda: fs.unlink(root, b"f"),
        lambda: fs.rename(root, b"f", root, b"new"),
        lambda: fs.setattr(inode, SetAttributes(mode=0o600)),
        lambda: fs.setattr(inode, SetAttributes(size=1)),
        lambda: fs.setattr(inode, SetAttributes(atime_ns=1)),
        lambda: fs.setxattr(inode, b"user.x", b""),
        lambda: fs.removexattr(inode, b"user.x"),
        lambda: fs.open_file(inode, os.O_RDWR),
        lambda: fs.open_file(inode, os.O_RDONLY | os.O_TRUNC),
    ]
    for attempt in attempts:
        with pytest.raises(FsError) as caught:
            attempt()
        assert caught.value.errno == errno.EROFS
    assert not fs.access(inode, 2)
    fs.fsync(inode)
    fs.sync()
    fs.tick()


def test_a_read_only_mount(pool: MakePool) -> None:
    path = pool("-b", "4096")
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("/f", b"content")
    before = digest(path)
    with FileSystem.open(path, Options(read_only=True)) as fs:
        refuses_every_change(fs)
        assert fs.tree.read_bytes("/f") == b"content"
    assert digest(path) == before


def test_a_dirty_journal_needs_memory_that_can_be_written(pool: MakePool) -> None:
    """A pool that is opened by path can be replayed in memory; a pool that is given as mapped for reading can't."""
    path = pool("-b", "4096")
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("/f", b"content")
        fs.sync()
        dirty = copy(path, "dirty")
    with pytest.raises(FsError, match="replay") as refused:
        FileSystem.open(MemoryPool(dirty.read_bytes(), read_only=True), Options(read_only=True))
    assert refused.value.errno == errno.EROFS
    with FileSystem.open(dirty, Options(read_only=True)) as fs:
        assert fs.tree.read_bytes("/f") == b"content"
