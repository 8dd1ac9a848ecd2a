"""Count the blocks of a file system that can never be data; statfs(2) subtracts them from the size.

The kernel counts them at each mount. It uses ``s_overhead_clusters`` only under bigalloc, where counting is slow: the
field is 0 or outdated after resize2fs or genext2fs changed the pool. This module counts as the kernel does, omissions
included. Source: ``ext4_calculate_overhead`` and ``count_overhead`` in fs/ext4/super.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.structures import groups

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.journal.view import View

BITMAPS = 2
"""Bitmap blocks of each group: the block bitmap and the inode bitmap."""


def blocks(view: View, log_blocks: int) -> int:
    """Return how many blocks are never data, in a file system whose internal journal has ``log_blocks`` (0: none).

    Raises:
        Corrupt: under bigalloc, a descriptor names blocks outside the file system.
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
    """Count the blocks of superblocks, descriptors, room for more descriptors, bitmaps and inode tables."""
    fixed = (BITMAPS + geometry.inode_blocks_per_group) * geometry.groups_count
    return fixed + sum(geometry.base_blocks(group) for group in range(geometry.groups_count))


def _clusters(view: View) -> int:
    """Count the clusters of the groups' metadata, each once; blocks reserved for more descriptors are not counted."""
    geometry = view.geometry
    bits, table = geometry.cluster_bits, geometry.inode_blocks_per_group
    used: set[int] = set()
    for group in range(geometry.groups_count):
        if not groups.places_are_right(view, group):
            continue
        descriptor = groups.descriptor(view, group)
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
