"""Extended attributes of an inode: read, set, remove and list them, and the access control lists stored in them.

Attributes lie after the fields of the inode's slot, if there is room (256-byte inodes), and in one block
(``i_file_acl``), which inodes with the same attributes may share. As in ext4, a value goes to the slot if it fits, else
to the block, and other attributes stay where they are. ``ext4.xattr`` has the layout of both areas. The fs layer, the
caller, decides who may see or set which name, and on which kind of file.

Names are whole: ``b"user.comment"``. The values of ``system.posix_acl_access`` and ``_default`` have the form of the
system calls; they are stored in ext4's shorter form. Values in inodes of their own (ea_inode) are refused as
``Corrupt``: they need that feature, with which no mount is possible. Functions that take a ``tx`` change the inode,
which must come from ``inodes.edit`` of the same handle; one attribute takes up to 6 credits.

Source: ``fs/ext4/xattr.c``, ``fs/ext4/acl.c``.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.ext4 import acl as acl_format
from daxfs.ext4 import xattr as format_
from daxfs.ext4.features import Compat
from daxfs.ext4.inode import GOOD_OLD_SIZE
from daxfs.ext4.limits import EXT4_XATTR_REFCOUNT_MAX
from daxfs.ext4.xattr import (
    BLOCK_HEADER_SIZE,
    EXT4_XATTR_MAGIC,
    INDEX_POSIX_ACL_ACCESS,
    INDEX_POSIX_ACL_DEFAULT,
    INDEX_SECURITY,
    INDEX_TRUSTED,
    INDEX_USER,
    Attribute,
)
from daxfs.structures import blocks, inodes

if TYPE_CHECKING:
    from daxfs.ext4.acl import Acl, Inherited
    from daxfs.ext4.geometry import Geometry
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode

XATTR_CREATE = 1
XATTR_REPLACE = 2

_ACLS = (INDEX_POSIX_ACL_ACCESS, INDEX_POSIX_ACL_DEFAULT)
_SERVED = frozenset((INDEX_USER, INDEX_TRUSTED, INDEX_SECURITY, *_ACLS))


# Reading


def get(view: View, inode: Inode, name: bytes) -> bytes:
    """Return the value of an attribute.

    Raises:
        FsError: ENODATA: there is no such attribute; EOPNOTSUPP, EINVAL, ERANGE: the name is invalid.
        Corrupt: an area is damaged.
    """
    prefix, rest = _split(name)
    value = _value(view, inode, prefix, rest) if present(inode) else None
    if value is None:
        raise FsError(errno.ENODATA)
    if prefix in _ACLS:
        return acl_format.to_wire(acl_format.from_disk(value, f"inode {inode.number}"))
    return value


def listing(view: View, inode: Inode) -> list[bytes]:
    """Return the names of all attributes that callers may use; internal ones are left out. Raises Corrupt."""
    if not present(inode):
        return []
    names: dict[bytes, None] = {}
    for prefix, rest, _ in _in_slot(inode) + _in_block(view, inode):
        name = format_.full_name(prefix, rest)
        if name is not None and prefix in _SERVED:
            names[name] = None
    return list(names)


def holds(view: View, inode: Inode, name: bytes) -> bool:
    """Whether there is an attribute of this name. Raises as `get`, except ENODATA."""
    return present(inode) and _value(view, inode, *_split(name)) is not None


def present(inode: Inode) -> bool:
    """Whether the inode may have attributes; the test reads two words only."""
    start = _area_start(inode) >> 2
    words = inode.words
    return bool(inode.file_acl) or (start < len(words) and words[start] == EXT4_XATTR_MAGIC)


def get_acl(view: View, inode: Inode, default: bool = False) -> Acl | None:
    """Return the access ACL of an inode or the default ACL of a directory; None if there is none.

    Raises:
        Corrupt: an area or the ACL is damaged.
    """
    if not present(inode):
        return None
    value = _value(view, inode, INDEX_POSIX_ACL_DEFAULT if default else INDEX_POSIX_ACL_ACCESS, b"")
    return None if value is None else acl_format.from_disk(value, f"inode {inode.number}") or None


def _split(name: bytes) -> tuple[int, bytes]:
    prefix, rest = format_.split_name(name)
    if prefix not in _SERVED:
        raise FsError(errno.EOPNOTSUPP, f"{name!r} is not the name of an attribute that ext4 stores")
    return prefix, rest


def _area_start(inode: Inode) -> int:
    """Return the byte where the attributes of the slot begin; the slot's end if it has no room for attributes."""
    start = inode.extra_end
    return start if start > GOOD_OLD_SIZE else inode.slot_size


def _in_slot(inode: Inode) -> list[Attribute]:
    return format_.parse_ibody(inode.buffer[_area_start(inode) :], f"inode {inode.number}")


def _in_block(view: View, inode: Inode) -> list[Attribute]:
    number = inode.file_acl
    return format_.parse_block(_block(view, inode, number), _where(inode, number)) if number else []


