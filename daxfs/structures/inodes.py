"""Inodes: find them by number, read and change them in their slots.

`read` and `edit` bind the slot in place (the pool's memory or the transaction's copy) and check its content once.
`inode_allocation` gives slots away and takes them back. Other modules handle maps (``i_block``), names, link counts and
orphans. Callers: the modules of this layer and the fs layer. Sources: ``__ext4_iget`` and ``__ext4_get_inode_loc`` in
fs/ext4/inode.c.

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
from array import array
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.inode import EXT4_ROOT_INO, InodeRecord
from daxfs.journal.cache import Cache
from daxfs.structures import groups

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View

SECTOR_BITS = 9
"""``i_blocks`` counts units of 512 bytes."""

MAX_TABLES = 4096
"""The most inode tables whose place is cached."""
MAX_CHECKED = 1 << 16
"""The most inodes in the cache of checked slots, a power of two."""
_NONE_CHECKED = array("I", bytes(4 * MAX_CHECKED))


class Inode(InodeRecord):
    """A slot of an inode table, and the inode's number. Valid until the handle ends."""

    __slots__ = ("number",)

    number: int

    def __repr__(self) -> str:
        return f"<Inode {self.number} mode {self.mode:o} links {self.links_count} size {self.size}>"


class Known(Cache):
    """The cache of one pool's inodes.

    Attributes:
        tables: group -> first block of its inode table. The place is fixed by the format, so it needs no undo.
        checked: inodes whose slot needs no check (invariant I1), each at the index ``number % MAX_CHECKED``; 0: none.
        lowest: group -> a bit below which no inode is free.
        kept_free: numbers that a new inode gets last (`inode_allocation.keep_free`).
    """

    __slots__ = ("_internal", "checked", "kept_free", "lowest", "tables")

    def __init__(self) -> None:
        self.tables: dict[int, int] = {}
        self.lowest: dict[int, int] = {}
        self._internal: frozenset[int] | None = None
        self.kept_free: AbstractSet[int] = frozenset()
        self.checked = array("I", _NONE_CHECKED)

    def drop(self) -> None:
        """Forget which slots are checked, and which are in use: those of new inodes hold their old content again.

        It takes no memory: a handle that ran out of it is undone by this.
        """
        self.checked[:] = _NONE_CHECKED
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
    return _position(view, view.caches[Known], ino)


def _position(view: View, known: Known, ino: int) -> tuple[int, int]:
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


def can_change(view: View, ino: int) -> bool:
    """Whether the inode can be changed: its block lies neither in bad memory, as far as is known, nor on storage."""
    number, _ = position(view, ino)
    begin = number << view.geometry.block_bits
    return view.pool.bad.first(begin, begin + view.geometry.block_size) is None and not view.lies_on_storage(number)


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
    known = view.caches[Known]
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
    known = tx.caches[Known]
    number, offset = _position(tx, known, ino)
    if known.checked[ino % MAX_CHECKED] != ino:
        slot(tx, ino)
    return bound(tx, tx.edit(number), number, offset, ino)


def bound(tx: Handle, content: memoryview, number: int, offset: int, ino: int) -> Inode:
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
    return ino not in view.caches[Known].internal(view)


def forget(view: View) -> None:
    """Forget where inode tables lie and what is known of inodes: there are fewer groups."""
    known = view.caches[Known]
    known.tables.clear()
    known.drop()


def _check(view: View, known: Known, inode: Inode, number: int, offset: int) -> None:
    """Check an inode once, as invariant I1 requires.

    If the slot in a transaction's copy differs from the pool, this mount has changed the slot after a check, and its
    checksum is made at the commit. If the slot equals the pool's, the block was copied because of a neighbour, and the
    slot is checked.
    """
    geometry = view.geometry
    if inode.buffer == view.at_home(number)[offset : offset + geometry.inode_size]:
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
