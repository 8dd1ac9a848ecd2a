"""Inodes get other numbers: the tree stays what it is, old file handles are stale, and what is in use stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_memory import tmp_path
from kernel_rig import kernel_mount
from resizing_rig import MIB, made
from tree_rig import QUIET, Tree, walk

from daxfs.errors import FsError
from daxfs.ext4.geometry import Geometry
from daxfs.fs import renumbering
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import SetAttributes
from daxfs.structures import shrinkage
from support import fsck

__all__ = ["tmp_path"]

TARGET = 40 * MIB


def filled(fs: FileSystem) -> None:
    """Directories all over the pool, with files of all kinds, names of both kinds of directories, and hard links."""
    for number in range(20):
        fs.tree.mkdir(f"/d{number}")
        fs.tree.mkdir(f"/d{number}/sub")
        fs.tree.write_bytes(f"/d{number}/file", bytes([number]) * (number * 700))
        fs.tree.symlink("f" * 10 * number or "x", f"/d{number}/link")
        ino = fs.tree.stat(f"/d{number}/file").ino
        fs.link(ino, fs.tree.stat(f"/d{number // 2}").ino, b"hard %d" % number)
        fs.setxattr(ino, b"user.name", b"v" * (number * 20))
        fs.setattr(ino, SetAttributes(mode=0o100600 | number))
    for number in range(60):
        fs.tree.write_bytes(f"/d5/{number:0120}", b"")


def tree(fs: FileSystem) -> Tree:
    """All that can be seen of the tree but the numbers, and the blocks of maps."""

    def shown(content: object) -> object:
        return sorted(str(entry[0]) for entry in content) if isinstance(content, tuple) else content

    return {
        path: found._replace(ino=0, blocks=0, content=shown(found.content) if found.mode >> 12 == 4 else found.content)
        for path, found in walk(fs).items()
    }


def past(fs: FileSystem) -> list[int]:
    return list(shrinkage.inodes_past(fs.volume.view, TARGET // fs.statfs().block_size))


def test_the_tree_stays(any_format: tuple[str, ...], tmp_path: Path) -> None:
    path = made(tmp_path / "pool", *any_format, size="80M")
    with FileSystem.open(path, QUIET) as fs:
        filled(fs)
        fs.sync()
        numbers = past(fs)
        assert len(numbers) > 10
        handles = [(ino, fs.generation(ino)) for ino in numbers]
        before = tree(fs)
        geometry = fs.volume.geometry
        journal_moves = geometry.has_extents and geometry.flex_bg_size > 1
        size = TARGET if journal_moves or not geometry.has_journal else 60 * MIB
        fs.resize(size // fs.statfs().block_size)
        fs.check()
        assert tree(fs) == before
        if size == TARGET:
            for ino, _ in handles:
                with pytest.raises(FsError):
                    fs.generation(ino)
    fsck(path)
    with FileSystem.open(path, QUIET) as fs:
        assert tree(fs) == before
        for number in range(20):
            fs.tree.rename(f"/d{number}/sub", f"/d{number}/other")
            fs.tree.rmdir(f"/d{number}/other")
            fs.tree.unlink(f"/d{number}/link")
    fsck(path)
    with kernel_mount(path) as place:
        assert (place / "d9" / "file").read_bytes() == bytes([9]) * 6300
    fsck(path)


def test_what_is_in_use_keeps_its_number(tmp_path: Path) -> None:
    """An open file, and one that the kernel remembers; nothing has changed then but other numbers."""
    path = made(tmp_path / "pool", size="80M")
    with FileSystem.open(path, QUIET) as fs:
        filled(fs)
        first, second = past(fs)[:2]
        fs.pin(fs.getattr(first))
        fs.pin(fs.getattr(second))
        with pytest.raises(FsError, match=f"inode {first} of the groups that go .*vm.drop_caches"):
            fs.resize(TARGET // 4096)
        assert past(fs) == [first, second]
        assert fs.size == 80 * MIB // 4096
        fs.unpin(first)
        fs.unpin(second)
        assert fs.resize(TARGET // 4096).blocks == TARGET // 4096
        fs.check()
    fsck(path)


def test_a_seed_stays(tmp_path: Path) -> None:
    with FileSystem.open(made(tmp_path / "pool"), QUIET) as fs:
        geometry: Geometry = fs.volume.geometry
        for old, new, generation in ((17, 400, 0), (2_000_000_000, 12, 0xFFFFFFFF), (5, 5, 77)):
            other = renumbering.same_seed(geometry, old, generation, new)
            assert geometry.inode_seed(new, other) == geometry.inode_seed(old, generation)
