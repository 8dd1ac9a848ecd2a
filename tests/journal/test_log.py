"""Writing the log: its format, its room, its superblock; debugfs and e2fsck read the result."""

from __future__ import annotations

import errno
import random
import re
from pathlib import Path

import log_blocks
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_rig import FORMATS, JournalRig
from recorder import RecordingPool, Store

from daxfs.errors import Corrupt, FsError, Unsupported
from daxfs.ext4 import jbd2
from daxfs.ext4.jbd2 import Incompat
from daxfs.journal import recovery, tail
from daxfs.journal.area import LogArea
from daxfs.journal.journal import Journal
from daxfs.journal.log import Log
from daxfs.journal.tail import JournalSuperblockWriter
from daxfs.pmem.memory import MemoryPool
from daxfs.runs import BlockRun
from support import run

formats = pytest.mark.parametrize("name", FORMATS)


def write_some(rig: JournalRig, journal: Journal, commits: int, rng: random.Random) -> dict[int, bytes]:
    """Commit random blocks, and forget some; return the content that the pool must have, without forgotten blocks."""
    expected: dict[int, bytes] = {}
    for number in range(commits):
        with journal.handle(6) as tx:
            for block in rng.sample(list(rig.free), rng.randint(1, 6)):
                content = rig.filled(number, escaped=rng.random() < 0.3)
                (tx.create if rng.random() < 0.5 else tx.edit)(block)[:] = content
                expected[block] = content
            if rng.random() < 0.3:
                block = rng.choice(list(rig.free))
                tx.forget(block)
                expected.pop(block, None)
        journal.commit()
    return expected


@formats
@pytest.mark.parametrize("log_blocks", [0, 40])
def test_e2fsck_replays_what_was_logged(tmp_path: Path, name: str, log_blocks: int) -> None:
    """The test removes the home copies; e2fsck and daxfs restore them from the log."""
    rig = JournalRig(name, log_blocks=log_blocks)
    pool = MemoryPool(rig.content)
    journal = Journal.open(pool, rig.geometry, rig.area)
    expected = write_some(rig, journal, 30, random.Random(name))
    assert (journal.stats.tail_moves > 0) == (log_blocks == 40)
    since = MemoryPool(pool.image())
    journal.pool.fence()
    for block in expected:
        assert rig.block(since, block) == expected[block]
    if not log_blocks:  # the log still has every transaction
        for block in expected:
            since.zero(block * rig.block_size, rig.block_size)
    mended = rig.after_e2fsck(since.image(), tmp_path / "pool")
    report = recovery.replay(since, rig.geometry, rig.area)
    assert report.transactions == (30 if not log_blocks else report.transactions)
    for block in expected:
        assert rig.block(since, block) == expected[block]
    for block in rig.free:
        assert rig.block(mended, block) == rig.block(since, block)
    assert rig.superblock(mended).s_start == rig.superblock(since).s_start == 0
    assert rig.superblock(mended).s_sequence == report.next_sequence + 1 & 0xFFFFFFFF


@formats
def test_debugfs_reads_the_log(tmp_path: Path, name: str) -> None:
    rig = JournalRig(name)
    pool = MemoryPool(rig.content)
    journal = Journal.open(pool, rig.geometry, rig.area)
    with journal.handle(2) as tx:
        tx.edit(rig.free[0])[:] = rig.filled(1, escaped=True)
        tx.edit(rig.free[1])
        tx.forget(rig.free[2])
    journal.commit()
    path = tmp_path / "pool"
    path.write_bytes(pool.image())
    told = run("debugfs", "-R", "logdump -a", path)
    start = rig.superblock(pool).s_start
    assert f"Journal starts at block {start}" in told
    assert re.search(rf"FS block {rig.free[0]} logged at .*flags 0x[13]\)", told), told
    assert re.search(rf"FS block {rig.free[1]} logged at .*flags 0x[8a]\)", told), told
    assert f"Revoke FS block {rig.free[2]}" in told
    assert "commit block" in told


def test_a_log_of_full_descriptors_and_revokes(tmp_path: Path) -> None:
    """Several descriptor and revoke blocks in one transaction, around the end of the log."""
    rig = JournalRig()
    pool = MemoryPool(rig.content)
    journal = Journal.open(pool, rig.geometry, rig.area)
    many = range(rig.geometry.blocks_count - 200, rig.geometry.blocks_count)
    forgotten = range(rig.geometry.blocks_count - 700, rig.geometry.blocks_count - 200)
    for number in range(7):
        with journal.handle(len(many)) as tx:
            for block in many:
                tx.create(block)[:] = rig.filled(number + block)
            for block in forgotten:
                tx.forget(block)
        journal.commit()
        image = MemoryPool(pool.image())
        for block in many:
            image.zero(block * rig.block_size, rig.block_size)
        recovery.replay(image, rig.geometry, rig.area)
        for block in many:
            assert rig.block(image, block) == rig.filled(number + block)
    assert journal.stats.blocks_revoked == 7 * 500
    mended = rig.after_e2fsck(pool.image(), tmp_path / "pool")
    assert rig.block(mended, many[0]) == rig.filled(6 + many[0])


