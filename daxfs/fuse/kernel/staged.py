"""READ and WRITE of open files with a batch, and what such a file may not do.

The writer's own requests go to its batch. Nobody else may see what they stage, so pages that the kernel reads for
its page cache come from the file itself, whichever open file the kernel names.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fuse.kernel import abi

if TYPE_CHECKING:
    from daxfs.fs.filesystem import OpenFile
    from daxfs.fuse.kernel.connection import Connection
    from daxfs.fuse.kernel.request import Request

_READ, _WRITE = abi.READ_IN.index, abi.WRITE_IN.index


def read(connection: Connection, request: Request, file: OpenFile, offset: int, size: int) -> bytes | None:
    """Return what a READ finds in a batch; None: the file itself answers it.

    read(2) names the owner of its locks; a READ for the page cache has no such owner.
    """
    if request.words[_READ.read_flags] & abi.READ_LOCKOWNER:
        staged = connection.batches.get(request.longs[_READ.fh])
        return staged.batch.read(offset, size) if staged is not None else None
    for each in connection.batches.values():
        if each.ino == file.ino:
            each.cached(offset, size)
    return None


def write(connection: Connection, request: Request, offset: int, content: memoryview, kill: bool | None) -> int:
    """Stage a WRITE; with O_APPEND at the end, where the kernel may not know it to be."""
    staged = connection.batches[request.longs[_WRITE.fh]]
    if request.words[_WRITE.flags] & os.O_APPEND:
        offset = staged.batch.size
    written = staged.batch.write(offset, content, kill)
    staged.wrote(offset, written)
    return written


def refuse(connection: Connection, handle: int) -> None:
    """Refuse (EBUSY) what can't be a part of a batch, through an open file that has one."""
    if handle in connection.batches:
        raise FsError(errno.EBUSY, f"file handle {handle} has a batch, which only writes can be a part of")
