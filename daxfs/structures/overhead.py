"""How many blocks of a file system can never be data, which statfs(2) takes off its size.

The kernel counts anew at each mount and believes ``s_overhead_clusters`` only under bigalloc, where counting is slow:
the field is 0 or old where resize2fs or genext2fs had its hands on the pool. This module counts as the kernel does,
down to what it leaves out. Source: ``ext4_calculate_overhead`` and ``count_overhead`` in fs/ext4/super.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.structures import groups

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.journal.view import View

BITMAPS = 2
"""Blocks of each group: a map of its blocks, a map of its inodes."""


def blocks(view: View, log_blocks: int) -> int:
    """Blocks that are never data, of a file system whose journal inside of it has ``log_blocks`` (0: none).

    Raises:
        Corrupt: under bigalloc, a descriptor names blocks outside of the file system.
    """
    geometry = view.geometry
    bits = geometry.cluster_bits
    if not bits:
        return geometry.first_data_block + _of_groups(geometry) + log_blocks
    counted = view.superblock().s_overhead_clusters
    if not 0 < counted <= geometry.blocks_count:
        counted = (geometry.first_data_block >> bits) + _clusters(view) - (-log_blocks >> bits)
    return counted << bits


def _of_groups(geometry: Geometry) -> int:
    """Blocks of the groups' metadata: superblocks, descriptors, room for more of these, bitmaps, inode tables."""
    fixed = (BITMAPS + geometry.inode_blocks_per_group) * geometry.groups_count
    return fixed + sum(geometry.base_blocks(group) for group in range(geometry.groups_count))


def _clusters(view: View) -> int:
    """The same in clusters, each counted once; blocks kept for more descriptors are not counted."""
    geometry = view.geometry
    bits, table = geometry.cluster_bits, geometry.inode_blocks_per_group
    used: set[int] = set()
    for group in range(geometry.groups_count):
        descriptor = groups.descriptor(view, group)
        descriptor.check_places(group, geometry)
        first = geometry.first_block(group)
        kept = geometry.reserved_gdt_blocks if geometry.has_super(group) and not geometry.has_meta_bg else 0
        ranges = (
            (descriptor.block_bitmap, 1),
            (descriptor.inode_bitmap, 1),
            (descriptor.inode_table, table),
            (first, geometry.base_blocks(group) - kept),
        )
        for start, count in ranges:
            used.update(range(start >> bits, -(-(start + count) >> bits)))
    return len(used)
