"""Power cuts: after any cut, recovery brings the pool to the state after one of the commits.

It must be the last commit that had returned, or the one that was running. Blocks that were forgotten and then written
in place (file data in a former metadata block) must survive the replay of their older copies. The recovery of daxfs
runs on every image, e2fsck on a sample.
"""

from __future__ import annotations

import random
from pathlib import Path

import log_blocks
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_rig import JournalRig
from recorder import RecordingPool

from daxfs.ext4.jbd2 import MAGIC_BYTES, Format
from daxfs.journal import recovery
from daxfs.journal.journal import Journal
from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.pool import Pool

BLOCKS = 8
State = dict[int, bytes | None]  # None: the block belongs to no file and is no metadata


class Story:
    """Random transactions on a recording pool, and the state that each commit must make durable.

    Attributes:
        states: states[n] is the content that the pool must have when n commits are durable.
        unsure: unsure[n] has the blocks that were written in place between commit n and the next one.
    """

    def __init__(self, seed: int, *, log_blocks: int, commits: int, name: str = "v3") -> None:
        self.rig = JournalRig(name, log_blocks=log_blocks)
        self.rng = random.Random(seed)
        self.blocks = list(self.rig.free[:BLOCKS])
        opened = MemoryPool(self.rig.content)
        Journal.open(
            opened, self.rig.geometry, self.rig.area
        )  # sets the journal's features before the recording begins
        self.pool = RecordingPool(opened.image())
        self.journal = Journal.open(self.pool, self.rig.geometry, self.rig.area)
        self.states: list[State] = [dict.fromkeys(self.blocks, bytes(self.rig.block_size))]
        self.unsure: list[set[int]] = [set()]
        self.data: set[int] = set()  # forgotten blocks, which may be file data now
        for number in range(1, commits + 1):
            self.transaction(number)

    def content(self, number: int) -> bytes:
        start = MAGIC_BYTES if self.rng.random() < 0.2 else self.rng.randbytes(4)
        return (start + number.to_bytes(4, "little")) * (self.rig.block_size // 8)

    def transaction(self, number: int) -> None:
        state = dict(self.states[-1])
        for block in sorted(self.data):
            if self.rng.random() < 0.5:
                content = state[block] = self.content(number)
                self.pool.write(block * self.rig.block_size, content)
                self.unsure[-1].add(block)
        for _ in range(self.rng.randint(1, 2)):
            with self.journal.handle(4) as tx:
                for block in self.rng.sample(self.blocks, self.rng.randint(1, 4)):
                    if block in self.data:
                        content = state[block] = self.content(number)
                        tx.create(block)[:] = content
                        self.data.discard(block)
                    elif self.rng.random() < 0.25:
                        tx.forget(block)
                        state[block] = None
                        self.data.add(block)
                    else:
                        content = state[block] = self.content(number)
                        tx.edit(block)[:] = content
        self.journal.commit()
        self.pool.mark(str(number))
        self.states.append(state)
        self.unsure.append(set())

    def is_in_state(self, pool: Pool, number: int) -> bool:
        """Whether the pool has the content that this many commits must leave."""
        return all(
            self.rig.block(pool, block) == content
            for block, content in self.states[number].items()
            if content is not None and block not in self.unsure[number]
        )

    def check(self, pool: Pool, label: str, what: str) -> None:
        """Check that the pool is in the state of the last commit that returned, or of the one that was running."""
        promised = int(label or 0)
        possible = [number for number in (promised, promised + 1) if number < len(self.states)]
        assert any(self.is_in_state(pool, number) for number in possible), what


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 1 << 30), log_blocks=st.sampled_from([40, 44, 120]))
def test_every_cut_recovers_to_a_commit(seed: int, log_blocks: int) -> None:
    story = Story(seed, log_blocks=log_blocks, commits=12)
    assert log_blocks == 120 or story.journal.stats.tail_moves
    rng = random.Random(seed)
    for crash in story.pool.crash_images(rng, prefixes=2, subsets=3):
        pool = MemoryPool(crash.image)
        recovery.replay(pool, story.rig.geometry, story.rig.area)
        story.check(pool, crash.label, f"cut at event {crash.position}, {crash.choice}")


