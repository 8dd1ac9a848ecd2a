"""Sequence numbers wrap at 2^32, and an old block with the next number is never taken for a new one."""

from __future__ import annotations

import random
from pathlib import Path

import log_blocks
import numpy as np
import pytest
from journal_rig import JournalRig
from recorder import RecordingPool

from daxfs.ext4 import jbd2
from daxfs.ext4.jbd2 import Format
from daxfs.journal import recovery, tail
from daxfs.journal.journal import Journal
from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.pool import Pool

NAMES = ["v3", "no checksums"]
LOG = 120
"""Blocks of a log."""
LAST = 0xFFFFFFFF


def change(rig: JournalRig, journal: Journal, number: int, blocks: int = 2) -> None:
    """Commit a transaction that fills some of the free blocks."""
    with journal.handle(blocks) as tx:
        for block in rig.free[:blocks]:
            tx.edit(block)[:] = rig.filled(number)
    journal.commit()


def numbered(rig: JournalRig, sequence: int) -> MemoryPool:
    """Make a pool whose next transaction has the number after ``sequence``."""
    pool = MemoryPool(rig.content)
    Journal.open(pool, rig.geometry, rig.area)  # sets the journal's features
    rig.change_superblock(pool, s_sequence=sequence)
    return pool


def before_the_wrap(rig: JournalRig, checksums: bool) -> MemoryPool:
    """Make a pool whose log begins with one of the last eight numbers before the wrap.

    Without checksums the first number follows that of the superblock. With checksums the log takes the nearest pair of
    a number and a position that leaves the checksum unchanged (`daxfs.journal.tail`); superblocks are tried until it
    fits.
    """
    last = range(LAST - 7, LAST + 1)
    if not checksums:
        return numbered(rig, last[0] - 1)
    for number in last:
        for place in range(1, LOG):
            balance = 0
            for bit in range(place.bit_length()):
                if place >> bit & 1:
                    balance ^= tail._apply(tail._inverse(tail._S_SEQUENCE), tail._columns(tail._S_START)[bit])
            pool = numbered(rig, number ^ balance)
            found = tail.JournalSuperblockWriter(pool, rig.place(0), rig.superblock(pool))
            if found._unchanged_checksum((number ^ balance) + 1 & LAST, LOG, lambda *_: False)[0] in last:
                return pool
    raise AssertionError("no superblock brings the log near the wrap")


@pytest.mark.parametrize("name", NAMES)
def test_numbers_wrap_in_the_log(tmp_path: Path, name: str) -> None:
    """The log is replayed, by daxfs and by e2fsck, after each of the transactions around the wrap."""
    rig = JournalRig(name, log_blocks=LOG)
    pool = before_the_wrap(rig, name == "v3")
    journal = Journal.open(pool, rig.geometry, rig.area)
    numbers = set()
    for number in range(1, 13):
        change(rig, journal, number)
        after = MemoryPool(pool.image())
        for block in rig.free[:2]:
            after.zero(block * rig.block_size, rig.block_size)
        report = recovery.replay(after, rig.geometry, rig.area)
        assert (report.transactions, report.replayed) == (number, 2)
        numbers.add(report.next_sequence)
        assert rig.contents(after) == dict.fromkeys(rig.free[:2], rig.filled(number))
    assert {LAST, 0, 1} <= numbers
    left = bytearray(pool.image())
    assert rig.contents(rig.after_e2fsck(left, tmp_path / "pool")) == dict.fromkeys(rig.free[:2], rig.filled(12))
    journal.close()
    assert name == "v3" or rig.superblock(pool).s_sequence < 20
    again = Journal.open(pool, rig.geometry, rig.area)
    change(rig, again, 20)
    assert recovery.replay(MemoryPool(pool.image()), rig.geometry, rig.area).transactions == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_block_of_the_next_number_at_the_new_tail(name: str) -> None:
    """The log avoids a number if an old transaction with that number lies where the log would begin."""
    rig = JournalRig(name, log_blocks=LOG)
    plain = numbered(rig, 1000)
    change(rig, Journal.open(plain, rig.geometry, rig.area), 1)
    would = rig.superblock(plain)
    forged = numbered(rig, 1000)
    forge(rig, forged, would.s_start, would.s_sequence)
    pool = RecordingPool(forged.image())
    journal = Journal.open(pool, rig.geometry, rig.area)
    change(rig, journal, 1)
    taken = rig.superblock(pool)
    assert (taken.s_start, taken.s_sequence) != (would.s_start, would.s_sequence)
    for left in pool.crash_images(random.Random(1), prefixes=2, subsets=6):
        after = MemoryPool(left.image)
        recovery.replay(after, rig.geometry, rig.area)
        assert rig.free[7] not in rig.contents(after), left[1:]


