"""Metadata that another program has put on storage moves into memory at the mount (docs/TIERS.md).

The kernel and e2fsck do not know that a part of the pool is no memory. So after they have written to it, directories,
maps of files, attributes and inode tables may lie there. Reads get them through copies in DRAM (`Pool.stored`); nothing
can change them there. `settle` moves them with the steps of a relocation, each in one handle: a power cut leaves the
old place or the new one, and both hold the same.

Whether another program has written, the superblock shows: an attribute of the root keeps what daxfs has left there
(`doubt`). It is stored once all metadata is in memory, so what found no place is looked for at each mount.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, FsError
from daxfs.ext4.inode import EXT4_ROOT_INO
from daxfs.fs import removal
from daxfs.fs.moving import relocation, vacating
from daxfs.fs.snapshots import catalogue
from daxfs.fs.tiers import policy
from daxfs.fs.types import Caller
from daxfs.runs import BlockRun
from daxfs.structures import blocks, groups, inode_bitmaps, inode_tables, inodes, mapping, xattrs
from daxfs.structures.destinations import Search
from daxfs.structures.extent_tree import MAX_BLOCKS
from daxfs.structures.noted import note

if TYPE_CHECKING:
    from daxfs.ext4.superblock import Superblock
    from daxfs.fs.steps import Steps
    from daxfs.fs.volume import Volume
    from daxfs.structures.inodes import Inode

log = logging.getLogger("daxfs.fs")
LOOKS = 64
"""Leaves of a map that are looked at before it counts as one that may have blocks on storage."""
FEW_RUNS = 8
MOST_OWNERS = 1 << 16
"""Inodes with attributes on storage that one pass remembers."""
MOST_PASSES = 8
CREDITS = 32
CREDITS_MARK = 16
SUPERUSER = Caller()


def doubt(volume: Volume, found: Superblock) -> None:
    """Note at a mount if another program may have written to a pool with storage since daxfs had it last.

    Args:
        volume: which has changed nothing yet.
        found: the superblock before recovery.
    """
    if volume.tiers is not None:
        overwritten = catalogue.was_written_after(found, volume.view.superblock())
        volume.tiers.settled = not overwritten and not _was_written(volume)


def _was_written(volume: Volume) -> bool:
    view = volume.view
    try:
        root = inodes.read(view, EXT4_ROOT_INO)
        kept = xattrs.get(view, root, catalogue.RECORD) if xattrs.holds(view, root, catalogue.RECORD) else b""
    except Corrupt as error:
        note(view, error)
        return True
    return kept != catalogue.record(view.superblock())


def mark(volume: Volume) -> None:
    """Have the root keep what the superblock says of mounts, if all metadata is in memory."""
    if volume.tiers is None or not volume.tiers.settled:
        return
    with suppress(FsError), volume.journal.handle(CREDITS_MARK) as tx:
        xattrs.set(tx, inodes.edit(tx, EXT4_ROOT_INO), catalogue.RECORD, catalogue.record(tx.superblock()))


def settle(volume: Volume) -> None:
    """If there is doubt, move all metadata that lies on storage into memory; nobody else uses the volume meanwhile.

    What finds no room, even after data has gone to storage, or lies on a member that has failed, stays, with a warning.
    """
    tiers, geometry = volume.tiers, volume.geometry
    if tiers is None or tiers.settled:
        return
    moved = stayed = 0
    for _ in range(MOST_PASSES):
        one = _Pass(volume)
        for waiting in one.run():
            if waiting is not None:
                waiting.wait()
            volume.bound_commit()
        moved, stayed = moved + one.moved, one.stayed
        volume.commit()  # until then, what has moved is in use at its old place
        if not stayed or not one.moved:
            break
    geometry.inode_border = groups.tables_on_storage(volume.view)
    tiers.settled = not stayed
    mark(volume)
    if moved:
        log.info("%s: %d blocks of metadata have moved from storage into memory", volume.pool.path, moved)
    if stayed:
        text = "%s: metadata of %d inodes or groups stays on storage; they can be read, and changes of them are EIO"
        log.warning(text, volume.pool.path, stayed)


class _Pass:
    """One look at all inodes.

    Attributes:
        moved: blocks.
        stayed: inodes, and groups, of which something has stayed.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        geometry = volume.geometry
        self.storage = BlockRun(geometry.memory_blocks, geometry.blocks_count - geometry.memory_blocks)
        self.moved = 0
        self.stayed = 0
        self.search = Search(0, self.storage)
        self._owners: dict[int, list[int]] = {}
        self._known = 0

    def run(self) -> Steps[None]:
        """Have data make room, and move what can move: first what an inode needs to be changed."""
        volume = self.volume
        if policy.crowded(volume):
            with suppress(FsError):  # what finds no place stays
                yield from policy.make_room(volume)
        count = volume.geometry.groups_count
        for group in groups.with_inodes(volume.view, range(volume.geometry.inode_groups, count)):
            yield from self._guarded(self._table(group))
        for group in groups.with_inodes(volume.view, range(count)):
            for ino in inode_bitmaps.in_use_of(volume.view, group):
                yield from self._guarded(self._structure(ino))
            yield
        for owners in self._owners.values():
            yield from self._guarded(self._attributes(owners))

    def _guarded(self, steps: Steps[bool]) -> Steps[None]:
        """Run steps that return whether all has moved; what meets an error stays."""
        try:
            moved = yield from steps
        except FsError as error:
            moved = False
            if self.volume.faults[0]:
                self.volume.lost_memory()
            elif isinstance(error, Corrupt):
                note(self.volume.view, error)
        if not moved:
            self.stayed += 1

    # Inode tables

    def _table(self, group: int) -> Steps[bool]:
        volume, bits = self.volume, self.volume.block_bits
        first, length = inode_tables.place_of(volume.view, group), volume.geometry.inode_blocks_per_group
        tiers = volume.tiers
        assert tiers is not None
        if first < self.storage.start:
            return True
        place = yield from relocation.find(volume, self.search, length, 1, shortens=False)
        if place is None:
            return False
        content = yield from tiers.occupying(BlockRun(first, length), tiers.load(first << bits, length << bits))
        volume.pool.write(place.start << bits, content)
        with volume.handle(inode_tables.CREDITS, SUPERUSER) as tx:
            moved = inode_tables.move(tx, group, place)
        self.moved += length * moved
        return moved

    # Maps, directories and symbolic links

    def _structure(self, ino: int) -> Steps[bool]:
        volume = self.volume
        if not inodes.nameable(volume.view, ino) or not inode_bitmaps.in_use(volume.view, ino):
            return True
        inode = inodes.read(volume.view, ino)
        if inode.file_acl >= self.storage.start and (self._known < MOST_OWNERS or inode.file_acl in self._owners):
            self._owners.setdefault(inode.file_acl, []).append(ino)
            self._known += 1
        if not self._may_lie_there(inode):
            return True
        done = yield from vacating.vacate_structure(volume, ino, self.storage, SUPERUSER)
        self.moved += done.moved + done.metadata >> volume.block_bits
        return not done.stayed

    def _may_lie_there(self, inode: Inode) -> bool:
        """Return whether an inode may have metadata on storage: a cheap look, exact for all but fragmented files."""
        view = self.volume.view
        if not inode.blocks or not removal.holds_blocks(inode):
            return False
        found, after = mapping.own_blocks(view, inode, 0, self.storage, LOOKS)
        if found or after < MAX_BLOCKS:
            return True
        if inode.is_regular:
            return False
        runs = mapping.runs(view, inode, 0, None, FEW_RUNS)
        return len(runs) == FEW_RUNS or any(run.pblk + run.length > self.storage.start for run in runs)

    # Blocks of attributes

    def _attributes(self, owners: list[int]) -> Steps[bool]:
        """Move a block of attributes for all inodes that refer to it."""
        volume = self.volume
        inode = inodes.read(volume.view, owners[0])
        if xattrs.references(volume.view, inode) != len(owners):
            return False
        place = yield from relocation.find(volume, self.search, 1, 1, shortens=False)
        if place is None:
            return False
        with volume.handle(CREDITS + len(owners), SUPERUSER) as tx:
            if not blocks.take_run(tx, place):
                return False
            xattrs.move_whole(tx, [inodes.edit(tx, ino) for ino in owners], place.start)
        self.moved += 1
        return True