@pytest.mark.parametrize("name", ["v3", "no checksums 32bit"])
def test_e2fsck_recovers_to_a_commit_too(tmp_path: Path, name: str) -> None:
    story = Story(7, log_blocks=40, commits=20, name=name)
    rng = random.Random(7)
    images = [crash for crash in story.pool.crash_images(rng, prefixes=1, subsets=2) if rng.random() < 0.1]
    assert len(images) > 10
    for crash in images:
        pool = story.rig.after_e2fsck(crash.image, tmp_path / "pool")
        story.check(pool, crash.label, f"cut at event {crash.position}, {crash.choice}")


@pytest.mark.parametrize("name", ["v3", "no checksums"])
def test_old_commit_records_under_new_blocks(name: str) -> None:
    """A torn block must not mix an old record's magic and type with its own sequence number."""
    rig = JournalRig(name, log_blocks=60)
    pool = MemoryPool(rig.content)
    Journal.open(pool, rig.geometry, rig.area).close()
    form = Format.of(rig.superblock(pool))
    for position in range(1, 60):
        pool.write(rig.place(position), log_blocks.commit(form, 0x77777777, 1 << 33, 0))
    recorder = RecordingPool(pool.image())
    journal = Journal.open(recorder, rig.geometry, rig.area)
    for number in range(1, 5):
        with journal.handle(6) as tx:
            for block in rig.free[:6]:
                tx.edit(block)[:] = rig.filled(number)
            tx.forget(rig.free[9])
        journal.commit()
        recorder.mark(str(number))
    for crash in recorder.crash_images(random.Random(1), prefixes=0, subsets=90):
        after = MemoryPool(crash.image)
        recovery.replay(after, rig.geometry, rig.area)
        found = {rig.block(after, block) for block in rig.free[:6]}
        assert len(found) == 1
        promised = int(crash.label or 0)
        assert found < {bytes(rig.block_size)} | {rig.filled(number) for number in (promised, promised + 1)}


def test_a_cut_in_the_recovery() -> None:
    """A power cut may interrupt a replay; the next replay completes it."""
    story = Story(3, log_blocks=80, commits=6)
    dirty = story.pool.image()
    pool = RecordingPool(dirty)
    for block in story.blocks:  # the home copies of all commits are lost
        pool.zero(block * story.rig.block_size, story.rig.block_size)
    pool.fence()
    data = {block for block, content in story.states[-1].items() if content is None or block in story.data}
    pool.restart()
    recovery.replay(pool, story.rig.geometry, story.rig.area)
    whole = story.rig.contents(pool)
    for crash in pool.crash_images(random.Random(1), prefixes=6, subsets=6):
        again = MemoryPool(crash.image)
        recovery.replay(again, story.rig.geometry, story.rig.area)
        assert {block: content for block, content in story.rig.contents(again).items() if block not in data} == {
            block: content for block, content in whole.items() if block not in data
        }


def test_a_cut_while_closing() -> None:
    """Closing stores one word, so the log's superblock has a right checksum before and after."""
    story = Story(5, log_blocks=40, commits=6)
    start = len(story.pool.events)
    story.journal.close()
    assert story.rig.superblock(story.pool).s_start == 0
    for crash in story.pool.crash_images(random.Random(1), start=start, prefixes=6, subsets=12):
        pool = MemoryPool(crash.image)
        recovery.replay(pool, story.rig.geometry, story.rig.area)
        story.check(pool, crash.label, f"cut at event {crash.position}, {crash.choice}")


def test_a_pool_without_a_journal_is_stored_after_the_data() -> None:
    """Without a journal a commit is not atomic, but everything is durable when it returns."""
    rig = JournalRig()
    pool = RecordingPool(rig.content)
    journal = Journal.open(pool, rig.geometry, None)
    for number in range(4):
        pool.write(rig.free[10] * rig.block_size, rig.filled(100 + number))
        with journal.handle(2) as tx:
            for block in rig.free[:2]:
                tx.edit(block)[:] = rig.filled(number)
        journal.commit()
        pool.mark(str(number))
    for crash in pool.crash_images(random.Random(1)):
        after = MemoryPool(crash.image)
        promised = int(crash.label or -1)
        for block in rig.free[:2]:
            least = max(rig.block(after, block)[4], rig.block(after, block)[-1])
            assert crash.label == "" or least >= promised
        newest = max(rig.block(after, block)[4] for block in rig.free[:2])
        if newest:  # metadata of this commit is durable, so its data must be too
            assert rig.block(after, rig.free[10])[4] >= 100 + newest
