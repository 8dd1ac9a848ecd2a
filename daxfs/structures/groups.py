"""Find and check group descriptors, the first step to every bitmap and inode table.

This module finds a group's descriptor and binds it for reading or for changing. For the allocators, it lists the
counters of many groups at once. It does not read the bitmaps. Callers: the modules of this layer, and the tools.
Source: ``ext4_get_group_desc`` in fs/ext4/balloc.c, ``ext4_check_descriptors`` in super.c.

A block of descriptors is checked as a whole when it is first read (checksums and every field); after that a lookup
costs one probe of a set. A damaged descriptor makes its group unusable: readers still find the inode table if it lies
in the file system, but nothing is taken from the group and nothing is freed into it, until e2fsck has repaired it. A
damaged block bitmap does that to the group's blocks alone, a damaged inode bitmap to its inodes. Late seals make the
checksums at commit, because a descriptor holds the checksums of its bitmaps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from daxfs.errors import Corrupt, FsError
from daxfs.ext4.group import EXT4_BG_BLOCK_UNINIT, EXT4_BG_INODE_UNINIT, GroupDescriptor
from daxfs.ext4.group import descriptor as bind
from daxfs.journal.cache import Cache
from daxfs.runs import BlockRun
from daxfs.structures.noted import note

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View

Counts = npt.NDArray[np.int64]


class GroupCounts(NamedTuple):
    """The counters of consecutive groups, of which ``first`` is the first; one int64 array for each counter."""

    first: int
    free_blocks: Counts
    free_inodes: Counts
    used_dirs: Counts


class Unusable(Cache):
    """What of the groups of one pool is unusable, and why. It stays so until the pool is mounted again.

    Attributes:
        descriptors: the groups with a damaged descriptor; they are among the others too.
        blocks: the groups whose blocks are neither taken nor freed.
        inodes: the groups whose inodes are neither taken nor freed.
    """

    __slots__ = ("blocks", "descriptors", "inodes")

    def __init__(self) -> None:
        self.descriptors: dict[int, Corrupt] = {}
        self.blocks: dict[int, Corrupt] = {}
        self.inodes: dict[int, Corrupt] = {}


class OnStorage(Cache):
    """How many blocks of a tiered pool's storage are free; -1: they must be counted."""

    __slots__ = ("free",)

    def __init__(self) -> None:
        self.free = -1

    def drop(self) -> None:
        """Count anew: blocks were taken or freed there, or that was undone."""
        self.free = -1


def free_on_storage(view: View) -> int:
    """Return how many free blocks lie on the storage of a tiered pool, where the allocators take none."""
    geometry = view.geometry
    if geometry.memory_blocks == geometry.blocks_count:
        return 0
    known = view.caches[OnStorage]
    if known.free < 0:
        known.free = free_in(view, range(geometry.memory_groups, geometry.groups_count))
    return known.free


