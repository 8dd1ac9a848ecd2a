"""Attributes: stat, changes of mode, owner, size and times, extended attributes, ACLs, and access checks.

On a mount the kernel checks rights (default_permissions and POSIX ACLs). The functions here keep stored attributes
consistent: a mode agrees with its ACL, a change of owner drops set-id bits, each time changes when it should.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.ext4 import acl
from daxfs.ext4.inode import EXT4_APPEND_FL, EXT4_IMMUTABLE_FL
from daxfs.ext4.inodestat import Stat, decode
from daxfs.ext4.limits import EXT4_NAME_LEN, XATTR_SIZE_MAX
from daxfs.fs import clock, privileges, truncating
from daxfs.fs.steps import Steps
from daxfs.fs.tiers import placement
from daxfs.fs.types import Attributes, Caller, SetAttributes, StatFs
from daxfs.fs.volume import Volume
from daxfs.journal.handle import Handle
from daxfs.structures import groups, inodes, reserves, xattrs
from daxfs.structures.inodes import Inode

if TYPE_CHECKING:
    from daxfs.journal.view import View

CREDITS_INODE = 4
ACL_ACCESS = b"system.posix_acl_access"
ACL_DEFAULT = b"system.posix_acl_default"
ID_MAX = 0xFFFFFFFF
SECOND = 10**9
SECTOR_BITS = 9
"""``i_blocks`` counts units of 512 bytes."""
TOUCH = SetAttributes(atime_now=True, mtime_now=True)
"""What an append-only inode still allows: utimensat(2) without times (notify_change in fs/attr.c)."""
SMALL_INODE = 128
"""Bytes of an inode that has no room for fractions of seconds; times that wait must not show any either."""


def attributes_of(inode: Inode) -> Attributes:
    """Return the attributes that are stored in the inode."""
    return _attributes(inode.number, decode(inode.buffer, 0, inode.geometry))


def _attributes(ino: int, stored: Stat) -> Attributes:
    mode, nlink, uid, gid, rdev, size, units, atime, mtime, ctime, crtime, generation, flags = stored
    # Half the time of calling the class, and a third of putting the number before a tuple.
    return tuple.__new__(
        Attributes, (ino, mode, nlink, uid, gid, rdev, size, units, atime, mtime, ctime, crtime, generation, flags)
    )


def read_attributes(volume: Volume, ino: int) -> Attributes:
    """Return the attributes of an inode, with the times that wait for the commit."""
    block, offset = inodes.slot(volume.view, ino)
    return with_waiting_times(volume, ino, decode(block, offset, volume.geometry))


def newest(volume: Volume, inode: Inode) -> Attributes:
    """Return the attributes of an inode that was already read, with the times that wait for the commit."""
    return with_waiting_times(volume, inode.number, decode(inode.buffer, 0, volume.geometry))


def with_waiting_times(volume: Volume, ino: int, stored: Stat) -> Attributes:
    """Return the attributes of an inode for which ``stored`` is stored."""
    node = volume.nodes.lazy.get(ino)
    if node is None:
        return _attributes(ino, stored)
    mode, nlink, uid, gid, rdev, size, units, atime, mtime, ctime, crtime, generation, flags = stored
    atime, mtime, ctime = node.atime or atime, node.mtime or mtime, node.ctime or ctime
    if volume.geometry.inode_size == SMALL_INODE:
        atime, mtime, ctime = atime - atime % SECOND, mtime - mtime % SECOND, ctime - ctime % SECOND
    return Attributes(ino, mode, nlink, uid, gid, rdev, size, units, atime, mtime, ctime, crtime, generation, flags)


def set_attributes(volume: Volume, ino: int, changes: SetAttributes, caller: Caller) -> Steps[Attributes]:
    """Apply the changes that are not None; all but the size in one handle."""
    size, kill = changes.size, changes.kill_privileges
    if size is not None:
        yield from truncating.truncate(volume, ino, size, caller, kill)
    if changes != SetAttributes(size=size, kill_privileges=kill):
        with volume.handle(privileges.CREDITS_XATTR, caller) as tx:
            inode = inodes.edit(tx, ino)
            volume.note_sync(inode)
            if changes != TOUCH or inode.flags & EXT4_IMMUTABLE_FL:
                refuse_protected(inode)
            set_owner(tx, inode, changes, caller)
            if changes.mode is not None:
                set_mode(tx, inode, changes.mode)
            set_times(volume, tx, inode, changes)
        volume.nodes.reloaded(inode)
        return newest(volume, inode)
    return read_attributes(volume, ino)


def set_owner(tx: Handle, inode: Inode, changes: SetAttributes, caller: Caller) -> None:
    """Set owner or group. Unless the inode is a directory, it loses set-id bits and capabilities (chown(2))."""
    if changes.uid is None and changes.gid is None:
        return
    if not stat.S_ISDIR(inode.mode):
        if changes.mode is None:
            inode.mode = privileges.without_set_id(inode, caller)
        if xattrs.holds(tx, inode, privileges.CAPABILITY):
            xattrs.remove(tx, inode, privileges.CAPABILITY)
    if changes.uid is not None:
        inode.uid = changes.uid & ID_MAX
    if changes.gid is not None:
        inode.gid = changes.gid & ID_MAX


def set_mode(tx: Handle, inode: Inode, mode: int) -> None:
    """Set the permission bits; an access ACL is changed with them (posix_acl_chmod in fs/posix_acl.c)."""
    inode.mode = (inode.mode & 0xF000) | (mode & 0o7777)
    if stat.S_ISLNK(inode.mode):
        return
    entries = xattrs.get_acl(tx, inode)
    if entries is not None:
        xattrs.set_acl(tx, inode, acl.chmod(entries, inode.mode))


def set_times(volume: Volume, tx: Handle, inode: Inode, changes: SetAttributes) -> None:
    """Set times; ctime becomes the current time unless it is given."""
    now = clock.now()
    atime = now if changes.atime_now else changes.atime_ns
    mtime = now if changes.mtime_now else changes.mtime_ns
    if atime is not None:
        inode.atime_ns = atime
    if mtime is not None:
        inode.mtime_ns = mtime
    volume.nodes.stamped(tx, inode.number, atime=atime is not None, mtime=mtime is not None, ctime=True)
    inode.ctime_ns = changes.ctime_ns if changes.ctime_ns is not None else now


def check_xattr(inode: Inode, name: bytes) -> None:
    """Refuse a name that may not stand on this inode (xattr(7)): ``user.`` is for files and directories."""
    if len(name) > EXT4_NAME_LEN:
        raise FsError(errno.ERANGE)
    if name.startswith(b"user.") and not (stat.S_ISREG(inode.mode) or stat.S_ISDIR(inode.mode)):
        raise FsError(errno.EPERM)


def get_xattr(volume: Volume, ino: int, name: bytes) -> bytes:
    """Return the value of an extended attribute (ENODATA, EOPNOTSUPP); ACLs in posix_acl_xattr form."""
    inode = inodes.read(volume.view, ino)
    if name.startswith(b"user.") and not (stat.S_ISREG(inode.mode) or stat.S_ISDIR(inode.mode)):
        raise FsError(errno.ENODATA)
    return xattrs.get(volume.view, inode, name)


def list_xattrs(volume: Volume, ino: int, caller: Caller) -> list[bytes]:
    """Return the names of all extended attributes; only the superuser sees ``trusted.`` (fs/ext4/xattr_trusted.c)."""
    names = xattrs.listing(volume.view, inodes.read(volume.view, ino))
    return names if caller.uid == 0 else [name for name in names if not name.startswith(b"trusted.")]


def set_xattr(
    volume: Volume, ino: int, name: bytes, value: bytes, flags: int, caller: Caller, kill_set_gid: bool | None = None
) -> None:
    """Set an extended attribute (flags XATTR_CREATE 1, XATTR_REPLACE 2). An access ACL also sets the mode.

    ``kill_set_gid`` says whether such an ACL removes S_ISGID; None: unless the caller is in the file's group.
    """
    if len(value) > XATTR_SIZE_MAX:
        raise FsError(errno.E2BIG)
    if name == placement.ATTRIBUTE:
        placement.check(value)
    with volume.handle(privileges.CREDITS_XATTR, caller) as tx:
        inode = inodes.edit(tx, ino)
        check_xattr(inode, name)
        refuse_protected(inode)
        volume.note_sync(inode)
        before = inode.mode, stored(tx, inode, name)
        if name in (ACL_ACCESS, ACL_DEFAULT):
            kill = not privileges.in_group(inode, caller) if kill_set_gid is None else kill_set_gid
            set_acl(tx, inode, name, value, kill_set_gid=kill)
        else:
            xattrs.set(tx, inode, name, value, flags)
        if before == (inode.mode, stored(tx, inode, name)):
            return
        inode.ctime_ns = clock.now()
        volume.nodes.stamped(tx, ino, ctime=True)
    if name == placement.ATTRIBUTE and volume.tiers is not None:
        volume.tiers.misplace(ino)
    volume.refresh(ino)  # a file capability changes what a write does


def stored(view: View, inode: Inode, name: bytes) -> bytes | None:
    """Return the value of an attribute, None if there is none: storing an equal value does not change the ctime."""
    try:
        return xattrs.get(view, inode, name)
    except FsError as error:
        if error.errno != errno.ENODATA:
            raise
        return None


def refuse_protected(inode: Inode) -> None:
    """Refuse to change the attributes of immutable and append-only inodes."""
    if inode.flags & (EXT4_IMMUTABLE_FL | EXT4_APPEND_FL):
        raise FsError(errno.EPERM)


def set_acl(tx: Handle, inode: Inode, name: bytes, value: bytes, *, kill_set_gid: bool) -> None:
    """Store an ACL; an ACL that says no more than the mode is not stored.

    S_ISGID is removed as chmod(2) does for a caller who is not in the group (posix_acl_update_mode in fs/posix_acl.c).
    """
    if stat.S_ISLNK(inode.mode):
        raise FsError(errno.EOPNOTSUPP)
    entries = acl.from_wire(value)
    if name == ACL_DEFAULT:
        if not stat.S_ISDIR(inode.mode):
            raise FsError(errno.EACCES)
        xattrs.set_acl(tx, inode, entries, default=True)
        return
    if not entries:
        xattrs.set_acl(tx, inode, None)
        return
    equivalent, permissions = acl.equiv_mode(entries)
    inode.mode = (inode.mode & ~0o777) | permissions
    if kill_set_gid:
        inode.mode &= ~stat.S_ISGID
    xattrs.set_acl(tx, inode, None if equivalent else entries)


def remove_xattr(volume: Volume, ino: int, name: bytes) -> None:
    """Remove an extended attribute (ENODATA; a missing ACL is no error, see vfs_remove_acl)."""
    with volume.handle(privileges.CREDITS_XATTR) as tx:
        inode = inodes.edit(tx, ino)
        check_xattr(inode, name)
        refuse_protected(inode)
        volume.note_sync(inode)
        if name in (ACL_ACCESS, ACL_DEFAULT) and xattrs.get_acl(tx, inode, default=name == ACL_DEFAULT) is None:
            return
        xattrs.remove(tx, inode, name)
        inode.ctime_ns = clock.now()
        volume.nodes.stamped(tx, ino, ctime=True)


def access(volume: Volume, ino: int, mask: int, caller: Caller) -> bool:
    """Return whether ``caller`` may read (4), write (2), execute (1), by mode and ACL (fs/namei.c)."""
    inode = inodes.read(volume.view, ino)
    mode = inode.mode
    if mask & 2 and (volume.read_only or inode.flags & EXT4_IMMUTABLE_FL):
        return False
    if caller.uid == 0:
        return not mask & 1 or stat.S_ISDIR(mode) or bool(mode & 0o111)
    groups = caller.groups | {caller.gid}
    if caller.uid == inode.uid:
        return mask & ~(mode >> 6) & 7 == 0
    # Without group bits (the ACL's mask) the kernel does not look at the ACL: acl_permission_check.
    entries = None if stat.S_ISLNK(mode) or not mode & stat.S_IRWXG else xattrs.get_acl(volume.view, inode)
    if entries is not None:
        return acl.permits(entries, inode.uid, inode.gid, caller.uid, groups, mask)
    return mask & ~(mode >> 3 if inode.gid in groups else mode) & 7 == 0


def statfs(volume: Volume) -> StatFs:
    """Return sizes and free space. Blocks that the running transaction has freed count as free.

    What is free on storage counts, unless the storage can't be used.

    So do those of inodes whose end has begun (`removal`).
    """
    geometry = volume.geometry
    sb = volume.view.superblock()
    usable = volume.tiers is not None and volume.tiers.usable
    unused = 0 if usable else groups.free_on_storage(volume.view)
    free = sb.free_blocks_count - unused + volume.pending_frees()
    for ino in volume.lives.ending.keys() & volume.lives.nameless:
        free += inodes.read(volume.view, ino).blocks >> volume.block_bits - SECTOR_BITS
    return StatFs(
        volume.block_size,
        geometry.blocks_count - unused - volume.overhead,
        free,
        max(free - reserves.must_stay_free(geometry, sb, privileged=False), 0),
        geometry.inodes_count - groups.inodes_on_storage(geometry),
        max(sb.s_free_inodes_count - groups.inodes_on_storage(geometry), 0),
        EXT4_NAME_LEN,
    )
