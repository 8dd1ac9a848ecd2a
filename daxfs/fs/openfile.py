"""An open file, as `FileSystem.open_file` gives it out, and what open(2) refuses."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.ext4.inode import EXT4_APPEND_FL, EXT4_IMMUTABLE_FL
from daxfs.structures import inodes

if TYPE_CHECKING:
    from daxfs.fs.nodes import Node
    from daxfs.fs.types import Caller
    from daxfs.fs.volume import Volume


class OpenFile:
    """An open file: its node, how it was opened and by whom; ``durable``: with O_SYNC or O_DSYNC."""

    __slots__ = ("append", "caller", "durable", "flags", "node", "readable", "writable")

    def __init__(self, node: Node, flags: int, caller: Caller) -> None:
        access = flags & os.O_ACCMODE
        self.node = node
        self.flags = flags
        self.caller = caller
        self.append = bool(flags & os.O_APPEND)
        self.durable = bool(flags & os.O_DSYNC)
        self.readable = access != os.O_WRONLY
        self.writable = access != os.O_RDONLY

    def used_by(self, caller: Caller | None) -> OpenFile:
        """Return the same open file as ``caller`` uses it, who need not have opened it; None: the opener."""
        if caller is None:
            return self
        used = OpenFile(self.node, self.flags, caller)
        used.append = self.append
        return used

    @property
    def ino(self) -> int:
        """The inode number, which may change while the file is open (`daxfs.fs.moving.renumbering`)."""
        return self.node.ino

    @property
    def size(self) -> int:
        """The file size in bytes."""
        return self.node.size

    @property
    def keeps_privileges(self) -> bool:
        """Whether a change of content is known to drop no set-id bit and no capability, whoever makes it."""
        return self.node.unprivileged


def open_whole(volume: Volume, ino: int, flags: int, caller: Caller) -> OpenFile:
    """Open an inode by number, without truncating it; EISDIR, EROFS, EPERM as open(2), O_TRUNC included.

    A symbolic link (ELOOP), a device, a FIFO or a socket (ENXIO) has no block map to read or write.
    """
    inode = inodes.read(volume.view, ino)
    if not (inode.is_regular or inode.is_dir):
        raise FsError(errno.ELOOP if inode.is_symlink else errno.ENXIO)
    wants_write = flags & os.O_ACCMODE != os.O_RDONLY
    if wants_write or flags & os.O_TRUNC:
        if stat.S_ISDIR(inode.mode):
            raise FsError(errno.EISDIR)
        volume.writable()
        if inode.flags & EXT4_IMMUTABLE_FL:
            raise FsError(errno.EPERM)
        if inode.flags & EXT4_APPEND_FL and (flags & os.O_TRUNC or not flags & os.O_APPEND):
            raise FsError(errno.EPERM)
    return OpenFile(volume.nodes.opened(inode), flags, caller)
