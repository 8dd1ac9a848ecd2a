"""The members of a tiered pool: memory, then storage, under one file system (docs/TIERS.md).

The pool is the memory. Where its storage is, an attribute of the root says (`Record`), and the storage's own label says
that it is the right one. This module finds, verifies and attaches the storage of a pool that is being opened. Only a
pool that is smaller than its file system can be tiered, so nothing else is looked at, and other pools pay nothing. What
lies on storage has addresses in the pool, but no memory: every load and store there fails with EIO, in whichever layer.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from daxfs.errors import FsError, PoolError
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.inode import EXT4_ROOT_INO
from daxfs.fs import mounting
from daxfs.journal.view import PoolView, View
from daxfs.pmem.kinds import MOUNT_FAILED
from daxfs.pmem.pool import open_pool
from daxfs.pmem.storage import Label, Storage
from daxfs.structures import inodes, xattrs

if TYPE_CHECKING:
    from daxfs.ext4.superblock import Superblock
    from daxfs.pmem.pool import Pool

ATTRIBUTE = b"trusted.daxfs.storage"
"""The attribute of the root that names the pool's storage."""


class Record(NamedTuple):
    """What the pool says of its storage.

    Attributes:
        label: that of the storage.
        path: where it was when the pool was made.
    """

    label: Label
    path: str

    def value(self) -> bytes:
        """Return the attribute's value, a line that people can read."""
        label = self.label
        return f"{label.id.hex()} {label.memory} {label.size} ".encode() + os.fsencode(self.path)

    @classmethod
    def of(cls, value: bytes) -> Record | None:
        """Return what a value says; None: it is not one."""
        parts = value.split(b" ", 3)
        try:
            member, memory, size = bytes.fromhex(parts[0].decode()), int(parts[1]), int(parts[2])
            return cls(Label(member, memory, size), os.fsdecode(parts[3]))
        except (ValueError, IndexError):
            return None

    def place(self, pool: str) -> str:
        """Return where the storage is: where it was, or under the same name beside the pool."""
        beside = os.path.join(os.path.dirname(os.path.realpath(pool)), os.path.basename(self.path))
        return beside if os.path.exists(beside) and not os.path.exists(self.path) else self.path


def memory_of(geometry: Geometry, size: int) -> int:
    """Return how many bytes of a pool of ``size`` bytes are the memory of a tiered pool: those of whole groups."""
    return size - size % (geometry.blocks_per_group << geometry.block_bits)


def record(pool: Pool) -> Record | None:
    """Return what a pool says of its storage; None: it has none, or nothing that can be believed.

    Raises:
        FsError, BadMemory: it has no ext4, or its superblock can't be read.
    """
    superblock = mounting.read_superblock(pool)
    try:
        geometry = Geometry.of(superblock)
    except FsError:
        return None
    size = geometry.blocks_count << geometry.block_bits
    if size <= pool.memory_size:
        return None
    try:
        found = _read(pool, geometry)
    except FsError:
        # A power cut may have torn the root's inode while it was copied home from the log.
        found = _recovered(pool, superblock) if mounting.needs_recovery(superblock) else None
    if found is None or found.label.memory + found.label.size != size or found.label.memory <= 0:
        return None
    return found if memory_of(geometry, found.label.memory) == found.label.memory else None


def has_storage(pool: Pool) -> bool:
    """Return whether a pool has storage, as far as it can be read."""
    try:
        return record(pool) is not None
    except FsError:
        return False


def record_of(view: View) -> Record | None:
    """Return the record that the root has; None: it is none.

    Raises:
        FsError: ENODATA, there is none; or the root is damaged.
    """
    return Record.of(xattrs.get(view, inodes.read(view, EXT4_ROOT_INO), ATTRIBUTE))


def _read(pool: Pool, geometry: Geometry) -> Record | None:
    view = PoolView(pool, geometry)
    try:
        with pool.faults.checked():
            return record_of(view)
    finally:
        view.release()


def _recovered(pool: Pool, superblock: Superblock) -> Record | None:
    """Read the record as recovery will leave it, in memory of this process."""
    try:
        geometry = Geometry.of(superblock)
        with open_pool(pool.path, private=True, exclusively=False) as private:
            memory = memory_of(geometry, private.memory_size)
            private.attach(memory, (geometry.blocks_count << geometry.block_bits) - memory)
            mounting.recover_in_place(private)
            return _read(private, Geometry.of(mounting.read_superblock(private)))
    except (FsError, PoolError):
        return None


def attach(pool: Pool, *, exclusively: bool = True) -> None:
    """Attach the storage of a pool that was just opened, if it has any.

    Args:
        pool: of which all is memory so far.
        exclusively: claim the storage; False, for reading only: use it beside others.

    Raises:
        PoolError: the storage is missing, of another pool, too short, in use or can't be opened; or the memory is too
            short. Nothing has changed.
    """
    found = record(pool)
    if found is None:
        return
    storage = opened(pool, found, exclusively=exclusively)
    try:
        pool.attach(found.label.memory, found.label.size, storage)
    except BaseException:
        storage.close()
        raise


def opened(pool: Pool, found: Record, *, exclusively: bool = True) -> Storage:
    """Open and verify the storage that a pool's record names.

    Raises:
        PoolError: as `attach`.
    """
    label, path = found.label, found.place(pool.path)
    if pool.memory_size < label.memory:
        text = f"{pool.path} has {pool.memory_size} bytes, and had {label.memory} of memory: it was cut"
        raise PoolError(text, MOUNT_FAILED)
    if os.path.exists(path) and os.path.samefile(path, pool.path):
        raise PoolError(f"{path} is the memory of {pool.path}, not its storage", MOUNT_FAILED)
    try:
        storage = Storage(path, read_only=pool.read_only or pool.private, exclusively=exclusively)
    except PoolError as error:
        raise PoolError(f"the storage of {pool.path}: {error}", MOUNT_FAILED) from None
    try:
        own = storage.label()
        if own != label:
            what = "is that of another pool" if own else "has no label"
            raise PoolError(f"the storage of {pool.path}: {path} {what}", MOUNT_FAILED)
        if storage.room < label.size:
            text = f"{path} was cut: {storage.room} bytes of {label.size} are left"
            raise PoolError(f"the storage of {pool.path}: {text}", MOUNT_FAILED)
    except BaseException:
        storage.close()
        raise
    return storage
