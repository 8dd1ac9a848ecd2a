"""The administration of a file system in use: what is done to all of it, apart from operations on files and names.

That is its size and label, trims, where blocks lie (defragmentation, evacuation, tiers), snapshots, and the mount
itself: options, the periodic work, statistics, errors. `FileSystem` adds the operations on names and files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from daxfs.fs import badmemory, damage, label, mounting, outside, remounting, removal
from daxfs.fs.grants import waiting
from daxfs.fs.moving import shrinking
from daxfs.fs.nodes import END
from daxfs.fs.operations import changing, maintaining, piecewise, reading
from daxfs.fs.steps import finish
from daxfs.fs.stepwise import SUPERUSER, Stepwise
from daxfs.fs.tiers import moves
from daxfs.fs.types import Statistics

if TYPE_CHECKING:
    from daxfs.fs.tiers.moves import Moved
    from daxfs.fs.types import (
        Caller,
        Evacuation,
        MetadataErrors,
        NewSnapshot,
        Options,
        Relocation,
        Resized,
        Snapshot,
        TierUse,
    )
    from daxfs.fs.volume import Volume
    from daxfs.runs import ByteRange
    from daxfs.snapshots.reading import Chain


class Administration:
    """The half of the facade that administers one volume."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.steps = Stepwise(volume)

    # Size, label and free memory

    def resize(self, blocks: int = 0) -> Resized:
        """Make the file system larger or smaller, to ``blocks`` blocks; 0: as large as the file or device under it.

        A pool's file is made as long as the file system; a device keeps its length.

        Raises:
            FsError: as `daxfs.fs.moving.resizing.resize` and `daxfs.fs.moving.shrinking.shrink`.
        """
        return finish(self.steps.resize(blocks))

    def add_storage(self, path: str, *, force: bool = False) -> Resized:
        """Let a file or block device follow the pool's memory and storage: all of its room, in whole groups.

        The first one makes a tiered pool of another (docs/TIERS.md).

        Args:
            path: of a file that has its size already.
            force: overwrite the storage of another pool.

        Raises:
            FsError: as `daxfs.fs.tiers.membership.add`.
        """
        return finish(self.steps.add_storage(os.path.abspath(path), force=force))

    def remove_storage(self, path: str) -> Resized:
        """Let the last member of the storage leave, after what lies there has moved.

        Raises:
            FsError: as `daxfs.fs.tiers.membership.remove`.
        """
        return finish(self.steps.remove_storage(os.path.abspath(path)))

    @property
    def size(self) -> int:
        """The size in blocks."""
        return self.volume.geometry.blocks_count

    @property
    def left_to_move(self) -> int:
        """The blocks that a `resize` that runs has still to move out of what it removes; 0 if none runs."""
        return shrinking.left_to_move(self.volume)

    @maintaining
    def minimum_size(self) -> int:
        """Return the smallest size in blocks that `resize` may accept; what can't move may need more.

        Raises:
            FsError: EUCLEAN: damage was met before.
        """
        return shrinking.minimum(self.volume)

    @reading
    def get_label(self) -> bytes:
        """Return the label of the file system."""
        return label.get_label(self.volume)

    @changing
    def set_label(self, new: bytes, caller: Caller = SUPERUSER) -> None:
        """Change the label, durably.

        Raises:
            FsError: EPERM, not the superuser; EINVAL, more than 16 bytes.
        """
        label.set_label(self.volume, new, caller)

    def trim(self, start: int = 0, length: int = 1 << 63, minimum: int = 0) -> int:
        """Give free memory of the pool back to the system (FITRIM); return the number of bytes."""
        return finish(self.steps.trim(start, length, minimum))

    # Relocation

    def defragment(self, ino: int, offset: int = 0, length: int = END, caller: Caller = SUPERUSER) -> Relocation:
        """Move blocks of a regular file to where 2 MiB pages map them (`daxfs.fs.moving.relocation`).

        Each 2 MiB of the file that have blocks throughout get 2 MiB of the pool; what is less becomes one run.

        Args:
            ino: the file.
            offset: first byte of the part of the file to work on.
            length: its length in bytes.
            caller: reserved blocks are for privileged ones.

        Returns:
            How many bytes were moved, and which parts of the file stay in worse places, and why.

        Raises:
            FsError: EINVAL: not a regular file of the tree, or the store of a snapshot; EROFS.
        """
        return finish(self.steps.defragment(ino, offset, length, caller))

    def vacate(
        self, ino: int, place: ByteRange, offset: int = 0, length: int = END, caller: Caller = SUPERUSER
    ) -> Relocation:
        """Move what an inode has in the bytes ``place`` of the pool out of there (`daxfs.fs.moving.vacating`).

        That is a file's data, the blocks of a directory or of a long symbolic link, those of the map itself, and the
        block of extended attributes. Arguments, results and errors: as `defragment`; EINVAL: the inode is not one of
        the tree, or holds a snapshot.
        """
        return finish(self.steps.vacate(ino, place, offset, length, caller))

    def evacuate(self, place: ByteRange, caller: Caller = SUPERUSER) -> Evacuation:
        """Move what all inodes have in the bytes ``place`` of the pool out of there (`daxfs.fs.moving.evacuation`).

        Returns:
            What has moved, and what stays of which inodes, and why.

        Raises:
            FsError: EROFS, or errors of the medium; what has moved then stays moved.
        """
        return finish(self.steps.evacuate(place, caller))

    # Storage

    @property
    def storages(self) -> list[str]:
        """The paths of the pool's members of storage; most pools have none."""
        return [storage.path for storage in self.volume.pool.storages]

    def demote(self, ino: int, offset: int = 0, length: int = END) -> Moved:
        """Move what a regular file has in memory to the pool's storage (`daxfs.fs.tiers.moves`), whole blocks.

        Args:
            ino: the file.
            offset: first byte of the part of the file to work on.
            length: its length in bytes.

        Returns:
            How many bytes were moved, and how many stay: what clients of direct access use, and
            what storage has no room for.

        Raises:
            FsError: EOPNOTSUPP: the pool has no storage; EINVAL: not a regular file of the tree; EIO: the storage has
                failed; EROFS.
        """
        return finish(self.steps.demote(ino, offset, length))

    def promote(self, ino: int, offset: int = 0, length: int = END) -> Moved:
        """Move what a regular file has on storage to memory; as `demote`."""
        return finish(self.steps.promote(ino, offset, length))

    @reading
    def tier_use(self) -> TierUse:
        """Return how much of memory and storage is in use, and what was moved.

        Raises:
            FsError: EOPNOTSUPP: the pool has no storage.
        """
        return moves.use(self.volume)

    def leave_storage_to(self, notify: Callable[[], object]) -> None:
        """From now on, have `read` and `write` and the other operations end with `OnStorage` instead of waiting.

        The caller runs the steps of this error, and may do something else while they wait (`daxfs.fs.steps.Wait`).

        Args:
            notify: called in a thread when a wait has ended.
        """
        self.volume.on_storage_answer = notify
        if self.volume.tiers is not None:
            self.volume.tiers.leave_to(notify)

    # Snapshots

    @piecewise
    def create_snapshot(self, name: bytes, *, skip_mapped: bool = False) -> NewSnapshot:
        """Make a snapshot of the file system as it is now, or change nothing.

        What clients may store to is copied at once, so what they store later is not in the snapshot. What they store
        during the call may be in it in part.

        Args:
            name: of the snapshot.
            skip_mapped: do not copy what clients may store to: the snapshot shows it as it is when it is read, or
                copied later.

        Raises:
            FsError: EEXIST; EINVAL, ENAMETOOLONG: the name; EROFS; EBUSY: a snapshot is being made or deleted, or
                programs of an earlier mount still map the pool; EOPNOTSUPP: the pool has no journal; ENOSPC.
        """
        return finish(self.steps.create_snapshot(name, skip_mapped=skip_mapped))

    @reading
    def list_snapshots(self) -> list[Snapshot]:
        """Return the snapshots, those that have lost content included, the oldest first."""
        return mounting.snapshots_of(self.volume).listing()

    @maintaining
    def delete_snapshot(self, name: bytes) -> None:
        """Delete a snapshot, also one that has lost content.

        Raises:
            FsError: ENOENT; EROFS; EBUSY: another one is being deleted; ENOSPC: there is no room for what the next
                older snapshot needs of it.
        """
        finish(self.steps.delete_snapshot(name))
        removal.free_rest(self.volume)

    @reading
    def open_snapshot(self, name: bytes) -> Chain:
        """Return the pool as it was, for reading (`daxfs.fs.imaging`); valid until a snapshot is deleted.

        Raises:
            FsError: ENOENT; EINVAL: it has lost content; EROFS: the volume is read-only.
        """
        return mounting.snapshots_of(self.volume).chain(name)

    # The mount

    def add_reclaimer(self, reclaim: Callable[[], bool], unfinished: Callable[[], bool] | None = None) -> None:
        """Have ``reclaim`` called when an operation finds the pool full, before the operation runs once more.

        Args:
            reclaim: frees space that it keeps, such as files that only pins keep (`unpin`), and returns whether it
                freed any. It may call this file system.
            unfinished: returns whether ``reclaim`` has freed only a part, and is to be called again if that was not
                enough.
        """
        self.volume.reclaimers.add(reclaim, unfinished)

    @property
    def options(self) -> Options:
        """The current mount options."""
        return self.volume.options

    @property
    def read_only(self) -> bool:
        """Whether nothing can be changed: mounted read-only, damaged, aborted, or owned by another program."""
        return self.volume.read_only

    @reading
    def metadata_errors(self) -> MetadataErrors:
        """Return the errors of metadata that the superblock records, and what this mount does about one."""
        return damage.recorded(self.volume)

    def find_groups_by(self, groups_of: Callable[[Caller], frozenset[int]]) -> None:
        """Set the function that finds a caller's supplementary groups, called if they decide about reserved blocks."""
        self.volume.groups_of = groups_of

    @maintaining
    def remount(self, options: Options) -> None:
        """Change the mount options, to read-only or back too (`remounting.remount`). Files stay open."""
        remounting.remount(self.volume, options)

    @maintaining
    def tick(self) -> None:
        """Commit when the commit interval has passed."""
        volume = self.volume
        volume.pool.faults.install()
        if not volume.read_only:
            outside.take_over(volume)
            if volume.pool.bad:
                badmemory.retire(volume)
            volume.tick()
            damage.report_commits(volume)
        mounting.grants_of(volume).reclaim()

    def look_for_owners(self) -> None:
        """Stop storing if another program has taken the pool over through a loop device; called periodically."""
        owner = self.volume.pool.other_owner()
        if owner and not self.volume.read_only:
            self.volume.disown(owner)

    def statistics(self) -> Statistics:
        """Return what the volume keeps in DRAM and what its journal did. It costs nothing until it is called."""
        volume = self.volume
        grants, snapshots = mounting.grants_of(volume), mounting.snapshots_of(volume)
        return Statistics(
            open_files=sum(node.opens for node in volume.nodes.open.values()),
            remembered=len(volume.lives.pins),
            lazy_times=len(volume.nodes.lazy),
            nameless=len(volume.lives.nameless),
            leases=grants.holders,
            deferred=grants.epochs.deferred,
            memory_errors=volume.pool.faults.total,
            bad_bytes=volume.pool.bad.bytes,
            snapshots=len(snapshots.kept),
            snapshot_copied=snapshots.copied,
            snapshot_mapped=snapshots.mapped,
            holding=waiting.largest_deferrals(grants),
            journal=volume.journal.stats if volume.was_writable else None,
            bad=tuple(volume.pool.bad),
        )

    def check(self) -> None:
        """Compare all that DRAM holds of open inodes and grants with the pool; for tests, between two operations.

        Raises:
            AssertionError: they do not agree.
        """
        self.volume.check()
        if not self.volume.read_only:
            mounting.grants_of(self.volume).check()

    @property
    def interrupted(self) -> bool:
        """Whether an unexpected exception (no `FsError`) has interrupted a change of metadata.

        The change was undone, but state in DRAM beside it can't be trusted: `abort`, or close without more changes.
        """
        return self.volume.interrupted

    def abort(self, error: BaseException) -> None:
        """Stop the journal after an unexpected error; nothing is changed from then on."""
        self.volume.abort(error)
