"""Set-id bits and file capabilities: which change of a file's content drops them, and who may keep them."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.ext4.inode import EXT4_IMMUTABLE_FL
from daxfs.fs.nodes import SET_ID
from daxfs.structures import inodes, xattrs

if TYPE_CHECKING:
    from daxfs.fs.nodes import Node
    from daxfs.fs.types import Caller
    from daxfs.fs.volume import Volume
    from daxfs.structures.inodes import Inode

CREDITS_XATTR = 12
CAPABILITY = b"security.capability"


def drop_privileges(volume: Volume, node: Node, caller: Caller, kill: bool | None = None) -> None:
    """Drop set-id bits and file capabilities before the content changes (file_remove_privs in fs/inode.c).

    Set-id bits stay if the caller may keep them (`takes_set_id`); capabilities are always dropped. EPERM: the file is
    immutable, even if it was opened before it became so (ext4_generic_write_checks in fs/ext4/file.c).
    """
    volume.writable()
    inode = inodes.read(volume.view, node.ino)
    if inode.flags & EXT4_IMMUTABLE_FL:
        raise FsError(errno.EPERM)
    volume.note_sync(inode)
    kept = inode.mode
    if kept & SET_ID and takes_set_id(caller, kill):
        kept = without_set_id(inode, caller)
    capable = xattrs.holds(volume.view, inode, CAPABILITY)
    if capable or kept != inode.mode:
        with volume.handle(CREDITS_XATTR) as tx:
            inode = inodes.edit(tx, node.ino)
            inode.mode = kept
            if capable:
                xattrs.remove(tx, inode, CAPABILITY)
    node.privileges_dropped(kept, inode.flags)


def takes_set_id(caller: Caller, kill: bool | None) -> bool:
    """Return whether a change of content drops set-id bits: as ``kill`` says; None: unless the superuser makes it."""
    return caller.uid != 0 if kill is None else kill


def without_set_id(inode: Inode, caller: Caller) -> int:
    """Return the mode without S_ISUID and S_ISGID (setattr_should_drop_sgid in fs/attr.c).

    If the group may not execute, S_ISGID means mandatory locking: it stays for members of the group and the superuser.
    """
    mode = inode.mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP or not in_group(inode, caller):
        mode &= ~stat.S_ISGID
    return mode


def in_group(inode: Inode, caller: Caller) -> bool:
    """Return whether the caller is in the inode's group or the superuser (in_group_or_capable in fs/inode.c)."""
    return caller.uid == 0 or inode.gid == caller.gid or inode.gid in caller.groups


def drop_capability(volume: Volume, inode: Inode) -> None:
    """Remove a file capability in a handle of its own, since the cut that follows may need a whole transaction."""
    if xattrs.holds(volume.view, inode, CAPABILITY):
        with volume.handle(CREDITS_XATTR) as tx:
            xattrs.remove(tx, inodes.edit(tx, inode.number), CAPABILITY)
