"""Handles: what they change, what a rollback undoes, and what they refuse."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from journal_rig import JournalRig

from daxfs.errors import Corrupt, CorruptKind, FsError, MissingMemory
from daxfs.ext4 import jbd2
from daxfs.ext4.superblock import Superblock
from daxfs.journal import log, recovery
from daxfs.journal import transaction as transaction_module
from daxfs.journal import view as view_module
from daxfs.journal.handle import MOST_RECORDS, Handle
from daxfs.journal.journal import Journal
from daxfs.journal.transaction import MOST_RECENT, Seal
from daxfs.journal.view import PoolView
from daxfs.pmem.memory import MemoryPool
from daxfs.runs import BlockRun


class Undo(Exception):
    """Raised to end a handle so that its changes are undone."""


@contextmanager
def undone(journal: Journal, credits: int) -> Iterator[Handle]:
    """Run a handle that ends in an error."""

    def operation() -> Iterator[Handle]:
        with journal.handle(credits) as tx:
            yield tx
            raise Undo

    steps = operation()
    yield next(steps)
    with pytest.raises(Undo):
        next(steps)


def nothing(content: memoryview) -> None:
    """Do nothing: as a seal, or as a check that accepts."""


def test_a_change_is_seen_at_once_and_stored_by_the_commit(rig: JournalRig, pool: MemoryPool, journal: Journal) -> None:
    block = rig.free[0]
    with journal.handle(1) as tx:
        tx.edit(block)[:] = rig.filled(7)
        assert bytes(tx.block(block)) == rig.filled(7)
    assert bytes(journal.view.block(block)) == rig.filled(7)
    assert rig.block(pool, block) == bytes(rig.block_size)
    assert journal.dirty
    journal.commit()
    assert rig.block(pool, block) == rig.filled(7)
    assert not journal.dirty
    assert bytes(journal.view.block(block)) == rig.filled(7)


def test_readers_cannot_write(rig: JournalRig, journal: Journal) -> None:
    with journal.handle(1) as tx:
        tx.edit(rig.free[0])
        for content in (tx.block(rig.free[0]), journal.view.block(rig.free[0]), tx.block(rig.free[1])):
            assert content.readonly
        with pytest.raises((TypeError, AttributeError, ValueError)):
            tx.superblock().s_mnt_count = 3


def test_an_exception_takes_everything_back(rig: JournalRig, journal: Journal) -> None:
    old, fresh, gone = rig.free[0], rig.free[1], rig.free[2]
    with journal.handle(8) as tx:
        tx.edit(old, nothing)[:] = rig.filled(1)
        tx.edit(gone)[:] = rig.filled(2)
        tx.frees.append(BlockRun(5, 1))
        tx.edit_superblock().s_mnt_count = 5
        tx.forget(rig.free[5])
        tx.reserve("a", 2)
    tables = (dict(journal._transaction.seals[old]), dict(journal._transaction.reserved))
    with undone(journal, 8) as tx:
        tx.edit(old)[:] = rig.filled(3)
        tx.create(fresh, nothing)[:] = rig.filled(4)
        tx.seal_record(old, 9, nothing)
        tx.forget(gone)
        tx.create(gone)[:] = rig.filled(5)
        tx.create(rig.free[5])
        tx.frees.append(BlockRun(6, 1))
        tx.edit_superblock().s_mnt_count = 6
        tx.reserve("b", 3)
    view, tx_state = journal.view, journal._transaction
    assert bytes(view.block(old)) == rig.filled(1)
    assert bytes(view.block(fresh)) == bytes(rig.block_size)
    assert bytes(view.block(gone)) == rig.filled(2)
    assert view.superblock().s_mnt_count == 5
    assert tx_state.frees == [(5, 1)]
    assert tx_state.revokes == {rig.free[5]}
    assert (tx_state.seals[old], tx_state.reserved) == tables
    assert tx_state.seals.keys() == {old}
    assert journal.stats.rollbacks == 1


def test_what_is_kept_beside_blocks_is_undone_with_them(rig: JournalRig, journal: Journal) -> None:
    """Callbacks and blocks are undone together, last change first, and only for the handle that fails."""
    kept: list[str] = []
    seen: list[bytes] = []

    def undo() -> None:
        seen.append(bytes(journal.view.block(rig.free[0])))
        kept.pop()

    with journal.handle(2) as tx:
        kept.append("first")
        tx.on_rollback(lambda: kept.remove("first"))
        tx.edit(rig.free[0])[:] = rig.filled(1)
    with undone(journal, 2) as tx:
        tx.edit(rig.free[0])[:] = rig.filled(2)
        kept.append("second")
        tx.on_rollback(undo)
        tx.create(rig.free[1])
        kept.append("third")
        tx.on_rollback(undo)
    assert kept == ["first"]
    assert seen == [rig.filled(2)] * 2
    with pytest.raises(RuntimeError, match="ended"):
        tx.on_rollback(undo)


def test_a_record_is_kept_as_long_as_its_block(rig: JournalRig, journal: Journal) -> None:
    """Each handle that changes it gets an undo entry of its own; what undoes a seal or a copy drops the record."""
    block, other = rig.free[:2]

    def make(tx: Handle) -> Superblock:
        record = Superblock(tx.edit(block)[:1024])
        tx.keep(Superblock, 7, block, record, nothing)
        return record

    with journal.handle(1) as tx:
        assert tx.edited(Superblock, 7) is None
        record = make(tx)
        assert tx.edited(Superblock, 7) is tx.kept(Superblock, 7) is record
        record.s_mnt_count = 1
    with undone(journal, 1) as tx:
        assert tx.edited(Superblock, 7) is record
        record.s_mnt_count = 2
    assert bytes(journal.view.block(block))[0x34] == 1
    with undone(journal, 1) as tx:
        assert tx.edited(Superblock, 7) is None, "an undone handle may have made it"
        make(tx)
    with journal.handle(2) as tx:
        make(tx)
        tx.create(other)
        tx.forget(other)
        assert tx.kept(Superblock, 7) is None, "its block may be another one now"
    with pytest.raises(RuntimeError, match="ended"):
        make(tx)


def test_a_kept_record_is_no_copy_after_its_handle(rig: JournalRig, journal: Journal) -> None:
    with journal.handle(1) as tx:
        tx.keep(Superblock, 7, rig.free[0], Superblock(tx.edit(rig.free[0])[:1024]), None)
    with pytest.raises(RuntimeError, match="ended"):
        tx.edited(Superblock, 7)


def test_few_records_are_kept(rig: JournalRig, journal: Journal) -> None:
    with journal.handle(1) as tx:
        record = Superblock(tx.edit(rig.free[0])[:1024])
        for key in range(MOST_RECORDS + 1):
            tx.keep(Superblock, key, rig.free[0], record, None)
        assert tx.kept(Superblock, 0) is None
        assert tx.kept(Superblock, MOST_RECORDS) is record


def committed(journal: Journal, block: int, seal: Seal = nothing) -> Superblock:
    """Change a block through a record, and commit."""
    with journal.handle(1) as tx:
        record = Superblock(tx.edit(block)[:1024])
        tx.keep(Superblock, 7, block, record, seal)
        record.s_mnt_count = 1
    journal.commit()
    return record


def test_the_next_transaction_has_the_copies_and_records_of_the_last(
    rig: JournalRig, pool: MemoryPool, journal: Journal
) -> None:
    sealed: list[int] = []
    block = rig.free[0]
    record = committed(journal, block, lambda content: sealed.append(content[0x34]))
    with journal.handle(1):
        pass
    assert not journal.dirty
    assert sealed == [1]
    for count in (2, 3):
        with journal.handle(1) as tx:
            assert tx.kept(Superblock, 7) is tx.edited(Superblock, 7) is record
            record.s_mnt_count = count
            assert tx.block(block)[0x34] == tx.edit(block)[0x34] == count
        journal.commit()
        assert rig.block(pool, block)[0x34] == count
    assert sealed == [1, 2, 3]


def test_an_undone_change_of_a_committed_block_leaves_nothing(
    rig: JournalRig, pool: MemoryPool, journal: Journal
) -> None:
    block = rig.free[0]
    committed(journal, block)
    with undone(journal, 1) as tx:
        record = tx.edited(Superblock, 7)
        assert record is not None
        record.s_mnt_count = 9
    assert not journal.dirty
    with journal.handle(1) as tx:
        assert tx.edited(Superblock, 7) is None
        assert tx.edit(block)[0x34] == 1
        tx.edit(block)[0x35] = 5
    journal.commit()
    assert rig.block(pool, block)[0x34:0x36] == b"\x01\x05"


@pytest.mark.parametrize("freed", [True, False])
def test_a_committed_block_that_becomes_another_one_loses_its_copy(
    rig: JournalRig, pool: MemoryPool, journal: Journal, freed: bool
) -> None:
    block = rig.free[0]
    committed(journal, block)
    with journal.handle(1) as tx:
        if freed:
            tx.forget(block)
        else:
            assert not any(tx.create(block))
        assert tx.kept(Superblock, 7) is None
    journal.commit()
    if freed:
        pool.write(block * rig.block_size, rig.filled(6))  # it is a file's now, which is stored to in place
        with journal.handle(1) as tx:
            assert bytes(tx.edit(block)) == rig.filled(6)
    with pytest.raises(RuntimeError, match="ended"):
        tx.create(block)


def test_logged_data_is_not_kept(rig: JournalRig, pool: MemoryPool, journal: Journal) -> None:
    """It is stored to in place as soon as the log no longer has it."""
    block, other = rig.free[:2]
    committed(journal, other)
    with journal.handle(1) as tx:
        tx.log_data(block, 12)[:] = rig.filled(1)
    journal.commit()
    pool.write(block * rig.block_size, rig.filled(2))
    with journal.handle(1) as tx:
        assert tx.kept(Superblock, 7) is None
        assert bytes(tx.edit(block)) == rig.filled(2)


def test_few_copies_are_kept(rig: JournalRig, journal: Journal) -> None:
    committed(journal, rig.free[0])
    with journal.handle(MOST_RECENT) as tx:
        for block in rig.free[1 : 1 + MOST_RECENT]:
            tx.edit(block)[0] = 1
    journal.commit()
    assert journal._transaction.recent.keys() == set(rig.free[1 : 1 + MOST_RECENT])
    with journal.handle(MOST_RECENT + 1) as tx:
        assert tx.kept(Superblock, 7) is None
        for block in rig.free[: 1 + MOST_RECENT]:
            tx.edit(block)[0] = 2
    journal.commit()
    assert not journal._transaction.recent


def test_the_undone_superblock_is_not_stored(pool: MemoryPool, rig: JournalRig, journal: Journal) -> None:
    with undone(journal, 1) as tx:
        tx.edit_superblock().s_mnt_count = 77
    assert not journal.dirty
    journal.commit()
    assert PoolView(pool, rig.geometry).superblock().s_mnt_count != 77


@pytest.mark.parametrize("name", ["v3", "4k"])
def test_the_superblock_is_sealed_and_stored(name: str) -> None:
    rig = JournalRig(name)
    pool = MemoryPool(rig.content)
    journal = Journal.open(pool, rig.geometry, rig.area)
    with journal.handle(0) as tx:
        tx.edit_superblock().s_mnt_count = 77
        assert tx.superblock().s_mnt_count == 77
    journal.commit()
    assert journal.view.superblock().s_mnt_count == 77
    assert PoolView(pool, rig.geometry).superblock().s_mnt_count == 0, "it waits for the tail to move"
    with journal.handle(0) as tx:
        tx.edit_superblock().s_mnt_count += 1
    journal._writer.store_waiting()  # type: ignore[attr-defined]
    stored = PoolView(pool, rig.geometry).superblock()
    stored.verify()
    assert stored.s_mnt_count == 77, "nothing uncommitted is stored"
    assert journal.view.superblock().s_mnt_count == 78
    with undone(journal, 0) as tx:
        tx.edit_superblock().s_mnt_count = 99
    assert journal.view.superblock().s_mnt_count == 78
    journal.commit()
    with undone(journal, 0) as tx:
        tx.edit_superblock().s_mnt_count = 99
    assert journal.view.superblock().s_mnt_count == 78


@pytest.mark.interpreted
def test_the_superblock_has_two_buffers_or_none(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one, the next transaction would store into the superblock that waits for the tail."""
    made: list[int] = []

    def fails_once(size: int) -> bytearray:
        made.append(size)
        if len(made) == 2:
            raise MemoryError
        return bytearray(size)

    monkeypatch.setattr(transaction_module, "bytearray", fails_once, raising=False)
    with pytest.raises(MemoryError), journal.handle(0) as tx:
        tx.edit_superblock()
    for count in (5, 6):
        with journal.handle(0) as tx:
            tx.edit_superblock().s_mnt_count = count
        waiting = journal._transaction.waiting
        assert waiting is None or Superblock(waiting[:1024]).s_mnt_count == count - 1
        journal.commit()


