"""The administration of a file system: its statistics, which count files, transactions and the log."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import ROOT_INO, Options, Statistics
from daxfs.journal.statistics import Statistics as JournalStatistics

Pool = Callable[..., Path]


def journal_of(found: Statistics) -> JournalStatistics:
    assert found.journal is not None
    return found.journal


def test_files_in_use(pool: Pool) -> None:
    with FileSystem.open(pool()) as fs:
        assert fs.statistics()[:4] == (0, 0, 0, 0)
        file, made = fs.create(ROOT_INO, b"file", 0o644)
        again = fs.open_file(made.ino, os.O_RDWR)
        fs.pin(made)
        fs.pin(made)
        fs.write(file, 0, bytes(10))
        fs.sync()
        assert fs.statistics()[:4] == (2, 1, 0, 0)
        fs.write(file, 0, bytes(10))
        fs.unlink(ROOT_INO, b"file")
        assert fs.statistics()[:4] == (2, 1, 1, 1)
        fs.release(file)
        fs.release(again)
        fs.unpin(made.ino, 2)
        assert fs.statistics()[:4] == (0, 0, 0, 0)


def test_transactions_and_their_sizes(pool: Pool) -> None:
    with FileSystem.open(pool("-b", "1024", "-J", "size=2")) as fs:
        before = journal_of(fs.statistics())
        fs.mkdir(ROOT_INO, b"small", 0o755)
        running = journal_of(fs.statistics())
        assert 4 <= running.running_blocks <= 15
        fs.sync()
        one = journal_of(fs.statistics())
        assert (one.commits, one.running_blocks) == (before.commits + 1, 0)
        assert one.sizes[running.running_blocks.bit_length()] == 1 + before.sizes[running.running_blocks.bit_length()]
        assert one.blocks - before.blocks >= running.running_blocks
        assert one.log_blocks_used > before.log_blocks_used
        for number in range(300):
            fs.mkdir(ROOT_INO, b"%d" % number, 0o755)
        fs.sync()
        many = journal_of(fs.statistics())
        assert sum(many.sizes) == many.commits > one.commits
        assert many.largest > 200 > one.largest
        assert many.sizes[many.largest.bit_length()] > 0
        assert many.sizes[many.largest.bit_length() + 1 :] == (0,) * (32 - many.largest.bit_length())


def test_the_fill_of_the_log(pool: Pool) -> None:
    """The fill grows by what each commit logs, until the log starts over."""
    with FileSystem.open(pool("-b", "1024", "-J", "size=1")) as fs:
        seen = journal_of(fs.statistics())
        assert 900 < seen.log_blocks < 1024
        for number in range(200):
            fs.mkdir(ROOT_INO, b"%d" % number, 0o755)
            fs.sync()
            now = journal_of(fs.statistics())
            logged = now.blocks_logged - seen.blocks_logged
            before = seen.log_blocks_used if now.tail_moves == seen.tail_moves else 0
            assert now.log_blocks_used == before + logged
            seen = now
        assert seen.tail_moves


def test_blocks_that_wait_for_the_commit(pool: Pool) -> None:
    with FileSystem.open(pool("-b", "4096")) as fs:
        fs.tree.write_bytes("/file", bytes(1 << 20))
        fs.sync()
        fs.tree.unlink("/file")
        assert journal_of(fs.statistics()).pending_free_blocks == 256
        fs.sync()
        assert journal_of(fs.statistics()).pending_free_blocks == 0


def test_a_read_only_mount_has_no_journal(pool: Pool) -> None:
    with FileSystem.open(pool(), Options(read_only=True)) as fs:
        assert fs.statistics().journal is None


def test_a_pool_without_a_journal_counts_commits(pool: Pool) -> None:
    with FileSystem.open(pool("-O", "^has_journal")) as fs:
        found = journal_of(fs.statistics())
        assert (found.log_blocks, found.log_blocks_used) == (0, 0)
        fs.mkdir(ROOT_INO, b"a", 0o755)
        fs.sync()
        assert journal_of(fs.statistics()).commits == found.commits + 1
