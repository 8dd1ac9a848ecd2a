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
from daxfs.fuse import mounts
from daxfs.pmem.libc import last_error
from daxfs.tools.reading import NO_INPUT

FAILED = 74
"""EX_IOERR of sysexits.h."""


def sync(mountpoint: str) -> None:
    """Let the kernel write back its pages of mapped and cached files, then let the daemon commit.

    A process that may read the root directory may call this.

    Raises:
        UserError: no daxfs is mounted there (66), or the changes could not be made durable (74).
    """
    top = mounts.top_mount(mounts.real_mountpoint(mountpoint))
    if top is None or top.filesystem != protocol.FILESYSTEM_TYPE:
        raise UserError(f"no daxfs is mounted on {mountpoint}; name a mountpoint", NO_INPUT)
    try:
        descriptor = os.open(top.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _syncfs(descriptor)
            _sync_daemon(descriptor)
        finally:
            os.close(descriptor)
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
