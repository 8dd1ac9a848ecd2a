"""Handle unexpected exceptions: refuse one request, or end the session.

The core refuses with `FsError`; any other exception is a bug, or memory ran out. If the exception did not interrupt a
change of metadata, nothing is half done: the request gets an errno, and the mount goes on for everybody else. If it
did, the caches above the journal can no longer be trusted: the exception is raised again and ends the session
(`daxfs.fuse.serving`). Each session calls `refusal` from the one place where it translates errors.
"""

from __future__ import annotations

import errno
import logging
import traceback
from typing import TYPE_CHECKING

from daxfs.errors import FsError

if TYPE_CHECKING:
    from daxfs.fs.filesystem import FileSystem

log = logging.getLogger("daxfs.fuse")


def refusal(core: FileSystem, error: Exception, what: str) -> FsError:
    """Return the refusal of a request that met ``error``: ENOMEM if memory ran out, else EIO. It is logged.

    Args:
        core: the file system.
        error: any exception but `FsError`.
        what: the request, for the log.

    Raises:
        Exception: ``error`` itself; it interrupted a change, or it aborted the journal.
    """
    if core.interrupted:
        raise error
    if isinstance(error, MemoryError):
        traceback.clear_frames(error.__traceback__)  # frees the objects that the interrupted request had collected
        log.error("%s: out of memory", what)
        return FsError(errno.ENOMEM)
    log.error("%s: a bug in daxfs; this request is refused, the mount goes on", what, exc_info=error)
    return FsError(errno.EIO)
