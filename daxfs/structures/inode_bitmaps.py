"""The bitmaps of inodes: which inodes are in use, and whether a group's bitmap is believed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from daxfs.errors import Corrupt, CorruptKind
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.group import GroupDescriptor
from daxfs.structures import bitmaps, groups
from daxfs.structures.noted import note

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View


def in_use(view: View, ino: int) -> bool:
    """Whether ``ino`` is allocated by the inode bitmap. Raises as `position`."""
    geometry = view.geometry
    group = geometry.group_of_inode(ino)
    desc = groups.descriptor(view, group)
    if groups.inodes_uninit(geometry, desc):
        return False
    return bitmaps.test(checked(view, group, desc), (ino - 1) % geometry.inodes_per_group)


def in_use_of(view: View, group: int) -> list[int]:
    """Return the inodes in use of a group, in order.

    Raises:
        Corrupt: the bitmap or the descriptor is damaged.
    """
    geometry = view.geometry
    desc = groups.descriptor(view, group)
    if groups.inodes_uninit(geometry, desc) or desc.free_inodes_count == geometry.inodes_per_group:
        return []
    used = np.unpackbits(
        np.frombuffer(checked(view, group, desc), np.uint8), count=geometry.inodes_per_group, bitorder="little"
    )
    first = group * geometry.inodes_per_group + 1
    found: list[int] = (np.flatnonzero(used) + first).tolist()
    return found


def may_be_in_use(view: View, ino: int) -> bool:
    """Whether ``ino`` is allocated as far as is known: a damaged bitmap is not believed."""
    group = view.geometry.group_of_inode(ino)
    return not is_sound(view, group) or in_use(view, ino)


def checked(view: View, group: int, desc: GroupDescriptor) -> memoryview:
    """Return the checked inode bitmap of a group that has one; Corrupt: its inodes are unusable, or become so."""
    groups.refuse_inodes(view, group)
    try:
        return view.verified(desc.inode_bitmap, _check, view.geometry, group, desc)
    except Corrupt as error:
        groups.give_up_inodes(view, group, error)
        raise


def is_sound(view: View, group: int) -> bool:
    """Whether the group's inodes are usable after a check of its inode bitmap, if it has one."""
    if groups.has_inodes(view, group):
        desc = groups.descriptor(view, group)
        if groups.inodes_uninit(view.geometry, desc):
            return True
        try:
            checked(view, group, desc)
        except Corrupt as error:
            note(view, error)
            return False
        return True
    return False


def _check(geometry: Geometry, group: int, desc: GroupDescriptor, content: memoryview) -> None:
    desc.verify_inode_bitmap(content, group, geometry)
    free = bitmaps.count_free(content, geometry.inodes_per_group)
    if free != desc.free_inodes_count:
        raise Corrupt(
            CorruptKind.INODE_BITMAP, f"group {group}: {free} inodes free, the descriptor says {desc.free_inodes_count}"
        )
    if not group and bitmaps.used_run(content, 0, geometry.first_ino - 1) < geometry.first_ino - 1:
        raise Corrupt(CorruptKind.INODE_BITMAP, "a reserved inode is marked free")


def without_bad(view: View, desc: GroupDescriptor, content: memoryview) -> memoryview:
    """Return a copy of an inode bitmap in which inodes over bad memory count as in use."""
    geometry = view.geometry
    copy = memoryview(bytearray(content))
    begin = desc.inode_table << geometry.block_bits
    size, total = geometry.inode_size, geometry.inodes_per_group
    for low, high in view.pool.bad.within(begin, begin + total * size):
        first = (low - begin) // size
        bitmaps.set_run(copy, first, (high - begin + size - 1) // size - first)
    return copy


def make(tx: Handle, desc: GroupDescriptor) -> None:
    """Make the inode bitmap of a group that is being added, in which all inodes are free: one credit."""
    geometry = tx.geometry
    content = tx.create(desc.inode_bitmap, seal, geometry, desc)
    bitmaps.set_run(content, geometry.inodes_per_group, 8 * geometry.block_size - geometry.inodes_per_group)


def seal(geometry: Geometry, desc: GroupDescriptor, content: memoryview) -> None:
    # The code that registered this seal has edited the descriptor, a copy of the transaction. Its own seal runs later.
    desc.seal_inode_bitmap(content, geometry)
