"""Bad input: one named error each and an unchanged pool; damage met later is recorded and stops all changes."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_rig import copy, kernel_mount
from tree_rig import QUIET, furnish, kernel_tree, pool_tree, same

from daxfs.errors import Corrupt, FsError, PoolError, Unsupported
from daxfs.ext4.superblock import EXT4_ERROR_FS, Superblock
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import Options, SetAttributes
from daxfs.pmem.memory import MemoryPool
from daxfs.structures import groups, inodes, mapping
from support import fsck, run

MakePool = Callable[..., Path]

SUPERBLOCK = 1024


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def poke(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def flip(path: Path, offset: int) -> None:
    """Change one byte."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x5A]))


def superblock(path: Path) -> Superblock:
    with path.open("rb") as file:
        file.seek(SUPERBLOCK)
        return Superblock(memoryview(bytearray(file.read(1024))))


def reshape(path: Path, **fields: int) -> None:
    """Set fields of the superblock, with a right checksum."""
    sb = superblock(path)
    for name, value in fields.items():
        setattr(sb, name, value)
    sb.seal()
    poke(path, SUPERBLOCK, bytes(sb.buffer))


def refusal(path: Path, mount: Options | None = None) -> Exception:
    """The error that opening the pool ends in; the pool is not changed by it and not in use afterwards."""
    before = digest(path)
    for _ in range(2):
        with pytest.raises((OSError, PoolError)) as caught:
            FileSystem.open(path, mount)
        assert digest(path) == before, "a refused pool was changed"
        assert "\n" not in str(caught.value)
    return caught.value


# Pools that are refused


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
    flip(path, SUPERBLOCK + offset)
    error = refusal(path)
    assert isinstance(error, Corrupt)
    assert error.kind == "superblock checksum"


def test_a_descriptor_with_a_bad_checksum(pool: MakePool) -> None:
    path = pool("-b", "4096")
    flip(path, 4096 + 0x0C)
    error = refusal(path)
    assert isinstance(error, Corrupt)
    assert error.kind == "group descriptor checksum"


def journal_block(path: Path, lblk: int) -> int:
    """The byte where a block of the journal lies."""
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
    """EROFS, whatever is tried; reads go on."""
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
    """A path is opened so that replay has somewhere to go; a pool that is given mapped for reading has nothing."""
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


# Pools in use


def test_a_pool_in_use_by_this_process(pool: MakePool) -> None:
    path = pool("-b", "4096")
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("/f", b"content")
        for mount in (None, Options(read_only=True)):
            error = refusal(path, mount)
            assert isinstance(error, PoolError)
            assert "in use" in str(error)
    FileSystem.open(path).close()
    fsck(path)