def test_seals_run_once_at_commit_in_order(rig: JournalRig, journal: Journal) -> None:
    ran: list[str] = []
    a, b = rig.free[0], rig.free[1]
    with journal.handle(2) as tx:
        tx.edit(a, lambda _: ran.append("a"))
        tx.seal_record(a, 1, lambda _: ran.append("late a1"), late=True)
        tx.edit(b, lambda _: ran.append("b"))
        tx.seal_record(b, 2, lambda _: ran.append("b2"))
    with journal.handle(2) as tx:
        tx.edit(a, lambda _: ran.append("never"))
        tx.seal_record(b, 2, lambda _: ran.append("never"))
    assert ran == []
    journal.commit()
    assert ran == ["a", "b", "b2", "late a1"]
    journal.commit()
    assert len(ran) == 4


def test_what_a_seal_writes_is_stored(rig: JournalRig, pool: MemoryPool, journal: Journal) -> None:
    def seal(content: memoryview) -> None:
        content[-4:] = b"seal"

    with journal.handle(1) as tx:
        tx.create(rig.free[0], seal)[0] = 1
    journal.commit()
    assert rig.block(pool, rig.free[0]) == b"\x01" + bytes(rig.block_size - 5) + b"seal"


def test_a_created_block_keeps_no_seal_of_its_earlier_use(rig: JournalRig, journal: Journal) -> None:
    def wrong(_: memoryview) -> None:
        raise AssertionError

    with journal.handle(1) as tx:
        tx.edit(rig.free[0], wrong)
        tx.seal_record(rig.free[0], 1, wrong, late=True)
    with journal.handle(1) as tx:
        assert bytes(tx.create(rig.free[0])) == bytes(rig.block_size)
    journal.commit()


