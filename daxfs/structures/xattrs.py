"""Extended attributes of inodes: found, set and removed, in the inode's slot and in its attribute block.

Callers name attributes in full (``b"user.comment"``). ACLs have ext4's compact form on the disk and the one of system
calls in `get` and `set`; `get_acl` and `set_acl` deal in entries. Who may see or change which attribute, what an ACL
does to the mode, and times are the fs floor's matter, the only caller. Sources: fs/ext4/xattr.c and acl.c.

A new value goes into the slot if there is room, else into the block; if it fits neither, all are distributed anew, so
that whatever can be stored is stored. Values in inodes of their own (ea_inode) are not supported.

Invariants:

1. A block with more than one reference is never changed but for its count: it is other inodes' too.
2. An inode has an attribute block exactly when ``i_file_acl`` names it, and ``i_blocks`` counts it, shared or not.
3. A function that raises FsError has changed nothing that the rollback of its handle does not take back.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.ext4 import acl, xattr
from daxfs.ext4.features import Compat
from daxfs.ext4.inode import GOOD_OLD_SIZE
from daxfs.ext4.xattr import EXT4_XATTR_MAGIC, Attribute
from daxfs.structures import blocks, inodes

if TYPE_CHECKING:
    from daxfs.ext4.acl import Acl, Inherited
    from daxfs.ext4.geometry import Geometry
    from daxfs.journal.transaction import Handle
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode

XATTR_CREATE = 1
XATTR_REPLACE = 2

_ACLS = (xattr.INDEX_POSIX_ACL_ACCESS, xattr.INDEX_POSIX_ACL_DEFAULT)
_FILE_ACL_LO = 26  # of the slot's words
_FILE_ACL_HI = 59  # of its halves

_split = lru_cache(maxsize=256)(xattr.split_name)


# Reading


def get(view: View, inode: Inode, name: bytes) -> bytes:
    """The value of an attribute, an ACL in the form of system calls.

    Raises:
        FsError: ENODATA, there is none of that name; EOPNOTSUPP, EINVAL or ERANGE for a name that can't be.
        Corrupt: the attributes are damaged.
    """
    index, rest = _split(name)
    value = None if _is_bare(inode) else _find(view, inode, index, rest)
    if value is not None and index in _ACLS:
        entries = acl.from_disk(value, _where(inode))
        value = acl.to_wire(entries) if entries else None
    if value is None:
        raise FsError(errno.ENODATA)
    return value


def listing(view: View, inode: Inode) -> list[bytes]:
    """The full names of all attributes that `get` would find; raises Corrupt as it does."""
    if _is_bare(inode):
        return []
    names = dict.fromkeys((index, name) for index, name, _ in _inside(inode) + _outside(view, inode))
    return [full for index, name in names if (full := xattr.full_name(index, name)) and _is_known(full)]


def get_acl(view: View, inode: Inode, default: bool = False) -> Acl | None:
    """The entries of the access or default ACL, or None.

    Raises:
        Corrupt: the attributes or the ACL are damaged.
    """
    if _is_bare(inode):
        return None
    value = _find(view, inode, _ACLS[default], b"")
    return None if value is None else acl.from_disk(value, _where(inode)) or None


def _is_bare(inode: Inode) -> bool:
    """Whether the inode has no attributes at all; every creation and every change of mode asks."""
    words = inode.words
    if words[_FILE_ACL_LO] or inode.halves[_FILE_ACL_HI]:
        return False
    end = inode.extra_end
    return end >= inode.slot_size or words[end >> 2] != EXT4_XATTR_MAGIC


def _is_known(full: bytes) -> bool:
    try:
        _split(full)
    except FsError:
        return False
    return True


def _find(view: View, inode: Inode, index: int, name: bytes) -> bytes | None:
    """The stored value; what lies in the slot comes first."""
    for attribute in _inside(inode):
        if attribute.name == name and attribute.prefix == index:
            return attribute.value
    for attribute in _outside(view, inode):
        if attribute.name == name and attribute.prefix == index:
            return attribute.value
    return None


def _where(inode: Inode) -> str:
    return f"inode {inode.number}"


def _area(inode: Inode) -> memoryview:
    """The slot's bytes behind the fields; none in slots without an ``i_extra_isize``, or where it is 0."""
    end = inode.extra_end
    return inode.buffer[end if end > GOOD_OLD_SIZE else inode.slot_size :]


