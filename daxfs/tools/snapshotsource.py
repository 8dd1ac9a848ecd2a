"""Where the snapshot of a command is read: on a mount, or in a pool that nobody has mounted.

A mount is asked which snapshots it has; their stores are read beside its daemon, and followed while they change
(`daxfs.snapshots.reading`). While a source is open the mount can't be unmounted, except by ``umount -l``: the copies
that its daemon makes are what keeps a snapshot right. A pool is claimed for reading, so nobody can mount it for writing
meanwhile; nothing is stored in it, and a log that must be replayed is replayed in memory.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar

from daxfs.errors import FsError, UserError
from daxfs.ext4.geometry import Geometry
from daxfs.fs import mounting, opening
from daxfs.fs.snapshots import catalogue, files
from daxfs.fs.types import Snapshot
from daxfs.fuse.kernel.snapshots import LIST, QUESTION, SNAPSHOTS
from daxfs.journal.view import PoolView
from daxfs.pmem.opening import open_pool
from daxfs.pmem.pool import Pool
from daxfs.snapshots.format import NotAStore
from daxfs.snapshots.reading import PAUSE_SECONDS, TRIES, Chain, Follower, Past
from daxfs.snapshots.store import Store
from daxfs.tools import command, mountpoints

FAILED = 1
LONGEST_NAME = 255
REASONS = {
    errno.EEXIST: "there is a snapshot of this name",
    errno.ENOENT: "there is no snapshot of this name",
    errno.EINVAL: "a name must not be empty and must not contain a slash",
    errno.ENAMETOOLONG: "the name is longer than 255 bytes",
    errno.EROFS: "the mount is read-only",
    errno.ENOSPC: "the pool has no room for it",
    errno.EBUSY: "another snapshot is being deleted, or programs of an earlier mount still map the pool",
    errno.EACCES: "its directory /.daxfs/snapshots is not root's",
    errno.EOPNOTSUPP: "the pool has no journal, or it has storage",
    errno.EPERM: "only root may do this",
    errno.ENOTTY: "its session has no snapshots; mount it with session=kernel",
    errno.ENOTCONN: "its daemon has ended",
    errno.ECONNABORTED: "its daemon has ended",
}
T = TypeVar("T")


class Source(Protocol):
    """Snapshots that can be read.

    Attributes:
        name: the mountpoint or pool that the user gave, for messages.
        pool: mapped for reading.
    """

    name: str
    pool: Pool

    def listing(self) -> list[Snapshot]:
        """Return all snapshots, the oldest first."""

    def past(self, snapshot: Snapshot) -> Past:
        """Return what a valid snapshot shows."""

    def overwritten(self, older: Snapshot, newer: Snapshot) -> set[int]:
        """Return the chunks that the older snapshot needs and that were overwritten before the newer one was made."""


def ask(descriptor: int, place: str, what: int, name: bytes = b"", number: int = 0) -> bytes:
    """Ask the daemon of a mount, through a descriptor of its root directory.

    Raises:
        UserError: it refuses.
    """
    if len(name) > LONGEST_NAME:
        raise refusal(place, name, errno.ENAMETOOLONG)
    try:
        return command.send(descriptor, SNAPSHOTS, QUESTION.pack(what, number, name)).rstrip(b"\0")
    except OSError as error:
        raise refusal(place, name, error.errno or errno.EIO) from None


def refusal(place: str, name: bytes, number: int) -> UserError:
    """Return the error of a refused command."""
    thing = f"{place}: snapshot {os.fsdecode(name)}" if name else place
    return UserError(f"{thing}: {REASONS.get(number, os.strerror(number))}", FAILED)


def listed(descriptor: int, place: str) -> list[Snapshot]:
    """Return the snapshots of a mount, the oldest first.

    Raises:
        UserError: the daemon refuses.
    """
    found: list[Snapshot] = []
    while more := json.loads(ask(descriptor, place, LIST, number=len(found))):
        found += [of_row(row) for row in more]
    return found


def of_row(row: dict[str, Any]) -> Snapshot:
    """Return a snapshot as the daemon's JSON describes it."""
    return Snapshot(**row)._replace(name=os.fsencode(row["name"]), uuid=bytes.fromhex(row["uuid"]))


def valid(source: Source, name: str) -> Snapshot:
    """Return the snapshot of this name.

    Raises:
        UserError: there is none, or it is lost.
    """
    given = os.fsencode(name)
    for snapshot in source.listing():
        if snapshot.name == given:
            if snapshot.lost:
                raise UserError(f"{source.name}: snapshot {name} is lost: {snapshot.lost}", FAILED)
            return snapshot
    raise refusal(source.name, given, errno.ENOENT)


@contextmanager
def opened(place: str) -> Iterator[Source]:
    """Open the snapshots of a mountpoint (a directory) or of a pool.

    Raises:
        UserError: no daxfs is mounted there, or the daemon refuses.
        PoolError: the pool is in use or can't be opened.
        FsError, Corrupt: the pool has no readable ext4.
    """
    if os.path.isdir(place) or mountpoints.find(place) is not None:
        top = mountpoints.require(place)
        if not os.path.exists(top.source):
            raise UserError(f"{place} shows the snapshot {top.source}; name the mount or pool that has it", FAILED)
        with (
            mountpoints.root(top.mountpoint) as descriptor,
            open_pool(top.source, read_only=True, exclusively=False) as pool,
        ):
            listed(descriptor, place)  # a mount without snapshots refuses at once
            yield _Mounted(place, pool, descriptor)
        return
    with _claimed(place) as pool:
        yield _Unmounted(place, pool)


