"""Inodes: find them by number, read and change them in their slots, allocate and free them.

`read` and `edit` bind the slot in place (the pool's memory or the transaction's copy) and check its content once.
Allocation spreads top-level directories over the groups (a simple Orlov), and places everything else near its
directory. Other modules handle maps (``i_block``), names, link counts and orphans. Callers: the modules of this layer
and the fs layer. Sources: fs/ext4/ialloc.c, ``__ext4_iget`` and ``__ext4_get_inode_loc`` in inode.c.

Invariants:

I1. A slot is used without a check only if its checksum in the pool was found right before, or if this mount has changed
    the slot and the change was not undone.
I2. In a group, the lowest free inode is allocated, or one that the caller names (`take`), and then the unused slots
    before it are zeroed. So every slot below ``inodes_per_group - itable_unused`` was zeroed or written by an
    allocation. Slots above may hold anything.
I3. Reserved inodes are neither allocated nor freed.
I4. An inode that is not in use has no links, as e2fsck demands. So no file's slot is given away because the bitmap has
    become damaged since its check.
"""

from __future__ import annotations

import errno
import stat
import time
from array import array
from collections.abc import Set as AbstractSet
from functools import partial
from random import getrandbits
from typing import TYPE_CHECKING

import numpy as np

from daxfs.errors import BadMemory, Corrupt, CorruptKind, FsError
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.group import EXT4_BG_INODE_UNINIT, GroupDescriptor
from daxfs.ext4.inode import EXT4_ROOT_INO, EXT4_TOPDIR_FL, InodeRecord
from daxfs.journal.cache import Cache
from daxfs.structures import bitmaps, groups
from daxfs.structures.noted import note

if TYPE_CHECKING:
    from daxfs.journal.transaction import Handle
    from daxfs.journal.view import View

_LINKS_OFFSET = 0x1A
SECTOR_BITS = 9
"""``i_blocks`` counts units of 512 bytes."""

MAX_TABLES = 4096
"""The most inode tables whose place is cached."""
MAX_CHECKED = 1 << 16
"""The most inodes in the cache of checked slots, a power of two."""
GROUPS_EXAMINED = 1024
"""The most groups whose counters are read to place a new directory."""


class Inode(InodeRecord):
    """A slot of an inode table, and the inode's number. Valid until the handle ends."""

    __slots__ = ("number",)

    number: int

    def __repr__(self) -> str:
        return f"<Inode {self.number} mode {self.mode:o} links {self.links_count} size {self.size}>"


class _Known(Cache):
    """The cache of one pool's inodes.

    Attributes:
        tables: group -> first block of its inode table. The place is fixed by the format, so it needs no undo.
        checked: inodes whose slot needs no check (invariant I1), each at the index ``number % MAX_CHECKED``; 0: none.
        lowest: group -> a bit below which no inode is free.
        kept_free: numbers that a new inode gets last (`keep_free`).
    """

    __slots__ = ("_internal", "checked", "kept_free", "lowest", "tables")

    def __init__(self) -> None:
        self.tables: dict[int, int] = {}
        self.lowest: dict[int, int] = {}
        self._internal: frozenset[int] | None = None
        self.kept_free: AbstractSet[int] = frozenset()
        self.drop()

    def drop(self) -> None:
        """Forget which slots are checked, and which are in use: those of new inodes hold their old content again."""
        self.checked = array("I", bytes(4 * MAX_CHECKED))
        self.lowest.clear()

    def internal(self, view: View) -> frozenset[int]:
        """Return the inodes for internal use that are not reserved. They don't change while a pool is mounted."""
        if self._internal is None:
            sb = view.superblock()
            self._internal = frozenset(
                (sb.s_orphan_file_inum, sb.s_usr_quota_inum, sb.s_grp_quota_inum, sb.s_prj_quota_inum)
            )
        return self._internal

    def put(self, ino: int) -> None:
        """Record that the slot of ``ino`` needs no check, in place of another inode's."""
        self.checked[ino % MAX_CHECKED] = ino

    def in_use_up_to(self, group: int, bit: int) -> None:
        """Record that no inode of the group below this bit is free."""
        if len(self.lowest) >= MAX_TABLES:
            self.lowest.clear()
        self.lowest[group] = bit

    def freed(self, group: int, bit: int) -> None:
        """Record that an inode of the group is free, or will be if a handle is undone."""
        if bit < self.lowest.get(group, 0):
            self.lowest[group] = bit

    def unmade(self, ino: int, group: int, bit: int) -> None:
        """The handle that made ``ino`` was undone: the inode is free, and its slot holds its old content."""
        if self.checked[ino % MAX_CHECKED] == ino:
            self.checked[ino % MAX_CHECKED] = 0
        self.freed(group, bit)


