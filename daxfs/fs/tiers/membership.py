"""Storage joins a pool that is in use, grows with its last member, and leaves (docs/TIERS.md).

A new member makes the address space longer: it gets its label, then the root names it, and then one handle adds all of
its groups (`daxfs.structures.growth.extend_on_storage`). So a power cut leaves the old pool or the new one, and beside
the old one at most a label and a name that do not count. The last member leaves by a shrink
(`daxfs.fs.moving.shrinking`) to where it begins; then its label is removed. Members before it can't leave, since those
after them have their addresses. Nothing here opens files for the user, or decides who may do this. Callers: the facade.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from daxfs.errors import FsError, PoolError
from daxfs.ext4.features import Incompat
from daxfs.fs.moving import resizing, shrinking
from daxfs.fs.tiers import members, storagecache
from daxfs.fs.types import Resized
from daxfs.pmem import kinds, storage
from daxfs.pmem.storage import Label, Storage
from daxfs.pmem.storagequeue import StorageQueue, Ticket
from daxfs.runs import ByteRange
from daxfs.structures import growth

if TYPE_CHECKING:
    from daxfs.fs.grants.table import Grants
    from daxfs.fs.steps import Steps
    from daxfs.fs.volume import Volume


def add(volume: Volume, path: str, *, force: bool = False) -> Steps[Resized]:
    """Add a file or block device to the end of a pool: all of its room, in whole groups. It is not made, nor longer.

    Args:
        volume: the mounted pool.
        path: of the new member, absolute.
        force: use it although it has the label of a pool.

    Returns:
        The sizes of the file system in blocks.

    Raises:
        FsError: as `resizing.resize`, EBUSY if it is in use, and EINVAL or ENOSPC, one line that says what is
            wrong with the file, the pool or its memory. Nothing has changed then, but a label that was stored.
    """
    volume.writable()
    begin = _end_of(volume)
    with _alone(volume):
        _refuse_unused_memory(volume, begin)
        new = _opened(volume, path, force=force)
        try:
            group = volume.geometry.blocks_per_group << volume.block_bits
            end = begin + new.room - new.room % group
            if end == begin:
                raise FsError(
                    errno.EINVAL, f"{path} has room for {max(new.room, 0)} bytes; storage needs {group} at least"
                )
            new.place = ByteRange(begin, end)
            _refuse_too_large(volume, end >> volume.block_bits)
            label = Label(storage.new_id(), begin, end - begin)
            yield from _call(volume, new, lambda queue: queue.label(label))
            record = members.Record(label, kinds.lasting_path(path))
            return _extend(volume, (*volume.pool.storages, new), (*_records(volume), record))
        except BaseException:
            if new not in volume.pool.storages:
                new.close()
            raise


def resize(volume: Volume, grants: Grants, keeps_store: Callable[[int], bool], wanted: int) -> Steps[Resized]:
    """Resize a pool with storage: its last member's part becomes longer (`grow`) or shorter, in whole groups.

    Raises:
        FsError: as `grow` and `shrinking.shrink`; EINVAL, nothing would be left of the last member.
    """
    geometry, last = volume.geometry, volume.pool.storages[-1]
    if not 0 < wanted <= geometry.blocks_count:
        return grow(volume, wanted)
    if wanted < geometry.blocks_count:
        wanted -= wanted % geometry.blocks_per_group
    if wanted << volume.block_bits <= last.place.begin:
        text = f"nothing would be left of {last.path}; let it leave by: daxfs tier --remove"
        raise FsError(errno.EINVAL, text)
    return shrinking.shrink(volume, grants, keeps_store, wanted)


def grow(volume: Volume, wanted: int) -> Steps[Resized]:
    """Make the last member's part of a pool larger, up to what its file or device has, in whole groups.

    Args:
        volume: the mounted pool.
        wanted: the size of the file system in blocks; 0: as large as it can be.

    Raises:
        FsError: as `resizing.resize`; ENOSPC, the last member is not so long. Nothing has changed.
    """
    volume.writable()
    begin = _end_of(volume)
    with _alone(volume):
        bits, last, found = volume.block_bits, volume.pool.storages[-1], _records(volume)
        group = volume.geometry.blocks_per_group << bits
        try:
            last.measure()
        except PoolError as error:
            raise FsError(errno.ENOSPC, str(error)) from None
        most = last.place.begin + last.room
        if wanted << bits > most:
            text = f"{last.path} has room up to {most >> bits} blocks, {wanted} are wanted; make it longer first"
            raise FsError(errno.ENOSPC, text)
        end = wanted << bits if wanted else max(most, begin)
        end -= end % group
        if end <= begin:
            return Resized(begin >> bits, begin >> bits)
        _refuse_too_large(volume, end >> bits)
        yield
        record = found[-1]
        record = record._replace(label=record.label._replace(size=end - record.label.begin))
        return _extend(volume, volume.pool.storages, (*found[:-1], record))


def remove(volume: Volume, grants: Grants, keeps_store: Callable[[int], bool], path: str) -> Steps[Resized]:
    """Have the last member leave: what lies there moves to other members, or into memory. EINTR shortens it.

    Raises:
        FsError: ENOENT, no member has this path; EBUSY, it is not the last one; and as `shrinking.shrink`. The pool has
            its members then.
    """
    volume.writable()
    storages = volume.pool.storages
    found = next((each for each in storages if _is_at(each, path)), None)
    if found is None:
        raise FsError(errno.ENOENT, f"{path} is no storage of {volume.pool.path}")
    if found is not storages[-1]:
        text = f"{path} is not the last member of the storage: only {storages[-1].path} can leave now"
        raise FsError(errno.EBUSY, text)
    done = yield from shrinking.shrink(volume, grants, keeps_store, found.place.begin >> volume.block_bits)
    try:
        yield from _call(volume, found, lambda queue: queue.clear())
    finally:
        found.close()
    return done


@contextmanager
def _alone(volume: Volume) -> Iterator[None]:
    """Have nothing else change the size meanwhile, of a pool that may have more storage. Raises FsError."""
    with resizing.exclusively(volume):
        resizing.refuse_damage(volume)
        resizing.refuse_snapshots(volume)
        _refuse_unfit(volume)
        yield


def _is_at(member: Storage, path: str) -> bool:
    try:
        return os.path.samestat(os.stat(path), member.status)
    except OSError:
        return path == member.path


def _call(volume: Volume, member: Storage, ask: Callable[[StorageQueue], Ticket]) -> Steps[None]:
    """Make one call on a member that is not, or no longer, the volume's."""
    queue = StorageQueue(member)
    queue.notify = volume.on_storage_answer or queue.notify
    try:
        yield from storagecache.result(ask(queue))
    finally:
        queue.close()


