"""Which snapshots a pool has, and which of them can be believed: what its stores, and the record of mounts, say.

This holds for a mounted pool as for one that is not in use. All that is stored here is that a snapshot is lost.
Callers: the keeper of a mount, recovery, and tools that read a pool which nobody has mounted.

What another program has written to the pool was not copied. So the directory of the stores has an attribute with the
superblock's record of mounts as daxfs has left it (`RECORD`); if another one is found, the snapshots are lost.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from daxfs.errors import Corrupt, MissingMemory
from daxfs.fs.snapshots import files
from daxfs.fs.types import Snapshot
from daxfs.snapshots.format import Header, NotAStore
from daxfs.snapshots.store import Store
from daxfs.structures import inodes, xattrs

if TYPE_CHECKING:
    from daxfs.ext4.superblock import Superblock
    from daxfs.journal.view import View
    from daxfs.pmem.pool import Pool
    from daxfs.structures.inodes import Inode

log = logging.getLogger("daxfs.snapshots")

SECOND_NS = 10**9
RECORD = b"trusted.daxfs.mounts"
RECORD_FIELDS = (
    *("s_mnt_count", "s_mtime", "s_mtime_hi", "s_wtime", "s_wtime_hi"),
    "s_kbytes_written",
)
_RECORD = struct.Struct(f"<{len(RECORD_FIELDS)}Q")

FULL, MISSING, FOREIGN, DAMAGED, OLDER, GONE = 1, 2, 3, 4, 5, 6
REASONS = {
    0: "",
    FULL: "the pool had no room for the copy of a block",
    MISSING: "a block could not be copied: its memory was missing",
    FOREIGN: "another program has changed the pool",
    DAMAGED: "its store is damaged",
    OLDER: "a newer snapshot, which has lost content, was read for it",
    GONE: "its store was changed or deleted after the snapshot that was restored",
}


class Kept(NamedTuple):
    """A snapshot whose store can be read."""

    name: bytes
    ino: int
    store: Store
    header: Header


class Verdict(NamedTuple):
    """A snapshot, and why it is lost (0: it is not)."""

    kept: Kept
    reason: int


def record(sb: Superblock) -> bytes:
    """Return the record of mounts that a superblock has."""
    return _RECORD.pack(*(int(getattr(sb, name)) for name in RECORD_FIELDS))


def fields_of(kept: bytes) -> list[int]:
    """Return the values of `RECORD_FIELDS` in a record, of which an empty one has none."""
    return list(_RECORD.unpack(kept)) if kept else []


def was_written_after(found: Superblock, replayed: Superblock) -> bool:
    """Whether a superblock that was found at home was written later than the one that the log has put there.

    Then another program has changed a pool whose log is not empty, as debugfs does, and that did not replay it.
    """
    return (
        _seconds(found.s_mtime, found.s_mtime_hi) > _seconds(replayed.s_mtime, replayed.s_mtime_hi)
        or _seconds(found.s_wtime, found.s_wtime_hi) > _seconds(replayed.s_wtime, replayed.s_wtime_hi)
        or found.s_kbytes_written > replayed.s_kbytes_written
    )


def _seconds(low: int, high: int) -> int:
    return high << 32 | low


def disbelieve(pool: Pool, view: View) -> None:
    """Invalidate all snapshots, since another program has changed the pool. Where the stores can't be found, nobody
    else finds them either.
    """
    with suppress(Corrupt):
        for kept in list(readable(pool, view)):
            if kept.header.valid:
                invalidate(pool, kept, FOREIGN)


def invalidate(pool: Pool, kept: Kept, reason: int) -> None:
    """Mark a snapshot as lost, durably, with a line in the log."""
    kept.store.invalidate(reason)
    name = kept.name.decode(errors="replace")
    log.warning("%s: the snapshot %s is lost: %s", pool.path, name, REASONS[reason])


def readable(pool: Pool, view: View) -> Iterator[Kept]:
    """Yield the snapshots whose header and table can be read, also those that are not valid."""
    for name, inode in files.found(view):
        kept = with_header(pool, view, name, inode)
        if kept is not None and kept.header.valid:
            try:
                with pool.faults.checked():
                    kept.store.open()
            except (NotAStore, MissingMemory):
                continue
        if kept is not None:
            yield kept


def with_header(pool: Pool, view: View, name: bytes, inode: Inode) -> Kept | None:
    """Return a snapshot whose header can be read; None: it is damaged, or its memory is bad."""
    try:
        store = Store(pool, files.chunk_bits(view), files.runs_of(view, inode))
        with pool.faults.checked():
            return Kept(name, inode.number, store, store.header())
    except (NotAStore, MissingMemory):
        return None


def judged(pool: Pool, view: View) -> list[Verdict]:
    """Return the readable snapshots of a pool whose log is empty and which nobody has mounted, the oldest first.

    A snapshot is lost, too, if a newer one is, or if the store of a newer one can't be read.

    Raises:
        Corrupt: the way to the stores is damaged.
    """
    directory = files.folder(view)
    if directory is None:
        return []
    found = sorted(readable(pool, view), key=lambda each: each.header.serial)
    lost_serial, lost_ns = _newest_lost(view, found)
    foreign = recorded(view, directory.number) != record(view.superblock())

    def reason(kept: Kept) -> int:
        header = kept.header
        if not header.valid:
            return header.reason if header.reason in REASONS and header.reason else DAMAGED
        if header.serial < lost_serial or header.created_ns <= lost_ns:
            return OLDER
        return FOREIGN if foreign else 0

    return [Verdict(each, reason(each)) for each in found]


def listing(view: View, verdicts: list[Verdict]) -> list[Snapshot]:
    """Return all snapshots, the oldest first, damaged ones before them."""
    known = {kept.name for kept, _ in verdicts}
    damaged = [
        Snapshot(name, inode.crtime_ns, inode.size, 0, bytes(16), REASONS[DAMAGED])
        for name, inode in files.named(view)
        if name not in known
    ]
    made = [described(*each) for each in sorted(verdicts, key=lambda each: each.kept.header.serial)]
    return sorted(damaged, key=lambda each: each.created_ns) + made


def described(kept: Kept, reason: int) -> Snapshot:
    """Return what users see of a snapshot."""
    bits = kept.store.bits
    return Snapshot(
        kept.name,
        kept.header.created_ns,
        kept.store.chunks << bits,
        kept.store.count << bits,
        kept.header.uuid,
        REASONS.get(reason, REASONS[DAMAGED]),
        kept.header.mapped << bits,
        kept.header.skipped << bits,
    )


def recorded(view: View, directory: int) -> bytes:
    """Return the record of mounts that the directory of the stores has; empty: it has none."""
    inode = inodes.read(view, directory)
    return xattrs.get(view, inode, RECORD) if xattrs.holds(view, inode, RECORD) else b""


def _newest_lost(view: View, found: list[Kept]) -> tuple[int, int]:
    """Return the serial number of the newest snapshot that is not valid, and when the newest store was made whose
    header or table can't be read. Snapshots older than that would be read through it.
    """
    serial = max((each.header.serial for each in found if not each.header.valid), default=-1)
    known = {each.name for each in found}
    made = [made_ns(inode) for name, inode in files.found(view) if name not in known]
    return serial, max(made, default=-1)


def made_ns(inode: Inode) -> int:
    """Return a time that is not before the making of a store, and that no later store was made before."""
    return inode.crtime_ns or inode.ctime_ns + SECOND_NS - 1  # a small inode has seconds only
