"""Between handles: a call before the next one, smaller transactions, an empty log, and the pool's hook at a commit."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator

import pytest
from journal_rig import JournalRig

from daxfs.errors import FsError
from daxfs.journal import journal as journal_module
from daxfs.journal import recovery
from daxfs.journal.journal import Journal
from daxfs.journal.log import load_superblock
from daxfs.pmem.memory import MemoryPool
from daxfs.runs import ByteRange


def change(rig: JournalRig, journal: Journal, number: int, blocks: int = 1) -> None:
    with journal.handle(blocks) as tx:
        for block in rig.free[:blocks]:
            tx.edit(block)[:] = rig.filled(number)


def test_a_call_comes_before_the_next_handle_and_once(rig: JournalRig, journal: Journal) -> None:
    seen: list[int] = []

    def hook() -> None:
        seen.append(journal.pending)
        change(rig, journal, 9)
        journal.commit()

    change(rig, journal, 1)
    with journal.handle(1) as tx:
        journal.call_before_next_handle(hook)
        journal.call_before_next_handle(lambda: seen.append(-1))
        tx.edit(rig.free[1])
        assert not seen
    assert not seen
    change(rig, journal, 2)
    change(rig, journal, 3)
    assert seen == [2, -1]
    assert journal.capacity > 100


def test_a_call_that_waits_does_not_come_after_an_abort(rig: JournalRig, journal: Journal) -> None:
    seen: list[int] = []
    journal.call_before_next_handle(lambda: seen.append(1))
    journal.abort(record=False)
    with pytest.raises(FsError) as refused:
        change(rig, journal, 1)
    assert refused.value.errno == errno.EROFS
    assert not seen
    assert journal.capacity == -1


def test_transactions_can_be_kept_small(rig: JournalRig, journal: Journal) -> None:
    whole = journal.capacity
    journal.limit_transactions(4)
    assert journal.capacity == 4
    change(rig, journal, 1, 3)
    change(rig, journal, 2, 3)
    assert journal.stats.commits == 1
    with pytest.raises(FsError) as refused:
        change(rig, journal, 1, 5)
    assert refused.value.errno == errno.ENOSPC
    journal.limit_transactions(None)
    assert journal.capacity == whole
    journal.limit_transactions(whole + 1)
    assert journal.capacity == whole


def test_a_transaction_is_large_only_for_one_handle(
    rig: JournalRig, pool: MemoryPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit of many blocks takes long, and others wait for it."""
    monkeypatch.setattr(journal_module, "USUAL_BLOCKS", 4)
    journal = Journal.open(pool, rig.geometry, rig.area, check_credits=True)
    change(rig, journal, 1, 3)
    change(rig, journal, 2, 1)
    assert journal.stats.commits == 0
    change(rig, journal, 3, 3)
    assert journal.stats.commits == 1
    change(rig, journal, 4, 6)
    assert (journal.stats.commits, journal.pending) == (2, 6)
    change(rig, journal, 5, 1)
    assert (journal.stats.commits, journal.stats.largest, journal.pending) == (3, 6, 1)


def test_a_checkpoint_leaves_everything_at_home_and_an_empty_log(
    rig: JournalRig, pool: MemoryPool, journal: Journal
) -> None:
    for number in (3, 4):
        change(rig, journal, number)
        with journal.handle(1) as tx:
            tx.edit_superblock().s_mnt_count = number
        assert journal.view.superblock().s_mnt_count == number
        journal.checkpoint()
        assert not load_superblock(pool, rig.geometry, rig.area).s_start
        left = MemoryPool(pool.image())
        assert recovery.replay(left, rig.geometry, rig.area).clean
        assert rig.block(left, rig.free[0]) == rig.filled(number)
        assert Journal.open(left, rig.geometry, rig.area).view.superblock().s_mnt_count == number
        assert journal.view.superblock().s_mnt_count == number
    change(rig, journal, 5)
    journal.commit()
    assert recovery.replay(MemoryPool(pool.image()), rig.geometry, rig.area).transactions == 1


class Hook:
    """Notes what the log held when the hook was called."""

    def __init__(self, rig: JournalRig, pool: MemoryPool) -> None:
        self._rig = rig
        self._pool = pool
        self.transactions: list[int] = []
        self.blocks: list[int] = []
        self.needed = bytearray()
        self.bits = 12

    def before(self, offset: int, length: int) -> None:
        """Accept single stores."""

    def before_all(self, ranges: Iterable[ByteRange]) -> None:
        """Note a commit."""
        self.blocks = [begin // self._rig.block_size for begin, _ in ranges]
        left = MemoryPool(self._pool.image())
        self.transactions.append(recovery.replay(left, self._rig.geometry, self._rig.area).transactions)

    def room(self) -> int:
        """Allow all."""
        return 1 << 40

    def expect(self, length: int) -> None:
        """Need no room."""

    def unneeded(self, begin: int, end: int) -> Iterator[ByteRange]:
        """Need nothing."""
        yield ByteRange(begin, end)


def test_the_hook_sees_all_blocks_of_a_commit_before_its_record(
    rig: JournalRig, pool: MemoryPool, journal: Journal
) -> None:
    hook = Hook(rig, pool)
    pool.hook_stores(hook)
    change(rig, journal, 1, 3)
    journal.commit()
    change(rig, journal, 2, 3)
    with journal.handle(1) as tx:
        tx.edit_superblock().s_mnt_count = 3
    journal.commit()
    assert hook.transactions == [0, 1]
    assert sorted(hook.blocks) == sorted([*rig.free[:3], 1024 // rig.block_size])
