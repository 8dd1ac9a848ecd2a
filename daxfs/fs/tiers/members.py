"""The members of a tiered pool: memory, then storage, under one file system (docs/TIERS.md).

The pool is the memory. Where its storage is, an attribute of the root says (`Record`, one for each member), and a
member's own label says that it is the right one. This module finds, verifies and attaches the storage of a pool that is
being opened. Only a pool that is smaller than its file system can be tiered, so nothing else is looked at, and other
pools pay nothing. What lies on storage has addresses in the pool, but no memory: every load and store there fails with
EIO, in whichever layer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from daxfs.errors import FsError, PoolError
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.inode import EXT4_ROOT_INO
from daxfs.fs import mounting
from daxfs.fs.nodes import END
from daxfs.fs.tiers import policy
from daxfs.journal.view import PoolView, View
from daxfs.pmem.kinds import MOUNT_FAILED
from daxfs.pmem.opening import open_pool
from daxfs.pmem.storage import Label, Storage
from daxfs.runs import ByteRange
from daxfs.structures import inodes, xattrs

if TYPE_CHECKING:
    from daxfs.ext4.superblock import Superblock
    from daxfs.fs.volume import Volume
    from daxfs.journal.handle import Handle
    from daxfs.pmem.pool import Pool

CREDITS = 16
"""Blocks that `store` may change: the root's inode, and blocks of attributes, taken and freed."""
ATTRIBUTE = b"trusted.daxfs.storage"
"""The attribute of the root that names the pool's storage."""


class Record(NamedTuple):
    """What the pool says of one member of its storage.

    Attributes:
        label: the member's, with its present size.
        path: where it was when it was added.
    """

    label: Label
    path: str

    @property
    def place(self) -> ByteRange:
        """The bytes of the pool that the member holds."""
        return ByteRange(self.label.begin, self.label.begin + self.label.size)

    def find(self, pool: str) -> str:
        """Return where the member is: where it was, or under the same name beside the pool."""
        beside = os.path.join(os.path.dirname(os.path.realpath(pool)), os.path.basename(self.path))
        return beside if os.path.exists(beside) and not os.path.exists(self.path) else self.path


Records = tuple[Record, ...]
"""What the pool says of its storage: members in order; none, it has no storage."""


def value_of(records: Records) -> bytes:
    """Return the attribute's value: for each member a line that people can read, with a NUL between two lines."""
    lines = [f"{label.id.hex()} {label.begin} {label.size} ".encode() + os.fsencode(path) for label, path in records]
    return b"\0".join(lines)


def records_in(value: bytes) -> Records:
    """Return what a value says; empty: it is none, or its members do not follow each other."""
    found: list[Record] = []
    for line in value.split(b"\0"):
        parts = line.split(b" ", 3)
        try:
            member, begin, size = bytes.fromhex(parts[0].decode()), int(parts[1]), int(parts[2])
            record = Record(Label(member, begin, size), os.fsdecode(parts[3]))
        except (ValueError, IndexError):
            return ()
        if begin <= 0 or size <= 0 or (found and found[-1].place.end != begin):
            return ()
        found.append(record)
    return tuple(found)


def until(found: Records, end: int) -> Records:
    """Return the records of a pool that ends at byte ``end``: what they say of bytes past it does not count."""
    kept = [record for record in found if record.label.begin < end]
    if kept and kept[-1].place.end > end:
        last = kept[-1]
        kept[-1] = last._replace(label=last.label._replace(size=end - last.label.begin))
    return tuple(kept)


def store(tx: Handle, found: Records) -> None:
    """Have the root name these members: `CREDITS` credits.

    The records are at home before a file system becomes larger, and after it has become smaller. So they always have
    all of it, whichever blocks a power cut leaves at home, and `records_of` leaves out what is too much.
    """
    root = inodes.edit(tx, EXT4_ROOT_INO)
    if found:
        xattrs.set(tx, root, ATTRIBUTE, value_of(found))
    elif xattrs.holds(tx, root, ATTRIBUTE):
        xattrs.remove(tx, root, ATTRIBUTE)


def name(volume: Volume, found: Records) -> None:
    """Have the root name these members (`store`), durably and at home."""
    with volume.handle(CREDITS) as tx:
        store(tx, found)
    volume.commit()
    volume.journal.checkpoint()


def memory_of(geometry: Geometry, size: int) -> int:
    """Return how many bytes of a pool of ``size`` bytes are the memory of a tiered pool: those of whole groups."""
    return size - size % (geometry.blocks_per_group << geometry.block_bits)


def records(pool: Pool) -> Records:
    """Return what a pool says of its storage; empty: it has none, or says nothing that can be believed.

    Raises:
        FsError, BadMemory: it has no ext4, or its superblock can't be read.
    """
    superblock = mounting.read_superblock(pool)
    try:
        geometry = Geometry.of(superblock)
    except FsError:
        return ()
    if geometry.blocks_count << geometry.block_bits <= pool.memory_size:
        return ()
    try:
        found = _read(pool, geometry)
    except FsError:
        # A power cut may have torn the root's inode while it was copied home from the log.
        return _recovered(pool, superblock) if mounting.needs_recovery(superblock) else ()
    if not found and mounting.needs_recovery(superblock):
        return _recovered(pool, superblock)
    return found


def has_storage(pool: Pool) -> bool:
    """Return whether a pool has storage, as far as it can be read."""
    try:
        return bool(records(pool))
    except FsError:
        return False


