"""Layer 4: the running transaction, and the handle through which one operation changes it.

A `Handle` gives writable DRAM copies of metadata blocks. The copies join the running transaction; nothing is stored in
the pool before `daxfs.journal.journal.Journal.commit`. One operation is one handle: ``with journal.handle(credits) as
tx:``. Leaving the ``with`` block normally makes its changes part of the transaction; leaving it with an exception
undoes all of them. This module knows neither the log nor the meaning of the blocks. Only the journal uses `Transaction`
and the methods `Handle.begin`, `Handle.unlimited` and `Handle.detach`. The layers above use the rest of `Handle`, which
they call ``tx``.

Invariants (docs/CRASH.md has the rest):

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
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from daxfs.errors import FsError, MissingMemory
from daxfs.ext4.record import Record
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET, Superblock
from daxfs.journal.view import SUPERBLOCK_KEY, Verified, View

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.journal.caches import Caches
    from daxfs.journal.logged import LoggedData
    from daxfs.pmem.pool import Pool
    from daxfs.runs import BlockRun

Seal = Callable[..., None]
"""``seal(*context, content)`` makes the checksum of a block or of one of its records."""
SealTable = dict[int, dict[Hashable, tuple[Seal, tuple[object, ...]]]]

RecordT = TypeVar("RecordT", bound=Record)

REFUSALS = (FsError, MemoryError)
"""What may end a handle anywhere: all layers undo what they have done. Memory can run out where a buffer is made."""
MOST_RECORDS = 256
"""The most records of one kind that a transaction keeps; each takes some 700 bytes."""
MOST_RECENT = 32
"""The most copies of committed blocks that are kept for the next transactions."""

# The kinds of undo entries. An entry is a tuple of a kind and the fields in parentheses.
_ADDED = 0  # (number): the block joined the transaction
_CHANGED = 1  # (number, content): the block was in the transaction, with this content
_DROPPED = 2  # (number, copy, seals, late seals): the copy left the transaction
_SEALED = 3  # (table, number, key)
_REVOKED = 4  # (number)
_UNREVOKED = 5  # (number)
_RESERVED = 6  # (key, credits)
_CALLBACK = 7  # (function): a layer above changed state in DRAM together with the handle
_LOGGED = 8  # (number): the block of data joined the logged ones
_UNLOGGED = 9  # (number, owner): the block of data left the logged ones


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


class Handle(View):
    """The right of one operation to change metadata, valid inside its ``with`` block.

    There is one object per journal; every operation uses it again.

    Attributes:
        privileged: the operation may use reserved blocks.
        frees: (start, count) runs to be cleared in the bitmaps at commit. Only append to it: a rollback cuts the list
            to its old length.
        logged: the blocks of file data that the transaction or the log holds.
        active: the ``with`` block is running.
        rollbacks: the number of operations that were undone.
        interrupted: an exception that is no refusal (`REFUSALS`) has ended a ``with`` block. The changes of that handle
            are undone, but the state of the layers above may not be.
    """

    __slots__ = (
        "_copies",
        "_credits",
        "_faults",
        "_frees_mark",
        "_recent",
        "_records",
        "_revokes_per_block",
        "_seals",
        "_strict",
        "_touched",
        "_tx",
        "_undo",
        "active",
        "frees",
        "interrupted",
        "logged",
        "privileged",
        "rollbacks",
    )

    def __init__(
        self,
        pool: Pool,
        geometry: Geometry,
        transaction: Transaction,
        verified: Verified,
        caches: Caches,
        logged: LoggedData,
        *,
        revokes_per_block: int,
        strict: bool,
    ) -> None:
        """Make the journal's handle on ``transaction``.

        Args:
            pool: the pool from which blocks are read.
            geometry: of the file system.
            transaction: the running transaction.
            verified: the verified blocks, shared with the journal's view.
            caches: the caches of the journal's view.
            logged: the journal's list of logged data blocks.
            revokes_per_block: block numbers in one revoke block of the log.
            strict: check that every handle stays within its credits (for tests).
        """
        super().__init__(pool, geometry, transaction.overlay, verified, caches)
        self._tx = transaction
        self._copies = transaction.copies
        self._seals = transaction.seals
        self._recent = transaction.recent
        self._records = transaction.records
        self._touched: set[int] = set()
        self._undo: list[tuple[Any, ...]] = []
        self._revokes_per_block = revokes_per_block
        self.rollbacks = 0
        self._strict = strict
        self._credits = 0
        self._frees_mark = 0
        self.frees = transaction.frees
        self.logged = logged
        self._faults = pool.faults.pending
        self.active = False
        self.interrupted = False
        self.privileged = True

    # The journal's side

    def begin(self, credits: int, privileged: bool) -> Handle:
        """Begin an operation with ``credits``; only the journal calls this."""
        tx = self._tx
        self._credits = credits
        self.privileged = privileged
        self._frees_mark = len(tx.frees)
        return self

    def unlimited(self) -> None:
        """Lift the check of credits for the commit hooks, whose work no single operation can foresee."""
        self._credits = 1 << 62

    def detach(self) -> None:
        """Forget all undo entries: the journal drops the transaction, possibly while an operation is running."""
        self._undo.clear()
        self._touched.clear()
        self._frees_mark = 0

    # One operation

    def __enter__(self) -> Handle:
        self.active = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.active = False
        lost = self._faults[0]
        if kind is not None or lost:
            refused = kind is None or lost or issubclass(kind, REFUSALS)
            interrupted, self.interrupted = self.interrupted or not refused, True  # should the rollback itself fail
            self._roll_back()
            self.interrupted = interrupted
        self._undo.clear()
        self._touched.clear()
        # What is no error but ends the program, such as KeyboardInterrupt, stays what it is; the fault stays pending.
        if lost and (kind is None or issubclass(kind, Exception)):
            missing = self.pool.faults.settle()
            missing.in_change = True
            raise missing from error
        if isinstance(error, MissingMemory):
            error.in_change = True

    # Blocks

    def edit(self, number: int, seal: Seal | None = None, *context: object) -> memoryview:
        """Return the writable copy of a block; the block joins the running transaction.

        A caller that relies on the block's content verifies it first (`verified`).

        Args:
            number: the block.
            seal: makes the block's checksum; it runs once, at commit. The first seal passed for a block is used.
            context: arguments for the seal, before the content.

        Returns:
            ``block_size`` bytes, valid until the handle ends.

        Raises:
            Corrupt: the number is 0 or past the end of the file system.
            MissingMemory: the block is a hole of the pool's file, and its file system has no room for it.
        """
        if number not in self._touched:
            self._touch(number)
        if seal is not None:
            seals = self._seals.get(number)
            if seals is None or None not in seals:
                self._add_seal(self._seals, number, None, seal, context)
        return self._copies[number]

    def create(self, number: int, seal: Seal | None = None, *context: object) -> memoryview:
        """Return a writable copy of a block that was just allocated, filled with zeros.

        The block joins the running transaction. A seal from an earlier use of the block is dropped.

        Args:
            number: the block.
            seal: as in `edit`.
            context: as in `edit`.

        Raises:
            Corrupt: the number is 0 or past the end of the file system.
        """
        if number in self._copies:
            self._drop(number)
        elif not 0 < number < self._limit:
            raise self._bad_number(number)
        elif number in self._recent:
            self._drop_recent(number)
        self._add(number, bytearray(self.block_size))
        if seal is not None:
            self._add_seal(self._seals, number, None, seal, context)
        return self._copies[number]

    def seal_record(self, number: int, key: Hashable, seal: Seal, *context: object, late: bool = False) -> None:
        """Register the seal of one record inside a block that this transaction has a copy of.

        Args:
            number: the block.
            key: identifies the seal among those of the block; a second seal with the same key is ignored. The seal that
                `edit` takes has the key None.
            seal: is called with the context and the whole block.
            context: arguments for the seal, before the content.
            late: run the seal after all that are not late (for records that hold other blocks' checksums).
        """
        table = self._tx.late if late else self._seals
        seals = table.get(number)
        if seals is None or key not in seals:
            self._add_seal(table, number, key, seal, context)

    def keep(
        self,
        kind: type[RecordT],
        key: int,
        number: int,
        record: RecordT,
        seal: Seal | None,
        *context: object,
        late: bool = False,
    ) -> None:
        """Register a record's seal, as `seal_record` does, and keep the record on the copy of a block, for `edited`.

        Args:
            kind: the class under which it is kept.
            key: identifies the record among those.
            number: the block.
            record: the record.
            seal: as in `seal_record`; None: the record has no checksum.
            context: as in `seal_record`.
            late: as in `seal_record`.
        """
        if seal is not None:
            self.seal_record(number, key, seal, *context, late=late)
        kept = self._records.get(kind)
        if kept is None or len(kept) >= MOST_RECORDS:
            kept = self._records[kind] = {}
        kept[key] = number, record, seal, context, late

    def edited(self, kind: type[RecordT], key: int) -> RecordT | None:
        """Return a record that is kept, ready to be changed by this handle and sealed at commit; None: there is none.

        Most operations change records that were changed before: the directory, the group's descriptor. They need not be
        found, checked and bound once more.
        """
        kept = self._records.get(kind)
        if kept is None or key not in kept:
            return None
        number, record, seal, context, late = kept[key]
        if number not in self._touched:
            self._touch(number)
        if seal is not None:
            table = self._tx.late if late else self._seals
            seals = table.get(number)
            if seals is None or key not in seals:
                self._add_seal(table, number, key, seal, context)
        found: RecordT = record
        return found

    def kept(self, kind: type[RecordT], key: int) -> RecordT | None:
        """Return a record as `edited` does, only for reading."""
        kept = self._records.get(kind)
        return kept[key][1] if kept is not None and key in kept else None

    def edit_superblock(self) -> Superblock:
        """Return the writable copy of the superblock; it is sealed at commit.

        It costs no credit, because every transaction has room for it.
        """
        if SUPERBLOCK_KEY not in self._touched:
            self._touch_superblock()
        superblock = self._tx.superblock
        assert superblock is not None
        return superblock

    def forget(self, number: int) -> None:
        """Drop the copy of a metadata block that is being freed, and revoke its older copies in the log.

        Raises:
            Corrupt: the number is 0 or past the end of the file system.
        """
        if not 0 < number < self._limit:
            raise self._bad_number(number)
        if not self.active:
            raise _ended()
        if number in self._copies:
            self._drop(number)
        elif number in self._recent:
            self._drop_recent(number)
        self._verified.discard(number)
        revokes = self._tx.revokes
        if number not in revokes:
            if len(revokes) % self._revokes_per_block == 0:
                self._tx.reserved_credits += 1
            revokes.add(number)
            self._undo.append((_REVOKED, number))

    # File data

    def log_data(self, number: int, owner: int) -> memoryview:
        """Return the writable copy of a block of file data: it is logged, and stored home only after the commit.

        Until then readers take the copy (`View.block`). To store to the block directly, call `unlog_data` first.

        Args:
            number: the block.
            owner: the inode number of the file.
        """
        copy = self.edit(number)
        if number not in self.logged:
            self.logged.add(number, owner)
            self._undo.append((_LOGGED, number))
        return copy

    def unlog_data(self, start: int, count: int) -> None:
        """Drop the copies of data blocks, and keep replay from storing older ones from the log.

        Call it for blocks that are being freed, that become unwritten, or that are stored to directly afterwards.
        """
        for number in self.logged.within(start, count) if self.logged else ():
            self.forget(number)
            self._undo.append((_UNLOGGED, number, self.logged.remove(number)))

    def on_rollback(self, undo: Callable[[], object]) -> None:
        """Register ``undo`` to be called if this handle is undone.

        The layers above use it for state in DRAM that they change together with blocks. A rollback undoes such changes
        and those of blocks in the reverse of their order.

        Args:
            undo: undoes the change; it must change nothing through a handle and must not raise.
        """
        if not self.active:
            raise _ended()
        self._undo.append((_CALLBACK, undo))

    # Credits

    def reserve(self, key: Hashable, credits: int = 1) -> None:
        """Reserve credits for changes that the commit hooks will make because of this handle; once for each key."""
        tx = self._tx
        if key not in tx.reserved:
            if not self.active:
                raise _ended()
            tx.reserved[key] = credits
            tx.reserved_credits += credits
            self._undo.append((_RESERVED, key, credits))

    @property
    def reserved_credits(self) -> int:
        """The credits that the running transaction has reserved for the commit hooks."""
        return self._tx.reserved_credits

    # Undo entries and copies

    def _touch(self, number: int) -> None:
        """Prepare the first edit of a block by this handle: record its old content, or that it had no copy."""
        copy = self._copies.get(number)
        if copy is None:
            if not 0 < number < self._limit:
                raise self._bad_number(number)
            start = number << self._bits
            if number in self._recent:
                _ = self._memory[start]  # a fault if the memory is missing, as for any other block
                copy, seen = self._recent[number]
                self._join(number, copy, seen)
                del self._recent[number]
            else:
                self._add(number, bytearray(self._memory[start : start + self.block_size]))
            return
        if not self.active:
            raise _ended()
        self._undo.append((_CHANGED, number, bytes(copy)))
        self._touched.add(number)
        if self._strict:
            self._check_credits()

    def _touch_superblock(self) -> None:
        copy = self._copies.get(SUPERBLOCK_KEY)
        if not self.active:
            raise _ended()
        if copy is None:
            start = SUPERBLOCK_OFFSET >> self._bits << self._bits
            waiting = self._tx.waiting
            newest = self._memory[start : start + self.block_size] if waiting is None else waiting
            copy, superblock = self._tx.copied_superblock(newest, SUPERBLOCK_OFFSET & (self.block_size - 1))
            self._copies[SUPERBLOCK_KEY] = copy
            self._tx.overlay[SUPERBLOCK_KEY] = copy.toreadonly()
            self._tx.superblock = superblock
            self._undo.append((_ADDED, SUPERBLOCK_KEY))
        else:
            self._undo.append((_CHANGED, SUPERBLOCK_KEY, bytes(copy)))
        self._touched.add(SUPERBLOCK_KEY)
        self._credits += 1

    def _add(self, number: int, buffer: bytearray) -> None:
        copy = memoryview(buffer)
        self._join(number, copy, copy.toreadonly())

    def _join(self, number: int, copy: memoryview, seen: memoryview) -> None:
        """Have a block join the transaction, with its copy and the read-only view of it."""
        if not self.active:
            raise _ended()
        reserve = self.pool.reserve
        if reserve is not None:
            reserve(number << self._bits, self.block_size)
        self._copies[number] = copy
        self._overlay[number] = seen
        self._undo.append((_ADDED, number))
        self._touched.add(number)
        revokes = self._tx.revokes
        if number in revokes:
            revokes.discard(number)
            self._undo.append((_UNREVOKED, number))
        if self._strict:
            self._check_credits()

    def _drop(self, number: int) -> None:
        """Remove a block's copy from the transaction.

        Nothing changes the copy afterwards, so the undo entry needs no copy of its own.
        """
        if not self.active:
            raise _ended()
        tx = self._tx
        tx.records.clear()
        copy = tx.copies.pop(number)
        del tx.overlay[number]
        self._undo.append((_DROPPED, number, copy, tx.seals.pop(number, None), tx.late.pop(number, None)))
        self._touched.discard(number)

    def _drop_recent(self, number: int) -> None:
        """Remove the copy of a committed block, which is something else from now on."""
        if not self.active:
            raise _ended()
        self._tx.records.clear()
        del self._recent[number]

    def drop_recent(self) -> None:
        """Drop all copies of committed blocks: some are not the file system's any longer."""
        for number in tuple(self._recent):
            self._drop_recent(number)

    def _add_seal(self, table: SealTable, number: int, key: Hashable, seal: Seal, context: tuple[object, ...]) -> None:
        if not self.active:
            raise _ended()
        if number not in self._copies:
            raise ValueError(f"block {number} has no copy in the transaction: edit it before its records are sealed")
        seals = table.get(number)
        if seals is None:
            table[number] = {key: (seal, context)}
        else:
            seals[key] = seal, context
        self._undo.append((_SEALED, table, number, key))

    def _check_credits(self) -> None:
        if len(self._touched) > self._credits:
            raise AssertionError(f"{len(self._touched)} blocks changed with {self._credits} credits")

    def _roll_back(self) -> None:
        """Undo everything since the handle began (invariant T3): blocks, and by callbacks state of higher layers."""
        tx, undo = self._tx, self._undo
        tx.records.clear()
        while undo:
            entry = undo.pop()
            if entry[0] == _LOGGED:
                self.logged.remove(entry[1])
            elif entry[0] == _UNLOGGED:
                self.logged.add(*entry[1:])
            else:
                self._take_back(tx, entry)
        del tx.frees[self._frees_mark :]
        self.rollbacks += 1

    @staticmethod
    def _take_back(tx: Transaction, entry: tuple[Any, ...]) -> None:
        kind, what, *rest = entry
        if kind == _ADDED:
            del tx.copies[what], tx.overlay[what]
            if what == SUPERBLOCK_KEY:
                tx.superblock = None
                if tx.waiting is not None:
                    tx.overlay[what] = tx.waiting
        elif kind == _CHANGED:
            tx.copies[what][:] = rest[0]
        elif kind == _DROPPED:
            copy, seals, late = rest
            tx.copies[what], tx.overlay[what] = copy, copy.toreadonly()
            if seals is not None:
                tx.seals[what] = seals
            if late is not None:
                tx.late[what] = late
        elif kind == _SEALED:
            number, key = rest
            del what[number][key]
            if not what[number]:
                del what[number]
        elif kind == _REVOKED:
            tx.revokes.discard(what)
        elif kind == _UNREVOKED:
            tx.revokes.add(what)
        elif kind == _CALLBACK:
            what()
        else:
            del tx.reserved[what]
            tx.reserved_credits -= rest[0]


def _ended() -> RuntimeError:
    return RuntimeError("this handle has ended; use it inside: with journal.handle(credits) as tx")