# Finding


def position(view: View, ino: int) -> tuple[int, int]:
    """Return the block of the inode table that holds inode ``ino``, and the byte of its slot.

    Raises:
        Corrupt: there is no such inode, or the group's descriptor is damaged.
    """
    return _position(view, view.caches[_Known], ino)


def _position(view: View, known: _Known, ino: int) -> tuple[int, int]:
    geometry = view.geometry
    if not 0 < ino <= geometry.inodes_count:
        raise Corrupt(CorruptKind.INODE_NUMBER, f"{ino}, of {geometry.inodes_count}")
    group, index = divmod(ino - 1, geometry.inodes_per_group)
    table = known.tables.get(group)
    if table is None:
        table = _find_table(view, known.tables, group)
    block, slot = divmod(index, geometry.inodes_per_block)
    return table + block, slot * geometry.inode_size


def _find_table(view: View, tables: dict[int, int], group: int) -> int:
    """Return the first block of the group's inode table from its descriptor, and cache it for later lookups."""
    table = groups.descriptor(view, group).inode_table
    if len(tables) >= MAX_TABLES:
        tables.clear()
    tables[group] = table
    return table


def lies_in_bad_memory(view: View, ino: int) -> bool:
    """Whether the inode can't be read or changed, because its block is known to lie in bad memory."""
    number, _ = position(view, ino)
    begin = number << view.geometry.block_bits
    return view.pool.bad.first(begin, begin + view.geometry.block_size) is not None


def read(view: View, ino: int) -> Inode:
    """Return the inode ``ino``, for reading.

    An inode that was freed can still be read (``links_count`` 0, ``i_dtime`` set). So a caller whose number comes from
    a file handle, not from a directory entry, compares the generation.

    Raises:
        Corrupt: the number is out of range, or the slot's content is damaged.
        FsError: ESTALE: the slot was never used.
    """
    block, offset = slot(view, ino)
    inode = Inode(block, offset, view.geometry)
    inode.number = ino
    return inode


def slot(view: View, ino: int) -> tuple[memoryview, int]:
    """Return the block with the slot of inode ``ino``, and the byte where the slot begins. Checks and raises as `read`.

    This is for readers of whole slots, which need no record.
    """
    known = view.caches[_Known]
    number, offset = _position(view, known, ino)
    block = view.block(number)
    if known.checked[ino % MAX_CHECKED] != ino:
        inode = Inode(block, offset, view.geometry)
        inode.number = ino
        _check(view, known, inode, number, offset)
    return block, offset


def edit(tx: Handle, ino: int) -> Inode:
    """Return the inode ``ino``, for changing: one credit. The inode is sealed at commit. Raises as `read`."""
    kept = tx.edited(Inode, ino)
    if kept is not None:
        return kept
    known = tx.caches[_Known]
    number, offset = _position(tx, known, ino)
    if known.checked[ino % MAX_CHECKED] != ino:
        slot(tx, ino)
    return _bound(tx, tx.edit(number), number, offset, ino)


