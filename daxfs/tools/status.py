"""Query the status of a mount from its daemon, for ``daxfs info`` and remount (`daxfs.fuse.kernel.status`)."""

from __future__ import annotations

from typing import Any

from daxfs.fuse.kernel.status import STATUS
from daxfs.tools import command, mountpoints


def status(mountpoint: str) -> dict[str, Any]:
    """Return the status of a mount by name; empty if it can't be had.

    It can't be had from a daemon that has ended, from a session without ioctls (session=pyfuse3), and by a caller who
    may not open the root directory. No error is raised, because the pool can be shown without it.
    """
    try:
        with mountpoints.root(mountpoint) as descriptor:
            found = command.ask(descriptor, STATUS)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
