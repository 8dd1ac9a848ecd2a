"""Which fast commits count: the rules of ext4_fc_replay_scan, and areas torn or damaged at every byte."""

from __future__ import annotations

import pytest
from fast_commit_rig import SEQUENCE, FastCommits

from daxfs.errors import Corrupt, Unsupported
from daxfs.ext4 import fast_commit
from daxfs.ext4.extent import Extent
from daxfs.ext4.fast_commit import AddRange, Change, DelRange, InodeImage, NameChange, Tag
from daxfs.journal import fast_scan

BLOCK = 1024
INODE_SIZE = 256


def scanned(content: bytes, sequence: int = SEQUENCE) -> tuple[list[Change], int]:
    blocks = [memoryview(content[at : at + BLOCK]) for at in range(0, len(content), BLOCK)]
    return fast_scan.scan([*blocks, memoryview(bytes(BLOCK))], sequence, INODE_SIZE)


def two_commits() -> FastCommits:
    log = FastCommits(BLOCK).link(2, 12, b"name").inode(12, bytes(160)).tail()
    return log.unlink(2, 12, b"other").add_range(12, 5, 1 << 33, 3, unwritten=True).del_range(12, 7, 9).tail()


FIRST = [NameChange(Tag.LINK, 2, 12, b"name"), InodeImage(12, bytes(160))]
SECOND = [
    NameChange(Tag.UNLINK, 2, 12, b"other"),
    AddRange(12, Extent(5, 1 << 33, 3, True)),
    DelRange(12, 7, 15),
]


def test_complete_commits_count() -> None:
    log = two_commits()
    assert scanned(log.content) == (FIRST + SECOND, 2)
    assert scanned(log.content[: log.ends[0]]) == (FIRST, 1)
    assert scanned(bytes(2 * BLOCK)) == ([], 0)


def test_commits_of_several_blocks() -> None:
    """A record that does not fit begins the next block, after a PAD."""
    log = FastCommits(BLOCK)
    names = [b"%03d" % number + b"n" * 200 for number in range(20)]
    for name in names:
        log.link(2, 12, name)
    log.tail()
    assert len(log.content) > 3 * BLOCK
    assert scanned(log.content) == ([NameChange(Tag.LINK, 2, 12, name) for name in names], 1)


def used(log: FastCommits, number: int) -> range:
    """The bytes of a commit that its checksum covers, and the checksum."""
    begin = log.ends[number - 1] if number else 0
    value = bytes(log.content[begin : log.ends[number]])
    return range(begin, begin + len(value.rstrip(b"\0")))


def test_the_last_commit_torn_or_damaged_at_every_byte() -> None:
    log = two_commits()
    for at in used(log, 1):
        torn = bytes(log.content[:at]).ljust(len(log.content), b"\0")
        assert scanned(torn) == (FIRST, 1) or torn == log.content
        damaged = bytearray(log.content)
        damaged[at] ^= 0x10
        assert scanned(damaged) == (FIRST, 1), at


def test_the_first_commit_damaged_at_every_byte() -> None:
    """It is refused, unless it does not look like one of this transaction: jbd2 can't tell it from a damaged one."""
    log = FastCommits(BLOCK).link(2, 12, b"name").inode(12, bytes(160)).tail()
    for at in used(log, 0):
        damaged = bytearray(log.content)
        damaged[at] ^= 0x10
        if at in (0, 1, 8, 9, 10, 11):  # fc_tag, fc_tid
            assert scanned(damaged) == ([], 0)
        else:
            with pytest.raises((Corrupt, Unsupported), match=r"fast[ _]commit"):
                scanned(damaged)


def test_other_transactions() -> None:
    log = two_commits()
    assert scanned(log.content, SEQUENCE + 1) == ([], 0)
    old = FastCommits(BLOCK, SEQUENCE - 1).link(2, 12, b"old").tail().link(2, 12, b"older").tail()
    assert scanned(log.content[: log.ends[0]] + old.content[BLOCK:]) == (FIRST, 1)
    assert scanned(log.content[: log.ends[0]] + old.content) == (FIRST, 1)
    wrong = FastCommits(BLOCK).link(2, 12, b"name").tail(SEQUENCE + 1)
    with pytest.raises(Corrupt, match="the first one has a wrong checksum"):
        scanned(wrong.content)


def test_features_of_later_versions() -> None:
    head = fast_commit.HEADER.pack(Tag.HEAD, 8) + fast_commit.HEAD.pack(2, SEQUENCE)
    with pytest.raises(Unsupported, match="fast_commit_0x2"):
        scanned(head.ljust(BLOCK, b"\0"))


@pytest.mark.parametrize(
    ("tag", "length"),
    [
        (Tag.ADD_RANGE, 15),
        (Tag.DEL_RANGE, 13),
        (Tag.CREAT, 8),
        (Tag.LINK, 264),
        (Tag.UNLINK, 7),
        (Tag.INODE, 131),
        (Tag.INODE, 4 + INODE_SIZE + 1),
        (Tag.TAIL, 7),
        (Tag.HEAD, 9),
        (10, 8),
        (0, 0),
        (Tag.PAD, BLOCK),
    ],
)
def test_records_without_sense_end_the_scan(tag: int, length: int) -> None:
    """After a complete commit they end the scan; before one, the log is refused."""
    record = (fast_commit.HEADER.pack(tag, length) + bytes(length)).ljust(BLOCK, b"\0")[:BLOCK]
    log = FastCommits(BLOCK).link(2, 12, b"name").tail()
    assert scanned(log.content + record) == (FIRST[:1], 1)
    with pytest.raises(Corrupt, match="the first one has a record without sense"):
        scanned(log.content[:12] + record)
