"""Layer 3: POSIX access control lists, on the disk and on the wire.

An ACL is a tuple of entries in canonical order. It has two encodings: ext4's compact one in the attribute's
value on the disk (version 1), and the one of ``system.posix_acl_access`` and ``_default`` that system calls
use (version 2). This module has both encodings, the validity rules, and the effects of ACLs and mode bits on each
other. The callers (``structures/xattrs.py``, ``fs/``) decide where ACLs are stored and when they are evaluated.

Sources: ``fs/posix_acl.c``, ``fs/ext4/acl.c``, ``include/uapi/linux/posix_acl_xattr.h``; POSIX
1003.1e draft 17.
"""

from __future__ import annotations

import errno
import stat
import struct
from collections.abc import Collection
from typing import NamedTuple

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.ext4.checksum import Buffer

ACL_USER_OBJ = 0x01
ACL_USER = 0x02
ACL_GROUP_OBJ = 0x04
ACL_GROUP = 0x08
ACL_MASK = 0x10
ACL_OTHER = 0x20
ACL_UNDEFINED_ID = 0xFFFFFFFF

EXT4_ACL_VERSION = 1
POSIX_ACL_XATTR_VERSION = 2

_VERSION = struct.Struct("<I")
_SHORT = struct.Struct("<HH")
_LONG = struct.Struct("<HHI")
_NAMED = (ACL_USER, ACL_GROUP)
_TAGS = frozenset((ACL_USER_OBJ, ACL_USER, ACL_GROUP_OBJ, ACL_GROUP, ACL_MASK, ACL_OTHER))


class Entry(NamedTuple):
    """The permissions of one subject.

    Attributes:
        tag: the kind of subject, ``ACL_*``.
        perm: any of 4 read, 2 write, 1 execute.
        id: of a named user or group, else ``ACL_UNDEFINED_ID``.
    """

    tag: int
    perm: int
    id: int = ACL_UNDEFINED_ID


Acl = tuple[Entry, ...]


def from_wire(value: Buffer) -> Acl:
    """Decode and validate a value that was passed to ``setxattr``; an empty tuple means: no ACL.

    Raises:
        FsError: EINVAL for a wrong length or an invalid ACL, EOPNOTSUPP for an unknown version.
    """
    if len(value) < _VERSION.size or (len(value) - _VERSION.size) % _LONG.size:
        raise FsError(errno.EINVAL, f"an ACL of {len(value)} bytes")
    (version,) = _VERSION.unpack_from(value)
    if version != POSIX_ACL_XATTR_VERSION:
        raise FsError(errno.EOPNOTSUPP, f"ACL version {version}")
    acl = tuple(
        Entry(tag, perm, ident if tag in _NAMED else ACL_UNDEFINED_ID)
        for tag, perm, ident in _LONG.iter_unpack(bytes(value)[_VERSION.size :])
    )
    if acl:
        validate(acl)
    return acl


def to_wire(acl: Acl) -> bytes:
    """Encode an ACL for ``getxattr``."""
    return _VERSION.pack(POSIX_ACL_XATTR_VERSION) + b"".join([_LONG.pack(*entry) for entry in acl])


def from_disk(value: Buffer, where: str) -> Acl:
    """Decode the value of an ACL attribute; an empty tuple means: no ACL.

    Raises:
        Corrupt: the version, a tag or the length is wrong.
    """
    if len(value) < _VERSION.size or _VERSION.unpack_from(value)[0] != EXT4_ACL_VERSION:
        raise Corrupt(CorruptKind.ACCESS_CONTROL_LIST, f"{where}: no version {EXT4_ACL_VERSION} header")
    acl = []
    at = _VERSION.size
    while at < len(value):
        if at + _SHORT.size > len(value):
            raise Corrupt(CorruptKind.ACCESS_CONTROL_LIST, f"{where}: cut off at byte {at}")
        tag, perm = _SHORT.unpack_from(value, at)
        if tag not in _TAGS:
            raise Corrupt(CorruptKind.ACCESS_CONTROL_LIST, f"{where}: tag {tag:#x}")
        ident = ACL_UNDEFINED_ID
        if tag in _NAMED:
            if at + _LONG.size > len(value):
                raise Corrupt(CorruptKind.ACCESS_CONTROL_LIST, f"{where}: cut off at byte {at}")
            ident = _LONG.unpack_from(value, at)[2]
            at += _LONG.size
        else:
            at += _SHORT.size
        acl.append(Entry(tag, perm, ident))
    return tuple(acl)


def to_disk(acl: Acl) -> bytes:
    """Encode an ACL as the value of its attribute."""
    return _VERSION.pack(EXT4_ACL_VERSION) + b"".join(
        [_LONG.pack(*entry) if entry.tag in _NAMED else _SHORT.pack(entry.tag, entry.perm) for entry in acl]
    )


# The order in which tags may follow one another; named entries may repeat, in any order of their ids.
_NEXT = {
    0: (ACL_USER_OBJ,),
    ACL_USER_OBJ: (ACL_USER, ACL_GROUP_OBJ),
    ACL_USER: (ACL_USER, ACL_GROUP_OBJ),
    ACL_GROUP_OBJ: (ACL_GROUP, ACL_MASK, ACL_OTHER),
    ACL_GROUP: (ACL_GROUP, ACL_MASK),
    ACL_MASK: (ACL_OTHER,),
    ACL_OTHER: (),
}


