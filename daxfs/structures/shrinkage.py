"""Shrinkage: a shorter last group, fewer groups, and what follows in descriptors, reserved blocks and the superblock.

`cut` is one handle's work, in which the file system changes whole or not at all. It gives up what is empty: no block of
a file and no inode may be in use past the new end (`used_past`, `inodes_past`), and no group that stays may have its
bitmaps or inode table there (`displaced`). The result is what resize2fs makes: metadata of the removed groups that lies
in other groups becomes free, unused descriptor blocks become reserved ones, and the last group's bitmap is written out.
One thing differs: with sparse_super2 the last group gets a backup only if the blocks for it are free.

Nothing here moves blocks, decides how small a file system may become, or commits. Before `cut` the log must be empty:
it may hold blocks that become free. Caller: `daxfs.fs.moving.shrinking`. The other direction is
`daxfs.structures.growth`.

Source: resize/resize2fs.c (``adjust_new_size``, ``adjust_fs_info``, ``free_gdp_blocks``, ``blocks_to_move``,
``fix_resize_inode``).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from daxfs.errors import FsError
from daxfs.ext4.features import Compat, Incompat
from daxfs.ext4.group import EXT4_BG_BLOCK_UNINIT
from daxfs.runs import BlockRun
from daxfs.structures import bitmaps, blocks, groupmaps, groups, growth, inode_bitmaps, inodes, reserves

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.ext4.superblock import Superblock
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View
    from daxfs.structures.groups import Counts

SPARE = 50
"""Blocks that a last group has at least beyond its metadata, if it is not whole."""


class Plan(NamedTuple):
    """The figures of a smaller file system, and blocks in its groups whose use changes.

    ``freed``: metadata of removed groups, and blocks for descriptors that are no longer reserved. ``backup``: the place
    of a new backup of superblock and descriptors (sparse_super2); no blocks if there is none.
    """

    blocks_count: int
    groups_count: int
    desc_blocks: int
    reserved_gdt_blocks: int
    meta_bg: bool
    backup_groups: tuple[int, int]
    freed: list[BlockRun]
    backup: BlockRun


def fitting(geometry: Geometry, blocks_count: int) -> int:
    """Return the size nearest below ``blocks_count`` in which the last group has room for metadata and `SPARE` blocks.

    Raises:
        FsError: EINVAL: not even the first group would have room.
    """
    first, per_group = geometry.first_data_block, geometry.blocks_per_group
    while blocks_count > first:
        count = growth.groups_in(geometry, blocks_count)
        rest = (blocks_count - first) % per_group
        needed = 2 + geometry.inode_blocks_per_group
        backups = geometry.backup_groups
        has_backup = bool(backups[count != 2]) if geometry.has_sparse_super2 else geometry.has_super(count - 1)
        if has_backup or count == 1:
            needed += 1 - -count // geometry.desc_per_block + geometry.reserved_gdt_blocks
        if not rest or rest >= needed + (SPARE if count > 1 else 0):
            return blocks_count
        blocks_count -= rest
    raise FsError(errno.EINVAL, "the first group would have no room for its own metadata")


# What is in the way


def used_past(view: View, blocks_count: int, end: int | None = None) -> Iterator[BlockRun]:
    """Yield the runs of blocks past a new end that are in use by something else than groups, in order.

    Blocks that the running transaction has freed count as in use. ``end``: groups from this one on are not looked at.

    Raises:
        Corrupt: a bitmap or a descriptor is damaged.
    """
    geometry = view.geometry
    some = range(geometry.group_of_block(blocks_count), geometry.groups_count if end is None else end)
    first = list(some[:1])
    for group in first + (_occupied(view, some[1:]) if len(some) > 1 else []):
        desc = groups.descriptor(view, group)
        low, bits = geometry.first_block(group), geometry.blocks_in_group(group)
        if desc.free_blocks_count == bits or groups.blocks_uninit(geometry, desc):
            continue
        used = memoryview(bytearray(groupmaps.stored(view, group, desc)))
        for start, count in groups.metadata_runs(view, group):
            bitmaps.clear_run(used, start - low, count)
        bitmaps.clear_run(used, 0, blocks_count - low)
        bitmaps.invert(used, (1 << bits) - 1)
        starts, lengths = bitmaps.free_runs(used, bits)
        for bit, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            yield BlockRun(low + bit, length)


def _occupied(view: View, some: range) -> list[int]:
    """Return those of some groups that hold blocks of files, by the counters: the bitmaps of others need no look."""
    used = used_by_files(view)[some.start : some.stop]
    found: list[int] = (np.flatnonzero(used) + some.start).tolist()
    return found


def used_by_files(view: View) -> Counts:
    """Return how many blocks of each group hold something else than the groups' own metadata, by the counters.

    Blocks that the running transaction has freed count as in use.
    """
    geometry, count = view.geometry, view.geometry.groups_count
    used = np.full(count, geometry.blocks_per_group)
    used[-1] = geometry.blocks_in_group(count - 1)
    for index in range(geometry.desc_blocks):
        first, stored = groups.stored_counts(view, index)
        used[first : first + len(stored)] -= stored[:, 0]
    for group in range(count) if geometry.has_meta_bg else (0, *geometry.backups(count)):
        used[group] -= geometry.base_blocks(group)
    places = np.concatenate([groups.places(view, index) for index in range(geometry.desc_blocks)])
    where = (places - geometry.first_data_block) // geometry.blocks_per_group
    lengths = np.broadcast_to(_lengths(geometry), where.shape)
    into_next = np.maximum(places - geometry.first_data_block + lengths - (where + 1) * geometry.blocks_per_group, 0)
    for at, length in ((where, lengths - into_next), (where + 1, into_next)):  # a table is shorter than a group
        inside = (at >= 0) & (at < count)  # a damaged descriptor names any place
        np.subtract.at(used, at[inside], length[inside])
    used[used < 0] = 0
    return used


def _lengths(geometry: Geometry) -> Counts:
    """Return the blocks of a group's block bitmap, inode bitmap and inode table."""
    return np.array((1, 1, geometry.inode_blocks_per_group))


