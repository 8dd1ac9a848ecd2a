"""Recall: taking back what clients were granted of a range of a file, before its blocks are moved or replaced.

A recall ends the epoch, so that each client sees in its next operation that it must ask again, and refuses new grants
of the range (EAGAIN: clients go through the kernel meanwhile). It is *clear* when every holder has renewed or is gone;
then nobody but the daemon touches the range, until the recall is ended. A holder that has not renewed within
`PATIENCE_SECONDS`, because it sleeps or because a mapping of its process stores without asking, counts as *mapped*:
grants resume, and the range is taken for mapped by that holder until it renews (`Recalls.mapped_by`). Stale clients
can't renew: while there are any, a recall is mapped at once. Holders of a read-only volume can't be told: they count as
mapped after that time.

Nobody waits here. The caller looks at `Recall.state` between other work::

    with grants.recalls.begin(ino, begin, end) as recall:
        while recall.state() is State.WAITING:
            ...  # other requests are served
        if recall.state() is State.CLEAR:
            ...  # the blocks can be moved

A recall that is clear stays so until it ends, at the price that the range goes through the kernel.
"""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daxfs.fs.grants.epochs import Epochs
    from daxfs.fs.grants.inode_grants import Holder, InodeGrants

PATIENCE_SECONDS = 1.0
"""How long a recall waits for a holder that does not renew."""


class State(Enum):
    """Where a recall is."""

    WAITING = "some holder has not renewed yet"
    CLEAR = "no client touches the range"
    MAPPED = "some client may go on touching the range; grants resume"
    ENDED = "the caller is done"


class Recall:
    """The recall of the bytes [begin, end) of a file, whole blocks. A context manager, which ends it.

    Attributes:
        ino: of the file.
        begin: first byte.
        end: the byte after the last.
        mapped: in `State.MAPPED` the holders that did not renew in time; none of them if they are stale clients.
    """

    def __init__(self, recalls: Recalls, ino: int, begin: int, end: int) -> None:
        """`Recalls.begin` makes them."""
        self.ino = ino
        self.begin = begin
        self.end = end
        self.mapped: tuple[Holder, ...] = ()
        self._recalls = recalls
        self._deadline = time.monotonic() + PATIENCE_SECONDS
        self._epoch = 0
        self._state = State.WAITING
        grants = recalls.by_ino.get(ino)
        if grants is not None:
            grants.invalidated()
            self._epoch = grants.epoch
        if recalls.epochs.stale:
            self._state = State.MAPPED
        else:
            recalls.add(self)

    def state(self) -> State:
        """Where it is now."""
        if self._state is State.WAITING:
            late = self._late()
            if not late:
                self._state = State.CLEAR
            elif time.monotonic() >= self._deadline:
                self._state = State.MAPPED
                self.mapped = tuple(late)
                for holder in late:
                    self._recalls.by_ino[self.ino].unrenewed.setdefault(holder, []).append((self.begin, self.end))
                self._recalls.remove(self)
        return self._state

    def refuses(self, begin: int, end: int) -> bool:
        """Whether bytes of [begin, end) can't be granted now."""
        return begin < self.end and self.begin < end and self.state() in {State.WAITING, State.CLEAR}

    def __enter__(self) -> Recall:
        return self

    def __exit__(self, *_: object) -> None:
        if self._state in {State.WAITING, State.CLEAR}:
            self._recalls.remove(self)
        self._state = State.ENDED

    def _late(self) -> list[Holder]:
        """The holders that have not renewed since the recall began."""
        grants = self._recalls.by_ino.get(self.ino)
        if grants is None:
            return []
        if not grants.entry:
            return [holder for holder, _ in grants.each_holder()]  # granted on a read-only volume: nothing tells them
        return [holder for holder, since in grants.each_holder() if since < self._epoch]


class Recalls:
    """The recalls under way in one volume.

    Attributes:
        by_ino: the grants of all files.
        epochs: which know of stale clients.
    """

    def __init__(self, by_ino: dict[int, InodeGrants], epochs: Epochs, block_size: int) -> None:
        self.by_ino = by_ino
        self.epochs = epochs
        self._block_size = block_size
        self._running: dict[int, list[Recall]] = {}

    def begin(self, ino: int, begin: int, end: int) -> Recall:
        """Begin to take back all grants of the blocks that bytes [begin, end) of a file lie in.

        The caller has the file open until the recall has ended, so that its number does not become another's.
        """
        return Recall(self, ino, begin & -self._block_size, end + -end % self._block_size)

    def refuse(self, ino: int, begin: int, end: int) -> bool:
        """Whether bytes of [begin, end) can't be granted now."""
        running = self._running.get(ino)
        return running is not None and any(each.refuses(begin, end) for each in tuple(running))

    def mapped_by(self, ino: int, begin: int, end: int) -> list[Holder]:
        """The holders that may still store into bytes of [begin, end), since they did not renew when they should."""
        grants = self.by_ino.get(ino)
        if grants is None:
            return []
        late = grants.unrenewed.items()
        return [holder for holder, parts in late if any(low < end and begin < high for low, high in parts)]

    def add(self, recall: Recall) -> None:
        """It has begun: it refuses new grants."""
        self._running.setdefault(recall.ino, []).append(recall)

    def remove(self, recall: Recall) -> None:
        """It refuses no more."""
        running = self._running[recall.ino]
        running.remove(recall)
        if not running:
            del self._running[recall.ino]
