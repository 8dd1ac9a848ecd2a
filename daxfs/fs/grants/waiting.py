"""For whom deferred frees wait: the open files with holders that have not renewed since.

`epochs.py` defers and frees. This module lists those open files (`largest_deferrals`), refuses new grants to a user for
whom too much is deferred (`over_limit`), and explains a full pool in the log (`explain_full`).

A block waits for every open file that had a holder when the file gave the block up, and counts in full for the user of
each. The limit is checked when a client asks. So at most the limit is deferred for a user, plus what files that were
granted by then give up later. As with an open file that was removed, that much can't be taken from a program.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from daxfs.fs.types import Deferral

if TYPE_CHECKING:
    from daxfs.fs.grants.inode_grants import InodeGrants
    from daxfs.fs.grants.table import Grants

log = logging.getLogger("daxfs.fs")

SHARE = 8
"""New grants are refused to a user for whom this part of the pool (one eighth) is deferred."""
MAX_NAMED = 32
"""Open files that `largest_deferrals` names."""
QUIET_SECONDS = 60.0
"""Time between two lines in the log of one kind of message."""


def limit(table: Grants) -> int:
    """Return how many bytes may be deferred for one user."""
    return table.volume.pool.memory_size // SHARE


def by_open_file(grants: InodeGrants) -> Iterator[Deferral]:
    """Yield what is deferred for each open file of one inode."""
    for file, holders in grants.holders.items():
        oldest = min(holders.values())
        waiting = sum(each.size for each in grants.deferred if each.epoch >= oldest)
        if waiting:
            yield Deferral(grants.node.ino, file.caller.uid, file.caller.pid, waiting)


def largest_deferrals(table: Grants) -> tuple[Deferral, ...]:
    """Return the open files for which most is deferred, `MAX_NAMED` at most."""
    if not table.epochs.deferred:
        return ()
    found = [each for grants in table.by_ino.values() for each in by_open_file(grants)]
    return tuple(sorted(found, key=lambda each: -each.size)[:MAX_NAMED])


def waiting_for(table: Grants, uid: int) -> int:
    """Return how many bytes are deferred for a user: of each inode, the most that an open file of that user holds."""
    return sum(
        max((each.size for each in by_open_file(grants) if each.uid == uid), default=0)
        for grants in table.by_ino.values()
        if grants.deferred
    )


def over_limit(table: Grants, uid: int) -> bool:
    """Return whether so much is deferred for a user that the user gets no new grants."""
    most = limit(table)
    if table.epochs.deferred < most or waiting_for(table, uid) < most:
        return False
    _log(table, "bound", f"user {uid} gets no new leases while {most} bytes or more wait to be freed for that user")
    return True


def explain_full(table: Grants) -> None:
    """Log what is deferred when the pool is full, if anything is."""
    path, deferred = table.volume.pool.path, table.epochs.deferred
    if deferred:
        _log(table, "full", f"{path} is full while {deferred} bytes wait to be freed")
    elif table.stale:
        _log(table, "full", f"{path} is full, and programs that map it from before keep blocks from being freed")


def _log(table: Grants, kind: str, what: str) -> None:
    """Log one line that names the processes; once in `QUIET_SECONDS` for each kind of message."""
    last_logged, now = table.last_logged, time.monotonic()
    if now - last_logged.get(kind, -QUIET_SECONDS) < QUIET_SECONDS:
        return
    last_logged[kind] = now
    named = ", ".join(f"{each.size} for process {each.pid} of user {each.uid}" for each in largest_deferrals(table))
    log.warning("%s%s", what, f": {named}" if named else "")
