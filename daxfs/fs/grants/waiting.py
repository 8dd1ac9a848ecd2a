"""For whom deferred frees wait: the processes that hold grants and have not renewed since.

`epochs.py` defers and frees. This module names the processes (`holding`), refuses new grants to a user for whom too
much waits (`over_limit`), and says so in the log when a pool is full (`explain_full`).

A block waits for every open file with a holder that was there when the file gave it up, and counts in full for the
user of each. The bound is looked at when a client asks. So what waits for a user is at most the bound and what files
that were granted then give up later; as with an open file that was removed, that much can't be taken from a program.
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
"""For one user at most this part of the pool waits (one eighth) before new grants are refused to that user."""
MAX_NAMED = 32
"""Open files that `holding` names."""
QUIET_SECONDS = 60.0
"""Between two lines in the log about one thing."""


def limit(table: Grants) -> int:
    """Bytes that may wait for one user."""
    return table.volume.pool.size // SHARE


def by_open_file(grants: InodeGrants) -> Iterator[Deferral]:
    """What the open files of one inode keep waiting."""
    for file, holders in grants.holders.items():
        oldest = min(holders.values())
        waiting = sum(each.size for each in grants.deferred if each.epoch >= oldest)
        if waiting:
            yield Deferral(grants.node.ino, file.caller.uid, file.caller.pid, waiting)


def holding(table: Grants) -> tuple[Deferral, ...]:
    """The open files for which most waits."""
    if not table.epochs.deferred:
        return ()
    found = [each for grants in table.by_ino.values() for each in by_open_file(grants)]
    return tuple(sorted(found, key=lambda each: -each.size)[:MAX_NAMED])


def waiting_for(table: Grants, uid: int) -> int:
    """Bytes that wait for a user: of each inode what waits for the open file that is longest without renewal."""
    return sum(
        max((each.size for each in by_open_file(grants) if each.uid == uid), default=0)
        for grants in table.by_ino.values()
        if grants.deferred
    )


def over_limit(table: Grants, uid: int) -> bool:
    """Whether so much waits for a user that no new grant is made."""
    most = limit(table)
    if table.epochs.deferred < most or waiting_for(table, uid) < most:
        return False
    _say(table, "bound", f"user {uid} gets no new leases while {most} bytes or more wait to be freed for that user")
    return True


def explain_full(table: Grants) -> None:
    """The pool is full: name what waits to be freed, if anything does."""
    path, deferred = table.volume.pool.path, table.epochs.deferred
    if deferred:
        _say(table, "full", f"{path} is full while {deferred} bytes wait to be freed")
    elif table.stale:
        _say(table, "full", f"{path} is full, and programs that map it from before keep blocks from being freed")


def _say(table: Grants, kind: str, what: str) -> None:
    """One line with the processes, and none of its kind for a while."""
    said, now = table.said, time.monotonic()
    if now - said.get(kind, -QUIET_SECONDS) < QUIET_SECONDS:
        return
    said[kind] = now
    named = ", ".join(f"{each.size} for process {each.pid} of user {each.uid}" for each in holding(table))
    log.warning("%s%s", what, f": {named}" if named else "")
