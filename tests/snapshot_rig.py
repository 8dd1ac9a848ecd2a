"""Snapshots of a mounted pool and their images, for tests of the fs layer and the explorer."""

from __future__ import annotations

from pathlib import Path

from crash_rig import Picture, image_of, take_picture, unlike, without_stores
from tree_rig import QUIET

from daxfs.fs import mounting
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.snapshots.keeper import Keeper
from daxfs.pmem.memory import MemoryPool
from support import fsck, write_image


def keeper(fs: FileSystem) -> Keeper:
    return mounting.snapshots_of(fs.volume)


def tree(fs: FileSystem) -> Picture:
    """The tree that users see, without times."""
    return without_stores(take_picture(fs))


def tree_in(image: bytearray) -> Picture:
    """The tree in an image."""
    with FileSystem.open(MemoryPool(image), QUIET) as fs:
        return tree(fs)


def differences(fs: FileSystem, name: bytes, expected: Picture, folder: Path) -> list[str]:
    """What is wrong with a snapshot: its image must have the tree that was expected, and e2fsck must find nothing."""
    image = image_of(fs, name)
    path = folder / "snapshot"
    write_image(path, image)
    fsck(path)
    return unlike(tree_in(image), expected)


def unmounted(fs: FileSystem) -> bytearray:
    """Unmount a memory pool and return its bytes."""
    mounting.unmount(fs.volume)
    return bytearray(fs.volume.pool.memory)


def remounted(fs: FileSystem) -> FileSystem:
    """The pool after an unmount, mounted again."""
    return FileSystem.open(MemoryPool(unmounted(fs)), QUIET)


def after_power_loss(fs: FileSystem) -> FileSystem:
    """The pool as it is now, mounted again without an unmount."""
    return FileSystem.open(MemoryPool(bytearray(fs.volume.pool.memory)), QUIET)
