"""A mounted pool as a whole: its size as statfs(2) reports it, and damage that is found at run time."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from damage_rig import digest, flip, superblock
from kernel_rig import copy, kernel_mount
from tree_rig import QUIET, furnish, kernel_tree, pool_tree, same

from daxfs.errors import Corrupt, FsError
from daxfs.ext4.superblock import EXT4_ERROR_FS
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import Options
from daxfs.structures import groups, inodes, mapping
from support import fsck, run

MakePool = Callable[..., Path]
FORMATS = {
    "4k": ("-b", "4096"),
    "1k": ("-b", "1024"),
    "no-extents": ("-b", "4096", "-O", "^extent,^64bit"),
    "no-flex": ("-b", "1024", "-O", "^flex_bg"),
    "meta-bg": ("-b", "1024", "-O", "meta_bg,^resize_inode"),
    "sparse-super2": ("-b", "1024", "-O", "sparse_super2"),
    "no-sparse-super": ("-b", "1024", "-O", "^sparse_super,^resize_inode"),
    "no-journal": ("-b", "4096", "-O", "^has_journal"),
    "bigalloc": ("-b", "4096", "-O", "bigalloc", "-C", "16384"),
    "bigalloc-1k": ("-b", "1024", "-O", "bigalloc", "-C", "8192"),
}


@pytest.mark.parametrize("value", [0, 77])
@pytest.mark.parametrize("options", FORMATS.values(), ids=list(FORMATS))
def test_statfs_reports_the_kernels_size(pool: MakePool, options: tuple[str, ...], value: int) -> None:
    """The value of ``s_overhead_clusters`` does not matter."""
    path = pool(*options, size="64M")
    run("debugfs", "-w", "-R", f"set_super_value overhead_clusters {value}", path)
    with FileSystem.open(path, Options(read_only=True)) as fs:
        found = fs.statfs()
    with kernel_mount(path, "ro") as root:
        expected = os.statvfs(root)
    assert (found.blocks, found.free, found.available) == (expected.f_blocks, expected.f_bfree, expected.f_bavail)
    fsck(path)


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


READERS = ("inode", "directory", "extents", "attributes")
"""What readers meet: it stops no change."""


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_recorded_and_stops_changes_if_one_has_failed(pool: MakePool, name: str) -> None:
    place, meet, kind = DAMAGE[name]
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
    with FileSystem.open(path, replace(QUIET, errors="remount-ro")) as fs:
        with pytest.raises(Corrupt) as caught:
            meet(fs)
        assert caught.value.errno == errno.EUCLEAN
        assert kind in caught.value.kind
        assert caught.value.where
        if name in READERS:
            assert not fs.read_only
            with pytest.raises(Corrupt):
                meet(fs)
        else:
            with pytest.raises(FsError) as refused:
                fs.mkdir(ROOT_INO, b"later", 0o755)
            assert refused.value.errno == errno.EROFS
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


@pytest.mark.parametrize(("lblk", "offset"), [(0, 0x24), (1, 24)], ids=["index root", "leaf"])
def test_a_listing_goes_on_and_counts_what_it_left_out(pool: MakePool, lblk: int, offset: int) -> None:
    path = pool("-b", "4096", size="16M")
    with FileSystem.open(path) as fs:
        furnish(fs)
        whole = fs.tree.listdir("/d")
        place = block_place(fs, "/d", lblk, offset)
    flip(path, place)
    with FileSystem.open(path, replace(QUIET, errors="remount-ro")) as fs:
        for _ in range(2):
            listed = fs.tree.listdir("/d")
            assert set(listed) <= set(whole)
            assert len(listed) == len(whole) if not lblk else 0 < len(listed) < len(whole)
            assert all(fs.tree.stat(b"/d/" + name) for name in listed)
            assert fs.metadata_errors().count == 1
            assert not fs.read_only
    assert superblock(path).s_state & EXT4_ERROR_FS


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


def test_the_kernel_reads_the_furniture_as_daxfs_does(pool: MakePool) -> None:
    """Shows that the tree that the tests above damage is valid."""
    path = pool("-b", "4096", size="16M")
    with FileSystem.open(path) as fs:
        furnish(fs)
    with kernel_mount(path, "ro") as root:
        same(pool_tree(copy(path, "ours")), kernel_tree(root))
    fsck(path)