def test_forgotten_blocks_are_neither_logged_nor_stored(rig: JournalRig, pool: MemoryPool, journal: Journal) -> None:
    with journal.handle(1) as tx:
        tx.edit(rig.free[0])[:] = rig.filled(1)
    with journal.handle(0) as tx:
        tx.forget(rig.free[0])
        assert bytes(tx.block(rig.free[0])) == bytes(rig.block_size)
    journal.commit()
    assert rig.contents(pool) == {}
    assert journal.stats.blocks_revoked == 1
    assert journal.stats.blocks_home == 0


def test_checks_run_once_and_again_after_forget(rig: JournalRig, journal: Journal) -> None:
    ran: list[int] = []

    def check(content: memoryview) -> None:
        ran.append(content[0])
        if content[0] == 9:
            raise Corrupt(CorruptKind.JOURNAL, "where")

    block = rig.free[0]
    journal.view.verified(block, check)
    with journal.handle(1) as tx:
        tx.verified(block, check)
        assert len(ran) == 1
        tx.edit(block)[0] = 9
        tx.verified(block, check)
        assert len(ran) == 1
        tx.forget(block)
        tx.verified(block, check)
        assert len(ran) == 2
        tx.create(block)[0] = 9
    journal.commit()
    with journal.handle(0) as tx:
        tx.forget(block)
    for _ in range(2):
        with pytest.raises(Corrupt):
            journal.view.verified(block, check)


