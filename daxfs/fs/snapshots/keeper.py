"""The snapshots of a volume: which there are, the copier of the newest one, and room for its copies.

A snapshot is the state right before the commit that makes its store a file. When that commit begins, the log is empty,
everything is at home, and the store has two exceptions already: the superblocks of the file system and of the journal,
as those of a file system that was unmounted. The commit copies all other blocks that it changes, as every later one
does. So before its commit record there is no snapshot, and after it there is a whole one.

A deletion copies what the next older snapshot still needs into that one's store, and then removes the name, in one
commit. Everything that DRAM holds (`Copier.needed`) follows from the pool and is made anew at each mount.

What the pool has at its opening, and what of that can be believed, `daxfs.fs.snapshots.catalogue` says.
"""

from __future__ import annotations

import errno
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, FsError, MissingMemory
from daxfs.ext4.features import Incompat
from daxfs.ext4.inode import EXT4_IMMUTABLE_FL
from daxfs.ext4.superblock import EXT4_VALID_FS, SUPERBLOCK_OFFSET, Superblock
from daxfs.fs import clock, names, removal
from daxfs.fs.grants import requests, storing
from daxfs.fs.grants.table import Grants
from daxfs.fs.snapshots import catalogue, files, past
from daxfs.fs.snapshots.catalogue import DAMAGED, FOREIGN, FULL, MISSING, RECORD, Kept, Verdict
from daxfs.fs.steps import Steps
from daxfs.fs.types import MappedFile, NewSnapshot, Snapshot
from daxfs.snapshots import format as layout
from daxfs.snapshots.copier import Copier
from daxfs.snapshots.format import Header, NotAStore
from daxfs.snapshots.reading import Chain
from daxfs.snapshots.store import Store
from daxfs.structures import blocks, directories, inodes, xattrs

if TYPE_CHECKING:
    from daxfs.fs.grants.storing import Storable
    from daxfs.fs.volume import Volume
    from daxfs.journal.handle import Handle

log = logging.getLogger("daxfs.snapshots")

LEAST_RESERVE, MOST_RESERVE = 24, 4096
"""Chunks that a store should always have room for."""
RESERVE_SHARE = 32
"""The reserve is one chunk of the pool in so many."""
SPARE_SHARE = 8
"""A reserve takes at most one free chunk in so many."""
SMALLEST_LIMIT = 256
"""A transaction may always have so many blocks, if the log can take them."""
CREDITS_RECORD = 8
"""What the record of mounts adds to a handle: the directory's inode, and a block of attributes."""
MERGED_AT_ONCE = 256
"""Copies that one step of a deletion moves."""
MAPPED_AT_ONCE = 1024
"""Chunks that one step of a making copies, of those that clients may store to."""


