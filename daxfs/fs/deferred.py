"""Deferred free, seen by who holds it: blocks that files gave up and that wait for clients to renew or to go.

`parking.py` defers, `leasing.py` frees. This module answers for whom: it names the processes (`holding`), refuses new
leases to a user for whom too much waits (`over_limit`), and says so in the log when a pool is full (`explain_full`).

A block waits for every open file with a holder that was there when the file gave it up, and counts in full for the
user of each. The bound is looked at when a client asks. So what waits for a user is at most the bound and what files
that were leased then give up later; as with an open file that was removed, that much can't be taken from a program.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from daxfs.fs.types import Deferral

if TYPE_CHECKING:
    from daxfs.fs.leases import Lease
    from daxfs.fs.volume import Volume

log = logging.getLogger("daxfs.fs")

SHARE = 8
"""For one user at most this part of the pool waits (one eighth) before new leases are refused to that user."""
MAX_NAMED = 32
"""Open files that `holding` names."""
QUIET_SECONDS = 60.0
"""Between two lines in the log about one thing."""


def limit(volume: Volume) -> int:
    """Bytes that may wait for one user."""
    return volume.pool.size // SHARE


def by_open_file(lease: Lease) -> Iterator[Deferral]:
    """What one lease's open files keep waiting."""
    for file, holders in lease.holders.items():
        oldest = min(holders.values())
        waiting = sum(parked.size for parked in lease.parked if parked.epoch >= oldest)
        if waiting:
            yield Deferral(lease.ino, file.caller.uid, file.caller.pid, waiting)


def holding(volume: Volume) -> tuple[Deferral, ...]:
    """The open files for which most waits."""
    if not volume.leases.deferred:
        return ()
    found = [each for lease in volume.leases.by_ino.values() for each in by_open_file(lease)]
    return tuple(sorted(found, key=lambda each: -each.size)[:MAX_NAMED])


def waiting_for(volume: Volume, uid: int) -> int:
    """Bytes that wait for a user: of each lease what waits for the open file that is longest without renewal."""
    return sum(
        max((each.size for each in by_open_file(lease) if each.uid == uid), default=0)
        for lease in volume.leases.by_ino.values()
        if lease.parked
    )


def over_limit(volume: Volume, uid: int) -> bool:
    """Whether so much waits for a user that no new lease is given."""
    books, most = volume.leases, limit(volume)
    if books.deferred < most or waiting_for(volume, uid) < most:
        return False
    _say(volume, "bound", f"user {uid} gets no new leases while {most} bytes or more wait to be freed for that user")
    return True


def explain_full(volume: Volume) -> None:
    """The pool is full: name what waits to be freed, if anything does."""
    if volume.leases.deferred:
        _say(volume, "full", f"{volume.pool.path} is full while {volume.leases.deferred} bytes wait to be freed")
    elif volume.leases.strangers:
        _say(
            volume,
            "full",
            f"{volume.pool.path} is full, and programs that map it from before keep blocks from being freed",
        )


def _say(volume: Volume, kind: str, what: str) -> None:
    """One line with the processes, and none of its kind for a while."""
    said, now = volume.leases.said, time.monotonic()
    if now - said.get(kind, -QUIET_SECONDS) < QUIET_SECONDS:
        return
    said[kind] = now
    named = ", ".join(f"{each.size} for process {each.pid} of user {each.uid}" for each in holding(volume))
    log.warning("%s%s", what, f": {named}" if named else "")
