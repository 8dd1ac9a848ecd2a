"""Exceptions that nobody expected: what becomes of the request that met one, and of the mount.

The core refuses with `FsError`; anything else is a bug, or memory that ran out. Where no change of metadata was under
way, nothing is half done: the request gets an errno, and everybody else's files stay there. Where one was, the caches
above the journal can't be trusted any more: the exception goes on and ends the session (`daxfs.fuse.serving`). Both
sessions call `refusal` from the one place where they translate errors.
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
    """The refusal of a request that met ``error``: ENOMEM where memory ran out, else EIO, and a traceback in the log.

    Args:
        core: the file system.
        error: no `FsError`.
        what: the request, for the log.

    Raises:
        Exception: ``error`` itself; it interrupted a change, or the journal was aborted by it.
    """
    if core.interrupted:
        raise error
    if isinstance(error, MemoryError):
        traceback.clear_frames(error.__traceback__)  # what was gathered so far is given back
        log.error("%s: out of memory", what)
        return FsError(errno.ENOMEM)
    log.error("%s: a bug in daxfs; this request is refused, the mount goes on", what, exc_info=error)
    return FsError(errno.EIO)
