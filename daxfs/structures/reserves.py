"""Blocks that must stay free: the reserve for extent trees, and that of privileged callers.

The functions compute from the geometry and the superblock. Callers: the allocator's search, and statfs(2). Sources:
fs/ext4/super.c and balloc.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.ext4.superblock import Superblock

TREE_RESERVE_SHARE = 50
MAX_TREE_RESERVE = 4096
"""The reserve for extent trees is one cluster in 50, at most 4,096 clusters."""


def tree_reserve(geometry: Geometry) -> int:
    """Return how many blocks only extent trees may take (``ext4_calculate_resv_clusters`` in fs/ext4/super.c).

    Storing into preallocated blocks or removing a range from a file splits extents, which may need a tree block even on
    a full pool. A map without extents does not grow in these cases, so it needs no reserve.
    """
    if not geometry.has_extents:
        return 0
    clusters = geometry.memory_blocks >> geometry.cluster_bits
    return min(clusters // TREE_RESERVE_SHARE, MAX_TREE_RESERVE) << geometry.cluster_bits


def must_stay_free(geometry: Geometry, sb: Superblock, *, privileged: bool) -> int:
    """Return how many blocks must stay free when data is allocated (``ext4_has_free_clusters`` in fs/ext4/balloc.c)."""
    return tree_reserve(geometry) + (0 if privileged else sb.reserved_blocks_count)
