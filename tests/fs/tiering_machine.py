"""A state machine over pools with storage: files go down and come up among all that `moving_machine` does.

A call on storage returns when somebody waits for it, or later, also after whoever asked has given up. Storage fails
with EIO for a while, or until the next mount. Then an operation is done as on any other pool, or has changed nothing.
After a power cut storage has what was synchronised, and any part of what was not.
"""

from __future__ import annotations

import errno
import tempfile
from functools import cache
from pathlib import Path
from typing import cast

import tier_rig
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from in_memory import SHARED_MEMORY
from model_machine import picks
from moving_machine import RELOCATE, Moving, MovingMachine, Ordinary, ordinary, plant
from recorder import RecordingPool
from tiered_recorder import Ticket, TieredPool, opened
from tree_machine import offsets
from tree_rig import QUIET

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.steps import Steps, Wait
from daxfs.fs.tiers.storagecache import StorageCache

GROUP = 1 << 20
MEMORY, STORAGE = 9 * GROUP, 5 * GROUP
OPTIONS = ("-b", "4096", "-g", str(GROUP >> 12), "-N", "256", "-J", "size=4")
TIER = "tier"
BLOCKS_COUNT = 1024 + 4
"""Where the superblock has the size in blocks."""


@cache
def image() -> bytes:
    """Return both members of a fresh pool, one after the other."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as place:
        made = tier_rig.make(Path(place), MEMORY, STORAGE, OPTIONS)
        with FileSystem.open(made.pool, QUIET) as fs:
            plant(fs)
            for path in ("/0/120000", "/1/3000", "/2/pieces", "/3/120000"):
                fs.demote(fs.tree.resolve(path))
        return made.join().read_bytes()


class TieringMachine(MovingMachine):
    """See above.

    Attributes:
        forsaken: calls on storage that nobody waits for any more, and that have not returned.
    """

    def image(self) -> bytes:
        return image()

    def pool_of(self, content: bytearray) -> TieredPool:
        size = int.from_bytes(content[BLOCKS_COUNT : BLOCKS_COUNT + 4], "little") * 4096
        return TieredPool(content[:size], MEMORY)  # storage is as long as the file system

    def mount(self, pool: RecordingPool) -> FileSystem:
        return opened(pool, QUIET)

    def bytes_of(self, pool: RecordingPool, content: bytearray) -> bytes | bytearray:  # noqa: ARG002
        return pool.image()

    def start(self, content: bytes | bytearray) -> None:
        self.forsaken: list[Ticket] = []
        super().start(content)

    @property
    def tiers(self) -> StorageCache:
        found = self.fs.volume.tiers
        assert found is not None
        return found

    # Moves

    @precondition(lambda self: self.moving is None)
    @rule(pick=picks, offset=offsets, whole=st.booleans())
    def demote(self, pick: int, offset: int, whole: bool) -> None:
        if ino := self.file(pick):
            self.begin(TIER, self.fs.steps.demote(ino, *(() if whole else (offset, 30_000))))

    @precondition(lambda self: self.moving is None)
    @rule(pick=picks, offset=offsets, whole=st.booleans())
    def promote(self, pick: int, offset: int, whole: bool) -> None:
        if ino := self.file(pick):
            self.begin(TIER, self.fs.steps.promote(ino, *(() if whole else (offset, 30_000))))

    @rule()
    def demote_all(self) -> None:
        """Every file goes down."""
        for ino, thing in self.state.items():
            if thing.is_file:
                self.fs.demote(ino)
        self.settled()

    @precondition(lambda self: self.moving is None)
    @rule()
    def keep_tiers(self) -> None:
        """What is read often comes up, and if the memory is almost full others go down."""
        self.begin(TIER, self.fs.steps.keeping_tiers())

    def settled(self) -> None:
        super().settled()
        use = self.fs.tier_use()
        self.tally["demoted"] += bool(use.demoted)
        self.tally["promoted"] += bool(use.promoted)

    def waits(self, waiting: Wait, *, late: bool) -> None:
        assert isinstance(waiting, Ticket)
        if late:
            self.forsaken.append(waiting)
        else:
            waiting.wait()

    @precondition(lambda self: self.forsaken)
    @rule(pick=picks)
    def answer(self, pick: int) -> None:
        """A call returns, whether anybody still waits for it or not."""
        ticket = self.forsaken.pop(pick % len(self.forsaken))
        if not ticket.done:
            ticket.make()
            self.tally["late answer"] += 1

    # Storage fails

    @precondition(lambda self: self.moving is None)
    @rule(
        others=st.lists(ordinary, min_size=2, max_size=8),
        dies=st.booleans(),
    )
    def fail(self, others: list[Ordinary], dies: bool) -> None:
        """Storage fails in the middle of some operations: for a while, or until the next mount."""
        slow = cast(TieredPool, self.pool).slow
        slow.failing = True
        self.excused = {errno.EIO}
        if dies:
            for queue in self.tiers.queues:
                queue.fail("the test says so")
        for other in others:
            if other[0] < 6:
                self.do(other)
            else:
                self.move_in_vain(other)
        self.tally["storage failed"] += 1
        slow.failing = False
        self.excused = set()
        if dies:
            self.remount()
        else:
            self.settled()

    def move_in_vain(self, wanted: Ordinary) -> None:
        """A move that may fail."""
        what, pick, *_ = wanted
        move = self.fs.demote if what == 6 else self.fs.promote
        if ino := self.file(pick):
            try:
                move(ino)
            except FsError as error:
                assert error.errno == errno.EIO, repr(error)
                self.tally["move failed"] += 1

    def begun(self, what: str, pick: int) -> Steps[object]:
        if what == RELOCATE and pick % 3 and (ino := self.file(pick)):
            return self.fs.steps.demote(ino) if pick % 3 == 1 else self.fs.steps.promote(ino)
        return super().begun(what, pick)

    def refused(self, moving: Moving, error: FsError) -> None:
        if error.errno == errno.EOPNOTSUPP:
            self.tally[f"{moving.kind} of a tiered pool refused"] += 1
        super().refused(moving, error)
