"""Where a group's own metadata lies, so that no file's map is ever believed to lie there too.

Superblock copies, group descriptors, bitmaps and inode tables are found from the geometry and the descriptors, one
flexible group at a time, and kept per mount in a bounded table. It answers, it changes nothing. The maps of files
(`extent_tree`, `indirect`) ask it once for each block pointer they have not seen before. Like the kernel's
(``fs/ext4/block_validity.c``) it is a net under hostile images, not an allocator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from daxfs.journal.caches import Cache
from daxfs.structures import groups

if TYPE_CHECKING:
    from collections.abc import Iterable

    from daxfs.journal.view import View

MAX_ZONES = 512
"""Flexible groups remembered; a few hundred bytes each."""

Blocks = np.ndarray[tuple[int], np.dtype[np.int64]]
Zone = tuple[Blocks, Blocks]
"""Sorted, disjoint block ranges: where they begin, and where each ends."""


class _Zones(Cache):
    """What is remembered of one pool. It follows from the shape, which no change of a mounted pool touches.

    Attributes:
        by_group: the zones by flexible group.
        log: the journal's blocks, once `protect` was told of them.
        log_owner: the inode that they belong to.
    """

    __slots__ = ("by_group", "log", "log_owner")

    def __init__(self) -> None:
        self.by_group: dict[int, Zone] = {}
        self.log: Zone | None = None
        self.log_owner = 0


def protect(view: View, owner: int, runs: Iterable[tuple[int, int]]) -> None:
    """The journal's blocks (start, count) are metadata too: from now on no map but its inode's may name them."""
    zones = view.caches[_Zones]
    zones.log = _zone(runs)
    zones.log_owner = owner


def first_overlap(view: View, ino: int, starts: Blocks, ends: Blocks) -> int | None:
    """The index of the first of the block ranges [start, end) that touches metadata of the groups; None when none does.

    They are in the map of inode ``ino``, non-empty, and lie in the pool.
    """
    if not starts.size:
        return None
    zones = view.caches[_Zones]
    known = zones.by_group
    geometry = view.geometry
    width = geometry.flex_bg_size * geometry.blocks_per_group
    lasts = ends - 1
    firsts = (starts - geometry.first_data_block) // width
    numbers = np.unique(np.concatenate((firsts, (lasts - geometry.first_data_block) // width)))
    bad = np.zeros(starts.size, dtype=bool)
    for number in numbers.tolist():
        zone = known.get(number)
        if zone is None:
            if len(known) >= MAX_ZONES:
                known.clear()
            zone = known[number] = _build(view, number)
        bad |= _touches(zone, starts, lasts)
    if zones.log is not None and ino != zones.log_owner:
        bad |= _touches(zones.log, starts, lasts)
    return int(np.argmax(bad)) if bad.any() else None


def _touches(zone: Zone, starts: Blocks, lasts: Blocks) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    begins, stops = zone
    at = np.searchsorted(begins, lasts, "right") - 1
    touched: np.ndarray[tuple[int], np.dtype[np.bool_]] = (at >= 0) & (stops[at] > starts)
    return touched


def _build(view: View, number: int) -> Zone:
    """The zone of one flexible group, from the descriptors of its groups.

    Raises:
        Corrupt: a descriptor names blocks outside of the file system.
    """
    geometry = view.geometry
    ranges: list[tuple[int, int]] = []
    table = -(-geometry.inodes_per_group * geometry.inode_size // geometry.block_size)
    first = number * geometry.flex_bg_size
    for group in range(max(first, 0), min(first + geometry.flex_bg_size, geometry.groups_count)):
        descriptor = groups.descriptor(view, group)
        descriptor.check_places(group, geometry)  # a view of a pool before its recovery has not
        ranges.append((descriptor.block_bitmap, 1))
        ranges.append((descriptor.inode_bitmap, 1))
        ranges.append((descriptor.inode_table, table))
        own = geometry.base_blocks(group)
        if own:
            ranges.append((geometry.first_block(group), own))
    return _zone(ranges)


def _zone(ranges: Iterable[tuple[int, int]]) -> Zone:
    """Ranges (start, count) as a zone."""
    begins: list[int] = []
    ends: list[int] = []
    for begin, count in sorted(ranges):
        if ends and begin <= ends[-1]:
            ends[-1] = max(ends[-1], begin + count)
        else:
            begins.append(begin)
            ends.append(begin + count)
    return np.array(begins, dtype=np.int64), np.array(ends, dtype=np.int64)
