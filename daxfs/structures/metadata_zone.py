"""Where a group's own metadata lies, so that no file's map is ever believed to lie there too.

Superblock copies, group descriptors, bitmaps and inode tables are found from the geometry and the descriptors, one
flexible group at a time, and kept per pool in a bounded table. It answers, it changes nothing. The maps of files
(`extent_tree`, `indirect`) ask it once for each block pointer they have not seen before. Like the kernel's
(``fs/ext4/block_validity.c``) it is a net under hostile images, not an allocator.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from daxfs.structures import groups

if TYPE_CHECKING:
    from daxfs.journal.view import View
    from daxfs.pmem.pool import Pool

MAX_ZONES = 512
"""Flexible groups remembered per pool; a few hundred bytes each."""

Zone = tuple[list[int], list[int]]
"""Sorted, disjoint block ranges: where they begin, and where each ends."""

_zones: WeakKeyDictionary[Pool, dict[int, Zone]] = WeakKeyDictionary()


def overlaps(view: View, start: int, count: int) -> bool:
    """Whether the blocks [start, start + count), which lie in the pool, touch metadata of their groups."""
    geometry = view.geometry
    known = _zones.get(view.pool)
    if known is None:
        known = _zones[view.pool] = {}
    width = geometry.flex_bg_size * geometry.blocks_per_group
    first = (start - geometry.first_data_block) // width
    last = (start + count - 1 - geometry.first_data_block) // width
    for number in range(first, last + 1):
        zone = known.get(number)
        if zone is None:
            if len(known) >= MAX_ZONES:
                known.clear()
            zone = known[number] = _build(view, number)
        begins, ends = zone
        at = bisect_right(begins, start + count - 1) - 1
        if at >= 0 and ends[at] > start:
            return True
    return False


def _build(view: View, number: int) -> Zone:
    """The zone of one flexible group, from the descriptors of its groups."""
    geometry = view.geometry
    ranges: list[tuple[int, int]] = []
    table = -(-geometry.inodes_per_group * geometry.inode_size // geometry.block_size)
    first = number * geometry.flex_bg_size
    for group in range(max(first, 0), min(first + geometry.flex_bg_size, geometry.groups_count)):
        descriptor = groups.descriptor(view, group)
        ranges.append((descriptor.block_bitmap, 1))
        ranges.append((descriptor.inode_bitmap, 1))
        ranges.append((descriptor.inode_table, table))
        own = geometry.base_blocks(group)
        if own:
            ranges.append((geometry.first_block(group), own))
    begins: list[int] = []
    ends: list[int] = []
    for begin, count in sorted(ranges):
        if ends and begin <= ends[-1]:
            ends[-1] = max(ends[-1], begin + count)
        else:
            begins.append(begin)
            ends.append(begin + count)
    return begins, ends
