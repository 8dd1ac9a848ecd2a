"""The facade's long operations in steps, for a program that does something else between two steps.

`FileSystem.steps` has one `Stepwise`. Each operation here is the one of `FileSystem` with the same name, which runs all
steps at once; `daxfs.fs.steps` says what may happen between two steps. Closing and forgetting return at once: what they
free in further steps is left to `freeing`.

    for _ in fs.steps.fallocate(file, 0, 0, 1 << 30):
        answer_others()
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fs import appends, attributes, batches, copying, data, mounting, names, ranges, removal, trim, truncating
from daxfs.fs.grants import requests
from daxfs.fs.moving import evacuation, relocation, resizing, shrinking, vacating
from daxfs.fs.moving.relocation import Gathering
from daxfs.fs.nodes import END
from daxfs.fs.operations import changing_in_steps, in_steps, maintaining, reading_in_steps
from daxfs.fs.steps import Steps
from daxfs.fs.tiers import keeping, membership, moves
from daxfs.fs.types import Caller
from daxfs.runs import BlockRun, ByteRange

if TYPE_CHECKING:
    from daxfs.fs.opendirectory import OpenDirectory
    from daxfs.fs.openfile import OpenFile
    from daxfs.fs.tiers.moves import Moved
    from daxfs.fs.types import (
        Attributes,
        DirListing,
        Evacuation,
        Grant,
        LeaseRequest,
        NewSnapshot,
        Relocation,
        Resized,
        SetAttributes,
    )
    from daxfs.fs.volume import Volume


SUPERUSER = Caller()


class Stepwise:
    """The long operations of one file system, in steps."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume

    @in_steps
    def open_file(
        self, ino: int, flags: int, caller: Caller, kill_privileges: bool | None = None, *, positioned: bool = False
    ) -> Steps[OpenFile]:
        """Open a file: with O_TRUNC the truncate is in steps."""
        file = yield from truncating.open_file(self.volume, ino, flags, caller, kill_privileges)
        if positioned:
            file.append = False
        return file

    @changing_in_steps
    def setattr(self, ino: int, changes: SetAttributes, caller: Caller) -> Steps[Attributes]:
        """Change attributes: a truncate is in steps."""
        volume = self.volume
        try:
            return (
                yield from volume.reclaimers.retrying_steps(attributes.set_attributes, volume, ino, changes, caller)
            )
        finally:
            removal.begin(volume, ino)

    @changing_in_steps
    def create_snapshot(self, name: bytes, *, skip_mapped: bool = False) -> Steps[NewSnapshot]:
        """Make a snapshot: clients have a moment to renew before. It can be shortened in that moment: EINTR."""
        return mounting.snapshots_of(self.volume).create(name, skip_mapped=skip_mapped)

    @in_steps
    def delete_snapshot(self, name: bytes) -> Steps[None]:
        """Delete a snapshot: the next older one gets the copies that it needs in steps."""
        yield from mounting.snapshots_of(self.volume).delete(name)

    @changing_in_steps
    def rmdir(self, parent: int, name: bytes) -> Steps[None]:
        """Remove an empty directory: the search for names in a large one is in steps."""
        yield from self.volume.reclaimers.retrying_steps(names.rmdir, self.volume, parent, name)

    @changing_in_steps
    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, caller: Caller
    ) -> Steps[None]:
        """Rename: searches are in steps: for a loop, upwards from a deep directory; for names in a replaced one."""
        volume = self.volume
        yield from volume.reclaimers.retrying_steps(
            names.rename, volume, parent, name, new_parent, new_name, flags, caller
        )

    @changing_in_steps
    def fallocate(
        self, file: OpenFile, mode: int, offset: int, length: int, caller: Caller | None = None
    ) -> Steps[None]:
        """Allocate, free, zero or move a range. It can be shortened: EINTR, and what is done stays."""
        yield from ranges.fallocate(self.volume, file.used_by(caller), mode, offset, length)
        if file.durable:
            data.make_durable(self.volume, file)

    @changing_in_steps
    def copy_range(
        self,
        source: OpenFile,
        source_offset: int,
        target: OpenFile,
        target_offset: int,
        length: int,
        caller: Caller | None = None,
    ) -> Steps[int]:
        """Copy. It can be shortened: the count of bytes is then smaller, but not 0."""
        used = target.used_by(caller)
        copied = yield from copying.copy_range(self.volume, source, source_offset, used, target_offset, length)
        if target.durable:
            data.make_durable(self.volume, target)
        return copied

    @reading_in_steps
    def read(self, file: OpenFile, offset: int, size: int) -> Steps[memoryview | bytes]:
        """Read: bytes that do not lie together are gathered in steps."""
        return data.read_in_steps(self.volume, file, offset, size)

    @reading_in_steps
    def seek(self, file: OpenFile, offset: int, whence: int) -> Steps[int]:
        """Search for data or a hole."""
        return ranges.seek(self.volume, file, offset, whence)

    @reading_in_steps
    def readdir(self, directory: OpenDirectory, cookie: int = 0, most: int | None = None) -> Steps[DirListing]:
        """Return the first names strictly after ``cookie``: ``most``, or some hundred; none only if there are none."""
        node = directory.node
        if node.atime_due:
            node.accessed()
        return names.listing(self.volume, directory.ino, cookie, most)

    @in_steps
    def trim(self, start: int = 0, length: int = 1 << 63, minimum: int = 0) -> Steps[int]:
        """Give free memory back to the system. It can be shortened: EINTR."""
        return trim.trim(self.volume, start, length, minimum)

    @changing_in_steps
    def resize(self, blocks: int = 0) -> Steps[Resized]:
        """Make the file system larger: some groups a step. It can be shortened: EINTR, and what is done stays.

        Or make it smaller: a piece of a file moves in a step. Shortened, it is as large as before.
        """
        volume = self.volume
        keeps_store, grants = mounting.snapshots_of(volume).keeps_store, mounting.grants_of(volume)
        if volume.pool.storages:
            return membership.resize(volume, grants, keeps_store, blocks)
        if 0 < blocks <= volume.geometry.blocks_count:
            return shrinking.shrink(volume, grants, keeps_store, blocks)
        return resizing.resize(volume, blocks)

    @in_steps
    def add_storage(self, path: str, *, force: bool = False) -> Steps[Resized]:
        """Let a file or block device become the last member of the storage (`membership.add`)."""
        return membership.add(self.volume, path, force=force)

    @in_steps
    def remove_storage(self, path: str) -> Steps[Resized]:
        """Let the last member of the storage leave. It can be shortened: EINTR, and all members are there."""
        volume = self.volume
        keeps_store, grants = mounting.snapshots_of(volume).keeps_store, mounting.grants_of(volume)
        return membership.remove(volume, grants, keeps_store, path)

    @in_steps
    def lease(self, file: OpenFile, request: LeaseRequest, caller: Caller | None = None) -> Steps[Grant]:
        """Grant a lease: memory that has to be filled is filled in steps. It can be shortened: EINTR."""
        return requests.grant(mounting.grants_of(self.volume), file, request, file.used_by(caller))

    @changing_in_steps
    def defragment(self, ino: int, offset: int = 0, length: int = END, caller: Caller = SUPERUSER) -> Steps[Relocation]:
        """Move the blocks of a file to where 2 MiB pages map them. It can be shortened: EINTR, what has moved stays."""
        volume = self.volume
        self._refuse_relocation(ino, offset, length)
        grants = mounting.grants_of(volume)
        return (yield from relocation.relocate(volume, grants, ino, offset, offset + length, Gathering(), caller))

    @changing_in_steps
    def vacate(
        self, ino: int, place: ByteRange, offset: int = 0, length: int = END, caller: Caller = SUPERUSER
    ) -> Steps[Relocation]:
        """Move what an inode has in the bytes [begin, end) of the pool out of there. It can be shortened: EINTR."""
        volume = self.volume
        self._refuse_relocation(ino, offset, length)
        grants, avoid = mounting.grants_of(volume), self._blocks_of(place)
        return (yield from vacating.vacate(volume, grants, ino, offset, offset + length, avoid, caller))

    @changing_in_steps
    def evacuate(self, place: ByteRange, caller: Caller = SUPERUSER) -> Steps[Evacuation]:
        """Move what all inodes have in a part of the pool out of there. It can be shortened: EINTR."""
        volume = self.volume
        keeps_store = mounting.snapshots_of(volume).keeps_store
        avoid = self._blocks_of(place)
        return (yield from evacuation.evacuate(volume, mounting.grants_of(volume), keeps_store, avoid, caller))

    def _refuse_relocation(self, ino: int, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or mounting.snapshots_of(self.volume).keeps_store(ino):
            raise FsError(errno.EINVAL)

    def _blocks_of(self, place: ByteRange) -> BlockRun:
        """Return the blocks that have bytes of a part of the pool."""
        bits = self.volume.block_bits
        first = place.begin >> bits
        return BlockRun(first, (place.end - 1 >> bits) + 1 - first)

    @changing_in_steps
    def demote(self, ino: int, offset: int = 0, length: int = END) -> Steps[Moved]:
        """Move what a file has in memory to storage. It can be shortened: EINTR, what has moved stays."""
        return self._between_tiers(moves.demote, ino, offset, length)

    @changing_in_steps
    def promote(self, ino: int, offset: int = 0, length: int = END) -> Steps[Moved]:
        """Move what a file has on storage to memory; as `demote`."""
        return self._between_tiers(moves.promote, ino, offset, length)

    @property
    def misplaced(self) -> bool:
        """Whether `keeping_tiers` has something to do."""
        return keeping.due(self.volume)

    @changing_in_steps
    def keeping_tiers(self) -> Steps[None]:
        """Move to storage what was used longest ago if the memory is almost full, and what is read often to memory."""
        yield from keeping.keep(self.volume)

    def _between_tiers(
        self, move: Callable[[Volume, int, int, int], Steps[Moved]], ino: int, offset: int, length: int
    ) -> Steps[Moved]:
        if offset < 0 or length < 0:
            raise FsError(errno.EINVAL)
        return (yield from move(self.volume, ino, offset, offset + length))

    # What has no answer that waits for it

    @maintaining
    def release(self, file: OpenFile) -> None:
        """Close an open file; the last close of a file without a name begins to free it."""
        volume = self.volume
        batches.end(volume, file)
        node = file.node
        ends_window = bool(node.window) and node.opens == 1
        try:
            if node.grants is not None:
                mounting.grants_of(volume).leave(file)
            if ends_window:
                appends.forget(node)
        finally:
            volume.nodes.closed(node)
            if volume.tiers is not None and file.writable:
                volume.tiers.misplace(file.ino)
            if ends_window:
                removal.cut(volume, file.ino)
            removal.begin(volume, file.ino)

    @maintaining
    def unpin(self, ino: int, count: int = 1) -> None:
        """Remove ``count`` pins (a FUSE forget); the last one of a file without a name begins to free it."""
        self.volume.lives.pins.unpin(ino, count)
        removal.begin(self.volume, ino)

    @property
    def unfinished(self) -> bool:
        """Whether `freeing` has something to do."""
        return removal.unfinished(self.volume)

    @changing_in_steps
    def freeing(self) -> Steps[None]:
        """Free what `release`, `unpin` and leases that ended have left to free, until nothing is left."""
        return removal.freeing(self.volume)
