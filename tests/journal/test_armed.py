"""Armed transactions: who fires them, what the daemon takes over, and what a power cut leaves of them."""

from __future__ import annotations

import errno
import mmap
import os
import random
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_rig import FORMATS, JournalRig
from recorder import RecordingPool

from daxfs.errors import FsError
from daxfs.ext4.jbd2 import MAGIC_BYTES
from daxfs.journal import recovery
from daxfs.journal.armed import CommitWord
from daxfs.journal.journal import Journal
from daxfs.pmem import atomics
from daxfs.pmem.address import address_of
from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.pool import Pool

BLOCKS = 4
State = dict[int, bytes]


def value(pool: Pool, word: CommitWord) -> int:
    return int.from_bytes(pool.memory[word.place : word.place + 4], "little")


class Client:
    """Who fires armed transactions, in order."""

    def __init__(self, pool: RecordingPool) -> None:
        self.pool = pool
        self.words: list[CommitWord] = []

    def fire(self, *, durable: bool = True) -> bool:
        """Fire the next one; return whether the daemon has not been faster. ``durable``: write the line back."""
        word = self.words[0]
        if value(self.pool, word) != word.armed:
            return False
        del self.words[0]
        if durable:
            self.pool.store_word(word.place, word.valid)
            self.pool.fence()
        else:
            self.pool.store_by_another(word.place, word.valid)
        return True


class Story:
    """Commits of the daemon and of a client in turn; ``states[n]`` is what the blocks are after the n-th.

    ``begun[n]`` is the number of events before it began. The record has a mark with its number when it is durable.
    """

    def __init__(self, seed: int, *, log_blocks: int, turns: int, name: str = "v3") -> None:
        self.rig = JournalRig(name, log_blocks=log_blocks)
        self.chance = random.Random(seed)
        self.blocks = list(self.rig.free[:BLOCKS])
        opened = MemoryPool(self.rig.content)
        Journal.open(opened, self.rig.geometry, self.rig.area)
        self.pool = RecordingPool(opened.image())
        self.journal = Journal.open(self.pool, self.rig.geometry, self.rig.area)
        self.client = Client(self.pool)
        self.settled: list[int] = []
        self.fired = 0
        self.states: list[State] = [dict.fromkeys(self.blocks, bytes(self.rig.block_size))]
        self.begun = [0]
        for _ in range(turns):
            self.chance.choice([self.commit, self.arm, self.arm, self.fire, self.fire, self.fire_some, self.settle])()
        self.commit()

    def content(self) -> bytes:
        start = MAGIC_BYTES if self.chance.random() < 0.2 else self.chance.randbytes(4)
        return (start + len(self.states).to_bytes(4, "little")) * (self.rig.block_size // 8)

    def reach(self, **changed: bytes) -> None:
        """The next state begins."""
        self.begun.append(len(self.pool.events))
        self.states.append({**self.states[-1], **{int(block): new for block, new in changed.items()}})

    def promise(self) -> None:
        self.pool.mark(str(len(self.states) - 1))

    def commit(self) -> None:
        """The daemon changes some blocks."""
        with self.journal.handle(BLOCKS) as tx:
            self.check_settled()
            changed = {}
            for block in self.chance.sample(self.blocks, self.chance.randint(1, 3)):
                assert bytes(tx.block(block)) == self.states[-1][block]
                changed[str(block)] = new = self.content()
                tx.edit(block)[:] = new
        self.reach(**changed)
        self.journal.commit()
        self.promise()

    def arm(self) -> None:
        """The daemon arms some contents of a block."""
        self.settle()
        self.block = self.chance.choice(self.blocks)
        self.images = [self.content() for _ in range(self.chance.randint(1, 5))]
        self.client.words = self.journal.arm(self.block, list(self.images), self.settled.append)
        self.fired = 0

    def fire(self) -> None:
        """The client fires the next one; now and then it ends before its write-back."""
        durable = self.chance.random() < 0.8
        if self.client.words:
            image = self.images[self.fired]
            self.reach(**{str(self.block): image})
            assert self.client.fire(durable=durable)
            self.fired += 1
            if durable:
                self.promise()
            else:
                self.client.words = []

    def fire_some(self) -> None:
        for _ in range(self.chance.randint(2, 4)):
            self.fire()

    def settle(self) -> None:
        self.journal.settle()
        self.check_settled()
        self.promise()

    def check_settled(self) -> None:
        """What was fired was counted and is there; the rest can't be fired."""
        if self.settled:
            assert self.settled == [self.fired]
            self.settled.clear()
            self.fired = 0
        for block, content in self.states[-1].items():
            assert bytes(self.journal.view.block(block)) == content
            assert self.rig.block(self.pool, block) == content
        if self.client.words:
            assert not self.client.fire()
            self.client.words = []

    def check(self, pool: Pool, position: int, label: str, choice: str) -> None:
        possible = [n for n in range(int(label or 0), len(self.states)) if self.begun[n] <= position]
        found = {block: self.rig.block(pool, block) for block in self.blocks}
        assert any(found == self.states[n] for n in possible), f"cut at event {position} after {label}, {choice}"


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 1 << 30), log_blocks=st.sampled_from([40, 44, 120]))
def test_every_cut_recovers_to_a_commit(seed: int, log_blocks: int) -> None:
    story = Story(seed, log_blocks=log_blocks, turns=30)
    for crash in story.pool.crash_images(random.Random(seed), prefixes=2, subsets=3):
        pool = MemoryPool(crash.image)
        recovery.replay(pool, story.rig.geometry, story.rig.area)
        story.check(pool, crash.position, crash.label, crash.choice)