def test_a_transaction_larger_than_the_log(rig_of_30: JournalRig) -> None:
    rig = rig_of_30
    pool = MemoryPool(rig.content)
    journal = Journal.open(pool, rig.geometry, rig.area)
    with journal.handle(1) as tx:
        for block in rig.free[:28]:
            tx.edit(block)
    with pytest.raises(FsError, match="a transaction of 30 blocks in a log of 29") as refused:
        journal.commit()
    assert refused.value.errno == errno.ENOSPC
    assert journal.aborted


@pytest.fixture
def rig_of_30() -> JournalRig:
    return JournalRig(log_blocks=30)


def test_a_transaction_that_fills_the_log(rig_of_30: JournalRig, tmp_path: Path) -> None:
    rig = rig_of_30
    pool = MemoryPool(rig.content)
    journal = Journal.open(pool, rig.geometry, rig.area)
    for number in range(4):
        with journal.handle(1) as tx:
            for block in rig.free[:26]:
                tx.edit(block)[:] = rig.filled(number)
        journal.commit()
        image = MemoryPool(pool.image())
        assert recovery.replay(image, rig.geometry, rig.area).transactions == 1
    assert rig.block(rig.after_e2fsck(pool.image(), tmp_path / "pool"), rig.free[0]) == rig.filled(3)


@formats
def test_features_are_those_that_the_kernel_sets(name: str) -> None:
    rig = JournalRig(name)
    pool = MemoryPool(rig.content)
    strange = Incompat.ASYNC_COMMIT | Incompat.CSUM_V2
    rig.change_superblock(
        pool, s_feature_incompat=int(strange), s_checksum_type=jbd2.CRC32C_CHKSUM, s_sequence=5, s_num_fc_blks=0
    )
    Journal.open(pool, rig.geometry, rig.area)
    sb = rig.superblock(pool)
    expected = Incompat.REVOKE
    if "no checksums" not in name:
        expected |= Incompat.CSUM_V3
    if "32bit" not in name:
        expected |= Incompat.BIT64
    assert sb.s_feature_incompat == expected
    assert (sb.s_feature_compat, sb.s_sequence, sb.s_start) == (0, 5, 0)


def test_old_fast_commits_are_erased() -> None:
    """Their area stays one: the feature can't be taken away at once with the superblock's checksum."""
    rig = JournalRig()
    pool = MemoryPool(rig.content)
    rig.change_superblock(
        pool, s_feature_incompat=int(Incompat.FAST_COMMIT | Incompat.CSUM_V3), s_checksum_type=4, s_num_fc_blks=256
    )
    assert rig.superblock(pool).log_end == 1024 - 256
    pool.write(rig.place(1024 - 255), b"a HEAD of a fast commit")
    assert Journal.open(pool, rig.geometry, rig.area)._writer.limit == (1023 - 256) // 4
    assert rig.superblock(pool).log_end == 1024 - 256
    assert rig.superblock(pool).s_feature_incompat & Incompat.FAST_COMMIT
    assert bytes(pool.memory[rig.place(1024 - 255) :][:8]) == bytes(8)


def test_nothing_is_stored_before_the_first_commit(rig_of_30: JournalRig) -> None:
    rig = rig_of_30
    Journal.open(MemoryPool(rig.content), rig.geometry, rig.area).close()
    pool = MemoryPool(rig.content)
    first = Journal.open(pool, rig.geometry, rig.area)
    first.close()
    recorder = RecordingPool(pool.image())
    journal = Journal.open(recorder, rig.geometry, rig.area)
    journal.commit()
    journal.close()
    assert not [event for event in recorder.events if isinstance(event, Store)]