def _value(view: View, inode: Inode, prefix: int, rest: bytes) -> bytes | None:
    for area in (_in_slot(inode), _in_block(view, inode)):
        at = _index(area, prefix, rest)
        if at >= 0:
            return area[at].value
    return None


def _index(attributes: list[Attribute], prefix: int, rest: bytes) -> int:
    for at, attribute in enumerate(attributes):
        if attribute.name == rest and attribute.prefix == prefix:
            return at
    return -1


def _where(inode: Inode, number: int) -> str:
    return f"inode {inode.number}, attribute block {number}"


def _block(view: View, inode: Inode, number: int) -> memoryview:
    """Return the attribute block after a check of its checksum; code that parses header and entries checks them."""
    if view.geometry.metadata_csum:
        return view.verified(number, partial(_check, view.geometry, inode, number))
    return view.block(number)


def _check(geometry: Geometry, inode: Inode, number: int, content: memoryview) -> None:
    where = _where(inode, number)
    format_.block_header(content, where)
    format_.verify_block(content, geometry.csum_seed, number, where)


# Changing


def set(tx: Handle, inode: Inode, name: bytes, value: bytes, flags: int = 0) -> None:
    """Set an attribute.

    Args:
        tx: the handle.
        inode: from ``inodes.edit``.
        name: the whole name.
        value: any bytes; an ACL as in ``posix_acl_xattr.h``. An empty ACL removes the attribute.
        flags: `XATTR_CREATE` or `XATTR_REPLACE`.

    Raises:
        FsError: EEXIST, ENODATA by the flags; ENOSPC if slot and block have no room; EINVAL, EOPNOTSUPP, ERANGE
            for the name or the ACL.
        Corrupt: an area is damaged.
    """
    prefix, rest = _split(name)
    stored: bytes | None = value
    if prefix in _ACLS:
        entries = acl_format.from_wire(value)
        stored = acl_format.to_disk(entries) if entries else None
    _put(tx, inode, Attribute(prefix, rest, stored or b""), flags, absent=stored is None)


def remove(tx: Handle, inode: Inode, name: bytes) -> None:
    """Remove an attribute. Raises as `set`; ENODATA when there is none."""
    prefix, rest = _split(name)
    _put(tx, inode, Attribute(prefix, rest, b""), XATTR_REPLACE, absent=True)


def set_acl(tx: Handle, inode: Inode, entries: Acl | None, default: bool = False) -> None:
    """Store an ACL; None or an empty one removes it. The caller updates the mode. Raises FsError ENOSPC, Corrupt."""
    value = acl_format.to_disk(entries) if entries else b""
    prefix = INDEX_POSIX_ACL_DEFAULT if default else INDEX_POSIX_ACL_ACCESS
    _put(tx, inode, Attribute(prefix, b"", value), 0, absent=not entries)


def set_inherited(tx: Handle, inode: Inode, inherited: Inherited) -> None:
    """Store the ACLs that a new inode inherits from its directory. Raises FsError ENOSPC, Corrupt."""
    if inherited.default:
        set_acl(tx, inode, inherited.default, default=True)
    if inherited.access:
        set_acl(tx, inode, inherited.access)


def drop(tx: Handle, inode: Inode) -> None:
    """Free the attribute block of an inode that is being freed, or its reference to a shared one. Raises Corrupt."""
    if inode.file_acl:
        _release(tx, inode, inode.file_acl)


def move(tx: Handle, inode: Inode, target: int) -> bool:
    """Have the inode refer to the block ``target``, which the caller owns, with a copy of its block's attributes.

    The old block loses a reference, and is freed with the last one.

    Returns:
        Whether other inodes still refer to the old block.

    Raises:
        Corrupt: the block is damaged.
    """
    number = inode.file_acl
    content = _block(tx, inode, number)
    shared = format_.block_header(content, _where(inode, number)).h_refcount > 1
    block = tx.create(target, _sealer(tx.geometry, target))
    block[:] = content
    format_.set_refcount(block, 1)
    _refer(tx, inode, target)
    return shared


def references(view: View, inode: Inode) -> int:
    """Return how many inodes refer to the inode's block. Raises Corrupt: it is damaged."""
    number = inode.file_acl
    return format_.block_header(_block(view, inode, number), _where(inode, number)).h_refcount


def move_whole(tx: Handle, owners: list[Inode], target: int) -> None:
    """Have all inodes that refer to a block refer to ``target``, which the caller owns; the old block is freed.

    Args:
        tx: the handle.
        owners: from ``inodes.edit``, as many as `references` says.
        target: becomes a copy of their block.

    Raises:
        Corrupt: the block is damaged.
    """
    number = owners[0].file_acl
    content = _block(tx, owners[0], number)
    tx.create(target, _sealer(tx.geometry, target))[:] = content
    for inode in owners:
        inode.file_acl = target
    blocks.free(tx, number, 1, metadata=True)