class Keeper:
    """The snapshots of one volume.

    Attributes:
        kept: the valid ones, in the order of their making; empty on a volume that is read-only from the start.
        copier: of the newest of them.
        mapped: bytes copied at once, when snapshots were made, since clients might store there.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.kept: list[Kept] = []
        self.copier: Copier | None = None
        self.mapped = 0
        self._copied_before = 0  # by earlier copiers
        self._changing = False
        self._growing = False

    # The mount

    def attach(self) -> None:
        """Find the snapshots of a pool that was just opened for writing, whose log is empty, and go on copying.

        Nothing was stored since the log was replayed, except for what no snapshot needs. Where the way to the stores is
        damaged or missing, the mount goes on without snapshots; the next one that finds them knows that they are lost.
        """
        self._stop()
        try:
            with self.volume.pool.faults.checked():
                self._find()
        except (Corrupt, MissingMemory) as error:
            if isinstance(error, MissingMemory):
                self.volume.forget_content()
            self._stop()
            log.error("%s: snapshots, if there are any, are lost now: %s", self.volume.pool.path, error.strerror)

    def _find(self) -> None:
        pool, view = self.volume.pool, self.volume.view
        verdicts = catalogue.judged(pool, view)
        for kept, reason in reversed(verdicts):
            if reason and kept.header.valid:
                catalogue.invalidate(self.volume.pool, kept, reason)
        stores = [kept for kept, reason in verdicts if not reason]
        if stores:
            try:
                needed = past.needed_by(pool, [each.store for each in stores])
            except (Corrupt, NotAStore) as error:
                log.error("%s: the newest snapshot can't be read: %s", pool.path, error.strerror)
                for kept in reversed(stores):
                    catalogue.invalidate(self.volume.pool, kept, DAMAGED)
                return
            for kept in stores:
                kept.store.clear_stale()
            self.kept = stores
            self._set_roles(stores)
            self._copy_into(stores[-1], needed).check_room()

    def pool_marked(self, tx: Handle) -> None:
        """As `MountNotifier.pool_marked`."""
        if self.kept:
            directory = files.folder(tx)
            if directory is not None:
                xattrs.set(tx, inodes.edit(tx, directory.number), RECORD, catalogue.record(tx.superblock()))

    def names(self) -> list[bytes]:
        """As `MountNotifier.names`."""
        return [each.name for each in self.listing()]

    def refuse_change(self, ino: int) -> None:
        """As `MountNotifier.refuse_change`."""
        if self.kept:
            held = {each.ino for each in self.kept} | {each.number for each in files.folders(self.volume.view)}
            if ino in held:
                raise FsError(errno.EBUSY, f"inode {ino} belongs to the snapshots of the pool; delete them first")

    # What the facade offers

    def listing(self) -> list[Snapshot]:
        """Return all snapshots, those that are not valid included, the oldest first; damaged ones before them."""
        volume = self.volume
        if not volume.was_writable and volume.options.replay:
            return catalogue.listing(volume.view, catalogue.judged(volume.pool, volume.view))
        stores = {each.name: each.store for each in self.kept}
        verdicts = [
            Verdict(
                each._replace(store=stores.get(each.name, each.store)),
                self._why_lost(each),
            )
            for each in self._readable()
        ]
        return catalogue.listing(volume.view, verdicts)

    def _why_lost(self, found: Kept) -> int:
        """Return why a snapshot of this mount is lost (0: it is not)."""
        if not found.header.valid:
            return found.header.reason or DAMAGED
        return FOREIGN if self.volume.was_writable and self._position(found.name) is None else 0

    def create(self, name: bytes, *, skip_mapped: bool = False) -> Steps[NewSnapshot]:
        """Make a snapshot. The first steps wait for clients; one step makes it; the others copy what clients may store
        to at any time, which the snapshot shows as it is at some moment of the call.

        Args:
            name: of the snapshot.
            skip_mapped: leave out what clients may store to at any time.

        Raises:
            FsError: EEXIST; EINVAL, ENAMETOOLONG: the name; EROFS; EBUSY: a deletion runs, or programs of an earlier
                mount still map the pool; EOPNOTSUPP: the pool has no journal; ENOSPC; EINTR: it was shortened.
            MissingMemory: memory of the pool is missing for it. Nothing has changed.
        """
        volume = self.volume
        names.check_name(name)
        volume.writable()
        if name in (b".", b".."):
            raise FsError(errno.EINVAL, "a snapshot needs a name of its own")
        if volume.log_area is None:
            raise FsError(errno.EOPNOTSUPP, "snapshots need a pool with a journal")
        if volume.pool.memory_size < volume.pool.size:
            raise FsError(errno.EOPNOTSUPP, "a pool with storage can't have snapshots")
        with self._alone():
            if self._named(name):
                raise FsError(errno.EEXIST, f"there is a snapshot {name.decode(errors='replace')} already")
            yield from storing.renewing(self._grants)
            kept, mapped, chunks = volume.reclaimers.retrying(self._create_at_once, name)
            if not skip_mapped:
                yield from self._copy_mapped(kept, chunks)
            made = catalogue.described(kept._replace(header=kept.store.header()), 0)
            return NewSnapshot(made, _files(mapped))

    def _create_at_once(self, name: bytes) -> tuple[Kept, list[Storable], list[int]]:
        volume = self.volume
        volume.writable()
        if volume.notifier.stale:
            raise FsError(errno.EBUSY, "programs of an earlier mount still map the pool, and may store to it")
        requests.flush_stores(volume)
        self._growing = True  # no other commit may come between the checkpoint and the snapshot's
        try:
            volume.journal.checkpoint()
            return self._create(name)
        finally:
            self._growing = False
            if self.copier is not None:
                self.copier.grown()
                self.copier.check_room()

    def _create(self, name: bytes) -> tuple[Kept, list[Storable], list[int]]:
        """Make a snapshot without what clients may store to; return it, that, and its chunks, which are to be copied.

        Its store has room for them. Until they are copied its header says that they are left out.
        """
        volume, pool = self.volume, self.volume.pool
        bits = files.chunk_bits(volume.view)
        origin = layout.chunks_of(pool.size, bits)
        entries = layout.entries_per_area(1 << bits)
        mapped = storing.mapped(self._grants)
        ranges = [each for found in mapped for each in found.ranges]
        contents = self._superblocks(bits)
        needed = past.needed_at(volume.view)
        if self.copier is not None:
            needed = past.union(needed, self.copier.needed)
        needed += bytes(max((origin + 7 >> 3) - len(needed), 0))
        stored_to = [chunk for chunk in past.within(needed, ranges, bits) if chunk not in contents]
        chunks = layout.chunks_for(2 * self._reserve(origin) + len(stored_to), entries)
        serial = self.kept[-1].header.serial + 1 if self.kept else 1 + self._last_serial()
        uuid = secrets.token_bytes(16)
        created_ns = max(clock.now(), self._disown() + 1)  # a clock that was set back does not change the order
        header = Header(True, 0, bits, serial, created_ns, origin, uuid, 0, len(stored_to))
        credits = files.CREDITS_NEW + CREDITS_RECORD + files.Reach.of(volume.view, chunks).credits
        try:
            with volume.handle(credits) as tx:
                parent = files.make_folder(volume, tx)
                inode = files.create(volume, tx, parent, name, chunks, needed, created_ns)
                xattrs.set(tx, inodes.edit(tx, parent), RECORD, catalogue.record(tx.superblock()))
                # If memory of the store is missing, the handle is undone: nothing names its blocks, and they are free.
                store = Store(pool, bits, files.runs_of(tx, inode))
                store.create(header)
                store.append(sorted(contents), contents)
                kept = Kept(name, inode.number, store, header)
                self._set_roles([*self.kept, kept])
        except BaseException:
            self._restore_roles()
            raise
        past.without(needed, contents)
        self.kept.append(kept)
        self._copy_into(kept, needed)
        volume.commit()
        return kept, mapped, stored_to

    def _copy_mapped(self, kept: Kept, chunks: list[int]) -> Steps[None]:
        """Copy what clients may store to into the store of a new snapshot; if that fails, delete the snapshot."""
        volume = self.volume
        try:
            for at in range(0, len(chunks), MAPPED_AT_ONCE):
                if at:
                    yield
                volume.writable()
                if self.copier is None or kept not in self.kept:
                    raise FsError(errno.ENOSPC, "the new snapshot is lost already")
                with volume.pool.faults.checked():
                    self.copier.copy(chunks[at : at + MAPPED_AT_ONCE])
        except (FsError, MemoryError):
            directory = files.folder(volume.view)
            assert directory is not None
            yield from self._delete(directory.number, kept.name)
            raise
        kept.store.set_mapped(len(chunks), 0)
        self.mapped += len(chunks) << kept.store.bits

    def delete(self, name: bytes) -> Steps[None]:
        """Delete a snapshot; the next older one gets the copies that it needs.

        Raises:
            FsError: ENOENT; EROFS; EBUSY: another deletion runs; ENOSPC: there is no room for those copies.
        """
        volume = self.volume
        volume.writable()
        with self._alone():
            directory = files.folder(volume.view)
            if directory is None or not files.is_named(volume.view, directory, name):
                raise FsError(errno.ENOENT, f"there is no snapshot {name.decode(errors='replace')}")
            yield from self._delete(directory.number, name)

    # Making and deleting

    def _delete(self, directory: int, name: bytes) -> Steps[None]:
        at = self._position(name)
        if at:
            yield from self._merge(at)
            at = self._position(name)
        self._remove(directory, name, at)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._changing:
            raise FsError(errno.EBUSY, "another snapshot is being deleted")
        self._changing = True
        try:
            yield
        finally:
            self._changing = False

    def _disown(self) -> int:
        """Invalidate the stores that this mount does not keep: soon the record of mounts will hold for them too. Return
        when the newest store was made.
        """
        view = self.volume.view
        own = {each.ino: each for each in self.kept}
        newest = 0
        for name, inode in files.found(view):
            kept = own.get(inode.number)
            made_ns = catalogue.made_ns(inode)
            if kept is None:
                kept = catalogue.with_header(self.volume.pool, view, name, inode)
                if kept is not None and kept.header.valid:
                    catalogue.invalidate(self.volume.pool, kept, FOREIGN)
            newest = max(newest, made_ns if kept is None else kept.header.created_ns)
        return newest

    def _superblocks(self, bits: int) -> dict[int, bytes]:
        """Return the chunks of the two superblocks as a clean unmount would leave them; the log is empty."""
        volume = self.volume
        area = volume.log_area
        assert area is not None
        first = SUPERBLOCK_OFFSET >> bits
        made: dict[int, bytearray] = {}
        for number in (first, area.physical(0) << volume.block_bits >> bits):
            made[number] = bytearray(volume.memory[number << bits : (number + 1) << bits])
        at = SUPERBLOCK_OFFSET - (first << bits)
        sb = Superblock(memoryview(made[first])[at : at + Superblock.SIZE])
        sb.s_feature_incompat &= ~int(Incompat.needs_recovery)
        sb.s_state |= volume.mounted_state & EXT4_VALID_FS
        sb.seal()
        return {number: bytes(content) for number, content in made.items()}

    @property
    def _grants(self) -> Grants:
        notifier = self.volume.notifier
        assert isinstance(notifier, Grants)
        return notifier

    def _named(self, name: bytes) -> bool:
        """Return whether there is something of this name where a new store would be."""
        directory = files.folder(self.volume.view)
        return directory is not None and bool(directories.find(self.volume.view, directory, name).ino)

    @property
    def copied(self) -> int:
        """Bytes that were copied for snapshots since the mount, without those of their making."""
        now = self.copier.copied if self.copier is not None else 0
        return self._copied_before + now << files.chunk_bits(self.volume.view)

    def keeps_store(self, ino: int) -> bool:
        """Return whether the inode is the store of a valid snapshot."""
        return any(each.ino == ino for each in self.kept)

    def _position(self, name: bytes) -> int | None:
        """Return the index of a valid snapshot in `kept`."""
        return next((at for at, each in enumerate(self.kept) if each.name == name), None)

    def _last_serial(self) -> int:
        return max((each.header.serial for each in self._readable()), default=0)

    def _readable(self) -> Iterator[Kept]:
        return catalogue.readable(self.volume.pool, self.volume.view)

    def _reserve(self, origin: int) -> int:
        return min(max(origin // RESERVE_SHARE, LEAST_RESERVE), MOST_RESERVE)

    def _merge(self, at: int) -> Steps[None]:
        """Copy into the store of the next older snapshot what it needs of the one at ``at``.

        The newest snapshot may get more copies between two steps, and also because a store grows, so the last look at
        its table comes after all of that. If the snapshots are lost meanwhile, there is nothing to do.

        Raises:
            FsError: ENOSPC.
        """
        older, gone = self.kept[at - 1], self.kept[at]
        wanted = past.needed_by(self.volume.pool, [each.store for each in self.kept], at)
        total = past.count(wanted, gone.store.table()[0])
        reserve = self._reserve(older.header.origin_chunks) if gone is self.kept[-1] else 0
        self._grow(older, total + reserve)  # the reserve need not be had
        first, committed = 0, False
        while gone in self.kept:
            old, new = gone.store.table(first, MERGED_AT_ONCE)
            if not len(old):
                if committed:
                    return
                self.volume.commit()  # what it copies is in this table, so that must be looked at once more
                committed = True
                continue
            committed = False
            contents = {
                chunk: bytes(gone.store.content(place))
                for chunk, place in zip(old.tolist(), new.tolist(), strict=True)
                if wanted[chunk >> 3] >> (chunk & 7) & 1
            }
            if not self._grow(older, max(len(contents), total if not first else 0)):
                raise FsError(errno.ENOSPC, "the pool has no room for what the next older snapshot needs")
            older.store.append(sorted(contents), contents)
            past.without(wanted, contents)
            first += len(old)
            yield

    def _remove(self, parent: int, name: bytes, at: int | None) -> None:
        """Remove the name in one commit; from then on the next older snapshot takes the copies."""
        volume = self.volume
        before = list(self.kept)
        copier = self.copier
        now = clock.now()
        volume.commit()  # No other one comes before the name is gone: what it copies would be in the older store only.
        try:
            if at is not None:
                before[at].store.set_role(layout.LEAVING)
                del self.kept[at]
                self._set_roles(self.kept)
                if not self.kept:
                    self._stop()
                else:
                    # With the snapshot that is removed, its superblocks' exceptions are gone as well: they are in all.
                    # The store must not grow before the name is gone: what that copies would be in this one only.
                    needed = past.needed_by(volume.pool, [each.store for each in self.kept])
                    self._copy_into(self.kept[-1], needed)
            with volume.handle(names.CREDITS_NAME) as tx:
                directory = inodes.edit(tx, parent)
                place = directories.find(tx, directory, name)
                victim = inodes.edit(tx, place.ino)
                victim.flags &= ~EXT4_IMMUTABLE_FL
                directories.remove(tx, place)
                directory.set_changed(now)
                names.drop_name(volume, tx, victim, now)
                ino = victim.number
        except BaseException:
            self.kept = before
            if copier is not None:
                self._use(copier)
            self._restore_roles()
            raise
        volume.commit()
        removal.begin(volume, ino)
        if self.copier is not None:
            self.copier.check_room()

    # Copying

    @staticmethod
    def _set_roles(snapshots: list[Kept]) -> None:
        """Tell readers in other processes which store takes the copies from now on: that of the last snapshot."""
        for kept in snapshots:
            kept.store.set_role(layout.NEWEST if kept is snapshots[-1] else layout.FOLLOWED)

    def _restore_roles(self) -> None:
        """Set the roles again after a change has failed; as long as one can't be set, readers refuse to read."""
        with suppress(MissingMemory):
            self._set_roles(self.kept)

    def _copy_into(self, kept: Kept, needed: bytearray) -> Copier:
        """Have a snapshot's store take the copies from now on."""
        origin = kept.header.origin_chunks
        needed += bytes(max((origin + 7 >> 3) - len(needed), 0))
        copier = Copier(
            self.volume.pool,
            kept.store,
            needed,
            self._reserve(origin),
            make_room=self._make_room,
            running_low=self._running_low,
            lost=self._lost,
        )
        self._count_copies()
        self._use(copier)
        return copier

    def _use(self, copier: Copier) -> None:
        """Have the pool and the journal respect a copier."""
        self.copier = copier
        self.volume.pool.hook_stores(copier)
        ratio = copier.bits - self.volume.block_bits
        self.volume.journal.limit_transactions(max(SMALLEST_LIMIT, copier.reserve << ratio >> 1))

    def _count_copies(self) -> None:
        """Keep the count of a copier that will make no more copies."""
        if self.copier is not None:
            self._copied_before += self.copier.copied
            self.copier.copied = 0

    def _stop(self) -> None:
        self._count_copies()
        self.kept = []
        self.copier = None
        self.volume.pool.hook_stores(None)
        if self.volume.was_writable:
            self.volume.journal.limit_transactions(None)

    def _running_low(self) -> None:
        """Have the reserve again: at once, unless an operation is in the middle of a change; then after it."""
        journal = self.volume.journal
        if journal.idle and not self._growing and not self.volume.read_only:
            self._grow_newest()
        else:
            journal.call_before_next_handle(self._grow_newest)

    def _make_room(self, count: int, certain: bool) -> None:
        """Have room for ``count`` copies, unless an operation is in the middle of a change."""
        if self.volume.journal.idle and not self.volume.read_only:
            self._grow_newest(count, count if certain else 0)

    def _grow_newest(self, useful: int = 0, needed: int = 0) -> None:
        """Make the newest snapshot's store larger: it must have room for ``needed`` copies and should for ``useful``.

        What need not be takes only a part of the free blocks: a pool must not be full because of a reserve.
        """
        copier = self.copier
        if copier is None or self._growing or self.volume.read_only:
            return
        store, view = copier.store, self.volume.view
        spare = blocks.free_blocks(view) >> store.bits - view.geometry.block_bits
        goal = max(2 * copier.reserve, min(store.chunks // 2, files.MOST_BLOCKS), useful)
        goal = max(min(goal, store.room + spare // SPARE_SHARE), needed)
        if goal > store.room:
            self._grow(self.kept[-1], goal)
        copier.grown()

    def _grow(self, kept: Kept, exceptions: int) -> bool:
        """Give a store more chunks, durably, before it uses them; return whether it has room for that many now.

        The commit that gives them may itself have to copy some blocks into the store.
        """
        volume, store = self.volume, kept.store
        if self._growing:
            return False
        self._growing = True
        try:
            while store.room < exceptions:
                missing = (
                    layout.chunks_for(store.count + exceptions, layout.entries_per_area(1 << store.bits)) - store.chunks
                )
                needed = self.copier.needed if self.copier is not None else bytearray()
                with volume.handle(files.CREDITS_RUNS + names.CREDITS_INODE) as tx:
                    inode = inodes.edit(tx, kept.ino)
                    made = files.extend(volume, tx, inode, max(missing, 1), needed)
                    runs = files.runs_of(tx, inode)
                if not made:
                    return False
                volume.commit()
                store.set_runs(runs)
        except FsError as error:
            if error.errno != errno.ENOSPC:
                raise
            return False
        finally:
            self._growing = False
        return True

    def _lost(self, full: bool) -> None:
        """Give all snapshots up: the oldest content that some of them need is about to be overwritten."""
        self.volume.pool.hook_stores(None)
        self._count_copies()
        gone, self.kept, self.copier = self.kept, [], None
        for kept in reversed(gone):  # the newest first: older ones are not valid without it (`attach`)
            catalogue.invalidate(self.volume.pool, kept, FULL if full else MISSING)

    def chain(self, name: bytes) -> Chain:
        """Return what a valid snapshot shows.

        Raises:
            FsError: ENOENT; EINVAL: it is not valid; EROFS.
        """
        self.volume.writable()
        at = self._position(name)
        if at is None:
            for each in self.listing():
                if each.name == name:
                    raise FsError(errno.EINVAL, f"the snapshot is not valid: {each.lost}")
            raise FsError(errno.ENOENT, f"there is no snapshot {name.decode(errors='replace')}")
        return Chain(self.volume.pool, [each.store for each in self.kept[at:]])


def _files(mapped: list[Storable]) -> tuple[MappedFile, ...]:
    """Return how much each process may store to, the most first."""
    sized = [MappedFile(ino, pid, sum(end - begin for begin, end in ranges)) for ino, pid, ranges in mapped]
    return tuple(sorted(sized, key=lambda each: -each.size))
