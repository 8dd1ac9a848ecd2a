"""Allocate and free inodes: bits, counters and empty slots.

`inode_placement` chooses the group, and `inode_bitmaps` checks its bitmap. Other modules give the new inode its map,
its links and its name. The invariants are those of `inodes`. Source: fs/ext4/ialloc.c.
"""

from __future__ import annotations

import stat
import time
from functools import partial
from random import getrandbits
from typing import TYPE_CHECKING

from daxfs.errors import BadMemory, Corrupt, CorruptKind, FsError
from daxfs.ext4.group import EXT4_BG_INODE_UNINIT, GroupDescriptor
from daxfs.structures import bitmaps, groups, inode_bitmaps, inode_placement
from daxfs.structures.inodes import Inode, Known, bound

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View

_LINKS_OFFSET = 0x1A


def allocate(tx: Handle, parent: Inode, mode: int) -> Inode:
    """Allocate an inode with type and permissions ``mode``, near or for the directory ``parent``: three credits.

    The slot is zeroed, except for mode, generation and ``i_extra_isize``; so there are no links yet.

    Raises:
        FsError: ENOSPC: no inode is free.
        Corrupt: a bitmap or descriptor contradicts the others.
    """
    directory = stat.S_ISDIR(mode)
    home = (parent.number - 1) // tx.geometry.inodes_per_group
    met: Corrupt | None = None
    while True:
        unusable = groups.given_up(tx)
        group = inode_placement.directory_group(tx, parent, home) if directory else home
        try:
            if not inode_placement.has_room(tx, group, directory):
                group = inode_placement.other_group(tx, group)
            desc = groups.newest(tx, group)
            bit, untouched = _claim(tx, group, desc, directory)
            break
        except FsError as error:
            met = groups.attempt_again(tx, unusable, error, met)
    inode = _empty_slot(tx, desc, group, bit, untouched)
    inode.i_mode = mode
    return inode


def take(tx: Handle, ino: int, mode: int) -> Inode:
    """Allocate the free inode ``ino``, whichever it is, as `allocate` does.

    Slots below it that were never used are zeroed (invariant I2): up to a credit for each block of the inode table.

    Raises:
        Corrupt: a bitmap or descriptor contradicts the others, or the inode is in use.
    """
    geometry = tx.geometry
    group, bit = divmod(ino - 1, geometry.inodes_per_group)
    desc = groups.newest(tx, group)
    _clear_unused_slots(tx, desc, bit)
    bit, untouched = _claim(tx, group, desc, stat.S_ISDIR(mode), bit)
    inode = _empty_slot(tx, desc, group, bit, untouched)
    inode.i_mode = mode
    return inode


def _clear_unused_slots(tx: Handle, desc: GroupDescriptor, end: int) -> None:
    """Zero the slots before ``end`` that were never used: with an inode after them, they count as used."""
    geometry = tx.geometry
    if not (geometry.metadata_csum or geometry.gdt_csum):
        return
    size = geometry.inode_size
    for bit in range(geometry.inodes_per_group - desc.itable_unused, end):
        block, slot = divmod(bit, geometry.inodes_per_block)
        tx.edit(desc.inode_table + block)[slot * size : (slot + 1) * size] = bytes(size)


def keep_free(view: View, numbers: AbstractSet[int]) -> None:
    """Have a new inode get one of these numbers only if its group has no other; the set may change at any time."""
    view.caches[Known].kept_free = numbers


def free(tx: Handle, inode: Inode) -> None:
    """Free an inode that has no blocks left: two credits, apart from the inode's block, which the caller edits anyway.

    If the group's inodes are unusable, its bitmap and counters stay as they are, until e2fsck makes them anew.

    Raises:
        Corrupt: the inode is reserved, or is free already.
    """
    geometry = tx.geometry
    ino = inode.number
    if ino < geometry.first_ino:
        raise Corrupt(CorruptKind.INODE_NUMBER, f"{ino} is reserved and can't be freed")
    group, bit = divmod(ino - 1, geometry.inodes_per_group)
    if inode_bitmaps.is_sound(tx, group):
        _give_back(tx, inode, group, bit)
    inode.i_links_count = 0
    if not inode.i_dtime:
        # e2fsck regards a slot without links and without this time as damaged.
        inode.i_dtime = int(time.time()) & 0xFFFFFFFF


def _give_back(tx: Handle, inode: Inode, group: int, bit: int) -> None:
    """Show an inode as free in its group's bitmap and in all counters."""
    geometry, ino = tx.geometry, inode.number
    desc = groups.edit_descriptor(tx, group)
    if groups.inodes_uninit(geometry, desc) or not bitmaps.test(inode_bitmaps.checked(tx, group, desc), bit):
        raise Corrupt(CorruptKind.INODE_BITMAP, f"inode {ino} is being freed, but is free already")
    if desc.free_inodes_count >= geometry.inodes_per_group:
        raise Corrupt(CorruptKind.GROUP_DESCRIPTOR_COUNTER, f"group {group}: {desc.free_inodes_count} inodes free")
    bitmaps.clear_run(tx.edit(desc.inode_bitmap, inode_bitmaps.seal, geometry, desc), bit, 1)
    tx.caches[Known].freed(group, bit)
    desc.free_inodes_count += 1
    if inode.is_dir:
        if not desc.used_dirs_count:
            raise Corrupt(
                CorruptKind.GROUP_DESCRIPTOR_COUNTER, f"group {group}: no directories counted, but inode {ino} is one"
            )
        desc.used_dirs_count -= 1
    sb = tx.edit_superblock()
    sb.s_free_inodes_count = min(sb.s_free_inodes_count + 1, geometry.inodes_count)


