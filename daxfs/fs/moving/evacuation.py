"""A part of the pool is emptied: everything that inodes have there goes elsewhere, whatever uses it meanwhile.

One pass looks at all inodes in use, in the order of their numbers, and moves what each has in that part (`vacating`).
Changes of maps may take new blocks there, as any operation may. So passes follow until one finds nothing to move. What
stays is named by inode, with the reason: what the format keeps for itself (the journal, reserved descriptors, quotas),
stores of snapshots, what programs map, bad memory, damage. The groups' own metadata (bitmaps, inode tables) is not an
inode's, and is no concern of this module; nor are allocations into the part, which whoever empties it may prevent.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, FsError
from daxfs.ext4.inode import EXT4_RESIZE_INO
from daxfs.fs import removal
from daxfs.fs.moving import vacating
from daxfs.fs.nodes import END
from daxfs.fs.types import BAD, DAMAGED, FIXED, MAP, MAPPED, SNAPSHOT, Caller, Evacuation, Relocation, Stayed
from daxfs.runs import BlockRun
from daxfs.structures import badblocks, inode_bitmaps, inodes, mapping, usage
from daxfs.structures.badblocks import EXT4_BAD_INO
from daxfs.structures.extent_tree import MAX_BLOCKS, ROOT_WORDS
from daxfs.structures.indirect import DIRECT
from daxfs.structures.noted import note

if TYPE_CHECKING:
    from daxfs.fs.grants.table import Grants
    from daxfs.fs.steps import Steps
    from daxfs.fs.volume import Volume
    from daxfs.structures.inodes import Inode
    from daxfs.structures.mapping import Extent

INODES_PER_STEP = 64
FEW_RUNS = 16
"""Runs of a file that are looked at to see that it has nothing in the part."""
MOST_PASSES = 8
MOST_NAMED = 1024
"""The most inodes whose remains are named."""


def evacuate(
    volume: Volume, table: Grants, keeps_store: Callable[[int], bool], avoid: BlockRun, caller: Caller
) -> Steps[Evacuation]:
    """Empty the blocks ``avoid`` of the pool.

    Args:
        volume: the mounted pool.
        table: the grants of the mount.
        keeps_store: whether an inode is the store of a snapshot.
        avoid: the part.
        caller: reserved blocks are for privileged ones.

    Raises:
        FsError: EROFS; EINTR; errors of the medium. What has moved stays moved.
    """
    volume.writable()
    moved = metadata = 0
    for _ in range(MOST_PASSES):
        one = _Pass(volume, table, keeps_store, avoid, caller)
        yield from one.run()
        volume.commit()  # until then, what has moved is in use at its old place
        moved += one.moved
        metadata += one.metadata
        if not one.moved and not one.metadata:
            break
    left = yield from _left(volume, avoid)
    return Evacuation(moved, metadata, one.stayed, left)


def _left(volume: Volume, avoid: BlockRun) -> Steps[int]:
    """Count the blocks of the part that are in use, beside the groups' own metadata; a group in each step."""
    geometry, left = volume.geometry, 0
    first, end = max(avoid.start, geometry.first_data_block), min(avoid.start + avoid.length, geometry.blocks_count)
    for group in range(geometry.group_of_block(first), geometry.group_of_block(end - 1) + 1) if first < end else ():
        if group < volume.geometry.groups_count:  # it may become smaller meanwhile
            left += usage.used_within(volume.view, group, avoid)
        yield
    return left


