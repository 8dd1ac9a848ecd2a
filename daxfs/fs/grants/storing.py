"""What clients may store to without the daemon, for code that must know before the content changes (snapshots).

A client that was granted bytes for storing may store there at any time until it renews. `renewing` asks all such
clients to renew: their epochs end, and a busy client renews in its next operation. What is left after that (`mapped`)
belongs to clients that sleep, that map the file, or that were granted it since. Grants are not refused meanwhile, since
a program that is refused a mapping maps the file through the kernel for good.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from daxfs.runs import ByteRange

if TYPE_CHECKING:
    from daxfs.fs.grants.inode_grants import InodeGrants
    from daxfs.fs.grants.table import Grants
    from daxfs.fs.steps import Steps

WAIT_SECONDS = 0.01
"""How long `renewing` waits for clients. A longer wait would not help: the others sleep, or never renew."""


class Storable(NamedTuple):
    """What one process may store to: an inode number, the process that opened the file, and ranges of the pool."""

    ino: int
    pid: int
    ranges: list[ByteRange]


def renewing(table: Grants) -> Steps[None]:
    """End the epochs of all files that clients may store to, and wait a moment for these clients to renew."""
    waiting = [grants for grants in table.by_ino.values() if grants.storable]
    for grants in waiting:
        grants.bump_epoch()
    epochs = {id(grants): grants.epoch for grants in waiting}
    deadline = time.monotonic() + WAIT_SECONDS
    while waiting := [grants for grants in waiting if _unrenewed(grants, epochs[id(grants)])]:
        if time.monotonic() >= deadline:
            return
        yield


def mapped(table: Grants) -> list[Storable]:
    """Return what each client may store to now."""
    return [
        Storable(ino, holder.pid, [ByteRange(begin, end) for begin, end, _, _ in ranges.runs])
        for ino, grants in table.by_ino.items()
        for holder, ranges in grants.storable.items()
    ]


def _unrenewed(grants: InodeGrants, epoch: int) -> bool:
    return any(grants.holders[file][number] < epoch for file, number in grants.storable)
