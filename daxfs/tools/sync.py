"""``daxfs sync MOUNTPOINT``: make all earlier changes on a mount durable.

sync(2) and syncfs(2) do this only if the kernel passes them on to the daemon (`daxfs.fuse.kernel.durability`).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

from daxfs import protocol
from daxfs.errors import UserError
from daxfs.pmem.libc import last_error
from daxfs.tools import mountpoints

FAILED = 74
"""EX_IOERR of sysexits.h."""


def sync(mountpoint: str) -> None:
    """Let the kernel write back its pages of mapped and cached files, then let the daemon commit.

    A process that may read the root directory may call this.

    Raises:
        UserError: no daxfs is mounted there (66), or the changes could not be made durable (74).
    """
    top = mountpoints.require(mountpoint)
    try:
        with mountpoints.root(top.mountpoint) as descriptor:
            _syncfs(descriptor)
            _sync_daemon(descriptor)
    except OSError as error:
        raise UserError(f"{mountpoint} could not be made durable: {error.strerror}", FAILED) from None


def _sync_daemon(descriptor: int) -> None:
    """Let the daemon commit, by DAXFS_IOC_SYNC; in a session without ioctls, fsync(2) of the root directory does it."""
    try:
        fcntl.ioctl(descriptor, protocol.IOC_SYNC)
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
        os.fsync(descriptor)


def _syncfs(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(descriptor) != 0:
        raise last_error()
