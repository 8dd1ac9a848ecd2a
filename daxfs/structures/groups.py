"""Group descriptors, found and checked: the first step to every bitmap and inode table.

Answers where a group's descriptor is, binds it for reading or for change, and lists the counters of many groups at once
for the allocators, which choose by them. It knows nothing of what the bitmaps say. Callers: the modules of this layer,
and the tools. Source: ``ext4_get_group_desc`` in fs/ext4/balloc.c, ``ext4_check_descriptors`` in super.c.

A block of descriptors is checked as a whole when it is first read (checksums and every field); after that a lookup
costs one set probe. Checksums are made at commit by late seals, because a descriptor holds the checksums of its
bitmaps.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from daxfs.ext4.group import EXT4_BG_BLOCK_UNINIT, EXT4_BG_INODE_UNINIT, GroupDescriptor
from daxfs.ext4.group import descriptor as bind

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.journal.transaction import Handle
    from daxfs.journal.view import View

Counts = npt.NDArray[np.int64]


class GroupCounts(NamedTuple):
    """The counters of the groups [first, first + len(...)), one array each, int64."""

    first: int
    free_blocks: Counts
    free_inodes: Counts
    used_dirs: Counts


def locate(view: View, group: int) -> tuple[memoryview, int]:
    """The checked block that holds the descriptor of ``group``, and the byte it starts at.

    Raises:
        Corrupt: there is no such group, or one of the block's descriptors is damaged.
    """
    geometry = view.geometry
    number, offset = geometry.descriptor_position(group)
    return view.verified(number, partial(_check, geometry, group - offset // geometry.desc_size)), offset


def descriptor(view: View, group: int) -> GroupDescriptor:
    """The descriptor of ``group``, for reading; raises as `locate`."""
    content, offset = locate(view, group)
    return bind(content, offset, view.geometry)


def edit_descriptor(tx: Handle, group: int) -> GroupDescriptor:
    """The descriptor of ``group``, for change: one credit. Its checksum is made at commit, after those of bitmaps."""
    geometry = tx.geometry
    number, offset = geometry.descriptor_position(group)
    tx.verified(number, partial(_check, geometry, group - offset // geometry.desc_size))
    content = tx.edit(number)
    if geometry.metadata_csum or geometry.gdt_csum:
        tx.seal_record(number, group, partial(_seal, geometry, group, offset), late=True)
    return bind(content, offset, geometry)


def blocks_uninit(geometry: Geometry, desc: GroupDescriptor) -> bool:
    """Whether the block bitmap was never written: its content follows from the layout."""
    return bool(desc.bg_flags & EXT4_BG_BLOCK_UNINIT) and (geometry.metadata_csum or geometry.gdt_csum)


def inodes_uninit(geometry: Geometry, desc: GroupDescriptor) -> bool:
    """Whether the inode bitmap was never written: no inode of the group is in use."""
    return bool(desc.bg_flags & EXT4_BG_INODE_UNINIT) and (geometry.metadata_csum or geometry.gdt_csum)


def counts(view: View, index: int) -> GroupCounts:
    """The counters of all groups whose descriptors lie in descriptor block ``index`` (group // desc_per_block).

    They are copies, of the transaction's state where it has changed them.
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
    """Free blocks and free inodes of the whole file system, added up over the groups.

    The kernel keeps the superblock's own counters up to date only when it unmounts; after a replay these are right.
    """
    blocks = inodes = 0
    for index in range(view.geometry.desc_blocks):
        found = counts(view, index)
        blocks += int(found.free_blocks.sum())
        inodes += int(found.free_inodes.sum())
    return blocks, inodes


def metadata_runs(view: View, group: int) -> list[tuple[int, int]]:
    """The (start, count) runs of blocks inside ``group`` that hold metadata of groups, its own and its neighbours'.

    Neighbours are the groups of the same flexible group (flex_bg gathers their bitmaps and tables in the first of
    them). Runs may touch or overlap, and are in no order.
    """
    geometry = view.geometry
    low = geometry.first_block(group)
    high = low + geometry.blocks_in_group(group)
    own = min(geometry.base_blocks(group), high - low)
    runs = [(low, own)] if own else []
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
            runs.append((max(start, low), min(stop, high) - max(start, low)))
    return runs


def _check(geometry: Geometry, first: int, content: memoryview) -> None:
    """All descriptors of the block whose first one is that of group ``first``."""
    size = geometry.desc_size
    for slot in range(min(geometry.desc_per_block, geometry.groups_count - first)):
        bind(content, slot * size, geometry).verify(first + slot, geometry)


def _seal(geometry: Geometry, group: int, offset: int, content: memoryview) -> None:
    bind(content, offset, geometry).seal(group, geometry)