def test_a_block_is_verified_once_until_another_takes_its_place(
    rig: JournalRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_module, "MOST_VERIFIED", 4)
    view = PoolView(MemoryPool(rig.content), rig.geometry)
    first = rig.free[0]
    seen: list[int] = []
    for number in (first, first, first + 1, first, first + 4, first + 4, first):
        view.verified(number, partial(lambda number, _: seen.append(number), number))
    assert seen == [first, first + 1, first + 4, first]
    view.forget_checks()
    view.verified(first, lambda _: seen.append(first))
    assert seen[4:] == [first]


def test_block_numbers_are_checked(rig: JournalRig, journal: Journal) -> None:
    limit = rig.geometry.blocks_count
    view = PoolView(journal.pool, rig.geometry)
    with journal.handle(4) as tx:
        tx.edit_superblock()
        for number in (0, limit, limit + 5, 1 << 47, -1):
            for call in (tx.block, tx.edit, tx.create, tx.forget, view.block, journal.view.block):
                with pytest.raises(Corrupt, match="block number"):
                    call(number)
            with pytest.raises(Corrupt):
                tx.verified(number, nothing)
        assert len(tx.block(limit - 1)) == rig.block_size


def test_a_handle_ends_with_its_block(rig: JournalRig, journal: Journal) -> None:
    with journal.handle(4) as tx:
        tx.edit(rig.free[0])
        with pytest.raises(RuntimeError, match="nest"):
            journal.handle(1)
        with pytest.raises(RuntimeError, match="nest"):
            journal.commit()
    calls = (
        lambda: tx.edit(rig.free[0]),
        lambda: tx.edit(rig.free[1]),
        lambda: tx.create(rig.free[2]),
        lambda: tx.forget(rig.free[0]),
        lambda: tx.seal_record(rig.free[0], 1, nothing),
        tx.edit_superblock,
        lambda: tx.reserve(1),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match=r"with journal\.handle"):
            call()


