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
    from daxfs.fuse.kernel.openbatch import OpenBatch
    from daxfs.fuse.kernel.request import Request

_READ, _WRITE = abi.READ_IN.index, abi.WRITE_IN.index


def running(connection: Connection, handle: int, thread: int) -> OpenBatch | None:
    """Return the batch of an open file, as ``thread`` finds it: it is dropped if its process has ended."""
    begun = connection.batches.by_handle.get(handle)
    if begun is not None and begun.is_orphan(thread):
        drop(connection, begun)
        return None
    return begun


def drop(connection: Connection, begun: OpenBatch) -> None:
    """End a batch that is not committed; the kernel knows of its writes."""
    connection.batches.remove(begun)
    connection.invalidate_attributes(begun.ino)


def read(connection: Connection, request: Request, file: OpenFile, offset: int, size: int) -> bytes | None:
    """Return what a READ finds in a batch; None: the file itself answers it.

    read(2) names the owner of its locks; a READ for the page cache has no such owner.
    """
    if request.words[_READ.read_flags] & abi.READ_LOCKOWNER:
        begun = running(connection, request.longs[_READ.fh], request.pid)
        return begun.batch.read(offset, size) if begun is not None else None
    begun = connection.batches.by_ino.get(file.ino)
    if begun is not None:
        begun.cached(offset, size)
    return None


def write(connection: Connection, request: Request, offset: int, content: memoryview, kill: bool | None) -> int | None:
    """Stage a WRITE, with O_APPEND at the end, where the kernel may not know it to be; None: there is no batch."""
    begun = running(connection, request.longs[_WRITE.fh], request.pid)
    if begun is None:
        return None
    if request.words[_WRITE.flags] & os.O_APPEND:
        offset = begun.batch.size
    written = begun.batch.write(offset, content, kill)
    begun.wrote(offset, written)
    return written


def refuse(connection: Connection, handle: int, thread: int) -> None:
    """Refuse (EBUSY) what can't be a part of a batch, through an open file that has one."""
    if running(connection, handle, thread) is not None:
        raise FsError(errno.EBUSY, f"file handle {handle} has a batch, which only writes can be a part of")
