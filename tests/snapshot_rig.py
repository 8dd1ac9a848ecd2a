"""Snapshots of a mounted pool and their images, for tests of the fs layer and the explorer."""

from __future__ import annotations

from pathlib import Path

from crash_rig import Picture, take_picture, unlike
from tree_rig import QUIET

from daxfs.fs import imaging, mounting
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.snapshots.keeper import Keeper
from daxfs.pmem.memory import MemoryPool
from support import fsck

OWN = b".daxfs"


def keeper(fs: FileSystem) -> Keeper:
    return mounting.snapshots_of(fs.volume)


def without_own(picture: Picture) -> Picture:
    """A tree without the directory of the stores, and without what names it: the content and size of the root."""
    own = {path: facts for path, facts in picture.facts.items() if OWN in path}
    numbers = {facts.ino for facts in own.values()}
    facts = {path: found for path, found in picture.facts.items() if path not in own}
    root = facts[b""]
    names = tuple(entry for entry in root.content if entry[0] != OWN)
    facts[b""] = root._replace(content=names, nlink=0)
    kept = {ino: content for ino, content in picture.contents.items() if ino not in numbers}
    return Picture(facts, {}, kept)


def tree(fs: FileSystem) -> Picture:
    """The tree that users see, without times."""
    return without_own(take_picture(fs))


def image_of(fs: FileSystem, name: bytes) -> bytearray:
    """The image of a snapshot, clean."""
    pool = fs.volume.pool
    made = bytearray(pool.size)
    for offset, content in imaging.pieces(pool, fs.open_snapshot(name)):
        made[offset : offset + len(content)] = content
    imaging.clean(MemoryPool(made))
    return made


def tree_in(image: bytearray) -> Picture:
    """The tree in an image."""
    with FileSystem.open(MemoryPool(image), QUIET) as fs:
        return tree(fs)


def differences(fs: FileSystem, name: bytes, expected: Picture, folder: Path) -> list[str]:
    """What is wrong with a snapshot: its image must have the tree that was expected, and e2fsck must find nothing."""
    image = image_of(fs, name)
    path = folder / "snapshot"
    path.write_bytes(image)
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