def test_a_record_is_sealed_only_in_a_block_that_is_changed(rig: JournalRig, journal: Journal) -> None:
    with journal.handle(1) as tx, pytest.raises(ValueError, match="edit it before"):
        tx.seal_record(rig.free[0], 1, nothing)


def test_credits_are_checked_when_asked_for(rig: JournalRig, journal: Journal) -> None:
    with journal.handle(2) as tx:
        tx.edit(rig.free[0])
        tx.edit(rig.free[1])
        with pytest.raises(AssertionError, match="3 blocks changed with 2 credits"):
            tx.edit(rig.free[2])
    with journal.handle(2) as tx:
        tx.edit_superblock()
        tx.edit(rig.free[0])
        tx.edit(rig.free[1])


def test_a_full_transaction_is_committed_first(rig: JournalRig, journal: Journal) -> None:
    limit = (1024 - 1) // 4
    with journal.handle(limit) as tx:
        for block in rig.free[:10]:
            tx.edit(block)
        tx.reserve("hook", 5)
    with journal.handle(limit - 15) as tx:
        assert journal.stats.commits == 0
    with journal.handle(limit - 14) as tx:
        assert journal.stats.commits == 1
    with pytest.raises(FsError, match=rf"needs {limit + 1} blocks.*holds {limit}") as refused:
        journal.handle(limit + 1)
    assert refused.value.errno == errno.ENOSPC