def free_in(view: View, some: range) -> int:
    """Return how many blocks of some groups, one after the other, are free."""
    total, per_block = 0, view.geometry.desc_per_block
    for index in range(some.start // per_block, -(-some.stop // per_block)):
        found = counts(view, index)
        total += int(found.free_blocks[max(some.start - found.first, 0) : some.stop - found.first].sum())
    return total


class _End(Cache):
    """Where the file system is about to end: nothing is taken past block ``block``, if it is not 0."""

    __slots__ = ("block",)

    def __init__(self) -> None:
        self.block = 0


def set_end(view: View, block: int) -> None:
    """Have nothing taken from ``block`` on; 0: from everywhere. What lies there stays, and can be freed."""
    view.caches[_End].block = block


def end_of_taking(view: View) -> int:
    """Return the block from which on nothing is taken (`set_end`), or 0."""
    return view.caches[_End].block


def gives_blocks(view: View, group: int) -> bool:
    """Whether blocks may be taken from the group; of the last such group perhaps not all (`set_end`)."""
    return has_blocks(view, group) and _stays(view, group)


def gives_inodes(view: View, group: int) -> bool:
    """Whether inodes may be taken from the group: its table must be in memory."""
    return group < view.geometry.inode_groups and has_inodes(view, group) and _stays(view, group)


def _stays(view: View, group: int) -> bool:
    end = view.caches[_End].block
    return not end or view.geometry.first_block(group) < end


def forget(view: View) -> None:
    """Forget what is unusable: some groups are no longer there."""
    unusable = view.caches[Unusable]
    for damaged in (unusable.descriptors, unusable.blocks, unusable.inodes):
        damaged.clear()


def has_blocks(view: View, group: int) -> bool:
    """Whether blocks may be taken from the group and freed into it, as far as is known."""
    return group not in view.caches[Unusable].blocks


def has_inodes(view: View, group: int) -> bool:
    """Whether inodes may be taken from the group and freed into it, as far as is known."""
    return group not in view.caches[Unusable].inodes


def given_up(view: View) -> int:
    """Return how much is unusable, for `attempt_again`: groups' blocks and groups' inodes."""
    unusable = view.caches[Unusable]
    return len(unusable.blocks) + len(unusable.inodes)


def give_up_blocks(view: View, group: int, error: Corrupt) -> None:
    """Make the blocks of a group unusable, because of its block bitmap, and note the damage. Raises as `note`."""
    note(view, error)
    view.caches[Unusable].blocks.setdefault(group, error)


def give_up_inodes(view: View, group: int, error: Corrupt) -> None:
    """Make the inodes of a group unusable, because of its inode bitmap, and note the damage. Raises as `note`."""
    note(view, error)
    view.caches[Unusable].inodes.setdefault(group, error)


def _give_up(view: View, group: int, error: Corrupt) -> None:
    """Make a group unusable, because of its descriptor, and note the damage. Raises as `note`."""
    note(view, error)
    unusable = view.caches[Unusable]
    for damaged in (unusable.descriptors, unusable.blocks, unusable.inodes):
        damaged.setdefault(group, error)


def attempt_again(view: View, unusable: int, error: FsError, met: Corrupt | None) -> Corrupt:
    """Decide what an allocation does that has failed: it is attempted again if it has given up one more group.

    Args:
        view: of the pool.
        unusable: `given_up` before the attempt.
        error: of the attempt.
        met: the damage that earlier attempts have met first.

    Returns:
        The damage that was met first; the caller attempts the allocation again.

    Raises:
        FsError: ``error``; or ``met`` if the other groups have no room: somebody must repair the damage.
    """
    if not isinstance(error, Corrupt):
        raise met or error
    if given_up(view) == unusable:
        raise error
    return met or error


def refuse_blocks(view: View, group: int) -> None:
    """Raise the error that has made the blocks of the group unusable, if they are."""
    error = view.caches[Unusable].blocks.get(group)
    if error is not None:
        raise error


def refuse_inodes(view: View, group: int) -> None:
    """Raise the error that has made the inodes of the group unusable, if they are."""
    error = view.caches[Unusable].inodes.get(group)
    if error is not None:
        raise error


def locate(view: View, group: int) -> tuple[memoryview, int]:
    """Return the block that holds the descriptor of ``group``, and the byte at which the descriptor starts.

    Damaged descriptors of the block make their groups unusable.

    Raises:
        Corrupt: there is no such group.
    """
    geometry = view.geometry
    number, offset = geometry.descriptor_position(group)
    return view.verified(number, _check, view, group - offset // geometry.desc_size), offset


def descriptor(view: View, group: int) -> GroupDescriptor:
    """Return the descriptor of ``group``, for reading. Only its places are known to be right if it is damaged.

    Raises:
        Corrupt: there is no such group, or its bitmaps or inode table lie outside the file system.
    """
    content, offset = locate(view, group)
    desc = bind(content, offset, view.geometry)
    if group in view.caches[Unusable].descriptors:
        desc.check_places(group, view.geometry)
    return desc


def newest(tx: Handle, group: int) -> GroupDescriptor:
    """Return the descriptor of ``group`` as `descriptor` does: the transaction's own record, if it keeps one."""
    return tx.kept(GroupDescriptor, group) or descriptor(tx, group)


def edit_descriptor(tx: Handle, group: int) -> GroupDescriptor:
    """Return the descriptor of ``group``, for changing: one credit.

    The descriptor is sealed at commit, after the bitmaps.

    Raises:
        Corrupt: as `locate`, or the descriptor is damaged.
    """
    kept = tx.edited(GroupDescriptor, group)
    if kept is not None:
        return kept
    geometry = tx.geometry
    number, offset = geometry.descriptor_position(group)
    tx.verified(number, _check, tx, group - offset // geometry.desc_size)
    error = tx.caches[Unusable].descriptors.get(group)
    if error is not None:
        raise error
    return _bound(tx, group, number, offset)


def make_descriptor(tx: Handle, group: int) -> GroupDescriptor:
    """Return a descriptor of zeros for a group that is being added, for changing: one credit. Sealed at commit."""
    geometry = tx.geometry
    number, offset = geometry.descriptor_position(group)
    content = tx.edit(number)
    content[offset : offset + geometry.desc_size] = bytes(geometry.desc_size)
    return _bound(tx, group, number, offset)


def _bound(tx: Handle, group: int, number: int, offset: int) -> GroupDescriptor:
    """Bind a descriptor to the transaction's copy of its block, have it sealed, and keep the record."""
    geometry = tx.geometry
    desc = bind(tx.edit(number), offset, geometry)
    seal = _seal if geometry.metadata_csum or geometry.gdt_csum else None
    tx.keep(GroupDescriptor, group, number, desc, seal, geometry, group, desc, late=True)
    return desc


def blocks_uninit(geometry: Geometry, desc: GroupDescriptor) -> bool:
    """Whether the block bitmap was never written, so that its content follows from the layout."""
    return bool(desc.bg_flags & EXT4_BG_BLOCK_UNINIT) and (geometry.metadata_csum or geometry.gdt_csum)


def inodes_uninit(geometry: Geometry, desc: GroupDescriptor) -> bool:
    """Whether the inode bitmap was never written, so that no inode of the group is in use."""
    return bool(desc.bg_flags & EXT4_BG_INODE_UNINIT) and (geometry.metadata_csum or geometry.gdt_csum)


def counts(view: View, index: int) -> GroupCounts:
    """Return the counters of all groups whose descriptors lie in descriptor block ``index`` (group // desc_per_block).

    The arrays are copies and include changes of the running transaction. What is unusable is not free, nor is what
    lies past the end of what may be taken (`set_end`).
    """
    geometry = view.geometry
    first, columns = stored_counts(view, index)
    length = len(columns)
    unusable = view.caches[Unusable]
    for group in unusable.blocks:
        if first <= group < first + length:
            columns[group - first, 0] = 0
    for group in unusable.inodes:
        if first <= group < first + length:
            columns[group - first, 1:] = 0
    end = view.caches[_End].block
    if end:
        stay = -(-(end - geometry.first_data_block) // geometry.blocks_per_group) - first
        columns[max(stay, 0) :, :2] = 0
    return GroupCounts(first, columns[:, 0], columns[:, 1], columns[:, 2])


def stored_counts(view: View, index: int) -> tuple[int, Counts]:
    """Return the first group of descriptor block ``index``, and a row for each of its groups as the descriptors say it:
    free blocks, free inodes, directories.
    """
    geometry = view.geometry
    first = index * geometry.desc_per_block
    content, _ = locate(view, first)
    length = min(geometry.desc_per_block, geometry.groups_count - first)
    halves = np.frombuffer(content, dtype="<u2").reshape(geometry.desc_per_block, -1)[:length]
    columns = halves[:, (0x0C // 2, 0x0E // 2, 0x10 // 2)].astype(np.int64)
    if geometry.desc_size >= 64:
        columns += halves[:, (0x2C // 2, 0x2E // 2, 0x30 // 2)].astype(np.int64) << 16
    return first, columns


def totals(view: View) -> tuple[int, int]:
    """Return the free blocks and free inodes of the whole file system, summed over the groups.

    The sums are right after a replay. The superblock's counters may not be: the kernel updates them only at unmount.
    """
    blocks = inodes = 0
    for index in range(view.geometry.desc_blocks):
        found = counts(view, index)
        blocks += int(found.free_blocks.sum())
        inodes += int(found.free_inodes.sum())
    return blocks, inodes


def with_inodes(view: View, some: range) -> list[int]:
    """Return those of some groups, one after the other, that have inodes in use."""
    found: list[int] = []
    per_block, all_free = view.geometry.desc_per_block, view.geometry.inodes_per_group
    for index in range(some.start // per_block, -(-some.stop // per_block) if some else 0):
        counted = counts(view, index)
        used: list[int] = (np.flatnonzero(counted.free_inodes < all_free) + counted.first).tolist()
        found += [group for group in used if some.start <= group < some.stop]
    return found


def tables_on_storage(view: View) -> int:
    """Return the first group whose inode table lies on storage; 0: there is none."""
    geometry = view.geometry
    for index in range(geometry.desc_blocks):
        apart = places(view, index)[:, 2] >= geometry.memory_blocks
        if apart.any():
            return index * geometry.desc_per_block + int(apart.argmax())
    return 0


def inodes_on_storage(geometry: Geometry) -> int:
    """Return how many inodes have their slots on storage, where daxfs takes none."""
    return (geometry.groups_count - geometry.inode_groups) * geometry.inodes_per_group


def metadata_runs(view: View, group: int) -> list[BlockRun]:
    """Return the runs of blocks in ``group`` that hold the group's metadata or that of its neighbours.

    Neighbours are the groups of the same flexible group: flex_bg places their bitmaps and tables in the first of them.
    Runs may touch or overlap, and have no order.
    """
    geometry = view.geometry
    low = geometry.first_block(group)
    high = low + geometry.blocks_in_group(group)
    own = min(geometry.base_blocks(group), high - low)
    runs = [BlockRun(low, own)] if own else []
    per_block = geometry.desc_per_block
    first = group - group % geometry.flex_bg_size
    end = min(first + geometry.flex_bg_size, geometry.groups_count)
    for index in range(first // per_block, -(-end // per_block)):
        begin = max(first - index * per_block, 0)
        starts = places(view, index)[begin : end - index * per_block]
        ends = starts + np.array((1, 1, geometry.inode_blocks_per_group))
        inside = (starts < high) & (ends > low)
        for other in view.caches[Unusable].descriptors:
            slot = other - index * per_block - begin
            if 0 <= slot < len(inside) and not places_are_right(view, other):
                inside[slot] = False
        for start, stop in zip(starts[inside].tolist(), ends[inside].tolist(), strict=True):
            runs.append(BlockRun(max(start, low), min(stop, high) - max(start, low)))
    return runs


def places(view: View, index: int) -> Counts:
    """Return where the groups of descriptor block ``index`` have their block bitmap, inode bitmap and inode table.

    Each group is a row. What unusable groups say may be wrong (`places_are_right`).
    """
    geometry = view.geometry
    per_block = geometry.desc_per_block
    content, _ = locate(view, index * per_block)
    words = np.frombuffer(content, dtype="<u4").reshape(per_block, -1)[: geometry.groups_count - index * per_block]
    starts = words[:, :3].astype(np.int64)
    if geometry.desc_size >= 64:
        starts += words[:, 8:11].astype(np.int64) << 32
    return starts


def places_are_right(view: View, group: int) -> bool:
    """Whether the group's bitmaps and inode table lie in the file system, be its descriptor damaged or not."""
    content, offset = locate(view, group)
    try:
        bind(content, offset, view.geometry).check_places(group, view.geometry)
    except Corrupt:
        return False
    return True


def _check(view: View, first: int, content: memoryview) -> None:
    """Check all descriptors of a block whose first descriptor is that of group ``first``, and give up damaged ones."""
    geometry = view.geometry
    size = geometry.desc_size
    for slot in range(min(geometry.desc_per_block, geometry.groups_count - first)):
        try:
            bind(content, slot * size, geometry).verify(first + slot, geometry)
        except Corrupt as error:
            _give_up(view, first + slot, error)


def _seal(geometry: Geometry, group: int, desc: GroupDescriptor, content: memoryview) -> None:  # noqa: ARG001
    desc.seal(group, geometry)
