"""Where the data of a file belongs: the attribute ``user.daxfs.tier`` of files and directories (docs/TIERS.md).

A new file or directory takes the attribute of its directory. What it means for moves between memory and storage is in
`daxfs.fs.tiers.policy`. A value that another program has stored, and that means nothing, counts as `AUTO`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.structures import xattrs

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode

ATTRIBUTE = b"user.daxfs.tier"
AUTO, MEMORY, STORAGE = b"auto", b"memory", b"storage"
PLACES = (AUTO, MEMORY, STORAGE)


def check(value: bytes) -> None:
    """Refuse what is no place (EINVAL)."""
    if value not in PLACES:
        raise FsError(errno.EINVAL, f"{ATTRIBUTE.decode()} is one of: {b', '.join(PLACES).decode()}")


def of(view: View, inode: Inode) -> bytes:
    """Return where the data of a file belongs, one of `PLACES`. Raises Corrupt."""
    if not xattrs.holds(view, inode, ATTRIBUTE):
        return AUTO
    value = xattrs.get(view, inode, ATTRIBUTE)
    return value if value in PLACES else AUTO


def inherit(tx: Handle, directory: Inode, inode: Inode) -> None:
    """Give a new file or directory the attribute of its directory. Raises FsError ENOSPC, Corrupt."""
    if xattrs.holds(tx, directory, ATTRIBUTE):
        xattrs.set(tx, inode, ATTRIBUTE, xattrs.get(tx, directory, ATTRIBUTE))
