"""All grants of one volume, and what becomes of them when something happens to files.

`Grants` is what the rest of this package works on. It is the volume's notifier, so that changes of blocks and lengths
reach the grants from wherever they are made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.fs import data
from daxfs.fs.filemap import FileMap
from daxfs.fs.grants.epochs import Epochs
from daxfs.fs.grants.inode_grants import InodeGrants
from daxfs.fs.grants.recall import Recalls
from daxfs.fs.grants.status_page import StatusPage

if TYPE_CHECKING:
    from daxfs.fs.data import OpenFile
    from daxfs.fs.nodes import Node
    from daxfs.fs.types import PoolIdentity
    from daxfs.fs.volume import Volume
    from daxfs.journal.transaction import Handle


class Grants:
    """The grants of one volume.

    Attributes:
        volume: whose.
        page: the status page.
        epochs: what is freed when.
        by_ino: the granted inodes.
        holders: how many there are, of all files.
        recalls: those under way.
        said: when the log last spoke of what waits (`waiting.py`), in seconds of the monotonic clock.
        identity: the answer to a client that asks for the pool, once one has asked (the path takes a few system calls).
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.page = StatusPage(volume)
        self.epochs = Epochs(volume)
        self.by_ino: dict[int, InodeGrants] = {}
        self.holders = 0
        self.recalls = Recalls(self.by_ino, self.epochs, volume.block_size)
        self.said: dict[str, float] = {}
        self.identity: PoolIdentity | None = None

    # The volume's notifier (`daxfs.fs.notifiers.BlockNotifier`)

    @property
    def stale(self) -> bool:
        """Clients of an earlier mount may touch anything that was in the pool then."""
        return self.epochs.stale

    def freed(self, tx: Handle, ino: int, mark: int) -> None:
        """The handle has freed blocks of a file: what clients may touch waits."""
        self.epochs.freed(tx, self.by_ino.get(ino), mark)

    def before_growth(self, ino: int) -> None:
        """The file is about to be made longer other than by a client, cut or shifted: its growth by a client ends.

        A client that goes on storing past EOF must not store into what others write there.
        """
        if self.epochs.stale:
            self.detach(ino)
        grants = self.by_ino.get(ino)
        if grants is not None and grants.growth.runs:
            self._end_growth(grants)

    def invalidated(self) -> None:
        """The volume became read-only: clients that may store must ask again."""
        for grants in self.by_ino.values():
            grants.invalidated()

    def disowned(self) -> None:
        """The pool has another owner: each status entry gets a last word, and no entry is stored to after that."""
        for grants in self.by_ino.values():
            grants.ended()
            grants.entry = 0

    # Holders

    def begin(self, node: Node) -> InodeGrants:
        """The first holder of an inode is about to join; ENOSPC when there is no room for its status entry."""
        entry = self.page.take() if not self.volume.read_only else 0
        grants = self.by_ino[node.ino] = InodeGrants(self.volume, node, entry, self.epochs.numbers)
        node.grants = grants
        return grants

    def renew(self, grants: InodeGrants, file: OpenFile, holder: int, *, grows: bool) -> None:
        """A holder uses nothing any more that it was granted before, and joins again; what waited for it is freed.

        ``grows``: it goes on to make the file longer by itself.
        """
        grower_left = self._left(grants, file, holder)
        try:
            if grower_left and not grows:
                self.before_growth(grants.node.ino)
            self.epochs.release(grants)
        except BaseException:
            self.end_if_unheld(grants)
            raise

    def end_if_unheld(self, grants: InodeGrants) -> None:
        """A holder that has renewed was refused, or its renewal failed: if it was the last, the grants end."""
        if not grants.holders:
            self._end(grants)
            self.epochs.release(grants)

    def leave(self, file: OpenFile, holder: int | None = None) -> None:
        """A holder, or all of an open file, use nothing any more. With the last holder the grants end."""
        grants = self.by_ino.get(file.ino)
        if grants is None:
            return
        mapped = len(grants.through_kernel)
        grower_left = self._left(grants, file, holder)
        try:
            if grower_left:
                self.before_growth(grants.node.ino)
        finally:
            if not grants.holders:
                self._end(grants)
            elif len(grants.through_kernel) != mapped:
                grants.invalidated()
            self.epochs.release(grants)

    def detach(self, ino: int) -> None:
        """A client is about to make the file longer: none of what stale clients may touch becomes part of it."""
        if not self.epochs.detach(ino):
            return
        grants = self.by_ino.get(ino)
        if grants is not None:
            grants.growth = FileMap()
            grants.invalidated()

    # The end of the mount, and of an earlier one's clients

    def part(self) -> None:
        """The daemon ends: no answer holds any more, and programs that still map the pool are stale clients.

        What they may touch stays where it is, nameless, for the next mount to free. A client that has closed all files
        has nothing to touch, even if it keeps the pool mapped.
        """
        for grants in self.by_ino.values():
            grants.ended()
        self.epochs.stale = self.epochs.stale or (bool(self.by_ino) and self.volume.pool.mapped_elsewhere())

    def reclaim(self) -> bool:
        """Free what waits for stale clients if the last of them is gone; whether it is (reclaimer)."""
        return self.epochs.reclaim(self.by_ino.values(), self.page.ino)

    def check(self) -> None:
        """Hold all grants against each other, the inodes and the status page, for tests, between two operations.

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
            assert lives.quarantine == {*held, *([self.page.ino] if self.page.ino else [])}

    def _left(self, grants: InodeGrants, file: OpenFile, holder: int | None) -> bool:
        """A holder, or all of an open file, use nothing any more; whether the grower left, whose growth must end."""
        grower = grants.grower
        self.holders -= grants.left(file, holder)
        if not grants.holders:
            grants.granted.cut(0, self.volume.pool.size)
        return grants.grower != grower and not self.volume.read_only

    def _end(self, grants: InodeGrants) -> None:
        del self.by_ino[grants.node.ino]
        grants.node.grants = None
        if grants.entry:
            self.page.give(grants.entry)

    def _end_growth(self, grants: InodeGrants) -> None:
        """Free what the grower was granted past EOF. If that fails it keeps what is left, for the next to find."""
        node, bits = grants.node, self.volume.block_bits
        first = node.size + self.volume.block_size - 1 >> bits
        runs = [(max(begin >> bits, first), (end >> bits) - 1) for begin, end, _, _ in grants.growth.runs]
        growth, grants.growth = grants.growth, FileMap()
        try:
            for low, high in reversed(runs):
                if low <= high:
                    self.epochs.cut(node.ino, low, high)
            grants.grower = None
        finally:
            if grants.grower is not None:
                self._keep_mapped(grants, growth)
            grants.invalidated()

    def _keep_mapped(self, grants: InodeGrants, growth: FileMap) -> None:
        """Of what was granted past EOF that stays which still has its blocks."""
        for begin, end, _, _ in growth.runs:
            for low, high, _, unwritten in data.pieces(self.volume, grants.node, begin, end):
                if unwritten:
                    grants.growth.put(low, high, 0, False)
