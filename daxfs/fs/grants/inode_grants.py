"""The grants of one file: its holders, the epoch each has renewed in, and the bytes of the pool that they may touch.

*Holders* belong to open files: a process that has asked, by a number of its own. A holder may use what it was granted
until it renews (it says that it uses nothing any more that it was granted before) or its file is closed. A file's node
calls `InodeGrants` as its notifier; the running epoch, the size and a count of changes are stored into the file's entry
of the status page, in words that clients read at any time. Nothing else here changes the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from daxfs.fs import data
from daxfs.fs.data import OpenFile
from daxfs.fs.filemap import FileMap
from daxfs.protocol import CHANGES_AT, ENDED, ENTRY, EPOCH_AT, SIZE_AT

if TYPE_CHECKING:
    from daxfs.fs.nodes import Node
    from daxfs.fs.volume import Volume

MAX_GRANTED = 8192
"""Pieces of the pool that are kept apart for one file; of more, all from the first to the last counts as granted."""
MAX_KERNEL = 1024
"""Ranges mapped through the kernel that are kept apart for one file; beyond, each holder that adds one has one."""


class DeferredFree(NamedTuple):
    """A quarantine inode: ``size`` bytes that the file gave up until the end of an epoch."""

    epoch: int
    ino: int
    size: int


class Holder(NamedTuple):
    """A process, by a number of its own, and the open file that it asked through."""

    file: OpenFile
    number: int

    @property
    def pid(self) -> int:
        """The process that opened the file; 0 where the daemon can't see it. It may be another process's by now."""
        return self.file.caller.pid


class InodeGrants:
    """The grants of one inode that has an open file with a holder.

    Attributes:
        node: the inode.
        entry: pool offset of its status entry, 0 without one (read-only).
        epoch: the running one.
        changes: goes up with all that changes of the inode or its content through this daemon, so that a client whose
            stores were made durable knows whether they and all before them still are all there is.
        holders: open file -> holder -> the epoch that it has renewed in.
        granted: bytes of the pool that are the file's and that some holder may touch.
        growth: bytes of the file past EOF that were granted to the grower: zeroed before, and no other way to get there
            since. A write notification makes these readable and nothing else.
        grower: the open file and holder that may make the file longer by itself; one at a time.
        through_kernel: bytes of the file that are mapped through the kernel, by open file and holder.
        kernel_mapped: all of them together.
        unrenewed: holders that a recall has not waited for any longer, with the bytes of the file that it was about.
        deferred: what the file gave up and holders may still touch, oldest first.
    """

    __slots__ = (
        "_epochs",
        "_volume",
        "changes",
        "deferred",
        "entry",
        "epoch",
        "granted",
        "grower",
        "growth",
        "holders",
        "kernel_mapped",
        "node",
        "through_kernel",
        "unrenewed",
    )

    def __init__(self, volume: Volume, node: Node, entry: int, epochs: count[int]) -> None:
        self.node = node
        self.entry = entry
        self.epoch = 0
        self.changes = 0
        self.holders: dict[OpenFile, dict[int, int]] = {}
        self.granted = FileMap()
        self.growth = FileMap()
        self.grower: tuple[OpenFile, int] | None = None
        self.through_kernel: dict[tuple[OpenFile, int], FileMap] = {}
        self.kernel_mapped = FileMap()
        self.unrenewed: dict[Holder, list[tuple[int, int]]] = {}
        self.deferred: list[DeferredFree] = []
        self._epochs = epochs
        self._volume = volume
        if entry:
            self.epoch = next(epochs)
            volume.pool.write(entry, ENTRY.pack(self.epoch, node.size, node.ino, 0))

    # What happens to the inode (`daxfs.fs.notifiers.InodeNotifier`)

    def changed(self) -> None:
        """Something of the inode or its content is no more what it was."""
        if self.entry:
            self.changes += 1
            self._volume.pool.store_word(self.entry + CHANGES_AT, self.changes, 8)

    def resized(self, size: int) -> None:
        """The file is ``size`` bytes long now."""
        if self.entry:
            self.changed()
            self._volume.pool.store_word(self.entry + SIZE_AT, size, 8)

    def invalidated(self) -> None:
        """The answers that holders have are no longer true: a new epoch begins."""
        self._begin(next(self._epochs))

    def moved(self, begin: int, end: int) -> None:
        """The bytes [begin, end) of the file lie elsewhere now, or nowhere."""
        self.growth.cut(begin, end)
        self.invalidated()

    def blanked(self, begin: int, end: int) -> None:
        """The bytes [begin, end) read as zeros; what the grower was given of them must, too."""
        node, pool = self.node, self._volume.pool
        begin, end = max(begin, node.size), max(end, node.size)
        for low, high, delta, unwritten in data.pieces(self._volume, node, begin, end) if begin < end else ():
            for at, to, _, _ in self.growth.within(low, high) if unwritten else ():
                pool.zero(at + delta, to - at)

    def ended(self) -> None:
        """The daemon ends: no epoch follows that holders could wait for."""
        self._begin(ENDED)

    def _begin(self, epoch: int) -> None:
        if self.entry:
            self.epoch = epoch
            self.changed()
            self._volume.pool.store_word(self.entry + EPOCH_AT, epoch, 8)

    # Holders

    @property
    def all_holders(self) -> int:
        """How many there are."""
        return sum(len(holders) for holders in self.holders.values())

    def joined(self, file: OpenFile, holder: int) -> None:
        """One holder more, which knows the running epoch."""
        self.holders.setdefault(file, {})[holder] = self.epoch

    def left(self, file: OpenFile, holder: int | None = None) -> int:
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
        if self.unrenewed:
            for late in [late for late in self.unrenewed if late.file is file and holder in (None, late.number)]:
                del self.unrenewed[late]
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
        """The oldest epoch that any holder has renewed in; without holders `ENDED`, which is larger than all epochs."""
        return min((since for holders in self.holders.values() for since in holders.values()), default=ENDED)

    def each_holder(self) -> Iterator[tuple[Holder, int]]:
        """The holders, each with the epoch that it has renewed in."""
        for file, holders in self.holders.items():
            for number, since in holders.items():
                yield Holder(file, number), since

    # What they were granted

    def grant(self, begin: int, end: int) -> None:
        """An answer is about to name the bytes [begin, end) of the pool."""
        granted = self.granted
        granted.put(begin, end, 0, False)
        if len(granted.runs) > MAX_GRANTED:
            granted.put(granted.runs[0][0], granted.runs[-1][1], 0, False)

    def map_through_kernel(self, file: OpenFile, holder: int, begin: int, end: int) -> None:
        """A holder maps bytes through the kernel; of many ranges, all between its first and its last count."""
        own = self.through_kernel.setdefault((file, holder), FileMap())
        own.put(begin, end, 0, False)
        if sum(len(held.runs) for held in self.through_kernel.values()) > MAX_KERNEL:
            begin, end = own.runs[0][0], own.runs[-1][1]
            own.put(begin, end, 0, False)
        self.kernel_mapped.put(begin, end, 0, False)
        self.invalidated()

    def check(self) -> None:
        """Hold the grants against the inode and the status page, for tests, between two operations.

        Raises:
            AssertionError: they do not agree.
        """
        node, pool = self.node, self._volume.pool
        assert node.grants is self
        assert all(self.holders.values()), "an open file without a holder"
        assert self.holders, f"inode {node.ino}: grants that nobody holds"
        if self.entry:
            stored = ENTRY.unpack(pool.memory[self.entry : self.entry + ENTRY.size])
            assert stored == (self.epoch, node.size, node.ino, self.changes), stored
        assert all(begin >= node.size for begin in self.growth.begins), "growth inside the file"
        assert self.grower is None or self.grower[1] in self.holders.get(self.grower[0], {})
        last = node.size + -node.size % self._volume.block_size  # what fills a file zeroes its last block whole
        alone = self.grower is None and not self._volume.read_only
        assert not alone or all(run[1] <= last for run in self.growth.runs), "growth without a grower"
        assert all(since <= self.epoch for _, since in self.each_holder())
        assert self.unrenewed.keys() <= {holder for holder, _ in self.each_holder()}
        epochs = [each.epoch for each in self.deferred]
        assert epochs == sorted(epochs), epochs
        assert not self.deferred or self.held_since() <= self.deferred[0].epoch, "a deferred free that nobody waits for"