def test_hooks_change_the_transaction_they_end(rig: JournalRig, pool: MemoryPool, journal: Journal) -> None:
    def hook(tx: Handle) -> None:
        for start, _ in tx.frees:
            tx.edit(start)[0] = 1

    journal.add_commit_hook(hook, journal.has_frees)
    with journal.handle(0) as tx:
        tx.frees.append(BlockRun(rig.free[3], 2))
    assert journal.pending_free_blocks == 2
    assert journal.dirty
    journal.commit()
    assert journal.pending_free_blocks == 0
    assert rig.contents(pool).keys() == {rig.free[3]}


def test_hooks_are_called_from_the_first_that_is_due(journal: Journal) -> None:
    called: list[str] = []
    due = [""]
    for name in "abc":
        journal.add_commit_hook(lambda _, name=name: called.append(name), lambda name=name: due == [name])  # type: ignore[misc]
    for due[0], expected in (("", ""), ("a", "abc"), ("b", "bc"), ("c", "c")):
        called.clear()
        journal.commit()
        assert called == list(expected)


@pytest.mark.parametrize("where", ["hook", "seal", "pool"])
def test_an_error_in_a_commit_aborts(rig: JournalRig, pool: MemoryPool, journal: Journal, where: str) -> None:
    def fail(*_: object) -> None:
        raise FsError(errno.EIO, "poisoned")

    with journal.handle(1) as tx:
        tx.edit(rig.free[0], fail if where == "seal" else None)[:] = rig.filled(1)
    if where == "hook":
        journal.add_commit_hook(fail, lambda: True)
    if where == "pool":
        pool.fence = fail
    with pytest.raises(FsError, match="poisoned"):
        journal.commit()
    assert journal.aborted
    assert not journal.dirty
    assert rig.contents(pool) == {}
    for call in (lambda: journal.handle(1), journal.commit):
        with pytest.raises(FsError) as refused:
            call()
        assert refused.value.errno == errno.EROFS
    journal.close()
    if where != "pool":
        assert rig.superblock(pool).s_errno == -errno.EIO


def test_an_error_while_storing_home_leaves_the_log_to_recovery(
    rig: JournalRig, pool: MemoryPool, journal: Journal
) -> None:
    store, home = pool.write, rig.free[0] * rig.block_size

    def write(offset: int, data: bytes) -> None:
        if offset == home:
            raise FsError(errno.EIO, "poisoned")
        store(offset, data)

    with journal.handle(1) as tx:
        tx.edit(rig.free[0])[:] = rig.filled(1)
    pool.write = write
    with pytest.raises(FsError, match="poisoned"):
        journal.commit()
    pool.write = store
    assert rig.contents(pool) == {}
    assert bytes(journal.view.block(rig.free[0])) == rig.filled(1), "what is committed is what readers see"
    assert not journal.dirty
    assert rig.superblock(pool).s_errno == 0
    assert recovery.replay(pool, rig.geometry, rig.area).transactions == 1
    assert rig.contents(pool) == {rig.free[0]: rig.filled(1)}


def test_an_abort_inside_a_handle(rig: JournalRig, journal: Journal) -> None:
    dropped: list[int] = []
    journal.abort_hooks.append(lambda: dropped.append(1))
    with undone(journal, 2) as tx:
        tx.edit(rig.free[0])
        journal.abort(Corrupt(CorruptKind.JOURNAL, "y"))
    assert dropped
    assert journal.aborted


@pytest.mark.parametrize("logged", [True, False])
def test_closing_commits_and_lets_go_of_the_pool(rig: JournalRig, pool: MemoryPool, logged: bool) -> None:
    journal = Journal.open(pool, rig.geometry, rig.area if logged else None)
    with journal.handle(1) as tx:
        tx.edit(rig.free[0])[:] = rig.filled(1)
    journal.close()
    journal.close()
    assert rig.contents(pool) == {rig.free[0]: rig.filled(1)}
    assert rig.superblock(pool).s_start == 0
    with pytest.raises(FsError, match="closed"):
        journal.handle(1)
    with pytest.raises(ValueError, match="released"):
        journal.view.block(rig.free[0])
    pool.memory.release()  # BufferError if a view were left


