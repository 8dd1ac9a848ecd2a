"""Interoperation with the kernel: each reads what the other writes, on several formats; e2fsck finds nothing."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_rig import kernel_mount
from tree_rig import (
    QUIET,
    KernelSide,
    PoolSide,
    Tree,
    kernel_tree,
    mingle,
    plant,
    pool_tree,
    portable,
    same,
    set_times,
    timeless,
)

from daxfs.errors import FsError
from daxfs.ext4.inode import EXT4_APPEND_FL, EXT4_IMMUTABLE_FL, EXT4_NOATIME_FL
from daxfs.fs.filesystem import FileSystem
from support import fsck, run

MakePool = Callable[..., Path]

KEEP_SIZE = 1
PUNCH_HOLE = 2
COLLAPSE_RANGE = 8
ZERO_RANGE = 16
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602

some_formats = pytest.mark.parametrize(
    "any_format",
    ["default", "block1k", "no-csum", "inode128", "no-extents", "orphan-file", "no-journal", "gdt-csum"],
    indirect=True,
)


def refused(number: int) -> pytest.RaisesExc[FsError]:
    """Expect an FsError with this errno."""
    return pytest.RaisesExc(FsError, check=lambda error: error.errno == number)


def block_size(options: tuple[str, ...]) -> int:
    return 1024 if "1024" in options else 4096


def planted_by_kernel(pool: Path, size: int) -> Tree:
    """Have the kernel write the tree; return it as the kernel sees it after another mount."""
    with kernel_mount(pool) as root:
        side = KernelSide(root)
        plant(side, size)
        set_times(side, kernel_tree(root))
    return seen_by_kernel(pool)


def seen_by_kernel(pool: Path) -> Tree:
    with kernel_mount(pool, "ro") as root:
        return kernel_tree(root)


@some_formats
def test_a_tree_of_the_kernel_is_read_by_daxfs(pool: MakePool, any_format: tuple[str, ...]) -> None:
    path = pool("-b", "4096", *any_format, size="96M")
    seen = planted_by_kernel(path, block_size(any_format))
    before = path.read_bytes()
    same(pool_tree(path), seen)
    assert path.read_bytes() == before, "a read-only mount changed the pool"
    with FileSystem.open(path, QUIET) as fs:
        same(pool_tree(fs), seen)
    fsck(path)


@some_formats
def test_a_tree_of_daxfs_is_read_by_the_kernel(pool: MakePool, any_format: tuple[str, ...]) -> None:
    path = pool("-b", "4096", *any_format, size="96M")
    with FileSystem.open(path, QUIET) as fs:
        side = PoolSide(fs)
        plant(side, block_size(any_format))
        set_times(side, pool_tree(fs))
        ours = pool_tree(fs)
    fsck(path)
    same(pool_tree(path), ours)
    same(seen_by_kernel(path), ours)
    same(
        portable(ours), portable(planted_by_kernel(pool("-b", "4096", *any_format, size="96M"), block_size(any_format)))
    )


def test_debugfs_sees_the_same(pool: MakePool, tmp_path: Path) -> None:
    path = pool("-b", "4096", size="96M")
    with FileSystem.open(path, QUIET) as fs:
        side = PoolSide(fs)
        plant(side)
        set_times(side, pool_tree(fs))
        ours = pool_tree(fs)
        contents = {name: fs.tree.read_bytes(b"files/" + name) for name in (b"small", b"large", b"pieces")}
    for name, content in contents.items():
        dumped = tmp_path / name.decode()
        run("debugfs", "-R", f"dump /files/{name.decode()} {dumped}", path)
        assert dumped.read_bytes() == content
    for name in ("modes/1", "modes/4", "files/large", "nodes/fifo", "acls/heir", "links/3"):
        facts = ours[name.encode()]
        words = run("debugfs", "-R", f"stat /{name}", path).split()

        def after(label: str, words: list[str] = words) -> str:
            return words[words.index(label) + 1]

        assert int(words[1]) == facts.ino
        assert int(after("Mode:"), 8) == facts.mode & 0o7777
        assert int(after("Size:")) == facts.size
        assert int(after("Links:")) == facts.nlink
        assert int(after("Blockcount:")) == facts.blocks
        assert int(after("User:")) == facts.uid
        assert int(after("Group:")) == facts.gid
        assert after("mtime:") == f"0x{facts.mtime_ns // 10**9:08x}:{facts.mtime_ns % 10**9 << 2:08x}"
    listed = run("debugfs", "-R", "ea_list /xattrs/in-both", path)
    for name, value in ours[b"xattrs/in-both"].xattrs:
        assert f"{name.decode()} ({len(value)})" in listed
    assert 'user.of-a-directory (1) = "d"' in run("debugfs", "-R", "ea_list /xattrs", path)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    assert libc.fallocate(descriptor, mode, offset, length) == 0, os.strerror(ctypes.get_errno())


@pytest.mark.parametrize("any_format", ["default", "block1k", "inode128"], indirect=True)
def test_preallocated_and_punched_files(pool: MakePool, any_format: tuple[str, ...]) -> None:
    """daxfs writes to unwritten extents, blocks past EOF, holes and shifted extents."""
    path = pool("-b", "4096", *any_format)
    chance = random.Random(5)
    with kernel_mount(path) as root:
        files = {name: os.open(root / name, os.O_RDWR | os.O_CREAT) for name in ("plain", "kept", "mixed", "cut")}
        fallocate(files["plain"], 0, 0, 1_000_000)
        fallocate(files["kept"], KEEP_SIZE, 0, 1_000_000)
        os.pwrite(files["kept"], b"short", 0)
        os.pwrite(files["mixed"], chance.randbytes(900_000), 0)
        for number in range(20):
            how = (PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE)[number % 2]
            fallocate(files["mixed"], how, chance.randrange(800_000), chance.randrange(1, 60_000))
            os.pwrite(files["mixed"], b"again", chance.randrange(850_000))
            os.fsync(files["mixed"])
        os.pwrite(files["cut"], chance.randbytes(800_000), 0)
        fallocate(files["cut"], COLLAPSE_RANGE, 8192, 65536)
        contents = {name: bytearray((root / name).read_bytes()) for name in files}
        for descriptor in files.values():
            os.close(descriptor)
    same(pool_tree(path), seen_by_kernel(path))
    with FileSystem.open(path, QUIET) as fs:
        assert any(run.unwritten for run in fs.describe(fs.tree.resolve("/plain")))
        for name, content in contents.items():
            file = fs.open_file(fs.tree.resolve("/" + name), os.O_RDWR)
            for _ in range(30):
                offset = chance.randrange(len(content) + 10_000)
                piece = chance.randbytes(chance.choice((1, 500, 5000, 30_000)))
                fs.write(file, offset, piece)
                content += bytes(max(offset + len(piece) - len(content), 0))
                content[offset : offset + len(piece)] = piece
            assert bytes(fs.read(file, 0, len(content) + 1)) == content
            fs.release(file)
    fsck(path)
    with kernel_mount(path, "ro") as root:
        for name, content in contents.items():
            assert (root / name).read_bytes() == content


def test_flags_of_the_kernel_are_obeyed(pool: MakePool) -> None:
    path = pool("-b", "4096")
    flags = {"fixed": EXT4_IMMUTABLE_FL, "grows": EXT4_APPEND_FL, "quiet": EXT4_NOATIME_FL}
    with kernel_mount(path) as root:
        for name, flag in flags.items():
            (root / name).write_bytes(b"content")
            with (root / name).open("rb") as file:
                (found,) = struct.unpack("<I", fcntl.ioctl(file, FS_IOC_GETFLAGS, bytes(4)))
                fcntl.ioctl(file, FS_IOC_SETFLAGS, struct.pack("<I", found | flag))
    with FileSystem.open(path, QUIET) as fs:
        for name, flag in flags.items():
            assert fs.tree.stat("/" + name).flags & flag
        with refused(errno.EPERM):
            fs.tree.write_bytes("/fixed", b"x")
        with refused(errno.EPERM):
            fs.tree.unlink("/fixed")
        with refused(errno.EPERM):
            fs.tree.write_bytes("/grows", b"x")
        with fs.tree.open("/grows", "ab") as file:
            file.write(b" and more")
    fsck(path)
    with kernel_mount(path) as root:
        assert (root / "grows").read_bytes() == b"content and more"
        for name in flags:
            with (root / name).open("rb") as file:
                fcntl.ioctl(file, FS_IOC_SETFLAGS, struct.pack("<I", 0x80000))


def test_attribute_blocks_that_the_kernel_shares_are_copied_before_a_change(pool: MakePool) -> None:
    path = pool("-b", "4096")
    with kernel_mount(path) as root:
        for number in range(4):
            (root / str(number)).touch()
            os.setxattr(root / str(number), "user.shared", b"shared" * 100)
        os.sync()
        assert len({os.stat(root / str(number)).st_blocks for number in range(4)}) == 1
    with FileSystem.open(path, QUIET) as fs:
        fs.setxattr(fs.tree.resolve("/0"), b"user.shared", b"own" * 100)
        fs.removexattr(fs.tree.resolve("/1"), b"user.shared")
        fs.tree.unlink("/2")
        assert fs.getxattr(fs.tree.resolve("/3"), b"user.shared") == b"shared" * 100
    fsck(path)
    with kernel_mount(path, "ro") as root:
        assert os.getxattr(root / "0", "user.shared") == b"own" * 100
        assert os.listxattr(root / "1") == []
        assert os.getxattr(root / "3", "user.shared") == b"shared" * 100


@pytest.mark.parametrize("any_format", ["default", "block1k", "no-extents", "orphan-file"], indirect=True)
def test_taking_turns_with_the_kernel_on_one_pool(pool: MakePool, any_format: tuple[str, ...]) -> None:
    """Each continues where the other stopped; a second pool, which the kernel alone has changed, looks the same."""
    mixed, pure = pool("-b", "4096", *any_format), pool("-b", "4096", *any_format)
    tree: Tree = {b"": seen_by_kernel(pure)[b""]}
    for turn in range(6):
        with kernel_mount(pure) as root:
            mingle(KernelSide(root), random.Random(turn), tree, 120)
        if turn % 2:
            with kernel_mount(mixed) as root:
                mingle(KernelSide(root), random.Random(turn), tree, 120)
        else:
            with FileSystem.open(mixed, QUIET) as fs:
                mingle(PoolSide(fs), random.Random(turn), tree, 120)
        fsck(mixed)
        tree = seen_by_kernel(pure)
        found = seen_by_kernel(mixed)
        same(pool_tree(mixed), found)
        same(timeless(found), timeless(tree))


def test_statfs_tells_what_the_kernel_tells(pool: MakePool, any_format: tuple[str, ...]) -> None:
    path = pool("-b", "4096", *any_format)
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("/f", b"x" * 1_000_000)
        fs.tree.unlink("/f")
        fs.tree.write_bytes("/g", b"x" * 500_000)
        found = fs.statfs()
    with kernel_mount(path, "ro") as root:
        told = os.statvfs(root)
    assert (found.block_size, found.blocks, found.free) == (told.f_frsize, told.f_blocks, told.f_bfree)
    assert (found.files, found.files_free, found.name_max) == (told.f_files, told.f_ffree, told.f_namemax)
    assert found.available >= told.f_bavail  # the kernel also keeps some for delayed allocation
