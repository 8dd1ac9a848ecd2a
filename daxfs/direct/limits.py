"""The limit of file sizes (RLIMIT_FSIZE), which the kernel checks for each write, even for one below EOF.

A write past the limit is left to the kernel (generic_write_check_limits in fs/read_write.c), which shortens it or fails
with EFBIG. ``LeaseCache.write_extent`` ends at the limit, so that the fast path needs no check of its own. When this
process changes a limit by the module ``resource``, the interpreter calls its audit hooks first, and every
``write_extent`` is cleared. A limit that another process or C code changes counts from the next lookup on.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable

_callbacks: list[Callable[[], None]] = []
_EVENTS = {"resource.setrlimit", "resource.prlimit"}


def file_size() -> int:
    """Return the largest size in bytes of a file that this process writes."""
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def before_change(callback: Callable[[], None]) -> None:
    """Call ``callback`` before each change of a limit by ``resource`` in this process; this can't be undone."""
    if not _callbacks:
        sys.addaudithook(_audit)
    _callbacks.append(callback)


def _audit(event: str, _details: tuple[object, ...]) -> None:
    if event in _EVENTS:
        for callback in _callbacks:
            callback()