def _end_of(volume: Volume) -> int:
    return volume.geometry.blocks_count << volume.block_bits


def _records(volume: Volume) -> members.Records:
    return members.records_of(volume.view) if volume.pool.storages else ()


def _refuse_unfit(volume: Volume) -> None:
    """Refuse a file system whose groups can't lie on storage (EINVAL)."""
    geometry, path = volume.geometry, volume.pool.path
    if not growth.keeps_unused_tables(geometry) or not geometry.incompat & Incompat.flex_bg:
        raise FsError(errno.EINVAL, f"{path}: storage needs the features flex_bg and metadata_csum (see tune2fs)")
    group, block = geometry.blocks_per_group << geometry.block_bits, geometry.block_size
    if geometry.cluster_bits or geometry.first_data_block or group % storagecache.UNIT:
        raise FsError(errno.EINVAL, f"{path}: storage needs blocks of 4096 bytes, this pool has others ({block})")
    rest = geometry.blocks_count % geometry.blocks_per_group
    if rest:
        whole = geometry.blocks_count - rest
        text = f"{path} ends in the middle of a group; before storage it must have whole groups: "
        raise FsError(errno.EINVAL, f"{text}daxfs resize to {whole * block} bytes" if whole else f"{text}{group} bytes")


def _refuse_unused_memory(volume: Volume, begin: int) -> None:
    """Refuse to put storage after a file system that does not use all of its memory (EINVAL): it could not later."""
    pool, group = volume.pool, volume.geometry.blocks_per_group << volume.block_bits
    unused = 0 if pool.storages else pool.available() - begin
    if unused >= group:
        raise FsError(
            errno.EINVAL, f"{pool.path} has {unused} bytes after the file system; use them first: daxfs resize"
        )


def _refuse_too_large(volume: Volume, blocks: int) -> None:
    """Refuse a size for which descriptors, numbers or the log have no room."""
    geometry = volume.geometry
    most = growth.room_for_descriptors(geometry)
    if blocks > most:
        text = f"{volume.pool.path}: the descriptors of groups have room for {most} blocks, {blocks} are needed"
        raise FsError(errno.ENOSPC, text)
    growth.fitting(geometry, blocks)
    needed = growth.credits_on_storage(geometry, blocks)
    if needed > volume.journal.capacity:
        raise resizing.journal_too_small(volume, needed)


def _opened(volume: Volume, path: str, *, force: bool) -> Storage:
    """Open and claim a new member.

    Raises:
        FsError: it can't be used.
    """
    pool = volume.pool
    if os.path.exists(path) and os.path.samefile(path, pool.path):
        raise FsError(errno.EINVAL, f"{path} is the memory of {pool.path}")
    if any(_is_at(each, path) for each in pool.storages):
        raise FsError(errno.EBUSY, f"{path} is storage of {pool.path} already")
    try:
        new = Storage(path)
    except PoolError as error:
        raise FsError(errno.EINVAL, str(error)) from None
    try:
        if not force and new.label() is not None:
            raise FsError(errno.EBUSY, f"{path} holds the storage of a pool; to overwrite it add -F")
    except BaseException:
        new.close()
        raise
    return new


def _extend(volume: Volume, storages: tuple[Storage, ...], found: members.Records) -> Resized:
    """Make the file system as large as the records say, in one handle; nothing else happens meanwhile."""
    geometry, bits, before = volume.geometry, volume.block_bits, volume.pool.storages
    begin, end = _end_of(volume), found[-1].place.end
    kept, blocks = _records(volume), end >> bits
    members.change(volume, storages, end)
    try:
        members.name(volume, found)
        with volume.handle(growth.credits_on_storage(geometry, blocks)) as tx:
            growth.extend_on_storage(tx, blocks)
    except BaseException:
        members.change(volume, before, begin)
        members.name(volume, kept)
        raise
    first = begin // (geometry.blocks_per_group << bits)
    geometry.inode_border = geometry.inode_border or first
    resizing.commit_size(volume)
    resizing.store_backups(volume, first)
    volume.journal.checkpoint()
    return Resized(begin >> bits, blocks)