def test_a_pool_in_use_by_another_daxfs(pool: MakePool) -> None:
    path = pool("-b", "4096")
    script = (
        "import sys; from daxfs.fs.filesystem import FileSystem\n"
        f"with FileSystem.open({str(path)!r}): print('open', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        error = refusal(path)
        assert isinstance(error, PoolError)
        assert str(child.pid) in str(error)
    finally:
        child.communicate("", timeout=30)
    assert child.returncode == 0
    fsck(path)


def test_a_pool_that_the_kernel_has_mounted(pool: MakePool) -> None:
    path = pool("-b", "4096")
    with kernel_mount(path) as root:
        error = refusal(path)
        assert isinstance(error, PoolError)
        assert str(root) in str(error)
        (root / "f").write_text("still the kernel's")
    with FileSystem.open(path) as fs:
        assert fs.tree.read_bytes("/f") == b"still the kernel's"


# Damage met at run time


def inode_place(fs: FileSystem, path: str) -> int:
    block, offset = inodes.position(fs.volume.view, fs.tree.resolve(path))
    return (block << fs.volume.block_bits) + offset + 0x10


def block_place(fs: FileSystem, path: str, lblk: int = 0, offset: int = 24) -> int:
    view = fs.volume.view
    run = mapping.lookup(view, inodes.read(view, fs.tree.resolve(path)), lblk)
    return (run.pblk << fs.volume.block_bits) + offset


def extent_place(fs: FileSystem, path: str) -> int:
    area = inodes.read(fs.volume.view, fs.tree.resolve(path)).block_area
    assert area[6], "the file has no extent block"
    return (int.from_bytes(area[16:20], "little") << fs.volume.block_bits) + 16


def attribute_place(fs: FileSystem, path: str) -> int:
    return (inodes.read(fs.volume.view, fs.tree.resolve(path)).file_acl << fs.volume.block_bits) + 100


Damage = tuple[Callable[[FileSystem], int], Callable[[FileSystem], object], str]

DAMAGE: dict[str, Damage] = {
    "inode": (lambda fs: inode_place(fs, "/f"), lambda fs: fs.tree.stat("/f"), "inode checksum"),
    "directory": (lambda fs: block_place(fs, "/"), lambda fs: fs.tree.stat("/f"), "directory"),
    "index root": (lambda fs: block_place(fs, "/d", 0, 0x24), lambda fs: fs.tree.listdir("/d"), "directory"),
    "leaf": (lambda fs: block_place(fs, "/d", 1), lambda fs: fs.tree.listdir("/d"), "directory"),
    "extents": (lambda fs: extent_place(fs, "/pieces"), lambda fs: fs.tree.read_bytes("/pieces"), "extent"),
    "attributes": (
        lambda fs: attribute_place(fs, "/attributes"),
        lambda fs: fs.getxattr(fs.tree.resolve("/attributes"), b"user.big"),
        "attribute block",
    ),
    "inode bitmap": (
        lambda fs: groups.descriptor(fs.volume.view, 0).inode_bitmap * 4096 + 100,
        lambda fs: fs.mknod(ROOT_INO, b"new", 0o644),
        "inode bitmap checksum",
    ),
    "block bitmap": (
        lambda fs: groups.descriptor(fs.volume.view, 0).block_bitmap * 4096 + 1000,
        lambda fs: fs.mkdir(ROOT_INO, b"new", 0o755),
        "block bitmap checksum",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_damage_is_named_recorded_and_stops_changes(pool: MakePool, damage: Damage) -> None:
    place, meet, kind = damage
    path = pool("-b", "4096", size="16M")
    with FileSystem.open(path) as fs:
        furnish(fs)
    with FileSystem.open(path, Options(read_only=True)) as fs:
        offset = place(fs)
        journal = {
            block
            for run in mapping.walk(fs.volume.view, inodes.read(fs.volume.view, 8))
            for block in range(run.pblk, run.pblk + run.length)
        }
    flip(path, offset)
    before = path.read_bytes()
    with FileSystem.open(path, QUIET) as fs:
        with pytest.raises(Corrupt) as caught:
            meet(fs)
        assert caught.value.errno == errno.EUCLEAN
        assert kind in caught.value.kind
        assert caught.value.where
        with pytest.raises(FsError) as refused:
            fs.mkdir(ROOT_INO, b"later", 0o755)
        assert refused.value.errno == errno.EROFS
        if "bitmap" not in kind:
            with pytest.raises(Corrupt):
                meet(fs)
    after = path.read_bytes()
    changed = {
        block for block in range(4096) if before[block << 12 : block + 1 << 12] != after[block << 12 : block + 1 << 12]
    }
    assert changed - journal <= {0}, "damage led to changes elsewhere"
    sb = superblock(path)
    assert sb.s_state & EXT4_ERROR_FS
    assert sb.s_error_count == 1
    assert sb.s_first_error_func.startswith(kind.encode()[:10])
    done = subprocess.run(
        ["e2fsck", "-fn", path], capture_output=True, timeout=60, check=False, env={"PATH": "/usr/sbin:/sbin"}
    )
    assert done.returncode == 4, "e2fsck finds no damage"


def test_damage_of_a_read_only_mount_changes_nothing(pool: MakePool) -> None:
    path = pool("-b", "4096", size="16M")
    with FileSystem.open(path) as fs:
        furnish(fs)
        offset = inode_place(fs, "/f")
    flip(path, offset)
    before = digest(path)
    with FileSystem.open(path, Options(read_only=True)) as fs:
        for _ in range(2):
            with pytest.raises(Corrupt):
                fs.tree.stat("/f")
        assert fs.tree.stat("/pieces").size
    assert digest(path) == before


def test_a_pool_is_read_the_same_by_the_kernel_after_all_this(pool: MakePool) -> None:
    """The furniture of the tests above is sound."""
    path = pool("-b", "4096", size="16M")
    with FileSystem.open(path) as fs:
        furnish(fs)
    with kernel_mount(path, "ro") as root:
        same(pool_tree(copy(path, "ours")), kernel_tree(root))
    fsck(path)