def validate(acl: Acl) -> None:
    """Check that an ACL is complete and its tags are in order (``posix_acl_valid``).

    Like the kernel, it accepts named entries in any order of their ids. Of several entries for one id the first counts.

    Raises:
        FsError: EINVAL: permissions other than rwx, a missing entry, a duplicate tag or one out of order, a named entry
            without id, or named entries without mask.
    """
    previous = Entry(0, 0)
    named = False
    for entry in acl:
        if entry.perm & ~7 or entry.tag not in _NEXT[previous.tag]:
            raise FsError(errno.EINVAL, f"ACL entry {entry} after {previous}")
        if entry.tag in _NAMED:
            named = True
            if entry.id == ACL_UNDEFINED_ID:
                raise FsError(errno.EINVAL, f"ACL entry {entry} after {previous}")
        if entry.tag == ACL_OTHER and named and previous.tag != ACL_MASK:
            raise FsError(errno.EINVAL, "an ACL with named entries needs a mask")
        previous = entry
    if previous.tag != ACL_OTHER:
        raise FsError(errno.EINVAL, "an ACL ends with the entry for others")


def equiv_mode(acl: Acl) -> tuple[bool, int]:
    """Return the permission bits of an access ACL (``posix_acl_equiv_mode``).

    Returns:
        Whether the bits express the whole ACL, so that it need not be stored; and the bits (0 to 0o777).
    """
    perms = {entry.tag: entry.perm for entry in acl}
    group = perms.get(ACL_MASK, perms.get(ACL_GROUP_OBJ, 0))
    return is_minimal(acl), perms.get(ACL_USER_OBJ, 0) << 6 | group << 3 | perms.get(ACL_OTHER, 0)


def is_minimal(acl: Acl) -> bool:
    """Whether mode bits alone can express ``acl``: it has entries for owner, group and others, and no more."""
    return all(entry.tag in (ACL_USER_OBJ, ACL_GROUP_OBJ, ACL_OTHER) for entry in acl)


class Inherited(NamedTuple):
    """The mode and ACLs that a new inode inherits from its directory's default ACL."""

    mode: int
    access: Acl | None  # None: the mode expresses everything
    default: Acl | None  # directories only


def inherit(default: Acl, mode: int) -> Inherited:
    """Return the mode and ACLs of a new inode in a directory with a default ACL (``posix_acl_create_masq``).

    A default ACL replaces the umask. For a directory without one, the caller applies the umask and does not call this.

    Args:
        default: the directory's default ACL, valid.
        mode: type and permissions as given to ``open`` or ``mkdir``, before any umask.
    """
    shifts = _mode_shifts(default)
    bits = 0
    access = []
    for entry in default:
        shift = shifts.get(entry.tag)
        if shift is not None:
            entry = entry._replace(perm=entry.perm & mode >> shift & 7)
            bits |= entry.perm << shift
        access.append(entry)
    return Inherited(
        mode & ~0o777 | bits,
        None if is_minimal(default) else tuple(access),
        default if stat.S_ISDIR(mode) else None,
    )


def _mode_shifts(acl: Acl) -> dict[int, int]:
    """Map each tag that has bits in the mode to their shift; the group bits belong to the mask if there is one."""
    group_tag = ACL_MASK if any(entry.tag == ACL_MASK for entry in acl) else ACL_GROUP_OBJ
    return {ACL_USER_OBJ: 6, group_tag: 3, ACL_OTHER: 0}


def chmod(acl: Acl, mode: int) -> Acl:
    """Return the access ACL after ``chmod`` to ``mode``; the group bits change the mask if there is one."""
    group_tag = ACL_MASK if any(entry.tag == ACL_MASK for entry in acl) else ACL_GROUP_OBJ
    shifts = {ACL_USER_OBJ: 6, group_tag: 3, ACL_OTHER: 0}
    return tuple(entry._replace(perm=mode >> shifts[entry.tag] & 7) if entry.tag in shifts else entry for entry in acl)


def permits(acl: Acl, owner: int, group: int, uid: int, groups: Collection[int], want: int) -> bool:
    """Whether an inode's ACL grants a caller all the permissions in ``want`` (``posix_acl_permission``).

    Args:
        acl: the inode's access ACL, valid.
        owner: the inode's user.
        group: the inode's group.
        uid: the caller's user.
        groups: the caller's group and supplementary groups.
        want: any of 4 read, 2 write, 1 execute.
    """
    mask = next((entry.perm for entry in acl if entry.tag == ACL_MASK), 7)
    in_group = False
    for tag, perm, ident in acl:
        if tag == ACL_USER_OBJ:
            if uid == owner:
                return perm & want == want
        elif tag == ACL_USER:
            if uid == ident:
                return perm & mask & want == want
        elif tag in (ACL_GROUP_OBJ, ACL_GROUP):
            if (group if tag == ACL_GROUP_OBJ else ident) in groups:
                in_group = True
                if perm & mask & want == want:
                    return True
        elif tag == ACL_OTHER:
            return not in_group and perm & want == want
    return False