def _inside(inode: Inode) -> list[Attribute]:
    """The attributes in the slot."""
    return xattr.parse_ibody(_area(inode), _where(inode))


def _outside(view: View, inode: Inode) -> list[Attribute]:
    """The attributes in the block."""
    number = inode.file_acl
    return xattr.parse_block(_block(view, number), f"block {number}") if number else []


def _block(view: View, number: int) -> memoryview:
    """An attribute block; its header is for the caller to check, since `View.verified` trusts copies."""
    geometry = view.geometry
    if not geometry.metadata_csum:
        return view.block(number)
    return view.verified(number, partial(_check, geometry, number))


def _check(geometry: Geometry, number: int, content: memoryview) -> None:
    where = f"block {number}"
    xattr.block_header(content, where)
    xattr.verify_block(content, geometry.csum_seed, number, where)


def _seal(geometry: Geometry, number: int, content: memoryview) -> None:
    if geometry.metadata_csum:
        xattr.seal_block(content, geometry.csum_seed, number)


# Changing: the credits of each are four, two blocks and what `blocks.allocate` takes, besides the inode


def set(tx: Handle, inode: Inode, name: bytes, value: bytes, flags: int) -> None:
    """Set an attribute: four credits, besides the inode's. For ACLs, whose value is checked, flags mean nothing.

    Args:
        tx: the handle.
        inode: for change.
        name: in full.
        value: an ACL in the form of system calls; one without entries removes it.
        flags: `XATTR_CREATE`, `XATTR_REPLACE`, or 0 for either.

    Raises:
        FsError: ENOSPC, it does not fit or no block is free; EEXIST, ENODATA: against the flags; EOPNOTSUPP, EINVAL or
            ERANGE for a name or ACL that can't be.
        Corrupt: the attributes that are there are damaged.
    """
    index, rest = _split(name)
    if index in _ACLS:
        set_acl(tx, inode, acl.from_wire(value), index == xattr.INDEX_POSIX_ACL_DEFAULT)
    else:
        _change(tx, inode, index, rest, value, flags)


def remove(tx: Handle, inode: Inode, name: bytes) -> None:
    """Remove an attribute: four credits, besides the inode's.

    Raises:
        FsError: ENODATA, there is none (but an ACL may be missing, as for the kernel); else as `set`.
        Corrupt: the attributes are damaged.
    """
    index, rest = _split(name)
    _change(tx, inode, index, rest, None, 0 if index in _ACLS else XATTR_REPLACE)


def set_acl(tx: Handle, inode: Inode, entries: Acl | None, default: bool = False) -> None:
    """Store the access or default ACL as it is, or remove it; credits and errors as `set`."""
    _change(tx, inode, _ACLS[default], b"", acl.to_disk(entries) if entries else None, 0)


def set_inherited(tx: Handle, inode: Inode, inherited: Inherited) -> None:
    """Give a new inode the ACLs from its directory (the mode is the caller's matter); credits and errors as `set`."""
    if inherited.access:
        set_acl(tx, inode, inherited.access)
    if inherited.default:
        set_acl(tx, inode, inherited.default, default=True)


def drop(tx: Handle, inode: Inode) -> None:
    """The inode is being freed: give up its attribute block, one credit. What its slot holds goes with the slot.

    Raises:
        Corrupt: the block's header is damaged.
    """
    if inode.file_acl:
        _release(tx, inode.file_acl)
        inode.file_acl = 0
        inodes.add_blocks(inode, -1, tx.geometry)