class Shown(NamedTuple):
    """What the mount of a snapshot shows: where the snapshot is, a mountpoint or pool, and its name."""

    place: str
    name: str


def shown_by(source: str) -> Shown | None:
    """Return what a mount shows whose source is this (`label`); None: a pool, or nothing."""
    parts = source.split("@")
    if os.path.exists(source):
        return None
    for count in range(len(parts) - 1, 0, -1):
        pool, name = "@".join(parts[:count]), "@".join(parts[count:])
        if os.path.exists(pool) and "/" not in name:
            found = mountpoints.of_pool(pool)
            return Shown(found.mountpoint if found is not None else pool, name)
    return None


def label(pool: str, name: str) -> str:
    """Return the source of the mount of a snapshot."""
    return f"{pool}@{name}"


class _Mounted:
    """The snapshots of a mount."""

    def __init__(self, name: str, pool: Pool, descriptor: int) -> None:
        self.name = name
        self.pool = pool
        self._descriptor = descriptor
        self._geometry = Geometry.of(mounting.read_superblock(pool))

    def listing(self) -> list[Snapshot]:
        return listed(self._descriptor, self.name)

    def past(self, snapshot: Snapshot) -> Past:
        return Follower(lambda: self._chain(snapshot.uuid), self._confirm)

    def overwritten(self, older: Snapshot, newer: Snapshot) -> set[int]:
        for _ in range(TRIES):
            later = _later(self.listing(), older, newer)
            chain = self._chain(older.uuid)
            found = chain.overwritten(later)
            if chain.settled and chain.unchanged and _later(self.listing(), older, newer) == later:
                self._confirm()
                return found
            time.sleep(PAUSE_SECONDS)
        raise NotAStore("snapshots are made and deleted all the time")

    def _confirm(self) -> None:
        """Raise if the daemon has ended: nobody has made copies since then. statfs(2) always asks the daemon."""
        try:
            os.fstatvfs(self._descriptor)
        except OSError as error:
            raise FsError(errno.EIO, f"{self.name}: its daemon has ended: {error.strerror}") from None

    def _chain(self, uuid: bytes) -> Chain:
        """Return a chain of the stores of a snapshot and of all newer ones, as the mount has them now."""
        try:
            found = self.listing()
        except UserError as error:
            raise FsError(errno.EIO, str(error)) from None
        at = next((at for at, each in enumerate(found) if each.uuid == uuid), None)
        if at is None or found[at].lost:
            what = "is deleted" if at is None else f"is lost: {found[at].lost}"
            raise FsError(errno.EIO, f"{self.name}: the snapshot {what}")
        names = [each.name for each in found[at:]]
        stores = _patiently(lambda: self._stores(names))

        def enlarge() -> None:
            newest = stores[-1]
            try:
                newest.table(newest.count)
            except NotAStore:  # the table goes on in chunks that the store has got meanwhile
                newest.set_runs(_patiently(lambda: self._stores(names[-1:]))[0].runs)

        return Chain(self.pool, stores, enlarge)

    def _stores(self, names: list[bytes]) -> list[Store]:
        view = PoolView(self.pool, self._geometry)
        try:
            found = {name: files.runs_of(view, inode) for name, inode in files.found(view)}
            bits = files.chunk_bits(view)
        finally:
            view.release()
        missing = [name for name in names if name not in found]
        if missing:
            raise NotAStore(f"there is no store of {missing[0]!r}")
        stores = [Store(self.pool, bits, found[name]) for name in names]
        for store in stores:
            store.open()
        return stores


class _Unmounted:
    """The snapshots of a pool that is claimed, whose log is empty."""

    def __init__(self, name: str, pool: Pool) -> None:
        self.name = name
        self.pool = pool
        self._view = PoolView(pool, Geometry.of(mounting.read_superblock(pool)))
        with pool.faults.checked():
            self._verdicts = catalogue.judged(pool, self._view)

    def listing(self) -> list[Snapshot]:
        return catalogue.listing(self._view, self._verdicts)

    def past(self, snapshot: Snapshot) -> Chain:
        stores = [kept for kept, reason in self._verdicts if not reason]
        at = next(at for at, kept in enumerate(stores) if kept.header.uuid == snapshot.uuid)
        return Chain(self.pool, [kept.store for kept in stores[at:]])

    def overwritten(self, older: Snapshot, newer: Snapshot) -> set[int]:
        return self.past(older).overwritten(_later(self.listing(), older, newer))


@contextmanager
def _claimed(path: str) -> Iterator[Pool]:
    """Claim a pool for reading, with its log replayed."""
    pool = opening.open_pool(path, read_only=True)
    try:
        pool.refuse_clients()
        if mounting.needs_recovery(mounting.read_superblock(pool)):
            pool.close()
            pool = opening.open_pool(path, private=True)
            mounting.recover_in_place(pool)
        superblock = mounting.read_superblock(pool)
        superblock.verify()
        mounting.check_features(superblock, read_only=True)
        yield pool
    finally:
        pool.close()


def _later(found: list[Snapshot], older: Snapshot, newer: Snapshot) -> int:
    """Return how many snapshots later ``newer`` was made.

    Raises:
        FsError: EIO, one of them is deleted.
    """
    order = {each.uuid: at for at, each in enumerate(found)}
    if older.uuid not in order or newer.uuid not in order:
        raise FsError(errno.EIO, "the snapshot is deleted")
    return order[newer.uuid] - order[older.uuid]


def _patiently(read: Callable[[], T]) -> T:
    """Read metadata that a commit may just be storing: until it can be read."""
    tried = 0
    while True:
        try:
            return read()
        except FsError:
            tried += 1
            if tried == TRIES:
                raise
            time.sleep(PAUSE_SECONDS)