def groups_past(geometry: Geometry, blocks_count: int) -> range:
    """Return the groups that a file system of ``blocks_count`` blocks does not have."""
    return range(growth.groups_in(geometry, blocks_count), geometry.groups_count)


def inodes_past(view: View, blocks_count: int) -> Iterator[int]:
    """Yield the inodes in use of the groups that go, in order.

    Raises:
        Corrupt: a bitmap or a descriptor is damaged.
    """
    geometry = view.geometry
    past = groups_past(geometry, blocks_count)
    for index in range(past.start // geometry.desc_per_block, geometry.desc_blocks):
        first, stored = groups.stored_counts(view, index)
        for slot in np.flatnonzero(stored[:, 1] < geometry.inodes_per_group).tolist():
            if first + slot in past:
                yield from inode_bitmaps.in_use_of(view, first + slot)


def displaced(view: View, blocks_count: int) -> int | None:
    """Return the first group that stays and has a bitmap or its inode table past a new end; None: there is none."""
    geometry = view.geometry
    end = growth.groups_in(geometry, blocks_count)
    lengths = _lengths(geometry)
    for index in range(-(-end // geometry.desc_per_block)):
        first = index * geometry.desc_per_block
        past = (groups.places(view, index)[: end - first] + lengths > blocks_count).any(axis=1)
        if past.any():
            return first + int(past.argmax())
    return None


def undisplaced(view: View, blocks_count: int) -> int:
    """Return the smallest size from ``blocks_count`` on at which no group that stays is `displaced`.

    Raises:
        FsError: as `fitting`.
    """
    geometry = view.geometry
    while (group := displaced(view, fitting(geometry, blocks_count))) is not None:
        desc = groups.descriptor(view, group)
        end = max(desc.block_bitmap + 1, desc.inode_bitmap + 1, desc.inode_table + geometry.inode_blocks_per_group)
        blocks_count = max(blocks_count + 1, end)
    return blocks_count


# The new size


def planned(view: View, blocks_count: int) -> Plan:
    """Return what `cut` will make of the file system, with ``blocks_count`` a result of `fitting`."""
    geometry = view.geometry
    end = growth.groups_in(geometry, blocks_count)
    desc_blocks = -(-end // geometry.desc_per_block)
    reserved = geometry.reserved_gdt_blocks
    if geometry.compat & Compat.resize_inode:
        reserved = min(reserved + geometry.desc_blocks - desc_blocks, geometry.block_size // 4)
    meta_bg = geometry.has_meta_bg and geometry.first_meta_bg <= desc_blocks
    before = _region(geometry, geometry.has_meta_bg, geometry.desc_blocks, geometry.reserved_gdt_blocks)
    after = _region(geometry, meta_bg, desc_blocks, reserved)
    freed = [
        BlockRun(geometry.first_block(group) + 1 + after, before - after)
        for group in (0, *geometry.backups(end))
        if before > after and not (geometry.has_meta_bg and group >= geometry.first_meta_bg * geometry.desc_per_block)
    ]
    freed += _left_by_removed(view, end, blocks_count)
    backups, place = _backup_groups(view, end, after, blocks_count)
    return Plan(blocks_count, end, desc_blocks, reserved, meta_bg, backups, freed, place)


def _region(geometry: Geometry, meta_bg: bool, desc_blocks: int, reserved: int) -> int:
    """Return how many blocks after a superblock hold descriptors, or are reserved for them."""
    return geometry.first_meta_bg if meta_bg else desc_blocks + reserved


def _left_by_removed(view: View, end: int, blocks_count: int) -> Iterator[BlockRun]:
    """Yield what lies before the new end of the bitmaps and inode tables of the groups that go."""
    geometry = view.geometry
    per_block = geometry.desc_per_block
    for index in range(end // per_block, geometry.desc_blocks):
        rows = groups.places(view, index)[max(end - index * per_block, 0) :]
        for column, length in enumerate((1, 1, geometry.inode_blocks_per_group)):
            for start in rows[:, column].tolist():
                if start < blocks_count:
                    yield BlockRun(start, min(length, blocks_count - start))


def _backup_groups(view: View, end: int, region: int, blocks_count: int) -> tuple[tuple[int, int], BlockRun]:
    """Return the groups with backups (sparse_super2), and the blocks of a new one: the last group gets that of the old.

    If the blocks are in use, there is none.
    """
    geometry = view.geometry
    first, second = geometry.backup_groups
    nothing = BlockRun(0, 0)
    if not geometry.has_sparse_super2 or end == geometry.groups_count:
        return (first, second), nothing
    last = end - 1
    moves = last > 1 and second == geometry.groups_count - 1
    first, second = (group if group <= last else 0 for group in (first, second))
    if moves and first != last:
        place = BlockRun(geometry.first_block(last), 1 + region)
        content = groupmaps.stored(view, last, groups.descriptor(view, last))
        if place.start + place.length <= blocks_count and bitmaps.free_run(content, 0, 1 + region) == 1 + region:
            return (first, last), place
    return (first, second), nothing


def credits_of(view: View, blocks_count: int) -> int:
    """Return the blocks that `cut` changes at most, beyond the superblock."""
    plan = planned(view, blocks_count)
    touched = {group for run in plan.freed for group, _, _ in blocks.pieces_of(view.geometry, *run)}
    return growth.SMALL_CREDITS + 2 * len(touched) + plan.reserved_gdt_blocks


def cut(tx: Handle, blocks_count: int) -> None:
    """Make the file system smaller: `credits_of` credits. Commit before any other handle: blocks are free at once.

    Args:
        tx: the handle; the log and the running transaction are empty.
        blocks_count: a result of `fitting`.

    Raises:
        FsError: EBUSY: something is in use past the new end; nothing has changed.
        Corrupt: a bitmap, a descriptor or the resize inode is damaged; nothing has changed.
    """
    geometry = tx.geometry
    plan = planned(tx, blocks_count)
    if displaced(tx, blocks_count) is not None or any(used_past(tx, blocks_count)):
        raise FsError(errno.EBUSY, "blocks past the new end are in use")
    if any(inodes_past(tx, blocks_count)):
        raise FsError(errno.EBUSY, "inodes past the new end are in use")
    gone = [groups.descriptor(tx, group) for group in groups_past(geometry, blocks_count)]
    free = -sum(desc.free_blocks_count for desc in gone)
    maps = _new_bitmaps(tx, plan)
    for start, count in plan.freed:
        for number in range(start, start + count):
            tx.forget(number)
    tx.drop_recent()
    before = range(geometry.desc_blocks, geometry.desc_blocks + geometry.reserved_gdt_blocks)
    sb = tx.edit_superblock()
    tx.store_superblock_first()
    _set_figures(sb, geometry, plan, len(gone))
    growth.follow(tx, sb)
    tx.on_rollback(partial(_forget, tx))
    _forget(tx)
    if geometry.compat & Compat.resize_inode:
        growth.renew_resize_inode(tx, before)
    for group, content in maps.items():
        free += _store_bitmap(tx, group, content)
    sb.free_blocks_count += free


def _set_figures(sb: Superblock, geometry: Geometry, plan: Plan, gone: int) -> None:
    """Store the new figures in the superblock, as resize2fs computes them; free blocks are counted later."""
    share = sb.reserved_blocks_count * 100.0 / geometry.blocks_count
    sb.reserved_blocks_count = int(share * plan.blocks_count / 100.0)
    sb.blocks_count = plan.blocks_count
    sb.s_inodes_count -= gone * geometry.inodes_per_group
    sb.s_free_inodes_count -= gone * geometry.inodes_per_group
    sb.s_overhead_clusters = 0
    sb.s_reserved_gdt_blocks = plan.reserved_gdt_blocks
    if geometry.has_meta_bg and not plan.meta_bg:
        sb.s_feature_incompat &= ~int(Incompat.meta_bg)
        sb.s_first_meta_bg = 0
    sb.s_backup_bgs_0, sb.s_backup_bgs_1 = plan.backup_groups


def _new_bitmaps(tx: Handle, plan: Plan) -> dict[int, memoryview]:
    """Return the content of all bitmaps that change, while the groups have their old lengths: that of the last group,
    and those of groups with blocks that become free.
    """
    geometry = tx.geometry
    last = plan.groups_count - 1
    found: dict[int, memoryview] = {}
    for group, bit, length in [
        (last, 0, 0), *(piece for run in plan.freed for piece in blocks.pieces_of(geometry, *run))
    ]:  # fmt: skip
        if group not in found:
            found[group] = memoryview(bytearray(groupmaps.stored(tx, group, groups.edit_descriptor(tx, group))))
        bitmaps.clear_run(found[group], bit, length)
    kept = plan.blocks_count - geometry.first_block(last)
    bitmaps.set_run(found[last], kept, 8 * geometry.block_size - kept)
    if plan.backup.length:
        bitmaps.set_run(found[last], 0, plan.backup.length)
    return found


def _store_bitmap(tx: Handle, group: int, content: memoryview) -> int:
    """Give a group another bitmap, and count its free blocks anew; return by how many they are more."""
    geometry = tx.geometry
    desc = groups.edit_descriptor(tx, group)
    desc.bg_flags &= ~EXT4_BG_BLOCK_UNINIT
    tx.create(desc.block_bitmap, groupmaps.seal, geometry, desc)[:] = content
    before, free = desc.free_blocks_count, bitmaps.count_free(content, geometry.blocks_in_group(group))
    desc.free_blocks_count = free
    return free - before


def _forget(tx: Handle) -> None:
    """Forget what is known of groups: those that come later may lie otherwise."""
    groups.forget(tx)
    groupmaps.forget_all(tx)
    inodes.forget(tx)
    blocks.forget(tx)
    tx.forget_checks()


# How small


def minimum(view: View) -> int:
    """Return the smallest size in blocks at which all that is in use has room.

    Fragmentation is not counted. As many blocks stay free as only extent trees may take. Inodes have room too, and the
    groups that stay keep their metadata where it lies.

    Raises:
        Corrupt: a bitmap or a descriptor is damaged.
    """
    geometry, occupancy = view.geometry, _Occupancy(view)
    low, high = geometry.first_data_block + 1, geometry.blocks_count
    while low < high:
        middle = (low + high) // 2
        if occupancy.fits(middle):
            high = middle
        else:
            low = middle + 1
    return undisplaced(view, low)


class _Occupancy:
    """How many blocks of each group are in use by files, and how many are free."""

    def __init__(self, view: View) -> None:
        self._view = view
        geometry = view.geometry
        found = [groups.counts(view, index) for index in range(geometry.desc_blocks)]
        self._free = np.concatenate([each.free_blocks for each in found])
        self._inodes = geometry.inodes_count - int(np.concatenate([each.free_inodes for each in found]).sum())
        self._places = np.concatenate([groups.places(view, index) for index in range(geometry.desc_blocks)])
        self._lengths = _lengths(geometry)
        self._used = used_by_files(view)

    def fits(self, blocks_count: int) -> bool:
        """Return whether a file system of the size nearest below has room for all that is in use."""
        view, geometry = self._view, self._view.geometry
        try:
            blocks_count = fitting(geometry, blocks_count)
        except FsError:
            return False
        end = growth.groups_in(geometry, blocks_count)
        last = end - 1
        if self._inodes > min(end, geometry.inode_groups) * geometry.inodes_per_group:
            return False
        low = geometry.first_block(last)
        desc = groups.descriptor(view, last)
        free = bitmaps.count_free(groupmaps.stored(view, last, desc), blocks_count - low)
        past = int(self._used[end:].sum())
        if low + geometry.blocks_in_group(last) > blocks_count:
            past += sum(run.length for run in used_past(view, blocks_count, last + 1))
        freed = np.clip(blocks_count - self._places[end:], 0, self._lengths).sum()
        room = int(self._free[:last].sum()) + free + int(freed) - reserves.tree_reserve(geometry)
        return past <= room