def _change(tx: Handle, inode: Inode, index: int, name: bytes, value: bytes | None, flags: int) -> None:
    """Set an attribute to a value as stored, or remove it for None."""
    inside, outside = _inside(inode), _outside(tx, inode)
    found = next((old for old in inside + outside if old.name == name and old.prefix == index), None)
    if found is None:
        if flags & XATTR_REPLACE:
            raise FsError(errno.ENODATA)
        if value is None:
            return
    elif flags & XATTR_CREATE:
        raise FsError(errno.EEXIST)
    elif found.value == value:
        return
    kept_inside, kept_outside = (
        [old for old in olds if old.name != name or old.prefix != index] for olds in (inside, outside)
    )
    if value is not None:
        new = Attribute(index, name, value)
        kept_inside, kept_outside = _place(
            kept_inside,
            kept_outside,
            new,
            xattr.ibody_room(len(_area(inode))),
            xattr.block_room(tx.block_size),
        )
        sb = tx.superblock()
        if not sb.s_feature_compat & Compat.ext_attr:
            tx.edit_superblock().s_feature_compat |= Compat.ext_attr
    if kept_outside != outside:
        _store_block(tx, inode, kept_outside)
    if kept_inside != inside:
        area = _area(inode)
        area[:] = xattr.build_ibody(kept_inside, len(area))


def _place(
    inside: list[Attribute], outside: list[Attribute], new: Attribute, inside_room: int, outside_room: int
) -> tuple[list[Attribute], list[Attribute]]:
    """Where all attributes go: ENOSPC if there is no way."""
    if xattr.space_needed([*inside, new]) <= inside_room:
        return [*inside, new], outside
    if xattr.space_needed([*outside, new]) <= outside_room:
        return inside, [*outside, new]
    everything = [*inside, *outside, new]
    chosen = _fullest(everything, inside_room - xattr.TERMINATOR_SIZE)
    inside = [one for one, taken in zip(everything, chosen, strict=True) if taken]
    outside = [one for one, taken in zip(everything, chosen, strict=True) if not taken]
    if xattr.space_needed(outside) > outside_room:
        raise FsError(errno.ENOSPC, f"a value of {len(new.value)} bytes beside {len(everything) - 1} attributes")
    return inside, outside


def _fullest(attributes: Sequence[Attribute], room: int) -> list[bool]:
    """Which attributes together come closest to ``room`` bytes: then the rest needs the least.

    Sizes are multiples of 4, so that sums are kept as bits: bit n stands for 4 n bytes.
    """
    sizes = [xattr.space_needed([one]) - xattr.TERMINATOR_SIZE >> 2 for one in attributes]
    mask = (1 << (max(room, 0) >> 2) + 1) - 1
    sums = [1]
    for size in sizes:
        sums.append((sums[-1] | sums[-1] << size) & mask)
    left = sums[-1].bit_length() - 1
    chosen = [False] * len(sizes)
    for at in range(len(sizes) - 1, -1, -1):
        if not sums[at] >> left & 1:
            chosen[at] = True
            left -= sizes[at]
    return chosen


def _store_block(tx: Handle, inode: Inode, attributes: list[Attribute]) -> None:
    """Make these the content of the inode's block; a shared one is left to the others (invariant 1)."""
    geometry = tx.geometry
    old = inode.file_acl
    if not attributes:
        drop(tx, inode)
        return
    content = xattr.build_block(attributes, tx.block_size)
    if old and xattr.block_header(_block(tx, old), f"block {old}").h_refcount == 1:
        tx.edit(old, partial(_seal, geometry, old))[:] = content
        return
    group = (inode.number - 1) // geometry.inodes_per_group
    number, _ = blocks.allocate(tx, geometry.first_block(group), 1)
    tx.create(number, partial(_seal, geometry, number))[:] = content
    if old:
        _release(tx, old)
    else:
        inodes.add_blocks(inode, 1, geometry)
    inode.file_acl = number


def _release(tx: Handle, number: int) -> None:
    """One inode less refers to a block; without any it is free."""
    count = xattr.block_header(_block(tx, number), f"block {number}").h_refcount - 1
    if count:
        xattr.set_refcount(tx.edit(number, partial(_seal, tx.geometry, number)), count)
    else:
        blocks.free(tx, number, 1, metadata=True)
