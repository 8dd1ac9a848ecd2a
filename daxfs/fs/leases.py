"""Books of what clients may touch by themselves: leases, who holds them, what they were told, what waits for them.

A *lease* belongs to an inode, its *holders* to open files: a process that has asked, by a number of its own. A holder
was told extents; it may use them until it says that it does no more (it renews) or its file is closed. Each change that
makes an answer wrong ends an *epoch*. What the file gave up in an epoch waits (`Lease.parked`) until no holder is left
that was there in it. *Strangers* are programs that still map the pool from an earlier mount, and may touch anything
that was in it then. Only `leasing.py` (asking), `parking.py` (giving up) and `board.py` write here; the rest of this
floor says `moved`, `resized`. Nothing here changes the pool but the words of a lease's slot on the board.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from daxfs.fs.filemap import FileMap
from daxfs.protocol import CHANGES_AT, ENDED, EPOCH_AT, READER_LOCKS, SIZE_AT, StatusEntry

if TYPE_CHECKING:
    from daxfs.fs.data import OpenFile
    from daxfs.fs.types import PoolIdentity
    from daxfs.pmem.pool import Pool

MAX_TOLD = 8192
"""Pieces of the pool that are kept apart for one lease; of more, all between the first and the last counts as told."""
MAX_KERNEL = 1024
"""Ranges mapped through the kernel that are kept apart for one lease; beyond, each holder that adds one has one."""
MAX_HOLDERS = 1024
"""Holders of one open file: processes that share it, and those that are gone without a word."""
MAX_ALL_HOLDERS = 4096
"""Holders of one lease: some requests look at all of them, while everybody waits."""
MAX_HOLDERS_OF_ALL_FILES = 32_768
"""Holders of all leases together: some 10 MiB of DRAM."""


class Parked(NamedTuple):
    """An inode that holds what was given up until the end of an epoch; ``size`` in bytes."""

    epoch: int
    ino: int
    size: int


class Lease:
    """One leased inode.

    Attributes:
        ino: its number.
        slot: pool offset of its slot on the board, 0 without one (read-only).
        epoch: the running one.
        changes: goes up with all that changes of the inode or its content through this daemon, so that a client whose
            stores were made durable knows whether they and all before them still are all there is.
        holders: open file -> holder -> the epoch that it has renewed in.
        told: bytes of the pool that holders were told of and that are the file's.
        grown: bytes of the file past EOF that were granted to the grower: zeroed before, and no other way to get there
            since. A write notification makes these readable and nothing else.
        grower: the open file and holder that may make the file longer by itself; one at a time.
        kernel: bytes of the file that are mapped through the kernel, by open file and holder.
        barred: all of them together.
        parked: what was given up, oldest first.
    """

    __slots__ = (
        "_epochs",
        "_pool",
        "barred",
        "changes",
        "epoch",
        "grower",
        "grown",
        "holders",
        "ino",
        "kernel",
        "parked",
        "slot",
        "told",
    )

    def __init__(self, ino: int, slot: int, epochs: count[int], pool: Pool) -> None:
        self.ino = ino
        self.slot = slot
        self.epoch = 0
        self.changes = 0
        self.holders: dict[OpenFile, dict[int, int]] = {}
        self.told = FileMap()
        self.grown = FileMap()
        self.grower: tuple[OpenFile, int] | None = None
        self.kernel: dict[tuple[OpenFile, int], FileMap] = {}
        self.barred = FileMap()
        self.parked: list[Parked] = []
        self._epochs = epochs
        self._pool = pool

    def moved(self) -> None:
        """What holders were told holds no more: a new epoch."""
        self._begin(next(self._epochs))

    def end(self) -> None:
        """Nobody will tell them anything any more."""
        self._begin(ENDED)

    def _begin(self, epoch: int) -> None:
        if self.slot:
            self.epoch = epoch
            self.changed()
            self._pool.store_word(self.slot + EPOCH_AT, epoch, 8)

    def resized(self, size: int) -> None:
        """The file has another size."""
        if self.slot:
            self.changed()
            self._pool.store_word(self.slot + SIZE_AT, size, 8)

    def changed(self) -> None:
        """Something of the inode or its content is no more what it was."""
        if self.slot:
            self.changes += 1
            self._pool.store_word(self.slot + CHANGES_AT, self.changes, 8)

    def tell(self, begin: int, end: int) -> None:
        """The bytes [begin, end) of the pool are about to be told."""
        told = self.told
        told.put(begin, end, 0, False)
        if len(told.runs) > MAX_TOLD:
            told.put(told.runs[0][0], told.runs[-1][1], 0, False)

    def map_through_kernel(self, file: OpenFile, holder: int, begin: int, end: int) -> None:
        """A holder maps bytes through the kernel; of many ranges, all between its first and its last count."""
        own = self.kernel.setdefault((file, holder), FileMap())
        own.put(begin, end, 0, False)
        if sum(len(held.runs) for held in self.kernel.values()) > MAX_KERNEL:
            begin, end = own.runs[0][0], own.runs[-1][1]
            own.put(begin, end, 0, False)
        self.barred.put(begin, end, 0, False)
        self.moved()

    def held_since(self) -> int:
        """The oldest epoch that any holder may still live in; behind all epochs when there is none."""
        return min((since for holders in self.holders.values() for since in holders.values()), default=ENDED)

    def drop(self, file: OpenFile, holder: int | None = None) -> int:
        """A holder, or all of an open file, no longer use anything; returns how many holders that were."""
        holders = self.holders.get(file, {})
        before = len(holders)
        if holder is None:
            holders.clear()
        else:
            holders.pop(holder, None)
        gone_holders = before - len(holders)
        if not holders:
            self.holders.pop(file, None)
        if self.grower is not None and self.grower[0] is file and holder in (None, self.grower[1]):
            self.grower = None
        gone = [held for held in self.kernel if held[0] is file and holder in (None, held[1])]
        for held in gone:
            del self.kernel[held]
        if gone:
            self.barred = FileMap()
            for ranges in self.kernel.values():
                for begin, end, _, _ in ranges.runs:
                    self.barred.put(begin, end, 0, False)
        return gone_holders

    @property
    def all_holders(self) -> int:
        """How many there are."""
        return sum(len(holders) for holders in self.holders.values())


class Leases:
    """The books of one volume.

    Attributes:
        by_ino: leased inodes.
        holders: how many there are, of all leases.
        deferred: bytes that wait to be freed, of all leases.
        said: when the log last spoke of what waits (`deferred.py`), in seconds of the monotonic clock.
        lock: which byte of the pool this mount's clients lock (`Pool.mapped_elsewhere`).
        strangers: programs map the pool whose leases are not in these books.
        stray: the inode that keeps what they may touch and no file holds any more; 0, or not kept any more: none.
        forsaken: files behind whose end nothing is left that strangers may touch.
        identity: what clients are told of the pool, once somebody has asked (its path takes a few system calls).
        undo: takes back what the books say of the handle that runs, or ran last.
    """

    def __init__(self, *, readers: bool) -> None:
        self.by_ino: dict[int, Lease] = {}
        self.holders = 0
        self.deferred = 0
        self.said: dict[str, float] = {}
        self.lock = secrets.randbelow(READER_LOCKS) | (READER_LOCKS if readers else 0)
        self.strangers = False
        self.stray = 0
        self.forsaken: set[int] = set()
        self.identity: PoolIdentity | None = None
        self.undo: list[Callable[[], object]] = []
        # A client that outlives its daemon must not take the next one's epochs for those it knows.
        self._epochs = count(secrets.randbits(48) + 1)

    def begin(self, ino: int, slot: int, size: int, pool: Pool) -> Lease:
        """Lease an inode that is not leased; its slot, if it has one, is nobody's before."""
        lease = self.by_ino[ino] = Lease(ino, slot, self._epochs, pool)
        if slot:
            lease.epoch = next(self._epochs)
            pool.write(slot, StatusEntry(lease.epoch, size, ino).pack())
        return lease

    def roll_back(self) -> None:
        """Rollback hook."""
        while self.undo:
            self.undo.pop()()
