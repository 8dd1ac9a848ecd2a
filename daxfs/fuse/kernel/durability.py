"""Describe which calls make changes durable on a mount: a table for ``daxfs info``, a warning at mount.

The kernel passes sync(2) and syncfs(2) on to the daemon (SYNCFS) only if INIT has agreed on HAS_SYNCFS. Without
HAS_SYNCFS both calls write dirty pages of mapped and cached files back to the daemon and return; no commit follows.
Programs below `daxfs exec` do not depend on HAS_SYNCFS: the library sends DAXFS_IOC_SYNC to the daemon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.fuse.kernel.abi import Init

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Connection

EVERYTHING = "everything"
NOTHING = "nothing: the kernel does not pass it on to the daemon"


def table(connection: Connection) -> dict[str, str]:
    """Return what each call has made durable when it returns, by call; empty on a read-only mount."""
    options = connection.options
    if options.read_only:
        return {}
    passed_on = EVERYTHING if connection.agreement.has(Init.HAS_SYNCFS) else NOTHING
    rows = {
        "fsync, fdatasync": "the file and all earlier changes of names; times of the file with fsync",
        "O_SYNC, O_DSYNC": "each write",
        "fsync of the root directory, daxfs sync": EVERYTHING,
        "syncfs": passed_on,
        "sync": passed_on,
        "sync, syncfs below daxfs exec": EVERYTHING,
        "umount": "nothing when it returns, everything soon after; daxfs umount waits for it",
        "time": f"everything, {options.commit_seconds:.0f} s after it was done (commit=)",
    }
    return {"every call that changes something": "the change (sync)", **rows} if options.sync else rows


def warning(connection: Connection) -> str | None:
    """Return a line for the log and for the mounting user's terminal if sync(2) makes nothing durable, else None."""
    options = connection.options
    if options.read_only or options.sync or connection.agreement.has(Init.HAS_SYNCFS):
        return None
    return "this kernel: sync(2) and syncfs(2) make nothing durable here; fsync(2), daxfs sync and commit= do"