def _claim(tx: Handle, group: int, desc: GroupDescriptor, directory: bool, wanted: int = -1) -> tuple[int, bool]:
    """Take the lowest free inode of the group, or the one with the bit ``wanted``, and update all counters.

    Returns:
        The inode's bit, and whether its block of the inode table was never used at all.
    """
    geometry = tx.geometry
    size = geometry.inodes_per_group
    if groups.inodes_uninit(geometry, desc):
        if group == 0 or desc.free_inodes_count != size:
            error = Corrupt(
                CorruptKind.GROUP_DESCRIPTOR_COUNTER, f"group {group}: no inode bitmap, yet inodes are in use"
            )
            groups.give_up_inodes(tx, group, error)
            raise error
        desc = groups.edit_descriptor(tx, group)
        content = tx.create(desc.inode_bitmap, inode_bitmaps.seal, geometry, desc)
        bitmaps.set_run(content, size, 8 * geometry.block_size - size)
        bit = wanted if wanted >= 0 else _other_than_kept(tx, group, content, 0)
        desc.bg_flags &= ~EXT4_BG_INODE_UNINIT
    else:
        content = inode_bitmaps.checked(tx, group, desc)
        bit = wanted if wanted >= 0 else _lowest_free(tx, group, desc, content)
        if wanted >= 0 and bitmaps.test(content, wanted):
            raise Corrupt(CorruptKind.INODE_BITMAP, f"group {group}: inode {wanted} of it is in use already")
        if bit < 0 or not desc.free_inodes_count:
            raise Corrupt(CorruptKind.INODE_BITMAP, f"group {group}: free inodes are counted, but none is free")
        _refuse_slot_in_use(tx, desc, group, bit)
        desc = groups.edit_descriptor(tx, group)
        content = tx.edit(desc.inode_bitmap, inode_bitmaps.seal, geometry, desc)
    untouched = False
    if geometry.metadata_csum or geometry.gdt_csum:
        used = size - desc.itable_unused
        if bit >= used:
            # If the descriptor's count of unused inodes is wrong, inodes in the same block must keep their content.
            per_block = geometry.inodes_per_block
            untouched = not bit % per_block and bitmaps.free_run(content, bit, min(per_block, size - bit)) == per_block
            desc.itable_unused = size - 1 - bit
    bitmaps.set_run(content, bit, 1)
    desc.free_inodes_count -= 1
    if directory:
        desc.used_dirs_count += 1
    sb = tx.edit_superblock()
    sb.s_free_inodes_count = max(sb.s_free_inodes_count - 1, 0)
    return bit, untouched


def _lowest_free(tx: Handle, group: int, desc: GroupDescriptor, content: memoryview) -> int:
    """Return the lowest free inode of a group by its bitmap; -1: there is none.

    Raises:
        BadMemory: what is free lies in bad memory.
    """
    size = tx.geometry.inodes_per_group
    if tx.pool.bad:
        bit = bitmaps.first_free(inode_bitmaps.without_bad(tx, desc, content), size)
        if bit < 0:
            raise BadMemory(f"group {group}: what is free of its inode table lies in bad memory")
        return bit
    known = tx.caches[Known]
    bit = bitmaps.first_free(content, size, known.lowest.get(group, 0))
    if bit >= 0:
        known.in_use_up_to(group, bit)
        bit = _other_than_kept(tx, group, content, bit)
    return bit


def _other_than_kept(tx: Handle, group: int, content: memoryview, lowest: int) -> int:
    """Return the lowest free bit of an inode bitmap that is not kept free; the lowest of all if there is no other."""
    size = tx.geometry.inodes_per_group
    first, kept = group * size + 1, tx.caches[Known].kept_free
    if first + lowest not in kept:
        return lowest
    for bit in range(lowest, size):
        if first + bit not in kept and not bitmaps.test(content, bit):
            return bit
    return lowest


def _refuse_slot_in_use(tx: Handle, desc: GroupDescriptor, group: int, bit: int) -> None:
    """Compare a bitmap that may have become damaged since its check with the slot: a free one has no links (I3, I4).

    Raises:
        Corrupt: the inode is reserved or has links; nothing has changed.
    """
    geometry = tx.geometry
    ino = group * geometry.inodes_per_group + bit + 1
    if ino < geometry.first_ino:
        raise Corrupt(CorruptKind.INODE_BITMAP, "a reserved inode is marked free")
    if bit < geometry.inodes_per_group - desc.itable_unused:
        block, slot = divmod(bit, geometry.inodes_per_block)
        links = slot * geometry.inode_size + _LINKS_OFFSET
        content = tx.block(desc.inode_table + block)
        if content[links] or content[links + 1]:
            raise Corrupt(CorruptKind.INODE_BITMAP, f"inode {ino} is marked free, but has links")


def _empty_slot(tx: Handle, desc: GroupDescriptor, group: int, bit: int, untouched: bool) -> Inode:
    """Initialize the slot of a claimed inode: zeros, a new generation, the extra size."""
    geometry = tx.geometry
    ino = group * geometry.inodes_per_group + bit + 1
    block, slot = divmod(bit, geometry.inodes_per_block)
    size = geometry.inode_size
    offset = slot * size
    number = desc.inode_table + block
    content = tx.create(number) if untouched else tx.edit(number)
    inode = bound(tx, content, number, offset, ino)
    old = inode.i_generation
    inode.buffer[:] = bytes(size)
    inode.set_extra_isize(geometry.want_extra_isize)
    generation = getrandbits(32)
    # A file handle of the slot's last inode must not name this one.
    inode.i_generation = generation ^ 1 if generation == old else generation
    known = tx.caches[Known]
    known.put(ino)
    tx.on_rollback(partial(known.unmade, ino, group, bit))
    return inode