def share(tx: Handle, inode: Inode, other: Inode) -> bool:
    """Have the inode refer to the block of another inode, if that block holds the same attributes and can be shared.

    Returns:
        False: nothing has changed.

    Raises:
        Corrupt: a block is damaged.
    """
    number, target = inode.file_acl, other.file_acl
    if not target or target == number:
        return False
    mine, theirs = _block(tx, inode, number), _block(tx, other, target)
    count = format_.block_header(theirs, _where(other, target)).h_refcount
    format_.block_header(mine, _where(inode, number))
    if count >= EXT4_XATTR_REFCOUNT_MAX or mine[BLOCK_HEADER_SIZE:] != theirs[BLOCK_HEADER_SIZE:]:
        return False
    format_.set_refcount(tx.edit(target, _sealer(tx.geometry, target)), count + 1)
    _refer(tx, inode, target)
    return True


def _refer(tx: Handle, inode: Inode, target: int) -> None:
    """Have the inode refer to the block ``target``, which counts it already, and no longer to its old one."""
    _release(tx, inode, inode.file_acl)
    inode.file_acl = target
    inodes.add_blocks(inode, 1, tx.geometry)


def _put(tx: Handle, inode: Inode, new: Attribute, flags: int, *, absent: bool) -> None:
    """Set the attribute ``new``, or remove the attribute of its name (``absent``); as ``ext4_xattr_set_handle``."""
    slot, block = _in_slot(inode), _in_block(tx, inode)
    slot_at, block_at = _index(slot, new.prefix, new.name), _index(block, new.prefix, new.name)
    there = slot_at >= 0 or block_at >= 0
    if flags & XATTR_CREATE and there:
        raise FsError(errno.EEXIST)
    if flags & XATTR_REPLACE and not there:
        raise FsError(errno.ENODATA)
    if absent:
        _write_slot(inode, slot, _without(slot, slot_at))
        _write_block(tx, inode, block, _without(block, block_at))
        return
    wanted = _with(slot, slot_at, new)
    if format_.space_needed(wanted) <= format_.ibody_room(inode.slot_size - _area_start(inode)):
        _write_slot(inode, slot, wanted)
        _write_block(tx, inode, block, _without(block, block_at))
    else:
        wanted = _with(block, block_at, new)
        if format_.space_needed(wanted) > format_.block_room(tx.block_size):
            raise FsError(errno.ENOSPC, f"inode {inode.number}: no room for an attribute of {len(new.value)} bytes")
        _write_block(tx, inode, block, wanted)
        _write_slot(inode, slot, _without(slot, slot_at))
    if not tx.geometry.compat & Compat.ext_attr:
        tx.edit_superblock().s_feature_compat |= int(Compat.ext_attr)


def _with(attributes: list[Attribute], at: int, new: Attribute) -> list[Attribute]:
    if at < 0:
        return [*attributes, new]
    return [*attributes[:at], new, *attributes[at + 1 :]]


def _without(attributes: list[Attribute], at: int) -> list[Attribute]:
    return attributes if at < 0 else attributes[:at] + attributes[at + 1 :]


def _write_slot(inode: Inode, old: list[Attribute], new: list[Attribute]) -> None:
    if new != old:
        start = _area_start(inode)
        inode.buffer[start:] = format_.build_ibody(new, inode.slot_size - start)


def _seal(csum_seed: int, number: int, content: memoryview) -> None:
    format_.seal_block(content, csum_seed, number)


def _write_block(tx: Handle, inode: Inode, old: list[Attribute], new: list[Attribute]) -> None:
    """Store ``new`` as the content of the inode's block: in place if the block is not shared, else in a new block."""
    if new == old:
        return
    number = inode.file_acl
    if number and (not new or format_.block_header(_block(tx, inode, number), _where(inode, number)).h_refcount > 1):
        _release(tx, inode, number)
        number = 0
    if not new:
        return
    geometry = tx.geometry
    if number:
        block = tx.edit(number, _sealer(geometry, number))
    else:
        goal = geometry.first_block(geometry.group_of_inode(inode.number))
        number, _ = blocks.allocate(tx, goal, 1)
        inodes.add_blocks(inode, 1, geometry)
        inode.file_acl = number
        block = tx.create(number, _sealer(geometry, number))
    block[:] = format_.build_block(new, geometry.block_size)


def _sealer(geometry: Geometry, number: int) -> partial[None] | None:
    return partial(_seal, geometry.csum_seed, number) if geometry.metadata_csum else None


def _release(tx: Handle, inode: Inode, number: int) -> None:
    """Remove the inode's reference to its block; the last reference frees the block (``ext4_xattr_release_block``)."""
    geometry = tx.geometry
    header = format_.block_header(_block(tx, inode, number), _where(inode, number))
    if header.h_refcount > 1:
        format_.set_refcount(tx.edit(number, _sealer(geometry, number)), header.h_refcount - 1)
    else:
        blocks.free(tx, number, 1, metadata=True)
    inode.file_acl = 0
    inodes.add_blocks(inode, -1, geometry)
