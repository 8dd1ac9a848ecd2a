"""The mount that a command names, and its root directory, through which its daemon is asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from daxfs import protocol
from daxfs.errors import UserError
from daxfs.fuse import mounts
from daxfs.pmem.kinds import Mount, read_mounts


def find(mountpoint: str) -> Mount | None:
    """Return the mount of daxfs on a directory; None: another file system is mounted there, or nothing."""
    top = mounts.top_mount(mounts.real_mountpoint(mountpoint))
    return top if top is not None and top.filesystem == protocol.FILESYSTEM_TYPE else None


def of_pool(pool: str) -> Mount | None:
    """Return a mount of a pool, given by its real path; None: there is none."""
    mounted = (each for each in read_mounts() if each.filesystem == protocol.FILESYSTEM_TYPE and each.source == pool)
    return next(mounted, None)


def require(mountpoint: str, advice: str = "name a mountpoint", code: int = os.EX_NOINPUT) -> Mount:
    """Return the mount of daxfs on a directory.

    Raises:
        UserError: there is none; the error ends in ``advice`` and has this exit code.
    """
    found = find(mountpoint)
    if found is None:
        raise UserError(f"no daxfs is mounted on {mountpoint}; {advice}", code)
    return found


def open_root(mountpoint: str) -> int:
    """Open the root directory of a mount (a real path); return its descriptor.

    Raises:
        OSError: the daemon has ended, for example, or the caller may not read the directory.
    """
    return os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


@contextmanager
def root(mountpoint: str) -> Iterator[int]:
    """Open the root directory for the body, as `open_root`."""
    descriptor = open_root(mountpoint)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