def test_logs_that_cannot_be_opened(rig_of_30: JournalRig) -> None:
    rig = rig_of_30
    pool = MemoryPool(rig.content)
    rig.change_superblock(pool, s_start=3)
    with pytest.raises(Corrupt, match="journal not empty"):
        Log(pool, rig.geometry, rig.area)
    pool = MemoryPool(rig.content)
    rig.change_superblock(pool, h_blocktype=jbd2.SUPERBLOCK_V1)
    with pytest.raises(Unsupported, match="version 1"):
        Log(pool, rig.geometry, rig.area)
    limit = rig.geometry.blocks_count
    for runs in ([], [(0, 5)], [(limit - 2, 3)], [(5, 4), (8, 2)], [(5, 0)], [(5, -1)], [(1 << 60, 1)]):
        with pytest.raises(Corrupt, match="journal inode"):
            Log(pool, rig.geometry, LogArea([BlockRun(*run) for run in runs]))


@pytest.mark.parametrize("name", ["v3", "no checksums"])
def test_closing_marks_the_log_empty(name: str, tmp_path: Path) -> None:
    """Without checksums, sequence numbers continue. With checksums they repeat, but not where a block bears them."""
    rig = JournalRig(name, log_blocks=30)
    pool = MemoryPool(rig.content)
    last = rig.superblock(pool).s_sequence
    for session in range(20):
        journal = Journal.open(pool, rig.geometry, rig.area)
        before = MemoryPool(pool.image())
        with journal.handle(1) as tx:
            tx.edit(rig.free[0])[:] = rig.filled(session)
        journal.commit()
        begun = rig.superblock(pool)
        header = jbd2.header(before.memory[rig.place(begun.s_start) :][:12])
        assert header is None or header.h_sequence != begun.s_sequence
        write_some(rig, journal, 12, random.Random(session))
        during = rig.superblock(pool)
        assert during.s_start
        journal.close()
        sb = rig.superblock(pool)
        assert sb.s_start == 0
        if name == "no checksums":
            assert recovery.is_newer(during.s_sequence, last)
            assert recovery.is_newer(sb.s_sequence, during.s_sequence)
        last = sb.s_sequence
    rig.after_e2fsck(pool.image(), tmp_path / "pool")


def test_the_errno_is_kept_and_cleared(rig_of_30: JournalRig) -> None:
    rig = rig_of_30
    pool = MemoryPool(rig.content)
    journal = Journal.open(pool, rig.geometry, rig.area)
    write_some(rig, journal, 3, random.Random(1))
    before = rig.superblock(pool)
    journal.abort(FsError(errno.EIO, "x"))
    after = rig.superblock(pool)
    assert after.s_errno == -errno.EIO
    assert (after.s_sequence, after.s_start) == (before.s_sequence, before.s_start)
    report = recovery.replay(pool, rig.geometry, rig.area)
    assert (report.errno, report.transactions) == (-errno.EIO, 3)
    assert recovery.replay(pool, rig.geometry, rig.area).errno == -errno.EIO
    journal = Journal.open(pool, rig.geometry, rig.area)
    journal.clear_error()
    journal.close()
    assert rig.superblock(pool).s_errno == 0


@pytest.mark.parametrize("name", ["v3", "no checksums"])
@pytest.mark.parametrize("commits", [1, 3, 60])
def test_nothing_that_was_logged_outlives_an_unmount(name: str, commits: int) -> None:
    """The kernel continues with the number of an emptied log, and does not check for old blocks with later numbers."""
    rig = JournalRig(name, log_blocks=30)
    pool = MemoryPool(rig.content)
    journal = Journal.open(pool, rig.geometry, rig.area)
    write_some(rig, journal, commits, random.Random(commits))
    places = [rig.place(position) for position in range(1, 30)]
    logged = [jbd2.header(pool.memory[place:][:12]) for place in places]
    assert any(logged)
    journal.close()
    assert [jbd2.header(pool.memory[place:][:12]) for place in places] == [None] * len(places)


def test_a_block_left_in_the_log_never_passes_for_a_new_one(rig_of_30: JournalRig) -> None:
    """The blocks after the head and under the commit record hold what the next scan would take for its own."""
    rig = rig_of_30
    pool = MemoryPool(rig.content)
    journal = Journal.open(pool, rig.geometry, rig.area)
    with journal.handle(1) as tx:
        tx.edit(rig.free[0])[:] = rig.filled(1)
    journal.commit()
    log = journal._writer
    assert isinstance(log, Log)
    sequence = log._sequence
    for position in range(2, 30):  # commit records of the next transactions in all free blocks
        if not 0 <= position - log._tail.superblock.s_start < 3:
            for at, number in ((position, sequence), (position, sequence + 1)):
                if (at + number) % 2:
                    record = log_blocks.commit(log._form, number, 1 << 33, 0)
                    pool.write(rig.place(at), record)
    with journal.handle(1) as tx:
        tx.edit(rig.free[0])[:] = rig.filled(2)
    journal.commit()
    report = recovery.replay(MemoryPool(pool.image()), rig.geometry, rig.area)
    assert report.transactions <= 2
    image = MemoryPool(pool.image())
    recovery.replay(image, rig.geometry, rig.area)
    assert rig.block(image, rig.free[0]) == rig.filled(2)