class HandlesAgainstAModel(RuleBasedStateMachine):
    """Operations that change blocks at random, some of which fail; the model is a dict from block to content."""

    blocks = st.integers(0, 5)

    @initialize(logged=st.booleans())
    def begin(self, logged: bool) -> None:
        self.rig = JournalRig()  # its log is long enough that nothing commits by itself
        self.pool = MemoryPool(self.rig.content)
        self.journal = Journal.open(self.pool, self.rig.geometry, self.rig.area if logged else None)
        self.model: dict[int, int] = {}  # block -> first byte
        self.sealed: set[int] = set()
        self.gone: set[int] = set()  # forgotten since their last creation: undefined content
        self.frees: list[BlockRun] = []

    @precondition(lambda self: hasattr(self, "rig"))
    @rule(
        steps=st.lists(
            st.tuples(st.sampled_from(["edit", "create", "forget", "seal", "free"]), blocks, st.integers(1, 255))
        ),
        fails=st.booleans(),
    )
    def operate(self, steps: list[tuple[str, int, int]], fails: bool) -> None:
        model, sealed, gone, frees = dict(self.model), set(self.sealed), set(self.gone), list(self.frees)
        try:
            with self.journal.handle(6) as tx:
                for step, index, value in steps:
                    self.do(tx, step, index, value)
                if fails:
                    raise Undo
        except Undo:
            self.model, self.sealed, self.gone, self.frees = model, sealed, gone, frees

    def do(self, tx: Handle, step: str, index: int, value: int) -> None:
        block = self.rig.free[index]
        if step == "create" or (step == "edit" and block in self.gone):
            tx.create(block)[0] = value
            self.model[block] = value
            self.sealed.discard(block)
            self.gone.discard(block)
        elif step == "edit":
            tx.edit(block)[0] = value
            self.model[block] = value
        elif step == "forget":
            tx.forget(block)
            self.gone.add(block)
            self.model.pop(block, None)
            self.sealed.discard(block)
        elif step == "seal" and block not in self.gone:
            tx.edit(block, self.seal)
            self.sealed.add(block)
        elif step == "free":
            tx.frees.append(BlockRun(block, 1))
            self.frees.append(BlockRun(block, 1))

    @staticmethod
    def seal(content: memoryview) -> None:
        content[1] ^= 0xFF

    @precondition(lambda self: hasattr(self, "rig"))
    @rule()
    def commit(self) -> None:
        before = {block: self.journal.view.block(block)[1] for block in self.sealed}
        self.journal.commit()
        for block, value in before.items():
            assert self.pool.memory[block * self.rig.block_size + 1] == value ^ 0xFF
        self.sealed.clear()
        self.frees.clear()
        for block, value in self.model.items():
            assert self.pool.memory[block * self.rig.block_size] == value

    @invariant()
    def the_view_is_the_model(self) -> None:
        if not hasattr(self, "rig"):
            return
        for block in self.rig.free[:6]:
            if block not in self.gone:
                assert self.journal.view.block(block)[0] == self.model.get(block, 0)
        transaction = self.journal._transaction
        assert transaction.frees == self.frees
        assert not transaction.revokes & transaction.copies.keys()
        assert transaction.copies.keys() == transaction.overlay.keys()
        assert transaction.seals.keys() <= transaction.copies.keys()
        assert not transaction.recent.keys() & transaction.copies.keys()
        for block, (copy, _) in transaction.recent.items():
            assert bytes(copy) == self.rig.block(self.pool, block)


HandlesAgainstAModel.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestHandlesAgainstAModel = HandlesAgainstAModel.TestCase