def records_of(view: View) -> Records:
    """Return what the root says of the storage that the file system has; empty: nothing that fits it.

    Raises:
        FsError: ENODATA, there is no such attribute; or the root is damaged.
    """
    geometry = view.geometry
    end = geometry.blocks_count << geometry.block_bits
    found = until(records_in(xattrs.get(view, inodes.read(view, EXT4_ROOT_INO), ATTRIBUTE)), end)
    if not found or found[-1].place.end != end:
        return ()
    return found if memory_of(geometry, found[0].label.begin) == found[0].label.begin else ()


def _read(pool: Pool, geometry: Geometry) -> Records:
    view = PoolView(pool, geometry)
    try:
        with pool.faults.checked():
            return records_of(view)
    finally:
        view.release()


def _recovered(pool: Pool, superblock: Superblock) -> Records:
    """Read the records as recovery will leave them, in memory of this process."""
    try:
        geometry = Geometry.of(superblock)
        with open_pool(pool.path, private=True, exclusively=False) as private:
            memory = memory_of(geometry, private.memory_size)
            private.attach(memory, (geometry.blocks_count << geometry.block_bits) - memory)
            mounting.recover_in_place(private)
            return _read(private, Geometry.of(mounting.read_superblock(private)))
    except (FsError, PoolError):
        return ()


def attach(pool: Pool, *, exclusively: bool = True) -> None:
    """Attach the storage of a pool that was just opened, if it has any.

    Args:
        pool: of which all is memory so far.
        exclusively: claim the storage; False, for reading only: use it beside others.

    Raises:
        PoolError: a member is missing, of another pool, too short, in use or can't be opened; or the memory is too
            short. Nothing has changed.
    """
    found = records(pool)
    if not found:
        return
    if pool.memory_size < (memory := found[0].label.begin):
        text = f"{pool.path} has {pool.memory_size} bytes, and had {memory} of memory: it was cut"
        raise PoolError(text, MOUNT_FAILED)
    storages: list[Storage] = []
    try:
        for record in found:
            storages.append(opened(pool, record, storages, exclusively=exclusively))
        attach_all(pool, found, storages)
    except BaseException:
        for storage in storages:
            storage.close()
        raise


def follow(pool: Pool) -> None:
    """Have a pool that was just recovered use the members that it has now.

    Raises:
        PoolError: as `attach`.
    """
    found, before = records(pool), pool.storages
    if not found and not before:
        return
    storages: list[Storage] = []
    try:
        for record, open_one in zip_longest(found, before[: len(found)]):
            storages.append(open_one or opened(pool, record, storages))
            storages[-1].place = record.place
        memory = found[0].label.begin if found else pool.memory_size
        pool.attach(memory, found[-1].place.end - memory if found else 0, storages)
    except BaseException:
        for storage in storages[len(before) :]:
            storage.close()
        raise
    for storage in before[len(found) :]:
        storage.close()


def change(volume: Volume, storages: Sequence[Storage], end: int) -> None:
    """Have the pool of a volume end at byte ``end``, with these members of storage after its memory, in order.

    The first ones join a volume that is its own memory. Those that are no longer among them the caller disposes of.

    Args:
        volume: the mounted pool.
        storages: the members, whose places are right, but for the last one's end.
        end: bytes of memory and storage.

    Raises:
        PoolError: there are not so many addresses. Nothing has changed.
    """
    pool = volume.pool
    memory = storages[0].place.begin if storages else pool.memory_size
    pool.attach(memory, end - memory, storages)
    if storages:
        storages[-1].place = ByteRange(storages[-1].place.begin, end)
    volume.geometry.bound(memory if storages else 0)
    volume.follow_size()
    if volume.tiers is None:
        policy.attach(volume)
    else:
        volume.tiers.follow_size()
    if not storages:
        volume.tiers = volume.heat = pool.reader = None
        volume.nodes.memory_end = END


def attach_all(pool: Pool, found: Records, storages: Sequence[Storage] = ()) -> None:
    """Let the storage that records name follow the memory of a pool.

    Raises:
        PoolError: as `Pool.attach`.
    """
    begin = found[0].label.begin
    pool.attach(begin, found[-1].place.end - begin, storages)


def opened(pool: Pool, record: Record, others: Sequence[Storage] = (), *, exclusively: bool = True) -> Storage:
    """Open and verify the member that a pool's record names.

    Args:
        pool: whose member it is.
        record: of the member.
        others: members before it, which are open.
        exclusively: as `attach`.

    Raises:
        PoolError: as `attach`.
    """
    label, path = record.label, record.find(pool.path)
    if os.path.exists(path) and os.path.samefile(path, pool.path):
        raise PoolError(f"{path} is the memory of {pool.path}, not its storage", MOUNT_FAILED)
    if os.path.exists(path) and any(os.path.samestat(os.stat(path), other.status) for other in others):
        raise PoolError(f"the storage of {pool.path}: {path} is there twice", MOUNT_FAILED)
    try:
        storage = Storage(path, read_only=pool.read_only or pool.private, exclusively=exclusively)
    except PoolError as error:
        raise PoolError(f"the storage of {pool.path}: {error}", MOUNT_FAILED) from None
    try:
        own = storage.label()
        if own is None or own[:2] != label[:2]:
            what = "is that of another pool" if own else "has no label"
            raise PoolError(f"the storage of {pool.path}: {path} {what}", MOUNT_FAILED)
        if storage.room < label.size:
            text = f"{path} was cut: {storage.room} bytes of {label.size} are left"
            raise PoolError(f"the storage of {pool.path}: {text}", MOUNT_FAILED)
    except BaseException:
        storage.close()
        raise
    storage.place = record.place
    return storage
