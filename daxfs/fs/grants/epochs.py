"""Epoch-based reclamation: when the blocks that files give up become free.

A client that knows where a file lies loads and stores there without asking. So the runs that a handle frees are checked
against what holders were granted: granted runs are not freed, but mapped into a *quarantine inode*, which only holds
blocks. It has no name, and is on the disk's orphan list from that transaction on, so that recovery frees it in any
case. The daemon frees it when no holder is left that has not renewed since that epoch.

While there are *stale clients*, which map the pool since an earlier mount, nobody knows what they may touch. Every free
is then deferred, until the last stale client has closed the pool.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from itertools import count
from typing import TYPE_CHECKING

from daxfs.fs import removal, truncating
from daxfs.fs.change import Change
from daxfs.fs.grants.inode_grants import DeferredFree, InodeGrants
from daxfs.fs.grants.status_page import new_quarantine_inode
from daxfs.protocol import READER_LOCKS
from daxfs.runs import BlockRun
from daxfs.structures import blocks, inodes, mapping
from daxfs.structures.mapping import Extent

if TYPE_CHECKING:
    from daxfs.fs.volume import Volume
    from daxfs.journal.handle import Handle

FEW_BLOCKS = 64
"""Fewer free blocks than this count as none: deferring a free must not fail because the pool is full."""
RUNS_INSIDE = 4
"""Runs that fit into the inode itself."""
MAX_DEFERRED = 8
"""Quarantine inodes of one file; later deferred frees join the last one."""


class Epochs:
    """The epochs, quarantine inodes and stale clients of one volume.

    Attributes:
        numbers: the numbers of future epochs, of all files.
        lock: which byte of the pool this mount's clients lock (`Pool.mapped_elsewhere`).
        deferred: bytes of all files that are freed only after holders have renewed.
        stale: whether there are stale clients.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        # Random: a client that outlives its daemon must not mistake the next daemon's epochs for those it knows.
        self.numbers = count(secrets.randbits(48) + 1)
        self.lock = secrets.randbelow(READER_LOCKS) | (READER_LOCKS if volume.read_only else 0)
        self.deferred = 0
        self.stale = False
        self._stale_inode = 0  # what only stale clients may touch; one inode, since all of it is freed at once
        self._detached: set[int] = set()  # files without blocks past EOF that stale clients may touch

    def defer_frees(self, tx: Handle, grants: InodeGrants | None, mark: int) -> None:
        """Defer those of the runs in ``tx.frees`` from ``mark`` on that clients may touch.

        Args:
            tx: the handle that freed the runs. A rollback of it undoes everything.
            grants: those of the file that the runs belonged to; None: the file has none.
            mark: index in ``tx.frees`` of the first run.
        """
        if grants is None and not self.stale:
            return
        runs = self._withheld(tx, mark, grants)
        if not runs:
            return
        if blocks.free_blocks(tx) < FEW_BLOCKS:
            for first in range(0, len(runs), RUNS_INSIDE):
                self._defer(tx, grants, 0, runs[first : first + RUNS_INSIDE])
        else:
            self._defer(tx, grants, self._reusable(grants), runs)

    def release(self, grants: InodeGrants) -> None:
        """Free what the file gave up in epochs that no remaining holder has."""
        if not grants.deferred:
            return
        volume, since = self._volume, grants.held_since()
        while grants.deferred and grants.deferred[0].epoch < since:
            first = grants.deferred.pop(0)
            self.deferred -= first.size
            volume.lives.released(first.ino)
            removal.begin(volume, first.ino)

    # Stale clients

    def detach_past_eof(self, ino: int) -> bool:
        """Take all blocks past EOF from a file before an extending write, if there are stale clients.

        A stale client may have been granted those blocks for its own extending write, and may still try to append
        there. The blocks are deferred, and with them what other programs have preallocated there.

        Returns:
            Whether blocks were looked for; False: there are no stale clients, or the file was detached before.
        """
        if not self.stale or ino in self._detached:
            return False
        size = inodes.read(self._volume.view, ino).size
        self.free_past_eof(ino, size + self._volume.block_size - 1 >> self._volume.block_bits, None)
        self._detached.add(ino)
        return True

    def renumbered(self, ino: int, new: int) -> None:
        """A file has another number."""
        if ino in self._detached:
            self._detached.discard(ino)
            self._detached.add(new)

    def free_past_eof(self, ino: int, first: int, last: int | None) -> None:
        """Free the blocks [first, last] past EOF of a file, in as many handles as it takes."""
        volume, finished = self._volume, False
        while not finished:
            with volume.handle(truncating.CREDITS_CUT) as tx, Change(volume, tx, ino, dated=False) as change:
                finished = change.unmap(first, last, limit=truncating.BLOCKS_PER_CUT)

    def reclaim(self, all_grants: Iterable[InodeGrants], pages: set[int]) -> bool:
        """Free what is deferred for stale clients if the last of them is gone; return whether it is (a reclaimer).

        Args:
            all_grants: those of the volume.
            pages: the inodes of the status page and of old ones.
        """
        volume = self._volume
        if not self.stale or volume.pool.mapped_elsewhere(self.lock):
            return False
        self.stale = False
        self._stale_inode = 0
        self._detached.clear()
        held = {each.ino for grants in all_grants for each in grants.deferred} | pages
        for ino in tuple(volume.lives.quarantine - held):
            volume.lives.released(ino)
        removal.collect_all(volume)
        return True

    # How blocks are deferred

    def _withheld(self, tx: Handle, mark: int, grants: InodeGrants | None) -> list[BlockRun]:
        """Take the runs that must be deferred out of ``tx.frees`` from ``mark`` on, and return them."""
        freed = tx.frees[mark:]
        if self.stale or grants is None:
            del tx.frees[mark:]
            return freed
        bits = self._volume.block_bits
        kept: list[BlockRun] = []
        free: list[BlockRun] = []
        for start, length in freed:
            position, end = start, start + length
            for begin, stop, _, _ in grants.granted.within(start << bits, end << bits):
                low, high = begin >> bits, stop >> bits
                if low > position:
                    free.append(BlockRun(position, low - position))
                kept.append(BlockRun(low, high - low))
                position = high
            if position < end:
                free.append(BlockRun(position, end - position))
        tx.frees[mark:] = free
        return kept

    def _defer(self, tx: Handle, grants: InodeGrants | None, number: int, runs: list[BlockRun]) -> None:
        """Map the runs into quarantine inode ``number`` (0: a new one), and record the deferred free."""
        volume = self._volume
        bits = volume.block_bits
        inode = inodes.edit(tx, number) if number else new_quarantine_inode(tx)
        for start, length in runs:
            mapping.insert(tx, inode, Extent(inode.size >> bits, start, length, False))
            inodes.add_blocks(inode, length, tx.geometry)
            inode.size += length << bits
        volume.lives.quarantined(tx, inode.number)
        if grants is None:
            self._keep_for_stale(tx, inode.number)
            return
        before, granted = grants.deferred, grants.granted.copy()
        size = sum(length for _, length in runs) << bits

        def undo() -> None:
            grants.deferred, grants.granted = before, granted
            self.deferred -= size

        tx.on_rollback(undo)
        self.deferred += size
        for start, length in runs:
            grants.granted.cut(start << bits, start + length << bits)
        kept, joins = (before[:-1], before[-1].size) if number else (before[:], 0)
        grants.deferred = [*kept, DeferredFree(grants.epoch, inode.number, size + joins)]

    def _keep_for_stale(self, tx: Handle, number: int) -> None:
        before = self._stale_inode

        def undo() -> None:
            self._stale_inode = before

        tx.on_rollback(undo)
        self._stale_inode = number

    def _reusable(self, grants: InodeGrants | None) -> int:
        """Return the quarantine inode that more deferred frees may join; 0: a new one is needed.

        That is the file's last one, if joining it delays no free beyond its own epoch, or if the file has many already.
        """
        if grants is None:
            return self._stale_inode if self._stale_inode in self._volume.lives.quarantine else 0
        if not grants.deferred:
            return 0
        last = grants.deferred[-1]
        return last.ino if last.epoch == grants.epoch or len(grants.deferred) >= MAX_DEFERRED else 0
