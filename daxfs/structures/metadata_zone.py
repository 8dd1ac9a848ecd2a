"""The places of the groups' metadata: no file's map may name blocks there.

The module finds superblock copies, group descriptors, bitmaps and inode tables from the geometry and the descriptors,
one flexible group at a time, and caches them per mount in a bounded table. It changes nothing. The maps of files
(`extent_tree`, `indirect`) check each block pointer once, when it is new. Like ``fs/ext4/block_validity.c`` in the
kernel, this protects against hostile images; it is no allocator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from daxfs.journal.cache import Cache
from daxfs.runs import BlockRun
from daxfs.structures import groups

if TYPE_CHECKING:
    from collections.abc import Iterable

    from daxfs.journal.view import View

MAX_ZONES = 512
"""The most flexible groups in the cache; each takes a few hundred bytes."""

Blocks = np.ndarray[tuple[int], np.dtype[np.int64]]
Zone = tuple[Blocks, Blocks]
"""Sorted, disjoint block ranges: their beginnings, and their ends."""


class _Zones(Cache):
    """The zones of one pool. They follow from the geometry, which changes only when the pool grows.

    Attributes:
        by_group: the zones by flexible group.
        log: the journal's blocks, after `protect` was called.
        log_owner: the inode that the journal's blocks belong to.
        unknown: nothing is known of the groups' metadata (`disregard`).
    """

    __slots__ = ("by_group", "log", "log_owner", "unknown")

    def __init__(self) -> None:
        self.by_group: dict[int, Zone] = {}
        self.log: Zone | None = None
        self.log_owner = 0
        self.unknown = False


def protect(view: View, owner: int, runs: Iterable[BlockRun]) -> None:
    """Add the journal's blocks (start, count) to the metadata: from now on only the map of ``owner`` may name them."""
    zones = view.caches[_Zones]
    zones.log = _zone(runs)
    zones.log_owner = owner


def disregard(view: View) -> None:
    """Take no block for metadata in this view: its geometry only finds the log (`Geometry.of_torn`)."""
    view.caches[_Zones].unknown = True


def forget(view: View) -> None:
    """Forget the zones of groups, since there are more groups; the log's stays."""
    view.caches[_Zones].by_group.clear()


def in_group(view: View, group: int) -> list[BlockRun]:
    """Return the runs of one group's blocks that hold metadata, the journal's among them: sorted and not touching."""
    geometry = view.geometry
    low = geometry.first_block(group)
    high = low + geometry.blocks_in_group(group)
    found = groups.metadata_runs(view, group)
    log = view.caches[_Zones].log
    if log is not None:
        for begin, end in zip(log[0].tolist(), log[1].tolist(), strict=True):
            if begin < high and end > low:
                found.append(BlockRun(max(begin, low), min(end, high) - max(begin, low)))
    begins, ends = _zone(found)
    return [BlockRun(begin, end - begin) for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]


def first_overlap(view: View, ino: int, starts: Blocks, ends: Blocks) -> int | None:
    """Return the index of the first block range [start, end) that overlaps metadata; None if there is none.

    Args:
        view: what to read.
        ino: the inode whose map has the ranges.
        starts: where the ranges start.
        ends: where they end; every range lies in the pool and is not empty.
    """
    if not starts.size:
        return None
    zones = view.caches[_Zones]
    if zones.unknown:
        return None
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
    if not begins.size:
        return np.zeros(starts.size, dtype=bool)
    at = np.searchsorted(begins, lasts, "right") - 1
    touched: np.ndarray[tuple[int], np.dtype[np.bool_]] = (at >= 0) & (stops[at] > starts)
    return touched


def _build(view: View, number: int) -> Zone:
    """Return the zone of one flexible group, from the descriptors of its groups."""
    geometry = view.geometry
    runs: list[BlockRun] = []
    table = -(-geometry.inodes_per_group * geometry.inode_size // geometry.block_size)
    first = number * geometry.flex_bg_size
    for group in range(max(first, 0), min(first + geometry.flex_bg_size, geometry.groups_count)):
        # A damaged descriptor protects nothing; a view of a pool before its recovery has not checked it.
        if groups.places_are_right(view, group):
            descriptor = groups.descriptor(view, group)
            runs.append(BlockRun(descriptor.block_bitmap, 1))
            runs.append(BlockRun(descriptor.inode_bitmap, 1))
            runs.append(BlockRun(descriptor.inode_table, table))
        own = geometry.base_blocks(group)
        if own:
            runs.append(BlockRun(geometry.first_block(group), own))
    return _zone(runs)


def _zone(runs: Iterable[BlockRun]) -> Zone:
    """Make a zone of runs."""
    begins: list[int] = []
    ends: list[int] = []
    for begin, count in sorted(runs):
        if ends and begin <= ends[-1]:
            ends[-1] = max(ends[-1], begin + count)
        else:
            begins.append(begin)
            ends.append(begin + count)
    return np.array(begins, dtype=np.int64), np.array(ends, dtype=np.int64)
