"""Recall: taking back what clients were granted of a range of a file, before its blocks are moved or replaced.

A recall ends the epoch, so that each client asks again in its next operation, and refuses new grants of the range
(EAGAIN: clients go through the kernel meanwhile). It is *clear* when every holder has renewed or is gone. From then on
only the daemon touches the range, until the recall ends. A holder that has not renewed within `PATIENCE_SECONDS`,
because it sleeps or because its process stores through a mapping, counts as *mapped*: grants resume, and the range
counts as mapped by that holder until it renews (`Recalls.mapped_by`). Stale clients can't renew: while there are any, a
recall is mapped at once. Holders of a read-only volume have no status entry that could tell them: they count as mapped
after that time.

Nothing here waits. The caller looks at `Recall.state` between other work::

    with grants.recalls.begin(ino, begin, end) as recall:
        while recall.state() is State.WAITING:
            ...  # other requests are served
        if recall.state() is State.CLEAR:
            ...  # the blocks can be moved

A clear recall stays clear until it ends. Until then clients access the range through the kernel.
"""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING

from daxfs.runs import ByteRange

if TYPE_CHECKING:
    from daxfs.fs.grants.epochs import Epochs
    from daxfs.fs.grants.inode_grants import Holder, InodeGrants

PATIENCE_SECONDS = 1.0
"""How long a recall waits for a holder that does not renew."""


class State(Enum):
    """The state of a recall."""

    WAITING = "some holder has not renewed yet"
    CLEAR = "no client touches the range"
    MAPPED = "some client may go on touching the range; grants resume"
    ENDED = "the caller is done"


class Recall:
    """The recall of the bytes [begin, end) of a file, whole blocks. As a context manager it ends the recall.

    Attributes:
        ino: the file's inode number.
        begin: first byte.
        end: the byte after the last.
        mapped: in `State.MAPPED` the holders that did not renew in time; empty if the recall is mapped for stale
            clients.
    """

    def __init__(self, recalls: Recalls, ino: int, begin: int, end: int) -> None:
        """Begin the recall; `Recalls.begin` calls this."""
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
            grants.bump_epoch()
            self._epoch = grants.epoch
        if recalls.epochs.stale:
            self._state = State.MAPPED
        else:
            recalls.add(self)

    def state(self) -> State:
        """Return the state as of now."""
        if self._state is State.WAITING:
            late = self._late()
            if not late:
                self._state = State.CLEAR
            elif time.monotonic() >= self._deadline:
                self._state = State.MAPPED
                self.mapped = tuple(late)
                unrenewed = self._recalls.by_ino[self.ino].unrenewed
                for holder in late:
                    unrenewed.setdefault(holder, []).append(ByteRange(self.begin, self.end))
                self._recalls.remove(self)
        return self._state

    def refuses(self, begin: int, end: int) -> bool:
        """Return whether bytes of [begin, end) can't be granted now because of this recall."""
        return begin < self.end and self.begin < end and self.state() in {State.WAITING, State.CLEAR}

    def __enter__(self) -> Recall:
        return self

    def __exit__(self, *_: object) -> None:
        if self._state in {State.WAITING, State.CLEAR}:
            self._recalls.remove(self)
        self._state = State.ENDED

    def _late(self) -> list[Holder]:
        """Return the holders that have not renewed since the recall began."""
        grants = self._recalls.by_ino.get(self.ino)
        if grants is None:
            return []
        if not grants.entry:
            return [holder for holder, _ in grants.each_holder()]  # read-only: no entry shows a new epoch
        return [holder for holder, since in grants.each_holder() if since < self._epoch]


class Recalls:
    """The recalls that run in one volume.

    Attributes:
        by_ino: inode number -> grants, of all granted files.
        epochs: the volume's; it knows whether there are stale clients.
    """

    def __init__(self, by_ino: dict[int, InodeGrants], epochs: Epochs, block_size: int) -> None:
        self.by_ino = by_ino
        self.epochs = epochs
        self._block_size = block_size
        self._running: dict[int, list[Recall]] = {}

    def begin(self, ino: int, begin: int, end: int) -> Recall:
        """Begin to take back all grants of the blocks that contain the bytes [begin, end) of a file.

        The caller keeps the file open until the recall has ended, so that the inode number stays the file's.
        """
        return Recall(self, ino, begin & -self._block_size, end + -end % self._block_size)

    def refuse(self, ino: int, begin: int, end: int) -> bool:
        """Return whether bytes of [begin, end) can't be granted now."""
        running = self._running.get(ino)
        return running is not None and any(each.refuses(begin, end) for each in tuple(running))

    def runs(self, ino: int) -> bool:
        """Return whether some bytes of a file are being recalled."""
        return ino in self._running

    def mapped_by(self, ino: int, begin: int, end: int) -> list[Holder]:
        """Return the holders that may still store into bytes of [begin, end), because they did not renew in time."""
        grants = self.by_ino.get(ino)
        if grants is None:
            return []
        late = grants.unrenewed.items()
        return [holder for holder, parts in late if any(low < end and begin < high for low, high in parts)]

    def add(self, recall: Recall) -> None:
        """Refuse new grants of the recall's range from now on."""
        self._running.setdefault(recall.ino, []).append(recall)

    def remove(self, recall: Recall) -> None:
        """Refuse new grants of the recall's range no longer."""
        running = self._running[recall.ino]
        running.remove(recall)
        if not running:
            del self._running[recall.ino]
