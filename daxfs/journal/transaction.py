"""Layer 4: the running transaction, which gathers what handles change until a commit.

Handles (`daxfs.journal.handle`) fill it, and the journal commits it. Nothing of it is stored in the pool before
`daxfs.journal.journal.Journal.commit`. This module knows neither the log nor the meaning of the blocks.

Invariants of a transaction and its handle (docs/CRASH.md has the rest):

T1. ``copies`` and ``overlay`` have the same keys and share their memory; views read ``overlay``. There are two
    exceptions, both committed and not at home: a superblock whose store waits (``waiting``), and after an abort while
    storing home all of the transaction (`Transaction.freeze`) are in ``overlay`` only.
T2. Within a handle, a block is in ``_touched`` exactly when its present copy may be written without a further undo
    entry.
T3. Applying ``_undo`` backwards restores the transaction to its state at the beginning of the handle.
T4. A block is never in ``copies`` and in ``revokes`` at once: a revoke record would suppress the block's own copy.
T5. A kept record is bound to a copy of the transaction or of the last commits (`Transaction.recent`). So all records
    are dropped when such a copy goes other than by a commit, and when a handle is undone.
T6. A copy in ``recent`` equals the block's home, and no copy of the transaction is there. A block that is freed, made
    anew or logged as data loses its copy.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from daxfs.ext4.record import Record
from daxfs.ext4.superblock import Superblock
from daxfs.journal.view import SUPERBLOCK_KEY

if TYPE_CHECKING:
    from daxfs.runs import BlockRun

Seal = Callable[..., None]
"""``seal(*context, content)`` makes the checksum of a block or of one of its records."""
SealTable = dict[int, dict[Hashable, tuple[Seal, tuple[object, ...]]]]

MOST_RECENT = 32
"""The most copies of committed blocks that are kept for the next transactions."""


class Transaction:
    """The running transaction: all changes of finished handles since the last commit.

    Attributes:
        copies: block number -> writable copy.
        overlay: block number -> read-only view of the copy.
        seals: block number -> key -> (seal, its context).
        late: as ``seals``; these run after all of ``seals``.
        recent: block number -> (writable copy, read-only view of it), of blocks of the last commits. Whoever makes each
            change durable changes the same few blocks again: these need not be copied, and their records not be bound,
            for each commit.
        records: class -> key -> (block number, record on the copy of that block, its seal or None, the seal's context,
            whether the seal is late); see `Handle.edited`.
        revokes: freed metadata blocks, whose older copies in the log must not be replayed.
        frees: runs to clear in the bitmaps at commit.
        reserved: key -> credits reserved for the commit hooks.
        reserved_credits: the sum of ``reserved``, plus one credit for each revoke block.
        superblock: the record on the copy of the superblock's block, if there is a copy.
        superblock_first: the superblock is durable at home before the other blocks are stored there.
        waiting: the committed content of the superblock's block, while the pool still has an older one. The commit
            writer may change it right before its store at home (``before_home``).
    """

    __slots__ = (
        "_pair",
        "copies",
        "frees",
        "late",
        "overlay",
        "recent",
        "records",
        "reserved",
        "reserved_credits",
        "revokes",
        "seals",
        "superblock",
        "superblock_first",
        "waiting",
    )

    def __init__(self) -> None:
        self.copies: dict[int, memoryview] = {}
        self.overlay: dict[int, memoryview] = {}
        self.seals: SealTable = {}
        self.late: SealTable = {}
        self.recent: dict[int, tuple[memoryview, memoryview]] = {}
        self.records: dict[type[Record], dict[int, tuple[int, Any, Seal | None, tuple[object, ...], bool]]] = {}
        self.revokes: set[int] = set()
        self.frees: list[BlockRun] = []
        self.reserved: dict[Hashable, int] = {}
        self.reserved_credits = 0
        self.superblock: Superblock | None = None
        self.superblock_first = False
        self.waiting: memoryview | None = None
        self._pair: list[tuple[memoryview, Superblock]] = []

    def renew(self, *, keep: bool) -> None:
        """Begin the next transaction after a commit, whose blocks are at home.

        Args:
            keep: keep their copies; False if some are of file data, which is stored to without the journal.
        """
        recent, copies = self.recent, self.copies
        if not keep or len(recent) + len(copies) > MOST_RECENT:
            recent.clear()
            self.records.clear()
        if keep and len(copies) <= MOST_RECENT:
            overlay = self.overlay
            for number, copy in copies.items():
                recent[number] = copy, overlay[number]
        if self.superblock is not None:
            self._pair.reverse()
        self._begin()

    def clear(self) -> None:
        """Begin the next transaction without anything of this one."""
        self.recent.clear()
        self.records.clear()
        self._begin()

    def _begin(self) -> None:
        """Empty all that belongs to one transaction; the containers stay the same objects, because views share them."""
        self.copies.clear()
        self.overlay.clear()
        if self.waiting is not None:
            self.overlay[SUPERBLOCK_KEY] = self.waiting
        self.seals.clear()
        self.late.clear()
        self.revokes.clear()
        self.frees.clear()
        self.reserved.clear()
        self.reserved_credits = 0
        self.superblock = None
        self.superblock_first = False

    def freeze(self) -> None:
        """Keep what views read, and nothing that a commit would write: the transaction is committed and not at home."""
        seen = dict(self.overlay)
        self.clear()
        self.overlay.update(seen)

    def copied_superblock(self, newest: memoryview, offset: int) -> tuple[memoryview, Superblock]:
        """Return a copy of the superblock's block, and the record on it, in one of two buffers that are used by turns.

        Args:
            newest: the content of the block. It may be the other buffer, whose store at home waits (``waiting``).
            offset: the byte of the block at which the superblock begins.
        """
        if not self._pair:
            buffers = [memoryview(bytearray(len(newest))) for _ in range(2)]  # both of them, or an error and none
            self._pair += [(buffer, Superblock(buffer, offset)) for buffer in buffers]
        made = self._pair[0]
        made[0][:] = newest
        return made

    def run_seals(self) -> None:
        """Run the seals, which make checksums: ``seals`` in order of registration, ``late``, then the superblock."""
        copies = self.copies
        for table in (self.seals, self.late):
            for number, seals in table.items():
                content = copies[number]
                for seal, context in seals.values():
                    seal(*context, content)
        if self.superblock is not None:
            self.superblock.seal()