class _Pass:
    """One look at all inodes."""

    def __init__(
        self, volume: Volume, table: Grants, keeps_store: Callable[[int], bool], avoid: BlockRun, caller: Caller
    ) -> None:
        self.volume = volume
        self.table = table
        self.keeps_store = keeps_store
        self.avoid = avoid
        self._end = avoid.start + avoid.length
        self.caller = caller
        self.shared = vacating.Shared()
        self.moved = 0
        self.metadata = 0
        self.stayed: dict[int, tuple[Stayed, ...]] = {}

    def run(self) -> Steps[None]:
        """Look at all inodes, and move what can move."""
        volume = self.volume
        yield from removal.freeing(volume)
        for group in range(volume.geometry.groups_count):
            numbers = inode_bitmaps.in_use_of(volume.view, group)
            for at, ino in enumerate(numbers):
                if at % INODES_PER_STEP == 0:
                    yield
                try:
                    done = yield from self._one(ino)
                except Corrupt as error:
                    note(volume.view, error)
                    done = Relocation(0, (Stayed(0, 0, DAMAGED),))
                self.moved += done.moved
                self.metadata += done.metadata
                if done.stayed and len(self.stayed) < MOST_NAMED:
                    self.stayed[ino] = done.stayed

    def _one(self, ino: int) -> Steps[Relocation]:
        volume = self.volume
        if ino == EXT4_BAD_INO:
            return Relocation(0, self._within(badblocks.listed(volume.view), BAD))
        if not inode_bitmaps.in_use(volume.view, ino):
            return Relocation(0, ())
        try:
            inode = inodes.read(volume.view, ino)
        except FsError as error:
            if error.errno != errno.ESTALE:
                raise
            return Relocation(0, ())  # reserved, and never used
        if not self._may_lie_within(inode):
            return Relocation(0, ())
        why = self._immovable(ino)
        if why:
            runs = () if ino == EXT4_RESIZE_INO else mapping.walk(volume.view, inode)
            return Relocation(0, self._within(runs, why) + self._map_within(inode, why))
        return (yield from vacating.vacate(volume, self.table, ino, 0, END, self.avoid, self.caller, self.shared))

    def _immovable(self, ino: int) -> str:
        """Return why an inode's blocks don't move; empty: they do."""
        if not inodes.nameable(self.volume.view, ino):
            return FIXED
        if self.keeps_store(ino):
            return SNAPSHOT
        return MAPPED if ino in self.volume.lives.quarantine else ""

    def _may_lie_within(self, inode: Inode) -> bool:
        """Return whether an inode may have blocks in the part: a cheap look, exact for all but fragmented files."""
        view, low, high = self.volume.view, self.avoid.start, self._end
        if inode.file_acl and low <= inode.file_acl < high:
            return True
        if not inode.blocks or not removal.holds_blocks(inode):
            return False
        runs = mapping.runs(view, inode, 0, None, FEW_RUNS)
        if len(runs) == FEW_RUNS or any(run.pblk < high and low < run.pblk + run.length for run in runs):
            return True
        return bool(mapping.own_blocks(view, inode, 0, self.avoid, FEW_RUNS)[0])

    def _within(self, runs: Iterable[Extent], why: str) -> tuple[Stayed, ...]:
        """Return the parts of a file, whose runs these are, that lie in the part of the pool."""
        bits, low, high = self.volume.block_bits, self.avoid.start, self._end
        found: list[Stayed] = []
        for run in runs:
            begin, end = max(run.pblk, low), min(run.pblk + run.length, high)
            if begin >= end:
                continue
            offset, length = run.lblk + begin - run.pblk << bits, end - begin << bits
            if found and found[-1].offset + found[-1].length == offset:
                found[-1] = found[-1]._replace(length=found[-1].length + length)
            else:
                found.append(Stayed(offset, length, why))
        return tuple(found)

    def _map_within(self, inode: Inode, why: str) -> tuple[Stayed, ...]:
        """Return the blocks of the inode's map that lie in the part of the pool."""
        bits = self.volume.block_bits
        if inode.number == EXT4_RESIZE_INO:  # all others are the groups'
            top = inode.words[ROOT_WORDS][DIRECT + 1]
            return (Stayed(0, 1 << bits, why, (), MAP),) if self.avoid.start <= top < self._end else ()
        found, _ = mapping.own_blocks(self.volume.view, inode, 0, self.avoid, MAX_BLOCKS)
        return tuple(Stayed(lblk << bits, 1 << bits, why, (), MAP) for lblk, _ in found)
