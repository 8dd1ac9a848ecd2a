"""Layer 4: the handle, through which one operation changes the running transaction.

A `Handle` gives writable DRAM copies of metadata blocks, which join the running transaction. One operation is one
handle: ``with journal.handle(credits) as tx:``. Leaving the ``with`` block normally makes its changes part of the
transaction; leaving it with an exception undoes all of them. Only the journal calls `Handle.begin`, `Handle.unlimited`
and `Handle.detach`. The layers above use the rest of `Handle`, which they call ``tx``. The invariants are those of
`daxfs.journal.transaction`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from daxfs.errors import FsError, MissingMemory
from daxfs.ext4.record import Record
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET, Superblock
from daxfs.journal.transaction import Seal, SealTable, Transaction
from daxfs.journal.view import SUPERBLOCK_KEY, Verified, View

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.journal.caches import Caches
    from daxfs.journal.logged import LoggedData
    from daxfs.pmem.pool import Pool

RecordT = TypeVar("RecordT", bound=Record)

REFUSALS = (FsError, MemoryError)
"""What may end a handle anywhere: all layers undo what they have done. Memory can run out where a buffer is made."""
MOST_RECORDS = 256
"""The most records of one kind that a transaction keeps; each takes some 700 bytes."""

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
            MetadataOnStorage: the block lies on storage.
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

    def store_superblock_first(self) -> None:
        """Have the commit make the superblock durable at home before it stores other blocks there.

        For a smaller file system: a reader that does not replay the log first must not see its descriptors beside the
        superblock of the larger one. With the superblock alone it sees descriptors that are still good.
        """
        self._tx.superblock_first = True

    def forget(self, number: int) -> None:
        """Drop the copy of a metadata block that is being freed, and revoke its older copies in the log.

        Raises:
            Corrupt: the number is 0 or past the end of the file system.
        """
        if not 0 < number < self._limit and not self.lies_on_storage(number):
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
