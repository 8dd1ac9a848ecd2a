"""One handle's change of a file's blocks or size, and how the file's node learns of it.

Every handle that maps or frees blocks of a regular file, or moves EOF, is a `Change`. Inside it the caller edits
``change.inode`` and the tree, and reports what happens to blocks (`maps`, `unmap`, `remaps`). At the end the inode gets
its times. Only if nothing has failed, the file's node, if there is one, learns of all that was reported.

    with volume.handle(CREDITS, caller) as tx, Change(volume, tx, ino) as change:
        run = mapping.allocate(tx, change.inode, lblk, count, unwritten=True)
        change.maps(run)
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from daxfs.fs import clock
from daxfs.fs.nodes import END
from daxfs.runs import ByteRange
from daxfs.structures import inodes, mapping
from daxfs.structures.extent_tree import MAX_BLOCKS

if TYPE_CHECKING:
    from daxfs.fs.volume import Volume
    from daxfs.journal.handle import Handle
    from daxfs.structures.blocks import GroupBound
    from daxfs.structures.mapping import Extent

RUNS_DEFERRED = 32
"""The most runs that one change frees of a file whose blocks clients may touch: deferring them is an insertion each."""


class Change:
    """A change of the file ``inode`` in the handle ``tx``; the innermost ``with`` of that handle.

    Attributes:
        inode: the inode, for the caller to edit.
        dated: whether mtime and ctime change, as they do with content or size.
    """

    __slots__ = ("_advanced", "_lowest", "_remapped", "_runs", "_tx", "_unmapped", "_volume", "dated", "inode")

    def __init__(self, volume: Volume, tx: Handle, ino: int, *, dated: bool = True) -> None:
        self._volume = volume
        self._tx = tx
        self.inode = inodes.edit(tx, ino)
        self.dated = dated
        self._runs: list[Extent] = []
        self._lowest = MAX_BLOCKS  # logical block of the first that is written now
        self._unmapped: list[ByteRange] = []
        self._advanced: ByteRange | None = None
        self._remapped = False

    def maps(self, run: Extent) -> None:
        """Report that the file has these blocks, in this state: they were allocated or converted."""
        self._runs.append(run)
        if not run.unwritten and run.lblk < self._lowest:
            self._lowest = run.lblk

    def preallocates(self, runs: Iterable[Extent]) -> None:
        """Report that the file has these blocks, which are unwritten, however many they are."""
        self._runs.extend(runs)

    def unmap(self, first: int, last: int | None, *, limit: int | None = None) -> bool:
        """Free the blocks [first, last] (None: all from ``first`` on), the last ones first.

        Blocks that clients may touch become free later (`BlockNotifier.defer_frees`, `CREDITS_QUARANTINE`).

        Args:
            first: logical block.
            last: logical block.
            limit: about how many runs to free at most (`mapping.remove`); None: all.

        Returns:
            Whether no block of the range is left.
        """
        volume, tx = self._volume, self._tx
        mark = len(tx.frees)
        node = volume.nodes.open.get(self.inode.number)
        if limit is not None and (volume.notifier.stale or (node is not None and node.grants is not None)):
            limit = min(limit, RUNS_DEFERRED)
        finished = mapping.remove(tx, self.inode, first, last, limit=limit)
        volume.notifier.defer_frees(tx, self.inode.number, mark)
        if finished:
            bits = volume.block_bits
            self._unmapped.append(ByteRange(first << bits, END if last is None else last + 1 << bits))
        else:
            self._remapped = True
        return finished

    def replace(self, first: int, last: int, groups: GroupBound, *, align: int) -> list[Extent]:
        """Give the file new blocks, which the caller fills, in the place of [first, last] (`mapping.reallocate`)."""
        volume, tx, bits = self._volume, self._tx, self._volume.block_bits
        mark = len(tx.frees)
        found = mapping.reallocate(tx, self.inode, first, last, groups, align=align)
        volume.notifier.defer_frees(tx, self.inode.number, mark)
        self._unmapped.append(ByteRange(first << bits, last + 1 << bits))
        self._runs += found
        self._lowest = min(self._lowest, first)
        return found

    def move(self, first: int, last: int, new: list[Extent]) -> None:
        """Put blocks with the same content in the place of [first, last] (`mapping.replace`)."""
        volume, tx, bits = self._volume, self._tx, self._volume.block_bits
        mark = len(tx.frees)
        mapping.replace(tx, self.inode, first, last, new)
        volume.notifier.defer_frees(tx, self.inode.number, mark)
        self._unmapped.append(ByteRange(first << bits, last + 1 << bits))
        self._runs += new

    def remaps(self) -> None:
        """Report that blocks have moved within the file."""
        self._remapped = True

    def advance_eof(self, begin: int, size: int) -> bool:
        """Move EOF from ``begin`` to ``size``, both multiples of the block size, over unwritten blocks.

        The blocks become the end of the written run before them. False: the tree does not allow it, and nothing has
        changed.
        """
        bits = self._volume.block_bits
        if not mapping.move_border(self._tx, self.inode, begin >> bits, size - begin >> bits):
            return False
        self.inode.size = size
        self._advanced = ByteRange(begin, size)
        return True

    def __enter__(self) -> Change:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        inode = self.inode
        if self.dated:
            inode.set_changed(clock.now())
        mapping.normalize_tail(self._tx, inode)
        if self._volume.faults[0]:
            return  # the handle is about to be undone
        node = self._volume.nodes.open.get(inode.number)
        if node is None:
            return
        before, bits = node.size, self._volume.block_bits
        if self._remapped:
            node.remapped()
        for begin, end in self._unmapped:
            node.unmapped(begin, end)
        if self._advanced is not None and node.map is not None and not node.map.move_border(*self._advanced):
            node.remapped()
        if self._runs:
            node.mapped(self._runs)
        if self.dated:
            node.changed(inode.size)
        if self._lowest << bits < before:
            node.holes_filled()
