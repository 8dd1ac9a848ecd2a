"""What makes changes durable on a mount: one table for ``daxfs info``, one line for the log and for who mounts.

The kernel passes sync(2) and syncfs(2) on to the daemon (SYNCFS) only if INIT has agreed on HAS_SYNCFS. Without it they
write dirty pages of mapped and cached files back to the daemon and return, and the journal stays as it is. Programs
below `daxfs exec` do not depend on it: its library asks the daemon itself (DAXFS_IOC_SYNC).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.fuse.kernel.abi import Init

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Connection

EVERYTHING = "everything"
NOTHING = "nothing: the kernel does not pass it on to the daemon"


def table(connection: Connection) -> dict[str, str]:
    """The call -> what is durable when it has returned; empty on a read-only mount, which changes nothing."""
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
    """A line for the log, and for the terminal of who mounts, where sync(2) does nothing to rely on."""
    options = connection.options
    if options.read_only or options.sync or connection.agreement.has(Init.HAS_SYNCFS):
        return None
    return "this kernel: sync(2) and syncfs(2) make nothing durable here; fsync(2), daxfs sync and commit= do"