def forge(rig: JournalRig, pool: Pool, position: int, sequence: int) -> None:
    """Store a committed transaction of one block at a position of the log."""
    form = Format.of(rig.superblock(pool))
    content = rig.filled(99)
    descriptor = memoryview(bytearray(rig.block_size))
    checksum = jbd2.block_checksum(form, sequence, memoryview(content)) if form.csum_version else 0
    jbd2.fill_descriptor(form, descriptor, sequence, [(rig.free[7], 0, checksum)])
    blocks = [bytes(descriptor), content, log_blocks.commit(form, sequence, 1 << 33, 0)]
    for at, block in enumerate(blocks):
        wrapped = position + at
        pool.write(rig.place(wrapped if wrapped < LOG else wrapped - LOG + 1), block)


@pytest.mark.parametrize("name", NAMES)
def test_a_commit_record_over_a_block_that_holds_its_number(name: str) -> None:
    """The third word of old data is the number of the commit record stored over it: a torn store makes no record."""
    rig = JournalRig(name, log_blocks=LOG)
    plain = numbered(rig, 1000)
    change(rig, Journal.open(plain, rig.geometry, rig.area), 1)
    would = rig.superblock(plain)
    pool = numbered(rig, 1000)
    record = would.s_start + 3  # after the descriptor and two blocks
    record = record if record < LOG else record - LOG + 1
    pool.write(rig.place(record) + jbd2.SEQUENCE_OFFSET, would.s_sequence.to_bytes(4, "big"))
    recorder = RecordingPool(pool.image())
    journal = Journal.open(recorder, rig.geometry, rig.area)
    change(rig, journal, 1)
    assert rig.superblock(recorder).s_sequence == would.s_sequence
    whole = dict.fromkeys(rig.free[:2], rig.filled(1))
    for left in recorder.crash_images(random.Random(1), prefixes=2, subsets=36):
        after = MemoryPool(left.image)
        recovery.replay(after, rig.geometry, rig.area)
        assert rig.contents(after) in ({}, whole), left[1:]


@pytest.mark.parametrize("longer", [0, 1, 5])
def test_numbers_that_come_again_in_the_same_places(longer: int) -> None:
    """An emptied log with checksums may begin where it began before: each old transaction then bears the next number.

    The old transactions are as long as the new ones, or shorter; none of them is ever replayed.
    """
    rig = JournalRig("v3", log_blocks=LOG)
    pool = numbered(rig, 1000)
    old = Journal.open(pool, rig.geometry, rig.area)
    for number in range(50, 58):
        change(rig, old, number)
    begun = rig.superblock(pool)
    old.close()
    pool.store_word(rig.place(begun.s_start), 0)  # otherwise the log would begin elsewhere
    for block in rig.free[:8]:
        pool.zero(block * rig.block_size, rig.block_size)
    recorder = RecordingPool(pool.image())
    journal = Journal.open(recorder, rig.geometry, rig.area)
    for number in range(1, 5):
        change(rig, journal, number, 2 + longer)
        recorder.mark(str(number))
    now = rig.superblock(recorder)
    assert (now.s_start, now.s_sequence) == (begun.s_start, begun.s_sequence)
    states = [dict.fromkeys(rig.free[: 2 + longer], rig.filled(number)) for number in range(1, 5)]
    images = 0
    for left in recorder.crash_images(random.Random(1), prefixes=4, subsets=24):
        after = MemoryPool(left.image)
        recovery.replay(after, rig.geometry, rig.area)
        promised = int(left.label or 0)
        assert rig.contents(after) in [{}, *states][promised : promised + 2], left[1:]
        images += 1
    assert images > 100


@pytest.mark.parametrize("count", [1, 5, 1000, 70_000])
def test_the_nearest_numbers_come_first(count: int) -> None:
    values = np.random.default_rng(count).integers(0, 1 << 32, count, np.uint32)
    values[count // 2 :: 7] = values[0]  # equal ones stay in order
    assert list(tail._ascending(values)) == np.argsort(values, kind="stable").tolist()


def test_each_place_of_the_log_has_a_number_that_leaves_the_checksum_as_it_is() -> None:
    rig = JournalRig("v3", log_blocks=LOG)
    pool = numbered(rig, 12345)
    writer = tail.JournalSuperblockWriter(pool, rig.place(0), rig.superblock(pool))
    expected = writer._checksum()
    starts = np.arange(1, LOG, dtype=np.uint32)
    for _ in range(2):  # from an empty log, and from one that begins somewhere
        for place, number in zip(starts.tolist(), writer._balanced(starts).tolist(), strict=True):
            writer._put(tail._S_START, place)
            writer._put(tail._S_SEQUENCE, number)
            assert writer._checksum() == expected
        writer._move(number, place)
