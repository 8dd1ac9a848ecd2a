"""Where new inodes go: top-level directories over all groups (a simple Orlov), everything else near its directory.

Source: fs/ext4/ialloc.c.
"""

from __future__ import annotations

import errno
from random import getrandbits
from typing import TYPE_CHECKING

import numpy as np

from daxfs.errors import FsError
from daxfs.ext4.inode import EXT4_ROOT_INO, EXT4_TOPDIR_FL
from daxfs.structures import groups

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle
    from daxfs.structures.inodes import Inode

GROUPS_EXAMINED = 1024
"""The most groups whose counters are read to place a new directory."""


def has_room(tx: Handle, group: int, directory: bool) -> bool:
    """Whether a group has a free inode, and a free block if the inode is no directory."""
    if not groups.gives_inodes(tx, group):
        return False
    desc = groups.newest(tx, group)
    with_blocks = bool(desc.free_blocks_count) and groups.gives_blocks(tx, group)
    return bool(desc.free_inodes_count) and (directory or with_blocks)


def directory_group(tx: Handle, parent: Inode, home: int) -> int:
    """Return the group for a new directory (``find_group_orlov``, simplified).

    A top-level directory goes to the group with the fewest directories, among groups that have about the average of
    free inodes and blocks or more; the search begins at a random group. Any other directory goes to its parent's group,
    or to a group that is not far below the average.
    """
    geometry = tx.geometry
    if geometry.groups_count == 1:
        return 0
    sb = tx.superblock()
    free_inodes = (sb.s_free_inodes_count - groups.inodes_on_storage(geometry)) // geometry.inode_groups
    free_blocks = sb.free_blocks_count // geometry.groups_count
    if parent.number == EXT4_ROOT_INO or parent.i_flags & EXT4_TOPDIR_FL:
        # Accept groups a little below the average: on small pools, groups with superblock copies are always below it.
        free_inodes -= free_inodes >> 3
        free_blocks -= free_blocks >> 3
        return _roomy_group(tx, getrandbits(32) % geometry.groups_count, free_inodes, free_blocks, home)
    free_inodes -= geometry.inodes_per_group // 4
    free_blocks -= geometry.blocks_per_group // 4
    if groups.gives_inodes(tx, home):
        desc = groups.descriptor(tx, home)
        if desc.free_inodes_count > max(free_inodes, 0) and desc.free_blocks_count > max(free_blocks, 0):
            return home
    return _roomy_group(tx, home, free_inodes, free_blocks, home)


def _roomy_group(tx: Handle, start: int, free_inodes: int, free_blocks: int, home: int) -> int:
    """Return the group with the fewest directories, among groups from ``start`` on with enough free inodes and blocks.

    If no group has enough, return ``home``.
    """
    geometry = tx.geometry
    index, slot = divmod(start, geometry.desc_per_block)
    best, fewest = home, geometry.inodes_per_group + 1
    for step in range(min(geometry.desc_blocks, -(-GROUPS_EXAMINED // geometry.desc_per_block))):
        found = groups.counts(tx, (index + step) % geometry.desc_blocks)
        roomy = (found.free_inodes >= max(free_inodes, 1)) & (found.free_blocks >= max(free_blocks, 1))
        roomy[max(geometry.inode_groups - found.first, 0) :] = False
        dirs = np.where(roomy, found.used_dirs, geometry.inodes_per_group + 1)
        if not step:
            dirs = np.roll(dirs, -slot)
        at = int(dirs.argmin())
        if dirs[at] < fewest:
            fewest = int(dirs[at])
            best = found.first + (at if step else (at + slot) % len(dirs))
            if not fewest:
                break
    return best


def other_group(tx: Handle, group: int) -> int:
    """Return a group with a free inode for a ``group`` without room (``find_group_other``).

    The search probes groups at quadratic distances first, then all of them.
    """
    geometry = tx.geometry
    count = geometry.groups_count
    step, probe = 1, group
    while step < count:
        probe = (probe + step) % count
        if groups.gives_inodes(tx, probe):
            desc = groups.descriptor(tx, probe)
            if desc.free_inodes_count and desc.free_blocks_count and groups.gives_blocks(tx, probe):
                return probe
        step <<= 1
    first = group // geometry.desc_per_block
    for distance in range(geometry.desc_blocks):
        found = groups.counts(tx, (first + distance) % geometry.desc_blocks)
        with_room = np.flatnonzero(found.free_inodes[: max(geometry.inode_groups - found.first, 0)])
        if len(with_room):
            return found.first + int(with_room[0])
    raise FsError(errno.ENOSPC, "no inode is free")
