"""Flags of inodes, as chattr(1) and lsattr(1) see them: immutable, append-only, noatime, sync, DAX, projects.

The bits have two forms: ``FS_IOC_GETFLAGS`` shows ext4's own, ``FS_IOC_FSGETXATTR`` those that file systems share, with
the project's number. This module decides which flags may be read and changed, and by whom, by the rules of
fs/file_attr.c and of ``ext4_fileattr_set`` (fs/ext4/ioctl.c), in their order. `names`, `data` and `attributes`
implement the effects of the flags.

JOURNAL_DATA (chattr +j) makes each write of a file atomic (docs/ATOMIC.md). ext4 demands CAP_SYS_RESOURCE for it, which
cannot be seen through FUSE, so here the owner may change it. EXTENTS can't be changed: daxfs changes no file's kind of
map.
"""

from __future__ import annotations

import errno
import stat

from daxfs.errors import FsError
from daxfs.ext4.inode import (
    EXT4_APPEND_FL,
    EXT4_CASEFOLD_FL,
    EXT4_DAX_FL,
    EXT4_ENCRYPT_FL,
    EXT4_EXTENTS_FL,
    EXT4_FL_USER_MODIFIABLE,
    EXT4_FL_USER_VISIBLE,
    EXT4_IMMUTABLE_FL,
    EXT4_INLINE_DATA_FL,
    EXT4_JOURNAL_DATA_FL,
    EXT4_NOATIME_FL,
    EXT4_NODUMP_FL,
    EXT4_PROJINHERIT_FL,
    EXT4_SYNC_FL,
    EXT4_VERITY_FL,
)
from daxfs.fs import atomic, clock, datalog
from daxfs.fs.names import suited_flags
from daxfs.fs.types import Caller, FsXattr
from daxfs.fs.volume import Volume
from daxfs.structures import inodes
from daxfs.structures.inodes import Inode

XFLAG_IMMUTABLE = 0x00000008
XFLAG_APPEND = 0x00000010
XFLAG_SYNC = 0x00000020
XFLAG_NOATIME = 0x00000040
XFLAG_NODUMP = 0x00000080
XFLAG_PROJINHERIT = 0x00000200
XFLAG_EXTSIZE = 0x00000800
XFLAG_EXTSZINHERIT = 0x00001000
XFLAG_DAX = 0x00008000
XFLAGS_KNOWN = 0x8001FFFF & ~0x4
"""FS_XFLAGS_MASK: every FS_XFLAG_* of include/uapi/linux/fs.h; most mean nothing to ext4 and are ignored."""

SHARED = {
    XFLAG_IMMUTABLE: EXT4_IMMUTABLE_FL,
    XFLAG_APPEND: EXT4_APPEND_FL,
    XFLAG_SYNC: EXT4_SYNC_FL,
    XFLAG_NOATIME: EXT4_NOATIME_FL,
    XFLAG_NODUMP: EXT4_NODUMP_FL,
    XFLAG_PROJINHERIT: EXT4_PROJINHERIT_FL,
    XFLAG_DAX: EXT4_DAX_FL,
}
"""The flags that both forms have."""
SHARED_FLAGS = sum(SHARED.values())
PROTECTING = EXT4_IMMUTABLE_FL | EXT4_APPEND_FL
NOT_WITH_DAX = EXT4_VERITY_FL | EXT4_ENCRYPT_FL | EXT4_JOURNAL_DATA_FL | EXT4_INLINE_DATA_FL
PROJECT_END = 0xA0
"""Where i_projid ends in the inode, in bytes."""
NO_PROJECT = 0xFFFFFFFF
CREDITS = 4


def get_flags(volume: Volume, ino: int) -> int:
    """Return the flags that users may see (FS_IOC_GETFLAGS). ENOTTY: neither a file nor a directory."""
    return visible(changeable(inodes.read(volume.view, ino)))


def set_flags(volume: Volume, ino: int, flags: int, caller: Caller) -> None:
    """Change the flags that users may change (FS_IOC_SETFLAGS).

    Raises:
        FsError: EPERM (not the owner; protection is the superuser's to change), EOPNOTSUPP (flags that can't be changed
            here or don't suit the inode), ENOTTY, EROFS.
    """
    change(volume, ino, flags, None, caller)


def get_fsxattr(volume: Volume, ino: int) -> FsXattr:
    """Return the flags that file systems share, and the project (FS_IOC_FSGETXATTR). Like ext4 it counts no extents."""
    inode = changeable(inodes.read(volume.view, ino))
    flags = visible(inode)
    xflags = sum(xflag for xflag, flag in SHARED.items() if flags & flag)
    return FsXattr(xflags, 0, 0, project(inode), 0)


def set_fsxattr(volume: Volume, ino: int, wanted: FsXattr, caller: Caller) -> None:
    """Change the flags that file systems share, and the project (FS_IOC_FSSETXATTR).

    Raises:
        FsError: as `set_flags`; EINVAL for size hints on what can't have them and for the number of no project.
    """
    if wanted.xflags & ~XFLAGS_KNOWN:
        raise FsError(errno.EOPNOTSUPP)
    flags = sum(flag for xflag, flag in SHARED.items() if wanted.xflags & xflag)
    change(volume, ino, flags, wanted, caller)


def uses_dax(volume: Volume, ino: int) -> bool:
    """Return whether a file's data goes straight to memory. A changed DAX flag counts from the next first open on."""
    node, inode = volume.nodes.open.get(ino), inodes.read(volume.view, ino)
    if inode.flags & EXT4_JOURNAL_DATA_FL:
        return False
    return node.dax if node is not None and node.opens else volume.nodes.dax_of(inode)