def _bound(tx: Handle, content: memoryview, number: int, offset: int, ino: int) -> Inode:
    """Bind an inode to the transaction's copy of its block, have it sealed, and keep the record."""
    geometry = tx.geometry
    inode = Inode(content, offset, geometry)
    inode.number = ino
    tx.keep(Inode, ino, number, inode, _seal if geometry.metadata_csum else None, inode)
    return inode


def _seal(inode: Inode, content: memoryview) -> None:  # noqa: ARG001
    """Make the checksum of an inode that is bound to the copy of its block."""
    inode.seal(inode.number, inode.geometry)


def nameable(view: View, ino: int) -> bool:
    """Whether a directory entry or a file handle may name inode ``ino``: it is the root, or not for internal use."""
    geometry = view.geometry
    if ino == EXT4_ROOT_INO:
        return True
    if not geometry.first_ino <= ino <= geometry.inodes_count:
        return False
    return ino not in view.caches[_Known].internal(view)


def in_use(view: View, ino: int) -> bool:
    """Whether ``ino`` is allocated by the inode bitmap. Raises as `position`."""
    geometry = view.geometry
    group = geometry.group_of_inode(ino)
    desc = groups.descriptor(view, group)
    if groups.inodes_uninit(geometry, desc):
        return False
    return bitmaps.test(_bitmap(view, group, desc), (ino - 1) % geometry.inodes_per_group)


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
        np.frombuffer(_bitmap(view, group, desc), np.uint8), count=geometry.inodes_per_group, bitorder="little"
    )
    first = group * geometry.inodes_per_group + 1
    found: list[int] = (np.flatnonzero(used) + first).tolist()
    return found


def forget(view: View) -> None:
    """Forget where inode tables lie and what is known of inodes: there are fewer groups."""
    known = view.caches[_Known]
    known.tables.clear()
    known.drop()


def keep_free(view: View, numbers: AbstractSet[int]) -> None:
    """Have a new inode get one of these numbers only if its group has no other; the set may change at any time."""
    view.caches[_Known].kept_free = numbers


def may_be_in_use(view: View, ino: int) -> bool:
    """Whether ``ino`` is allocated as far as is known: a damaged bitmap is not believed."""
    group = view.geometry.group_of_inode(ino)
    return not _bitmap_is_sound(view, group) or in_use(view, ino)


def _check(view: View, known: _Known, inode: Inode, number: int, offset: int) -> None:
    """Check an inode once, as invariant I1 requires.

    If the slot in a transaction's copy differs from the pool, this mount has changed the slot after a check, and its
    checksum is made at the commit. If the slot equals the pool's, the block was copied because of a neighbour, and the
    slot is checked.
    """
    geometry = view.geometry
    start = (number << geometry.block_bits) + offset
    if inode.buffer == view.pool.memory[start : start + geometry.inode_size]:
        if not inode.mode and not inode.links_count:
            raise FsError(errno.ESTALE, f"inode {inode.number} is not in use")
        inode.verify(inode.number, geometry)
    known.put(inode.number)


# Accounting


def add_blocks(inode: InodeRecord, fs_blocks: int, geometry: Geometry) -> None:
    """Add ``fs_blocks`` blocks of the file system to ``i_blocks``; a negative number subtracts.

    Raises:
        Corrupt: the sum is below zero.
        FsError: EFBIG: the field can't hold the sum.
    """
    total = inode.blocks + (fs_blocks << geometry.block_bits - SECTOR_BITS)
    if total < 0:
        raise Corrupt(CorruptKind.INODE_BLOCK_COUNT, f"{inode.blocks} sectors, {-fs_blocks} blocks are being freed")
    inode.blocks = total


# Allocation


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
        group = _directory_group(tx, parent, home) if directory else home
        try:
            if not _has_room(tx, group, directory):
                group = _other_group(tx, group)
            desc = groups.newest(tx, group)
            bit, untouched = _claim(tx, group, desc, directory)
            break
        except FsError as error:
            met = groups.attempt_again(tx, unusable, error, met)
    inode = _empty_slot(tx, desc, group, bit, untouched)
    inode.i_mode = mode
    return inode


