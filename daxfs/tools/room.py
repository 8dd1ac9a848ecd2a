"""Check and allocate the space of a pool's file on the file system that holds it.

A store into a hole of a mapped file makes the kernel allocate a page. If the file system is full, the kernel sends
SIGBUS. So `mkfs` allocates the whole file, or reports how much space a sparse file may lack.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress

from daxfs.errors import UserError
from daxfs.pmem import kinds, reservation
from daxfs.pmem.reservation import SECTOR, free_bytes
from daxfs.tools.sizes import format_size

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, include/uapi/asm-generic/mman-common.h
_FAILED = 1  # the exit code of mke2fs


def lacking(descriptor: int, size: int) -> int:
    """Return how many bytes the file system lacks to allocate the first ``size`` bytes of an open file."""
    free = free_bytes(descriptor)
    return 0 if free is None else max(0, size - os.fstat(descriptor).st_blocks * SECTOR - free)


def require(path: str, descriptor: int, size: int) -> None:
    """Check that the file system has room for the first ``size`` bytes of an open file.

    Raises:
        UserError: there is not enough room.
    """
    if missing := lacking(descriptor, size):
        raise _too_large(path, f"room for {format_size(size - missing)} of {format_size(size)}")


def fill(path: str, descriptor: int, size: int, kind: str) -> None:
    """Allocate the first ``size`` bytes of an open pool's file of this kind, and keep their content.

    A tmpfs that is mounted with ``huge=advise`` gives huge pages only to a mapping that asks for them; fallocate(2)
    would fix small ones. So a file on tmpfs is first filled through such a mapping.

    Raises:
        UserError: there is no room, or the quota is used up; or the file can't be allocated.
    """
    if kind == kinds.TMPFS:
        _populate(descriptor, size)
    try:
        done = reservation.allocate(descriptor, 0, size, alone=True)
    except OSError as error:
        raise UserError(f"{path} can't be allocated: {error.strerror}; see --sparse", _FAILED) from None
    if not done:
        raise _too_large(path, "no room for all of it")


def _populate(descriptor: int, size: int) -> None:
    """Allocate huge pages for a file, as far as it can have them."""
    with mmap.mmap(descriptor, size) as mapping, suppress(OSError):  # a kernel without huge pages, or before Linux 5.14
        mapping.madvise(mmap.MADV_HUGEPAGE)
        mapping.madvise(_POPULATE_WRITE)


def _too_large(path: str, what: str) -> UserError:
    text = f"the file system of {path} has {what}; make room, give a smaller --size, or leave holes with --sparse"
    return UserError(text, _FAILED)
