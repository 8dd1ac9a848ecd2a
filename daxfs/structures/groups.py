"""Find and check group descriptors, the first step to every bitmap and inode table.

This module finds a group's descriptor and binds it for reading or for changing. For the allocators, it lists the
counters of many groups at once. It does not read the bitmaps. Callers: the modules of this layer, and the tools.
Source: ``ext4_get_group_desc`` in fs/ext4/balloc.c, ``ext4_check_descriptors`` in super.c.

A block of descriptors is checked as a whole when it is first read (checksums and every field); after that a lookup
costs one probe of a set. Late seals make the checksums at commit, because a descriptor holds the checksums of its
bitmaps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from daxfs.ext4.group import EXT4_BG_BLOCK_UNINIT, EXT4_BG_INODE_UNINIT, GroupDescriptor
from daxfs.ext4.group import descriptor as bind
from daxfs.runs import BlockRun

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.journal.transaction import Handle
    from daxfs.journal.view import View

Counts = npt.NDArray[np.int64]


class GroupCounts(NamedTuple):
    """The counters of consecutive groups, of which ``first`` is the first; one int64 array for each counter."""

    first: int
    free_blocks: Counts
    free_inodes: Counts
    used_dirs: Counts


def locate(view: View, group: int) -> tuple[memoryview, int]:
    """Return the checked block that holds the descriptor of ``group``, and the byte at which the descriptor starts.

    Raises:
        Corrupt: there is no such group, or a descriptor in the block is damaged.
    """
    geometry = view.geometry
    number, offset = geometry.descriptor_position(group)
    return view.verified(number, _check, geometry, group - offset // geometry.desc_size), offset


def descriptor(view: View, group: int) -> GroupDescriptor:
    """Return the descriptor of ``group``, for reading. Raises as `locate`."""
    content, offset = locate(view, group)
    return bind(content, offset, view.geometry)


def newest(tx: Handle, group: int) -> GroupDescriptor:
    """Return the descriptor of ``group`` as `descriptor` does: the transaction's own record, if it keeps one."""
    return tx.kept(GroupDescriptor, group) or descriptor(tx, group)


def edit_descriptor(tx: Handle, group: int) -> GroupDescriptor:
    """Return the descriptor of ``group``, for changing: one credit.

    The descriptor is sealed at commit, after the bitmaps. Raises as `locate`.
    """
    kept = tx.edited(GroupDescriptor, group)
    if kept is not None:
        return kept
    geometry = tx.geometry
    number, offset = geometry.descriptor_position(group)
    tx.verified(number, _check, geometry, group - offset // geometry.desc_size)
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

    The arrays are copies and include changes of the running transaction.
    """
    geometry = view.geometry
    first = index * geometry.desc_per_block
    content, _ = locate(view, first)
    length = min(geometry.desc_per_block, geometry.groups_count - first)
    halves = np.frombuffer(content, dtype="<u2").reshape(geometry.desc_per_block, -1)[:length]
    columns = halves[:, (0x0C // 2, 0x0E // 2, 0x10 // 2)].astype(np.int64)
    if geometry.desc_size >= 64:
        columns += halves[:, (0x2C // 2, 0x2E // 2, 0x30 // 2)].astype(np.int64) << 16
    return GroupCounts(first, columns[:, 0], columns[:, 1], columns[:, 2])


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
        content, _ = locate(view, index * per_block)
        words = np.frombuffer(content, dtype="<u4").reshape(per_block, -1)
        words = words[max(first - index * per_block, 0) : end - index * per_block]
        starts = words[:, :3].astype(np.int64)
        if geometry.desc_size >= 64:
            starts += words[:, 8:11].astype(np.int64) << 32
        ends = starts + np.array((1, 1, geometry.inode_blocks_per_group))
        inside = (starts < high) & (ends > low)
        for start, stop in zip(starts[inside].tolist(), ends[inside].tolist(), strict=True):
            runs.append(BlockRun(max(start, low), min(stop, high) - max(start, low)))
    return runs


def _check(geometry: Geometry, first: int, content: memoryview) -> None:
    """Check all descriptors of a block whose first descriptor is that of group ``first``."""
    size = geometry.desc_size
    for slot in range(min(geometry.desc_per_block, geometry.groups_count - first)):
        bind(content, slot * size, geometry).verify(first + slot, geometry)


def _seal(geometry: Geometry, group: int, desc: GroupDescriptor, content: memoryview) -> None:  # noqa: ARG001
    desc.seal(group, geometry)
