"""The list of logged data blocks: it follows handles, rollbacks and the laps of the log."""

from __future__ import annotations

from contextlib import suppress

import pytest
from journal_rig import JournalRig

from daxfs.journal import recovery
from daxfs.journal.journal import Journal
from daxfs.journal.logged import LoggedData
from daxfs.pmem.memory import MemoryPool


class Undo(Exception):
    """Raised to end a handle so that its changes are undone."""


@pytest.fixture
def rig() -> JournalRig:
    return JournalRig(log_blocks=64)


def owned(logged: LoggedData) -> dict[int, list[int]]:
    return {owner: sorted(blocks) for owner, blocks in logged.owners.items()}


def test_data_is_logged_and_stored_home(rig: JournalRig, pool: MemoryPool, journal: Journal) -> None:
    first, second = rig.free[:2]
    with journal.handle(2) as tx:
        tx.log_data(first, 12)[:] = rig.filled(1)
        tx.log_data(second, 13)[:] = rig.filled(2, escaped=True)
        tx.log_data(second, 13)[8:9] = b"x"
    assert rig.contents(pool) == {}
    assert journal.holds([first])
    journal.commit()
    assert sorted(rig.contents(pool)) == [first, second]
    assert not journal.holds([first, second])
    assert owned(journal.logged) == {12: [first], 13: [second]}


def test_an_undone_handle_leaves_the_list_as_it_was(rig: JournalRig, journal: Journal) -> None:
    first, second = rig.free[:2]
    with journal.handle(1) as tx:
        tx.log_data(first, 12)[:] = rig.filled(1)
    with suppress(Undo), journal.handle(2) as tx:
        tx.log_data(second, 13)
        tx.unlog_data(first, 2)
        tx.log_data(first, 14)
        raise Undo
    assert owned(journal.logged) == {12: [first]}
    assert bytes(journal.view.block(first)) == rig.filled(1)


def test_data_that_is_stored_directly_is_not_replayed_over(rig: JournalRig, pool: MemoryPool, journal: Journal) -> None:
    first = rig.free[0]
    with journal.handle(1) as tx:
        tx.log_data(first, 12)[:] = rig.filled(1)
    journal.commit()
    with journal.handle(1) as tx:
        tx.unlog_data(first - 3, 10)
    assert not journal.logged
    pool.write(first * rig.block_size, rig.filled(9))
    journal.commit()
    left = MemoryPool(pool.image())
    assert recovery.replay(left, rig.geometry, rig.area).revoked == 1
    assert rig.block(left, first) == rig.filled(9)


def test_a_lap_of_the_log_shortens_the_list(rig: JournalRig, journal: Journal) -> None:
    first, last, *others = rig.free
    with journal.handle(1) as tx:
        tx.log_data(first, 12)[:] = rig.filled(1)
    journal.commit()
    number = 0
    while not journal.stats.tail_moves:
        number += 1
        with journal.handle(4) as tx:
            for block in others[:3]:
                tx.edit(block)[:] = rig.filled(number)
            tx.log_data(last, 13)[:] = rig.filled(number)
        journal.commit()
    assert owned(journal.logged) == {13: [last]}, "what the last transaction holds stays on it"


def test_runs_are_found_from_either_side() -> None:
    logged = LoggedData()
    for number in (5, 7, 20):
        logged.add(number, 1)
    assert sorted(logged.within(5, 2)) == [5]
    assert sorted(logged.within(0, 100)) == [5, 7, 20]
    assert 7 in logged
    logged.keep([7])
    assert owned(logged) == {1: [7]}
    assert logged.remove(7) == 1
    assert not logged
    assert not logged.owners