# The words of the superblock


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["anew", "empty", "errno"]), st.integers(0, 0xFFFFFFFF), st.integers(-200, 0)),
        max_size=12,
    )
)
def test_the_checksum_is_right_after_every_change(changes: list[tuple[str, int, int]]) -> None:
    rig = JournalRig(log_blocks=30)
    pool = RecordingPool(rig.content)
    Journal.open(pool, rig.geometry, rig.area)
    checksum = rig.superblock(pool).s_checksum
    changed = JournalSuperblockWriter(pool, rig.place(0), rig.superblock(pool))
    for what, sequence, number in changes:
        pool.events.clear()
        if what == "empty":
            changed.empty(sequence)
            assert rig.superblock(pool).s_start == 0
            stores = [event for event in pool.events if isinstance(event, Store)]
            assert [len(store.data) for store in stores] == [8]
        elif what == "anew":
            found, at = changed.restart(sequence, 30, lambda *_: False)
            assert 1 <= at < 30
            assert (rig.superblock(pool).s_sequence, rig.superblock(pool).s_start) == (found, at)
            stores = [event for event in pool.events if isinstance(event, Store)]
            assert [len(store.data) for store in stores] == [8]
        else:
            changed.write(errno=number)
            assert rig.superblock(pool).s_errno == number
            stores = [event for event in pool.events if isinstance(event, Store)]
            assert all(store.offset // 64 == (store.offset + len(store.data) - 1) // 64 for store in stores)
        assert rig.superblock(pool).s_checksum == checksum
        assert rig.superblock(pool) == changed.superblock


@pytest.mark.parametrize("name", ["v3", "no checksums", "no checksums 32bit", "4k"])
@pytest.mark.parametrize("old", [0, int(Incompat.CSUM_V3 | Incompat.REVOKE)], ids=["made", "checksums"])
def test_a_cut_while_features_are_set(name: str, old: int) -> None:
    """The checksum is right whenever it is valid. (A journal with checksums before and after needs two words.)"""
    rig = JournalRig(name)
    before = MemoryPool(rig.content)
    kind = jbd2.CRC32C_CHKSUM if old else 0
    rig.change_superblock(before, s_feature_incompat=old, s_checksum_type=kind, s_sequence=7)
    pool = RecordingPool(before.image())
    Journal.open(pool, rig.geometry, rig.area).close()
    after = rig.superblock(pool)
    if old and after.has_checksum:
        return
    for crash in pool.crash_images(random.Random(1), prefixes=8, subsets=60):
        found = rig.superblock(MemoryPool(crash.image))
        assert found.s_feature_incompat in (old, after.s_feature_incompat)
        assert (found.s_sequence, found.s_start) == (7, 0)


def test_a_restart_takes_the_nearest_pair_that_is_not_stale() -> None:
    rig = JournalRig()
    pool = MemoryPool(rig.content)
    Journal.open(pool, rig.geometry, rig.area)
    content = pool.image()
    first = JournalSuperblockWriter(pool, rig.place(0), rig.superblock(pool)).restart(1000, 1024, lambda *_: False)
    pool = MemoryPool(content)
    second = JournalSuperblockWriter(pool, rig.place(0), rig.superblock(pool)).restart(
        1000, 1024, lambda at, _: at == first[1]
    )
    assert 1000 <= first[0] < second[0]
    assert second[0] - 1000 < 1 << 26  # about 2**32 / 1023, a few times
    assert rig.superblock(pool).s_start == second[1]


def test_the_inverse_of_a_field() -> None:
    for field in (0x08, 0x18, 0x1C):
        inverse = tail._inverse(field)
        for value in (1, 0x80000000, 0xDEADBEEF):
            assert tail._apply(tail._columns(field), tail._apply(inverse, value)) == value


def test_areas_of_several_runs() -> None:
    area = LogArea([BlockRun(10, 3), BlockRun(100, 1), BlockRun(50, 4)])
    blocks = [10, 11, 12, 100, 50, 51, 52, 53]
    assert area.blocks == 8
    assert [area.physical(position) for position in range(8)] == blocks
    for position in range(8):
        first, end, start = area.run(position)
        assert first <= position < end
        assert list(range(start, start + end - first)) == blocks[first:end]
    assert [block for block in range(200) if area.holds(block)] == sorted(blocks)