def _has_room(tx: Handle, group: int, directory: bool) -> bool:
    """Whether a group has a free inode, and a free block if the inode is no directory."""
    if not groups.gives_inodes(tx, group):
        return False
    desc = groups.newest(tx, group)
    with_blocks = bool(desc.free_blocks_count) and groups.gives_blocks(tx, group)
    return bool(desc.free_inodes_count) and (directory or with_blocks)


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
    if _bitmap_is_sound(tx, group):
        _give_back(tx, inode, group, bit)
    inode.i_links_count = 0
    if not inode.i_dtime:
        # e2fsck regards a slot without links and without this time as damaged.
        inode.i_dtime = int(time.time()) & 0xFFFFFFFF


def _bitmap_is_sound(view: View, group: int) -> bool:
    """Whether the group's inodes are usable after a check of its inode bitmap, if it has one."""
    if groups.has_inodes(view, group):
        desc = groups.descriptor(view, group)
        if groups.inodes_uninit(view.geometry, desc):
            return True
        try:
            _bitmap(view, group, desc)
        except Corrupt as error:
            note(view, error)
            return False
        return True
    return False


def _give_back(tx: Handle, inode: Inode, group: int, bit: int) -> None:
    """Show an inode as free in its group's bitmap and in all counters."""
    geometry, ino = tx.geometry, inode.number
    desc = groups.edit_descriptor(tx, group)
    if groups.inodes_uninit(geometry, desc) or not bitmaps.test(_bitmap(tx, group, desc), bit):
        raise Corrupt(CorruptKind.INODE_BITMAP, f"inode {ino} is being freed, but is free already")
    if desc.free_inodes_count >= geometry.inodes_per_group:
        raise Corrupt(CorruptKind.GROUP_DESCRIPTOR_COUNTER, f"group {group}: {desc.free_inodes_count} inodes free")
    bitmaps.clear_run(tx.edit(desc.inode_bitmap, _seal_bitmap, geometry, desc), bit, 1)
    tx.caches[_Known].freed(group, bit)
    desc.free_inodes_count += 1
    if inode.is_dir:
        if not desc.used_dirs_count:
            raise Corrupt(
                CorruptKind.GROUP_DESCRIPTOR_COUNTER, f"group {group}: no directories counted, but inode {ino} is one"
            )
        desc.used_dirs_count -= 1
    sb = tx.edit_superblock()
    sb.s_free_inodes_count = min(sb.s_free_inodes_count + 1, geometry.inodes_count)


def _bitmap(view: View, group: int, desc: GroupDescriptor) -> memoryview:
    """Return the checked inode bitmap of a group that has one; Corrupt: its inodes are unusable, or become so."""
    groups.refuse_inodes(view, group)
    try:
        return view.verified(desc.inode_bitmap, _check_bitmap, view.geometry, group, desc)
    except Corrupt as error:
        groups.give_up_inodes(view, group, error)
        raise


def _check_bitmap(geometry: Geometry, group: int, desc: GroupDescriptor, content: memoryview) -> None:
    desc.verify_inode_bitmap(content, group, geometry)
    free = bitmaps.count_free(content, geometry.inodes_per_group)
    if free != desc.free_inodes_count:
        raise Corrupt(
            CorruptKind.INODE_BITMAP, f"group {group}: {free} inodes free, the descriptor says {desc.free_inodes_count}"
        )
    if not group and bitmaps.used_run(content, 0, geometry.first_ino - 1) < geometry.first_ino - 1:
        raise Corrupt(CorruptKind.INODE_BITMAP, "a reserved inode is marked free")


