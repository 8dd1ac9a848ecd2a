"""The limit of file sizes (RLIMIT_FSIZE), which the kernel looks at for each write, also for one over what is there.

A write that goes past the limit is left to the kernel (generic_write_check_limits in fs/read_write.c): it is cut off
there, or ends in EFBIG. ``holding`` keeps its windows for stores below the limit, so that a write into a window looks
at nothing more. When this process changes a limit by ``resource``, the interpreter tells its audit hooks before that;
the windows go then. A limit that another process, or C code, changes is seen when a window is made next.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable

_watchers: list[Callable[[], None]] = []
_EVENTS = {"resource.setrlimit", "resource.prlimit"}


def file_size() -> int:
    """How many bytes a file that this process writes may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def watch(changing: Callable[[], None]) -> None:
    """Call ``changing`` right before this process changes a limit, as long as it lives (an audit hook stays)."""
    if not _watchers:
        sys.addaudithook(_audit)
    _watchers.append(changing)


def _audit(event: str, _details: tuple[object, ...]) -> None:
    if event in _EVENTS:
        for changing in _watchers:
            changing()