@pytest.mark.parametrize("name", ["v3", "no checksums 32bit"])
def test_e2fsck_recovers_to_a_commit_too(tmp_path: Path, name: str) -> None:
    story = Story(7, log_blocks=44, turns=40, name=name)
    chance = random.Random(7)
    images = [crash for crash in story.pool.crash_images(chance, prefixes=1, subsets=2) if chance.random() < 0.1]
    assert len(images) > 10
    for crash in images:
        pool = story.rig.after_e2fsck(crash.image, tmp_path / "pool")
        story.check(pool, crash.position, crash.label, crash.choice)


@pytest.fixture
def story() -> Story:
    """A journal that has committed once."""
    return Story(1, log_blocks=44, turns=0)


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_fired_is_replayed(name: str) -> None:
    story = Story(1, log_blocks=44, turns=0, name=name)
    block, images = story.blocks[0], [bytes([number]) * story.rig.block_size for number in (1, 2, 3)]
    story.client.words = story.journal.arm(block, images, story.settled.append)
    assert [story.client.fire() for _ in range(2)] == [True, True]
    pool = MemoryPool(story.pool.image())
    assert recovery.replay(pool, story.rig.geometry, story.rig.area).transactions == 3
    assert story.rig.block(pool, block) == images[1]
    assert not story.settled


def test_the_log_has_room_for_some(story: Story) -> None:
    """At least one block stays free; the next commit begins the log anew."""
    words = story.journal.arm(story.blocks[0], [bytes(story.rig.block_size)] * 64, story.settled.append)
    log = story.journal.stats
    assert len(words) == (log.log_blocks - log.log_blocks_used - 1) // 3
    story.client.words = words
    while story.client.words:
        assert story.client.fire()
    story.journal.settle()
    assert not story.journal.arm(story.blocks[0], [bytes(story.rig.block_size)], story.settled.append)
    story.states.append({**story.states[-1], story.blocks[0]: bytes(story.rig.block_size)})
    story.settled.clear()
    story.commit()
    assert story.journal.stats.tail_moves
    assert story.journal.arm(story.blocks[0], [bytes(story.rig.block_size)], story.settled.append)


def test_nothing_is_armed_beside_a_running_transaction(story: Story) -> None:
    with story.journal.handle(1) as tx:
        tx.edit(story.blocks[0])[:] = story.content()
    assert not story.journal.arm(story.blocks[1], [bytes(story.rig.block_size)], story.settled.append)


