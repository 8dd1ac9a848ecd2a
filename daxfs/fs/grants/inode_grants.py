"""The grants of one file: its holders, the epoch in which each has renewed, and the pool bytes that they may touch.

A *holder* is an open file together with a number that a process has chosen. It may use what it was granted until it
renews, which says that it no longer uses anything granted before, or until the open file is closed. `InodeGrants` is
the notifier of the file's node. It stores the running epoch, the size and a count of changes into the file's status
entry, in words that clients read at any time. Nothing else here changes the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from daxfs.errors import MissingMemory
from daxfs.fs import data
from daxfs.fs.filemap import FileMap
from daxfs.fs.openfile import OpenFile
from daxfs.protocol import CHANGES_AT, ENDED, ENTRY, EPOCH_AT, INO_AT, SIZE_AT

if TYPE_CHECKING:
    from daxfs.fs.nodes import Node
    from daxfs.fs.volume import Volume
    from daxfs.runs import ByteRange

MAX_GRANTED = 8192
"""Pieces of the pool recorded for one file; if there are more, all from the first to the last counts as granted."""
MAX_KERNEL = 1024
"""Ranges mapped through the kernel recorded for one file; a holder that adds one more then has a single range."""


class DeferredFree(NamedTuple):
    """A quarantine inode with ``size`` bytes that the file gave up in ``epoch``."""

    epoch: int
    ino: int
    size: int


class Holder(NamedTuple):
    """An open file, and the number that a process has chosen for itself."""

    file: OpenFile
    number: int

    @property
    def pid(self) -> int:
        """The process that opened the file; 0 if the daemon can't see it. It may be another process's by now."""
        return self.file.caller.pid


class InodeGrants:
    """The grants of one inode that has an open file with a holder.

    Attributes:
        node: the inode's.
        entry: pool offset of the status entry; 0: there is none (read-only).
        epoch: the running one.
        shown: whether the status entry shows what it should. Its memory may turn out to be missing; then clients meet
            that too, and ask.
        changes: goes up with each change of the inode or its content through this daemon. A client whose stores were
            made durable thus knows whether all that the file holds is durable.
        holders: open file -> holder number -> the epoch in which the holder has renewed.
        for_storing: whether any holder was ever granted bytes for storing; then all of ``granted`` counts so.
        granted: bytes of the pool that are the file's and that some holder may touch.
        preallocated: bytes of the file past EOF that were zeroed and granted to the extender, and that nothing else has
            changed since. A write notification makes these bytes readable, and no others.
        extender: the open file and holder that may extend the file by their own stores; one at a time.
        storable: bytes of the pool that were granted for storing, by open file and holder number; until it renews.
        mapped: bytes of the pool that were granted for a mapping, be it for loading only, likewise. Such a holder never
            renews.
        through_kernel: bytes of the file that are mapped through the kernel, by open file and holder number.
        kernel_mapped: the union of ``through_kernel``.
        unrenewed: holders that a recall no longer waits for, with the byte ranges of those recalls.
        deferred: what the file gave up and holders may still touch, oldest first.
    """

    __slots__ = (
        "_epochs",
        "_volume",
        "changes",
        "deferred",
        "entry",
        "epoch",
        "extender",
        "for_storing",
        "granted",
        "holders",
        "kernel_mapped",
        "mapped",
        "node",
        "preallocated",
        "shown",
        "storable",
        "through_kernel",
        "unrenewed",
    )

    def __init__(self, volume: Volume, node: Node, entry: int, epochs: count[int]) -> None:
        self.node = node
        self.entry = entry
        self.epoch = 0
        self.shown = True
        self.changes = 0
        self.holders: dict[OpenFile, dict[int, int]] = {}
        self.granted = FileMap()
        self.for_storing = False
        self.preallocated = FileMap()
        self.extender: tuple[OpenFile, int] | None = None
        self.storable: dict[Holder, FileMap] = {}
        self.mapped: dict[Holder, FileMap] = {}
        self.through_kernel: dict[tuple[OpenFile, int], FileMap] = {}
        self.kernel_mapped = FileMap()
        self.unrenewed: dict[Holder, list[ByteRange]] = {}
        self.deferred: list[DeferredFree] = []
        self._epochs = epochs
        self._volume = volume
        if entry:
            self.epoch = next(epochs)
            volume.pool.write(entry, ENTRY.pack(self.epoch, node.size, node.ino, 0))

    # What happens to the inode (`daxfs.fs.notifiers.InodeNotifier`)

    def bump_version(self) -> None:
        """Count a change of the inode or its content."""
        if self.entry:
            self._show(CHANGES_AT, self.changes + 1)
            self.changes += 1

    def show_size(self, size: int) -> None:
        """Show the size before `set_size` counts a change: it is that of appends which the client has made itself.

        The client goes by its own size as long as it sees no change, so there is no moment without these appends.
        """
        if self.entry:
            self._show(SIZE_AT, size)

    def set_size(self, size: int) -> None:
        """Show clients the new file size in bytes."""
        if self.entry:
            self.bump_version()
            self._show(SIZE_AT, size)

    def move_entry(self, entry: int) -> None:
        """Begin a new epoch, and have another status entry; the old one shows that epoch for good."""
        if self.entry:
            self.bump_epoch()
            self.entry = entry
            self._volume.pool.write(entry, ENTRY.pack(self.epoch, self.node.size, self.node.ino, self.changes))

    def renumbered(self) -> None:
        """Show the number that the inode has now."""
        if self.entry:
            self._show(INO_AT, self.node.ino)

    def bump_epoch(self) -> None:
        """Begin a new epoch: the answers that holders have no longer hold."""
        self._begin(next(self._epochs))

    def invalidate_range(self, begin: int, end: int) -> None:
        """Begin a new epoch, because the bytes [begin, end) of the file lie elsewhere now, or nowhere."""
        self.preallocated.cut(begin, end)
        self.bump_epoch()

    def zero_range(self, begin: int, end: int) -> None:
        """Zero those of the bytes [begin, end) that were preallocated past EOF, where the extender may have stored."""
        node, pool = self.node, self._volume.pool
        begin, end = max(begin, node.size), max(end, node.size)
        for low, high, delta, unwritten in data.pieces(self._volume, node, begin, end) if begin < end else ():
            for at, to, _, _ in self.preallocated.within(low, high) if unwritten else ():
                pool.zero(at + delta, to - at)

    def end_epochs(self) -> None:
        """Show clients the last epoch: the daemon serves the file no longer."""
        self._begin(ENDED)

    def _begin(self, epoch: int) -> None:
        if self.entry:
            self.bump_version()
            self.epoch = epoch
            self._show(EPOCH_AT, epoch)

    def _show(self, at: int, word: int) -> None:
        """Store a word of the status entry.

        What happens to the inode has happened, so no error of the entry's own memory may end it. A fault that was
        pending before is another one's, and ends what is about to happen before it is shown: the first word that is
        stored is not yet in DRAM.
        """
        volume = self._volume
        fault_before = volume.faults[0]
        try:
            volume.pool.store_word(self.entry + at, word, 8)
        except MissingMemory:
            if fault_before:
                raise
            self.shown = False

    # Holders

    @property
    def all_holders(self) -> int:
        """The number of holders, of all open files."""
        return sum(len(holders) for holders in self.holders.values())

    def add_holder(self, file: OpenFile, holder: int) -> None:
        """Add a holder, which has renewed in the running epoch."""
        self.holders.setdefault(file, {})[holder] = self.epoch

    def remove_holder(self, file: OpenFile, holder: int | None = None) -> int:
        """Remove a holder, or all holders of an open file (None); return how many were removed."""
        holders = self.holders.get(file, {})
        before = len(holders)
        if holder is None:
            holders.clear()
        else:
            holders.pop(holder, None)
        gone_holders = before - len(holders)
        if not holders:
            self.holders.pop(file, None)
        if self.extender is not None and self.extender[0] is file and holder in (None, self.extender[1]):
            self.extender = None
        if self.unrenewed:
            for late in [late for late in self.unrenewed if late.file is file and holder in (None, late.number)]:
                del self.unrenewed[late]
        if self.storable:
            _forget(self.storable, file, holder)
        if self.mapped:
            _forget(self.mapped, file, holder)
        if self.through_kernel:
            self._unmap_through_kernel(file, holder)
        return gone_holders

    def _unmap_through_kernel(self, file: OpenFile, holder: int | None) -> None:
        gone = [held for held in self.through_kernel if held[0] is file and holder in (None, held[1])]
        for held in gone:
            del self.through_kernel[held]
        if gone:
            self.kernel_mapped = FileMap()
            for ranges in self.through_kernel.values():
                for begin, end, _, _ in ranges.runs:
                    self.kernel_mapped.put(begin, end, 0, False)

    def held_since(self) -> int:
        """Return the oldest epoch in which a holder has renewed; without holders `ENDED`, larger than all epochs."""
        return min((since for holders in self.holders.values() for since in holders.values()), default=ENDED)

    def each_holder(self) -> Iterator[tuple[Holder, int]]:
        """Yield the holders, each with the epoch in which it has renewed."""
        for file, holders in self.holders.items():
            for number, since in holders.items():
                yield Holder(file, number), since

    # What they were granted

    def grant(self, begin: int, end: int, storing: Holder | None = None, mapping: Holder | None = None) -> None:
        """Record that holders may touch the bytes [begin, end) of the pool, before an answer names them.

        What a snapshot needs of bytes that a holder may store to is copied now: nobody sees the stores.

        Args:
            begin: first byte.
            end: the byte after the last.
            storing: the holder that may store there; None: the answer is for loading only.
            mapping: the holder that maps the bytes; None: the answer is not for a mapping.
        """
        if storing is not None:
            self.for_storing = True
            hook = self._volume.pool.hook
            if hook is not None:
                hook.before(begin, end - begin)
            _record(self.storable.setdefault(storing, FileMap()), begin, end)
        if mapping is not None:
            _record(self.mapped.setdefault(mapping, FileMap()), begin, end)
        _record(self.granted, begin, end)

    def staying(self, ranges: list[ByteRange]) -> list[Holder]:
        """Return who would go on with bytes of these ranges of the pool in their old place if the blocks were moved.

        They map the bytes, or may store to them. Other holders only load: they see that the epoch ends after a load.
        """
        return [
            holder
            for granted in (self.storable, self.mapped)
            for holder, held in granted.items()
            if any(next(held.within(begin, end), None) is not None for begin, end in ranges)
        ]

    def map_through_kernel(self, file: OpenFile, holder: int, begin: int, end: int) -> None:
        """Record that a holder maps bytes through the kernel, and begin a new epoch.

        If the file has more than `MAX_KERNEL` ranges, all bytes between the holder's first and last range count as
        mapped.
        """
        own = self.through_kernel.setdefault((file, holder), FileMap())
        own.put(begin, end, 0, False)
        if sum(len(held.runs) for held in self.through_kernel.values()) > MAX_KERNEL:
            begin, end = own.runs[0][0], own.runs[-1][1]
            own.put(begin, end, 0, False)
        self.kernel_mapped.put(begin, end, 0, False)
        self.bump_epoch()

    def check(self) -> None:
        """Compare the grants with the inode and the status page; for tests, between two operations.

        Raises:
            AssertionError: they do not agree.
        """
        node, pool = self.node, self._volume.pool
        assert node.grants is self
        assert all(self.holders.values()), "an open file without a holder"
        assert self.holders, f"inode {node.ino}: grants that nobody holds"
        if self.entry and self.shown:
            stored = ENTRY.unpack(pool.memory[self.entry : self.entry + ENTRY.size])
            assert stored == (self.epoch, node.size, node.ino, self.changes), stored
        assert all(begin >= node.size for begin in self.preallocated.begins), "preallocated bytes inside the file"
        assert self.extender is None or self.extender[1] in self.holders.get(self.extender[0], {})
        last = node.size + -node.size % self._volume.block_size  # `requests.fill` zeroes the last block whole
        alone = self.extender is None and not self._volume.read_only
        assert not alone or all(run[1] <= last for run in self.preallocated.runs), (
            "preallocated bytes without an extender"
        )
        assert all(since <= self.epoch for _, since in self.each_holder())
        assert self.unrenewed.keys() <= {holder for holder, _ in self.each_holder()}
        assert self.storable.keys() | self.mapped.keys() <= {holder for holder, _ in self.each_holder()}
        epochs = [each.epoch for each in self.deferred]
        assert epochs == sorted(epochs), epochs
        assert not self.deferred or self.held_since() <= self.deferred[0].epoch, "a deferred free that nobody waits for"


def _record(ranges: FileMap, begin: int, end: int) -> None:
    """Add a range to granted ones; if there are too many, all from the first to the last counts as granted."""
    ranges.put(begin, end, 0, False)
    if len(ranges.runs) > MAX_GRANTED:
        ranges.put(ranges.runs[0][0], ranges.runs[-1][1], 0, False)


def _forget(ranges: dict[Holder, FileMap], file: OpenFile, number: int | None) -> None:
    """Remove what a holder, or all holders of an open file (None), were granted."""
    for gone in [held for held in ranges if held.file is file and number in (None, held.number)]:
        del ranges[gone]
