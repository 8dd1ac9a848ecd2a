"""fallocate(2) itself.

posix_fallocate(3) of the GNU C library stores a zero into each block of the file where the file system knows no
fallocate(2). It may do so just after a client of direct access has stored its own bytes there.
"""

from __future__ import annotations

import ctypes

from daxfs.pmem.libc import last_error

PUNCH_HOLE = 3
"""FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE"""

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """Allocate a range of an open file and keep its content (mode 0), or what ``mode`` says.

    Raises:
        OSError: EOPNOTSUPP, the file system can't do it; ENOSPC, EDQUOT, and others of fallocate(2).
    """
    if _fallocate(descriptor, mode, offset, length) != 0:
        raise last_error()


def punch_hole(descriptor: int, offset: int, length: int) -> bool:
    """Punch a hole into an open file or block device: free the range's memory, so that it reads as zeros.

    Returns:
        False if the file or device does not support it.
    """
    try:
        fallocate(descriptor, PUNCH_HOLE, offset, length)
    except OSError:
        return False
    return True
