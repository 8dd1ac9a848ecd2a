"""Which snapshots a pool has, and which of them can be believed: what its stores, and the record of mounts, say.

This holds for a mounted pool as for one that is not in use. Nothing is stored here. Callers: the keeper of a mount, and
tools that read a pool which nobody has mounted.

What another program has written to the pool was not copied. So the directory of the stores has an attribute with the
superblock's record of mounts as daxfs has left it (`RECORD`); if another one is found, the snapshots are lost.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from daxfs.ext4.inode import EXT4_IMMUTABLE_FL
from daxfs.fs.snapshots import files
from daxfs.fs.types import Snapshot
from daxfs.snapshots.format import Header, NotAStore
from daxfs.snapshots.store import Store
from daxfs.structures import inodes, xattrs

if TYPE_CHECKING:
    from daxfs.ext4.superblock import Superblock
    from daxfs.journal.view import View
    from daxfs.pmem.pool import Pool

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


def readable(pool: Pool, view: View) -> Iterator[Kept]:
    """Yield the snapshots whose header and table can be read, also those that are not valid."""
    for name, inode in files.found(view):
        try:
            store = Store(pool, files.chunk_bits(view), files.runs_of(view, inode))
            header = store.header()
            if header.valid:
                store.open()
        except NotAStore:
            continue
        yield Kept(name, inode.number, store, header)


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
        for name, inode in files.found(view)
        if name not in known
    ]
    made = [
        Snapshot(
            kept.name,
            kept.header.created_ns,
            kept.store.chunks << kept.store.bits,
            kept.store.count << kept.store.bits,
            kept.header.uuid,
            REASONS[reason],
            kept.header.mapped << kept.store.bits,
            kept.header.skipped << kept.store.bits,
        )
        for kept, reason in sorted(verdicts, key=lambda each: each.kept.header.serial)
    ]
    return sorted(damaged, key=lambda each: each.created_ns) + made


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
    made = [
        inode.crtime_ns or inode.ctime_ns
        for name, inode in files.found(view)
        if name not in known and inode.flags & EXT4_IMMUTABLE_FL
    ]
    return serial, max(made, default=-1)
