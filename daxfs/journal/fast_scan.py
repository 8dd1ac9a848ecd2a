"""Layer 4: which fast commits wait in the journal.

Fast commits follow the last transaction of the log: they name the transaction that was running, and count only as long
as that one was not committed. `scan` accepts and refuses what ``ext4_fc_replay_scan`` in fs/ext4/fast_commit.c does. It
changes nothing; `recovery` calls it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from daxfs.errors import Corrupt, CorruptKind, Unsupported
from daxfs.ext4 import fast_commit
from daxfs.ext4.checksum import crc32c
from daxfs.ext4.fast_commit import Change, Tag


@dataclass(frozen=True, slots=True)
class FastCommits:
    """The fast commits of the transaction that was running when the power failed.

    Attributes:
        changes: of all of them, in their order.
        count: how many there are.
        sequence: the number of the transaction.
        position: the block of the log where the transaction would have begun.
    """

    changes: tuple[Change, ...]
    count: int
    sequence: int
    position: int


def scan(blocks: Iterable[memoryview], sequence: int, inode_size: int) -> tuple[list[Change], int]:
    """Return the changes of the complete fast commits of a transaction, and the number of these commits.

    A commit is complete with a TAIL whose checksum is right. The first thing that does not belong to the transaction
    ends the scan. If the first commit is incomplete, jbd2 refuses the log: it can't be told from one that was damaged.

    Args:
        blocks: the blocks for fast commits, in order.
        sequence: the number of the transaction.
        inode_size: of the file system.

    Raises:
        Corrupt: the first fast commit is incomplete.
        Unsupported: the fast commits have features.
    """
    found: list[tuple[int, memoryview]] = []
    complete = count = crc = 0
    for tag, record in _records(blocks, inode_size):
        value = record[fast_commit.HEADER.size :]
        if tag == Tag.HEAD:
            features, number = fast_commit.HEAD.unpack(value)
            if features & ~fast_commit.SUPPORTED_FEATURES:
                raise Unsupported([f"fast_commit_{features:#x}"])
            if number != sequence:
                break
        if tag == Tag.TAIL:
            number, stored = fast_commit.TAIL.unpack_from(value)
            if number != sequence or stored != crc32c(crc, record[: fast_commit.HEADER.size + 4]):
                _refuse_the_first(count, "has a wrong checksum")
                break
            count, complete, crc = count + 1, len(found), 0
        elif not tag:
            _refuse_the_first(count, "has a record without sense")
            break
        else:
            crc = crc32c(crc, record)
            found.append((tag, value))
    changes = (fast_commit.decode(tag, value) for tag, value in found[:complete])
    return [change for change in changes if change is not None], count


def _refuse_the_first(count: int, what: str) -> None:
    if not count:
        raise Corrupt(CorruptKind.FAST_COMMIT, f"the first one {what}; e2fsck -fy goes on without it")


def _records(blocks: Iterable[memoryview], inode_size: int) -> Iterator[tuple[int, memoryview]]:
    """Yield the records with their tags; the tag 0: here is something that can't be a record.

    Nothing is yielded if the area does not begin with a HEAD: no fast commit was ever stored, or it was erased.
    """
    header = fast_commit.HEADER
    begun = False
    for block in blocks:
        at = 0
        while at <= len(block) - header.size:
            tag, length = header.unpack_from(block, at)
            if not begun and tag != Tag.HEAD:
                return
            begun = True
            end = at + header.size + length
            if end > len(block) or not fast_commit.length_is_valid(tag, length, inode_size):
                yield 0, block[at:]
                return
            yield tag, block[at:end]
            at = end
