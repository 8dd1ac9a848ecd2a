"""Armed appends: a client makes them part of its file by itself, and everybody sees them at once."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_rig import recover_by_e2fsck
from lease_rig import (
    BLOCK,
    EXTEND,
    OPERATIONS,
    STORE,
    Client,
    Pair,
    SharedPool,
    another,
    check,
    client,
    entry_of,
    make,
    recorded,
)
from range_rig import refused
from tree_rig import QUIET

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import WriteNotification
from daxfs.journal.armed import CommitWord
from daxfs.pmem.memory import MemoryPool

GRANTED = 40


class Appender(Client):
    """A client that appends whole blocks; ``content`` is what it has made part of the file."""

    words: tuple[CommitWord, ...] = ()
    content = b""

    def record(self, blocks: int) -> bytes:
        return bytes([len(self.content) // BLOCK % 251 + 1]) * blocks * BLOCK

    def append(self, blocks: int = 1, wanted: int = 8) -> int:
        """Append by a request; return how many more were armed."""
        data = self.record(blocks)
        self.store(len(self.content), data)
        self.fs.volume.pool.fence()
        size = len(self.content) + len(data)
        claim = WriteNotification(size, len(self.content), True, False, self.holder)
        self.changes, words = self.fs.append_stored(self.file, claim, wanted)
        self.words = tuple(words)
        self.content += data
        return len(words)

    @property
    def armed(self) -> bool:
        """Whether the next append can be fired."""
        place, value, _ = self.words[0]
        return int.from_bytes(self.fs.volume.pool.memory[place : place + 4], "little") == value

    def fire(self, blocks: int = 1) -> bool:
        """Append without a request; return whether the daemon was not faster."""
        if not self.armed:
            return False
        pool, word, data = self.fs.volume.pool, self.words[0], self.record(blocks)
        self.store(len(self.content), data)
        pool.fence()
        pool.store_word(word.place, word.valid)
        pool.fence()
        self.words = self.words[1:]
        self.content += data
        return True


def appender(fs: FileSystem, name: bytes = b"f", holder: int = 1) -> Appender:
    """A client of a new file that has appended a block, and was granted more."""
    made = Appender(fs, make(fs, name), holder)
    made.ask(0, GRANTED * BLOCK, STORE | EXTEND)
    return made


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[FileSystem]:
    """A file system in which nothing is wrong at the end; e2fsck recovers it as it is then."""
    with recorded(tmp_path / "pool") as made:
        yield made
        made.check()
        pool = made.volume.pool
        assert isinstance(pool, SharedPool)
        recover_by_e2fsck(pool.image(), tmp_path / "pool")


def seen(fs: FileSystem, held: Appender) -> bytes:
    """The file as a program without the library reads it."""
    file = fs.open_file(held.file.ino, os.O_RDONLY)
    try:
        assert fs.getattr(held.file.ino).size == len(held.content)
        return bytes(fs.read(file, 0, 1 << 20))
    finally:
        fs.release(file)


@pytest.mark.parametrize("blocks", [1, 3])
def test_what_is_fired_is_seen_at_once(fs: FileSystem, blocks: int) -> None:
    held = appender(fs)
    held.append(blocks)
    entry = held.answers[0].entry
    for fired in (1, 2, 3):
        assert held.append(blocks) > fired
        before = fs.getattr(held.file.ino)
        held.append(blocks)
        time.sleep(0.02)  # the clock of times has steps
        for _ in range(fired):
            assert held.fire(blocks)
        assert seen(fs, held) == held.content
        assert fs.getattr(held.file.ino).mtime_ns > before.mtime_ns
        assert entry_of(fs, entry).size == len(held.content)
        check(fs, [held])
    held.close()


def test_a_request_ends_what_is_armed(fs: FileSystem) -> None:
    held = appender(fs)
    held.append()
    held.append()
    assert held.fire()
    assert fs.getattr(held.file.ino).size == 3 * BLOCK
    assert not held.fire()
    held.append()
    assert seen(fs, held) == held.content
    held.close()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fired", [0, 3])
def test_every_operation_finds_what_was_fired(fs: FileSystem, operation: str, fired: int) -> None:
    for name in (b"g", b"source"):
        fs.release(make(fs, name, bytes(12 * BLOCK)))
    held = appender(fs)
    held.append(20)
    held.append(1)
    for _ in range(fired):
        assert held.fire()
    model = held.content
    pair = Pair(fs, [held], [])
    OPERATIONS[operation](pair)
    assert not held.fire()
    check(fs, [held])
    found = bytes(fs.read(held.file, 0, 1 << 20))
    if operation in {"unlink", "rename over", "overwrite", "truncate up"}:
        same = 3 * BLOCK if operation == "overwrite" else len(model)
        assert found[:same] == model[:same]
    if operation in {"unlink", "rename over"}:
        assert fs.getattr(held.file.ino).size == len(model)
    held.close()


def test_what_was_fired_is_in_the_file_after_its_client_is_gone(fs: FileSystem) -> None:
    held = appender(fs)
    held.append()
    held.append()
    assert held.fire()
    fs.release(held.file)
    assert fs.tree.read_bytes("/f") == held.content


def test_two_appenders_take_turns(fs: FileSystem) -> None:
    first, second = appender(fs), appender(fs, b"g", 2)
    chance = random.Random(1)
    for _ in range(30):
        one = chance.choice([first, second])
        if len(one.content) < (GRANTED - 4) * BLOCK and not (one.words and one.fire()):
            one.append(wanted=3)
    assert seen(fs, first) == first.content
    assert seen(fs, second) == second.content
    check(fs, [first, second])
    first.close()
    second.close()


# When nothing is armed


def test_another_holder_would_not_see_the_size(fs: FileSystem) -> None:
    held = appender(fs)
    held.append()
    other = another(held, 2)
    other.ask(0, BLOCK)
    assert held.append() == 0
    other.close()
    assert held.append() > 0
    held.close()


def test_only_granted_bytes_are_armed(fs: FileSystem) -> None:
    held = appender(fs)
    held.append()
    held.append(GRANTED - 4)
    assert held.append(1, wanted=64) == 1, "the last block of an extent is not moved by its border"
    held.close()


def test_bytes_and_deep_trees_are_left_to_requests(fs: FileSystem) -> None:
    held = client(fs)
    for number in range(0, 20, 2):
        fs.write(held.file, number * BLOCK, b"x" * BLOCK)
    deep = Appender(fs, held.file)
    deep.content = bytes(fs.read(held.file, 0, 1 << 20))
    deep.ask(0, GRANTED * BLOCK, STORE | EXTEND)
    assert deep.append() == 0
    claim = WriteNotification(len(deep.content) + 100, len(deep.content), True, False, 1)
    assert fs.append_stored(held.file, claim, 8)[1] == []
    with refused(errno.EAGAIN):
        fs.append_stored(held.file, claim, 8)
    deep.close()


def test_while_there_is_a_snapshot_nothing_is_armed(fs: FileSystem) -> None:
    held = appender(fs)
    held.append()
    assert held.append() > 0
    assert held.fire()
    fs.create_snapshot(b"s")
    held.forget()
    held.ask(0, GRANTED * BLOCK, STORE | EXTEND)
    assert held.append() == 0
    held.close()


# Power cuts


def test_a_power_cut_leaves_whole_appends(tmp_path: Path) -> None:
    """None that had returned is lost, none is in the file before its bytes, and e2fsck finds the same file."""
    fs = recorded(tmp_path / "pool")
    pool = fs.volume.pool
    assert isinstance(pool, SharedPool)
    held, chance = appender(fs), random.Random(1)
    fs.sync()
    pool.restart()
    pool.mark("0")
    while len(held.content) < 24 * BLOCK:
        if held.words and chance.random() < 0.85:
            assert held.fire()
        elif chance.random() < 0.2:
            fs.tree.mkdir(f"/d{len(held.content)}")
            fs.sync()
            held.words = ()
        else:
            held.append(wanted=chance.choice([2, 8]))
        pool.mark(str(len(held.content)))
    images = 0
    for crash in pool.crash_images(chance, prefixes=2, subsets=2):
        with FileSystem.open(MemoryPool(bytearray(crash.image)), QUIET) as found:
            content = found.tree.read_bytes("/f")
        promised = int(crash.label or 0)
        assert promised <= len(content) <= promised + BLOCK, f"event {crash.position} after {crash.label}"
        assert held.content.startswith(content), f"event {crash.position} after {crash.label}"
        if chance.random() < 0.05:
            images += 1
            assert recover_by_e2fsck(crash.image, tmp_path / "copy").contents[held.file.ino] == content
    assert images > 5
    held.close()
    fs.close()