def changeable(inode: Inode) -> Inode:
    """Return the inode if it is of a kind that has such flags (ENOTTY)."""
    if not (stat.S_ISREG(inode.mode) or stat.S_ISDIR(inode.mode)):
        raise FsError(errno.ENOTTY)
    return inode


def visible(inode: Inode) -> int:
    """Return the flags that ext4_fileattr_get shows."""
    return inode.flags & EXT4_FL_USER_VISIBLE & ~(EXT4_PROJINHERIT_FL if stat.S_ISREG(inode.mode) else 0)


def project(inode: Inode) -> int:
    """Return the inode's project; 0 without the feature, or without room for the number."""
    return inode.i_projid if inode.geometry.has_project and inode.extra_end >= PROJECT_END else 0


def change(volume: Volume, ino: int, flags: int, wanted: FsXattr | None, caller: Caller) -> None:
    """Set the flags, all of them or (with ``wanted``) the shared ones and the project; in one handle.

    Without JOURNAL_DATA writes go in place again, and no replay may undo them. ext4 empties its log for that; the list
    of logged blocks makes it enough to revoke those of the file.
    """
    with volume.handle(CREDITS) as tx:
        inode = changeable(inodes.edit(tx, ino))
        if caller.uid not in (0, inode.uid):
            raise FsError(errno.EPERM)
        if wanted is not None:
            flags |= visible(inode) & ~SHARED_FLAGS
        if (flags ^ visible(inode)) & PROTECTING and caller.uid:
            raise FsError(errno.EPERM)
        if wanted is not None:
            check_hints(inode, wanted)
        check_flags(inode, flags)
        flags &= EXT4_FL_USER_MODIFIABLE
        number = project(inode) if wanted is None else wanted.projid
        if inode.flags & flags & EXT4_IMMUTABLE_FL:
            refuse_change_of_immutable(inode, flags, number)
        if inode.flags & ~flags & EXT4_IMMUTABLE_FL:
            volume.snapshots.refuse_change(ino)
        check_mapping(inode, flags)
        if flags & ~inode.flags & EXT4_JOURNAL_DATA_FL:
            check_journaling(volume, inode)
        if number != project(inode):
            set_project(inode, number)
        inode.flags = (inode.flags & ~EXT4_FL_USER_MODIFIABLE) | flags
        inode.ctime_ns = clock.now()
        volume.note_sync(inode)
        volume.nodes.stamped(tx, ino, ctime=True)
    volume.refresh(ino)
    if not flags & EXT4_JOURNAL_DATA_FL:
        datalog.settle(volume, ino)


def check_hints(inode: Inode, wanted: FsXattr) -> None:
    """Check size hints and projects as fileattr_set_prepare does; ext4 keeps no hints."""
    directory = stat.S_ISDIR(inode.mode)
    if wanted.projid == NO_PROJECT != project(inode):
        raise FsError(errno.EINVAL)
    if wanted.xflags & (XFLAG_EXTSIZE if directory else XFLAG_EXTSZINHERIT):
        raise FsError(errno.EINVAL)


def check_flags(inode: Inode, flags: int) -> None:
    """Refuse flags that nobody can set: invisible ones, or those of another kind of inode (ext4_fileattr_set).

    Visible flags that can't be changed are ignored, since chattr(1) sends back all that it was shown.
    """
    if flags & ~EXT4_FL_USER_VISIBLE:
        raise FsError(errno.EOPNOTSUPP)
    flags &= EXT4_FL_USER_MODIFIABLE
    if suited_flags(flags, inode.mode) != flags:
        raise FsError(errno.EOPNOTSUPP)


def refuse_change_of_immutable(inode: Inode, flags: int, number: int) -> None:
    """Refuse other changes to an immutable inode that stays immutable (ext4_ioctl_check_immutable)."""
    if (inode.flags ^ flags) & ~EXT4_IMMUTABLE_FL or (inode.geometry.has_project and number != project(inode)):
        raise FsError(errno.EPERM)


def check_mapping(inode: Inode, flags: int) -> None:
    """Refuse changes of flags that contradict how the data is stored (ext4_ioctl_setflags, dax_compatible)."""
    if (flags & EXT4_DAX_FL and inode.flags & NOT_WITH_DAX) or (flags & NOT_WITH_DAX and inode.flags & EXT4_DAX_FL):
        raise FsError(errno.EOPNOTSUPP)
    if (flags ^ inode.flags) & (EXT4_EXTENTS_FL | EXT4_CASEFOLD_FL):
        raise FsError(errno.EOPNOTSUPP)


def check_journaling(volume: Volume, inode: Inode) -> None:
    """Refuse JOURNAL_DATA where writes can't be atomic.

    That is a pool without a journal (EOPNOTSUPP), and a file that clients may store to (EBUSY). Clients that only read
    it go on: writes go to new blocks then, and none is granted for storing.
    """
    atomic.refuse_without_journal(volume)
    node = volume.nodes.open.get(inode.number)
    stored_to = node is not None and node.grants is not None and node.grants.for_storing
    if inode.is_regular and (volume.notifier.stale or stored_to):
        raise FsError(errno.EBUSY, f"inode {inode.number}: programs hold leases of it for storing")


def set_project(inode: Inode, number: int) -> None:
    """Set the inode's project (ext4_ioctl_setproject)."""
    if not inode.geometry.has_project or inode.extra_end < PROJECT_END:
        raise FsError(errno.EOPNOTSUPP)
    inode.i_projid = number