def _without_bad(view: View, desc: GroupDescriptor, content: memoryview) -> memoryview:
    """Return a copy of an inode bitmap in which inodes over bad memory count as in use."""
    geometry = view.geometry
    copy = memoryview(bytearray(content))
    begin = desc.inode_table << geometry.block_bits
    size, total = geometry.inode_size, geometry.inodes_per_group
    for low, high in view.pool.bad.within(begin, begin + total * size):
        first = (low - begin) // size
        bitmaps.set_run(copy, first, (high - begin + size - 1) // size - first)
    return copy


def make_bitmap(tx: Handle, desc: GroupDescriptor) -> None:
    """Make the inode bitmap of a group that is being added, in which all inodes are free: one credit."""
    geometry = tx.geometry
    content = tx.create(desc.inode_bitmap, _seal_bitmap, geometry, desc)
    bitmaps.set_run(content, geometry.inodes_per_group, 8 * geometry.block_size - geometry.inodes_per_group)


def _seal_bitmap(geometry: Geometry, desc: GroupDescriptor, content: memoryview) -> None:
    # The code that registered this seal has edited the descriptor, a copy of the transaction. Its own seal runs later.
    desc.seal_inode_bitmap(content, geometry)


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
        content = tx.create(desc.inode_bitmap, _seal_bitmap, geometry, desc)
        bitmaps.set_run(content, size, 8 * geometry.block_size - size)
        bit = wanted if wanted >= 0 else _other_than_kept(tx, group, content, 0)
        desc.bg_flags &= ~EXT4_BG_INODE_UNINIT
    else:
        content = _bitmap(tx, group, desc)
        bit = wanted if wanted >= 0 else _lowest_free(tx, group, desc, content)
        if wanted >= 0 and bitmaps.test(content, wanted):
            raise Corrupt(CorruptKind.INODE_BITMAP, f"group {group}: inode {wanted} of it is in use already")
        if bit < 0 or not desc.free_inodes_count:
            raise Corrupt(CorruptKind.INODE_BITMAP, f"group {group}: free inodes are counted, but none is free")
        _refuse_slot_in_use(tx, desc, group, bit)
        desc = groups.edit_descriptor(tx, group)
        content = tx.edit(desc.inode_bitmap, _seal_bitmap, geometry, desc)
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
        bit = bitmaps.first_free(_without_bad(tx, desc, content), size)
        if bit < 0:
            raise BadMemory(f"group {group}: what is free of its inode table lies in bad memory")
        return bit
    known = tx.caches[_Known]
    bit = bitmaps.first_free(content, size, known.lowest.get(group, 0))
    if bit >= 0:
        known.in_use_up_to(group, bit)
        bit = _other_than_kept(tx, group, content, bit)
    return bit


def _other_than_kept(view: View, group: int, content: memoryview, lowest: int) -> int:
    """Return the lowest free bit of an inode bitmap that is not kept free; the lowest of all if there is no other."""
    size = view.geometry.inodes_per_group
    first, kept = group * size + 1, view.caches[_Known].kept_free
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
    inode = _bound(tx, content, number, offset, ino)
    old = inode.i_generation
    inode.buffer[:] = bytes(size)
    inode.set_extra_isize(geometry.want_extra_isize)
    generation = getrandbits(32)
    # A file handle of the slot's last inode must not name this one.
    inode.i_generation = generation ^ 1 if generation == old else generation
    known = tx.caches[_Known]
    known.put(ino)
    tx.on_rollback(partial(known.unmade, ino, group, bit))
    return inode


# Placement: which group


def _directory_group(tx: Handle, parent: Inode, home: int) -> int:
    """Return the group for a new directory (``find_group_orlov``, simplified).

    A top-level directory goes to the group with the fewest directories, among groups that have about the average of
    free inodes and blocks or more; the search begins at a random group. Any other directory goes to its parent's group,
    or to a group that is not far below the average.
    """
    geometry = tx.geometry
    if geometry.groups_count == 1:
        return 0
    sb = tx.superblock()
    free_inodes = sb.s_free_inodes_count // geometry.groups_count
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


def _other_group(tx: Handle, group: int) -> int:
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
        with_room = np.flatnonzero(found.free_inodes)
        if len(with_room):
            return found.first + int(with_room[0])
    raise FsError(errno.ENOSPC, "no inode is free")
