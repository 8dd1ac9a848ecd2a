"""The room that a pool's file takes on the file system that holds it.

A store into a hole of a mapped file makes the kernel allocate a page. On a full file system the kernel can't, and
answers with SIGBUS, not with an error. So `mkfs` allocates the whole file, or says how much room a sparse one may lack.
"""

from __future__ import annotations

import errno
import os

from daxfs.errors import UserError
from daxfs.tools.sizes import format_size

_FAILED = 1  # what mke2fs exits with
_SECTOR = 512  # bytes, the unit of st_blocks


def lacking(descriptor: int, size: int) -> int:
    """How many bytes the file system of an open file lacks to allocate the file's first ``size`` bytes; 0: none.

    The superuser may use what the file system reserves for it, as in statvfs(3).
    """
    status, system = os.fstat(descriptor), os.fstatvfs(descriptor)
    if not system.f_blocks:  # a tmpfs without a limit
        return 0
    free = (system.f_bfree if os.geteuid() == 0 else system.f_bavail) * system.f_frsize
    return max(0, size - status.st_blocks * _SECTOR - free)


def require(path: str, descriptor: int, size: int) -> None:
    """Refuse a file whose first ``size`` bytes have no room on its file system.

    Raises:
        UserError: they have none.
    """
    if missing := lacking(descriptor, size):
        raise _too_large(path, f"room for {format_size(size - missing)} of {format_size(size)}")


def allocate(path: str, descriptor: int, size: int) -> None:
    """Allocate the first ``size`` bytes of an open file and keep their content (fallocate(2) without flags).

    A file system that can't (EOPNOTSUPP: NFS, some FUSE ones) leaves the file as it is.

    Raises:
        UserError: there is no room, or the quota is used up.
    """
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _too_large(path, "no room for all of it") from None
        if error.errno != errno.EOPNOTSUPP:
            raise UserError(f"{path} can't be allocated: {error.strerror}; see --sparse", _FAILED) from None


def _too_large(path: str, what: str) -> UserError:
    text = f"the file system of {path} has {what}; make room, give a smaller --size, or leave holes with --sparse"
    return UserError(text, _FAILED)
