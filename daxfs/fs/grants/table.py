"""All grants of one volume, and how they follow what happens to files.

The other modules of this package work on `Grants`. It is the volume's notifier, so that changes of blocks and sizes
reach the grants from wherever they are made.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from daxfs.fs import appends, data
from daxfs.fs.filemap import FileMap
from daxfs.fs.grants.epochs import Epochs
from daxfs.fs.grants.inode_grants import InodeGrants
from daxfs.fs.grants.recall import PATIENCE_SECONDS, Recalls
from daxfs.fs.grants.status_page import Retired, StatusPage

if TYPE_CHECKING:
    from daxfs.fs.nodes import Node
    from daxfs.fs.openfile import OpenFile
    from daxfs.fs.steps import Steps
    from daxfs.fs.types import PoolIdentity
    from daxfs.fs.volume import Volume
    from daxfs.journal.handle import Handle


class Grants:
    """The grants of one volume.

    Attributes:
        volume: the volume.
        page: its status page.
        retired: old status pages, each with the epoch in which it was replaced.
        epochs: its deferred frees.
        by_ino: inode number -> grants, of all granted files.
        holders: the number of holders, of all files.
        recalls: the recalls that run.
        last_logged: kind of message -> when it was logged last (`waiting.py`), in seconds of the monotonic clock.
        identity: the answer to a client that asks for the pool; kept after the first time, since it takes system calls.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.page = StatusPage(volume)
        self.retired: dict[Retired, int] = {}
        self.epochs = Epochs(volume)
        self.by_ino: dict[int, InodeGrants] = {}
        self.holders = 0
        self.recalls = Recalls(self.by_ino, self.epochs, volume.block_size)
        self.last_logged: dict[str, float] = {}
        self.identity: PoolIdentity | None = None

    # The volume's notifier (`daxfs.fs.notifiers.BlockNotifier`)

    @property
    def stale(self) -> bool:
        """Whether clients of an earlier mount may touch anything that was in the pool then."""
        return self.epochs.stale

    def defer_frees(self, tx: Handle, ino: int, mark: int) -> None:
        """Defer those of the blocks that a handle has freed that clients may touch."""
        self.epochs.defer_frees(tx, self.by_ino.get(ino), mark)

    def end_preallocation(self, ino: int) -> None:
        """Free what a client was granted past EOF, before another operation extends, cuts or shifts the file.

        A client that goes on storing past EOF must not store into what others write there.
        """
        if self.epochs.stale:
            self.detach_past_eof(ino)
        grants = self.by_ino.get(ino)
        if grants is not None and grants.preallocated.runs:
            self._free_preallocated(grants)

    def renumbered(self, ino: int, new: int) -> None:
        """Have the grants of an inode follow its new number. Nobody recalls any of them."""
        self.epochs.renumbered(ino, new)
        grants = self.by_ino.pop(ino, None)
        if grants is not None:
            self.by_ino[new] = grants
            grants.renumbered()

    def bump_all_epochs(self) -> None:
        """Begin a new epoch for all files: the volume became read-only, and clients that may store must ask again."""
        for grants in self.by_ino.values():
            grants.bump_epoch()

    def follow_size(self) -> None:
        """Tell clients that ask for the pool its new size, and where its token lies."""
        self.identity = None

    def vacate_page(self, end: int) -> Steps[None]:
        """Have no status entry from the block ``end`` of the pool on, where nothing is taken.

        Files get other entries, and clients learn of them when they look. One that has not looked for
        `PATIENCE_SECONDS` may read its old entry at any time: the old page stays until it has looked, or has closed the
        file (`free_retired`).

        Raises:
            FsError: ENOSPC: the entries stay.
        """
        if not self.page.reaches(end):
            return
        old = self.page.renew(len(self.by_ino))
        self.retired[old] = next(self.epochs.numbers)
        for grants in self.by_ino.values():
            if grants.entry:
                grants.move_entry(self.page.allocate())
        self.follow_size()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.free_retired() and time.monotonic() < deadline:
            yield

    def free_retired(self) -> bool:
        """Free the old pages that no client reads any longer; return whether that is all of them."""
        for old, epoch in tuple(self.retired.items()):
            if all(grants.held_since() > epoch for grants in self.by_ino.values()):
                del self.retired[old]
                self.page.free_retired(old)
        return not self.retired

    def end_all_epochs(self) -> None:
        """Show the last epoch in every status entry, and store to no entry after that: the pool has another owner."""
        for grants in self.by_ino.values():
            grants.end_epochs()
            grants.entry = 0

    # Holders

    def add_inode(self, node: Node) -> InodeGrants:
        """Return new, empty grants for an inode.

        Raises:
            FsError: ENOSPC, there is no room for a status entry.
        """
        if node.window:
            appends.end(self.volume, node)
        entry = self.page.allocate() if not self.volume.read_only else 0
        grants = self.by_ino[node.ino] = InodeGrants(self.volume, node, entry, self.epochs.numbers)
        node.grants = grants
        return grants

    def renew(self, grants: InodeGrants, file: OpenFile, holder: int, *, extends: bool) -> None:
        """Remove a holder that no longer uses what it was granted, and free what was deferred for it.

        ``extends``: the holder continues an extending write, so that its preallocation stays.
        """
        extender_left = self._remove_holder(grants, file, holder)
        try:
            if extender_left and not extends:
                self.end_preallocation(grants.node.ino)
            self.epochs.release(grants)
        except BaseException:
            self.end_if_unheld(grants)
            raise

    def end_if_unheld(self, grants: InodeGrants) -> None:
        """End the grants if they have no holder left, after a renewed holder was refused or its renewal failed."""
        if not grants.holders:
            self._end(grants)
            self.epochs.release(grants)

    def leave(self, file: OpenFile, holder: int | None = None) -> None:
        """Remove a holder, or all holders of an open file (None). With the last holder the grants end."""
        grants = self.by_ino.get(file.ino)
        if grants is None:
            return
        mapped = len(grants.through_kernel)
        extender_left = self._remove_holder(grants, file, holder)
        try:
            if extender_left:
                self.end_preallocation(grants.node.ino)
        finally:
            if not grants.holders:
                self._end(grants)
            elif len(grants.through_kernel) != mapped:
                grants.bump_epoch()
            self.epochs.release(grants)

    def detach_past_eof(self, ino: int) -> None:
        """Take from a file, before a client extends it, the blocks past EOF that stale clients may touch."""
        if not self.epochs.detach_past_eof(ino):
            return
        grants = self.by_ino.get(ino)
        if grants is not None:
            grants.preallocated = FileMap()
            grants.bump_epoch()

    # The end of the mount, and of an earlier one's clients

    def end_mount(self) -> None:
        """Show the last epoch in every status entry, and count programs that still map the pool as stale clients.

        What they may touch stays in nameless inodes, which the next mount frees. A client that has closed all files has
        nothing to touch, even if it keeps the pool mapped.
        """
        for grants in self.by_ino.values():
            grants.end_epochs()
        self.epochs.stale = self.epochs.stale or (bool(self.by_ino) and self.volume.pool.mapped_elsewhere())

    def reclaim(self) -> bool:
        """Free old status pages, and what is deferred for stale clients if the last of them is gone (a reclaimer).

        Returns:
            Whether the last stale client is gone since the last call.
        """
        self.free_retired()
        return self.epochs.reclaim(self.by_ino.values(), self._pages)

    @property
    def _pages(self) -> set[int]:
        """The inodes of the status page and of old ones."""
        return {self.page.ino, *(old.ino for old in self.retired)} - {0}

    def check(self) -> None:
        """Compare all grants with each other, the inodes and the status page; for tests, between two operations.

        Raises:
            AssertionError: they do not agree.
        """
        lives, nodes = self.volume.lives, self.volume.nodes
        for ino, grants in self.by_ino.items():
            assert nodes.open.get(ino) is grants.node
            grants.check()
        granted = {ino for ino, node in nodes.open.items() if node.grants is not None}
        assert granted == self.by_ino.keys()
        assert self.holders == sum(grants.all_holders for grants in self.by_ino.values())
        waiting = [each for grants in self.by_ino.values() for each in grants.deferred]
        assert self.epochs.deferred == sum(each.size for each in waiting)
        held = [each.ino for each in waiting]
        assert len(held) == len(set(held)), held
        assert set(held) <= lives.quarantine
        if not self.stale:
            assert lives.quarantine == {*held, *self._pages}

    def _remove_holder(self, grants: InodeGrants, file: OpenFile, holder: int | None) -> bool:
        """Remove a holder, or all of an open file; return whether the extender left, whose preallocation must end."""
        extender = grants.extender
        self.holders -= grants.remove_holder(file, holder)
        if not grants.holders:
            grants.granted.cut(0, self.volume.pool.size)
        return grants.extender != extender and not self.volume.read_only

    def _end(self, grants: InodeGrants) -> None:
        del self.by_ino[grants.node.ino]
        grants.node.grants = None
        if grants.entry:
            self.page.free(grants.entry)

    def _free_preallocated(self, grants: InodeGrants) -> None:
        """Free what the extender was granted past EOF. If that fails, what still has its blocks stays recorded."""
        node, bits = grants.node, self.volume.block_bits
        first = node.size + self.volume.block_size - 1 >> bits
        runs = [(max(begin >> bits, first), (end >> bits) - 1) for begin, end, _, _ in grants.preallocated.runs]
        preallocated, grants.preallocated = grants.preallocated, FileMap()
        try:
            for low, high in reversed(runs):
                if low <= high:
                    self.epochs.free_past_eof(node.ino, low, high)
            grants.extender = None
        finally:
            if grants.extender is not None:
                self._keep_mapped(grants, preallocated)
            grants.bump_epoch()

    def _keep_mapped(self, grants: InodeGrants, preallocated: FileMap) -> None:
        """Record again those of the preallocated bytes that still have their blocks."""
        for begin, end, _, _ in preallocated.runs:
            for low, high, _, unwritten in data.pieces(self.volume, grants.node, begin, end):
                if unwritten:
                    grants.preallocated.put(low, high, 0, False)