def test_memory_that_runs_out_interrupts_no_change(rig: JournalRig, pool: MemoryPool, journal: Journal) -> None:
    """The handle is undone as by any refusal, and others follow."""
    block = rig.free[0]

    def operation() -> None:
        with journal.handle(1) as tx:
            tx.edit(block)[:] = rig.filled(1)
            raise MemoryError

    with pytest.raises(MemoryError):
        operation()
    assert not journal.interrupted
    assert bytes(journal.view.block(block)) == bytes(rig.block_size)
    with journal.handle(1) as tx:
        tx.edit(block)[:] = rig.filled(2)
    journal.commit()
    assert rig.block(pool, block) == rig.filled(2)


def test_a_rollback_that_fails_interrupts_a_change(rig: JournalRig, journal: Journal) -> None:
    def fail() -> None:
        raise MemoryError

    def operation() -> None:
        with journal.handle(1) as tx:
            tx.on_rollback(fail)
            tx.edit(rig.free[0])[:] = rig.filled(1)
            raise FsError(errno.ENOSPC)

    with pytest.raises(MemoryError):
        operation()
    assert journal.interrupted


@pytest.mark.parametrize("place", ["hook", "seal"])
def test_a_commit_without_memory_can_be_tried_again(
    rig: JournalRig, pool: MemoryPool, journal: Journal, place: str
) -> None:
    """What the hooks have changed is undone, so the next commit's hooks do it once."""
    block, counted, freed = rig.free[:3]
    fails = {place}

    def meet(here: str) -> None:
        if here in fails:
            fails.clear()
            raise MemoryError

    def hook(tx: Handle) -> None:
        tx.edit(counted)[0] += 1
        meet("hook")

    def seal(content: memoryview) -> None:
        content[-1] = 7
        meet("seal")

    journal.add_commit_hook(hook, lambda: True)
    with journal.handle(1) as tx:
        tx.edit(block, seal)[:] = rig.filled(1)
        tx.frees.append(BlockRun(freed, 1))
    with pytest.raises(MemoryError):
        journal.commit()
    assert not journal.aborted
    assert not journal.interrupted
    assert rig.block(pool, block) == bytes(rig.block_size)
    assert journal.has_frees()
    journal.commit()
    assert rig.block(pool, block) == rig.filled(1)[:-1] + b"\7"
    assert rig.block(pool, counted)[0] == 1


def test_a_commit_whose_hooks_find_no_room_can_be_tried_again(
    rig: JournalRig, pool: MemoryPool, journal: Journal
) -> None:
    """The file system below the pool is full: it may have room later, and nothing was stored."""
    full = [True]

    def hook(tx: Handle) -> None:
        tx.edit(rig.free[1])[0] += 1
        if full:
            raise MissingMemory(errno.ENOSPC, "no room")

    journal.add_commit_hook(hook, lambda: True)
    with journal.handle(1) as tx:
        tx.edit(rig.free[0])[:] = rig.filled(1)
    with pytest.raises(MissingMemory):
        journal.commit()
    assert not journal.aborted
    full.clear()
    journal.commit()
    assert rig.block(pool, rig.free[0]) == rig.filled(1)
    assert rig.block(pool, rig.free[1])[0] == 1


@pytest.mark.interpreted
def test_the_log_makes_no_buffer_while_it_stores(
    rig: JournalRig, pool: MemoryPool, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that runs out there would abort the journal: revoke blocks, too, are made in the buffer that it has."""
    for number in (1, 2):
        with journal.handle(2) as tx:
            for block in rig.free[:2]:
                tx.edit(block)[:] = rig.filled(number)
        if number == 1:
            journal.commit()
    with journal.handle(0) as tx:
        tx.forget(rig.free[0])

    def refused(*_: object) -> bytes:
        raise MemoryError

    for module in (log, jbd2):
        for kind in ("bytes", "bytearray"):
            monkeypatch.setattr(module, kind, refused, raising=False)
    journal.commit()
    assert journal.stats.blocks_revoked == 1
    assert rig.block(pool, rig.free[1]) == rig.filled(2)