@pytest.mark.parametrize("end", ["commit", "checkpoint", "close", "abort"])
def test_whatever_the_journal_does_next_settles(story: Story, end: str) -> None:
    images = [bytes([number]) * story.rig.block_size for number in (1, 2)]
    story.client.words = story.journal.arm(story.blocks[0], images, story.settled.append)
    assert story.client.fire()
    getattr(story.journal, end)()
    assert story.settled == [1]
    assert not story.client.fire()
    assert story.rig.block(story.pool, story.blocks[0]) == images[0]


@pytest.mark.parametrize("end", ["commit", "abort"])
def test_what_cannot_be_taken_home_is_left_to_recovery(story: Story, end: str) -> None:
    """The journal is aborted, once; the log has what was fired."""
    images = [bytes([number]) * story.rig.block_size for number in (1, 2)]
    story.client.words = story.journal.arm(story.blocks[0], images, story.settled.append)
    assert story.client.fire()
    aborts: list[None] = []
    story.journal.abort_hooks.append(lambda: aborts.append(None))

    def fail(*_: object) -> None:
        raise FsError(errno.EIO)

    write, story.pool.write = story.pool.write, fail
    with pytest.raises(FsError) if end == "commit" else nullcontext():
        getattr(story.journal, end)()
    story.pool.write = write
    assert story.journal.aborted
    assert len(aborts) == 1
    assert not story.client.fire()
    pool = MemoryPool(story.pool.image())
    recovery.replay(pool, story.rig.geometry, story.rig.area)
    assert story.rig.block(pool, story.blocks[0]) == images[0]


def test_a_late_client_of_an_earlier_mount_fires_before_the_replay_or_not_at_all(story: Story) -> None:
    images = [bytes([number]) * story.rig.block_size for number in (1, 2)]
    words = story.journal.arm(story.blocks[0], images, story.settled.append)
    pool = MemoryPool(story.pool.image())
    recovery.replay(pool, story.rig.geometry, story.rig.area)
    assert value(pool, words[0]) not in {words[0].armed, words[0].valid}

    class Racing(MemoryPool):
        def store_bit(self, offset: int, bit: int, new: bool) -> int:
            if offset == words[0].place:
                self.store_word(offset, words[0].valid)  # the client is faster by an instruction
            return super().store_bit(offset, bit, new)

    racing = Racing(story.pool.image())
    recovery.replay(racing, story.rig.geometry, story.rig.area)
    assert story.rig.block(racing, story.blocks[0]) == images[0]
    assert value(racing, words[1]) not in {words[1].armed, words[1].valid}


# The instruction


@pytest.mark.skipif(not atomics.AVAILABLE, reason="the number of futex(2) is known for common machines only")
@pytest.mark.parametrize("before", [0, 0xFFFFFFFF, 0x12345678])
def test_a_bit_is_stored_and_no_other(before: int) -> None:
    pool = MemoryPool(4096)
    for bit in range(32):
        for new in (False, True):
            pool.store_word(8, before)
            after = before | 1 << bit if new else before & ~(1 << bit)
            assert pool.store_bit(8, bit, new) == after
            assert pool.memory[4:16] == bytes(4) + after.to_bytes(4, sys.byteorder) + bytes(4)


@pytest.mark.skipif(not atomics.AVAILABLE, reason="the number of futex(2) is known for common machines only")
def test_two_processes_lose_no_bit() -> None:
    with mmap.mmap(-1, 4096) as shared:
        memory = memoryview(shared)
        address = address_of(memory)
        child = os.fork()
        bit = 3 if child else 5
        lost = 0
        for number in range(20_000):
            atomics.store_bit(address, bit, number % 2 == 0)
            lost += memory[0] >> bit & 1 != (number % 2 == 0)
        if not child:
            os._exit(lost > 0)
        memory.release()
        assert os.waitpid(child, 0)[1] == 0
        assert not lost
