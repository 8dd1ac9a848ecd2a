"""Layer 4: bring a pool to the state of its last commit.

`replay` reads a jbd2 log that daxfs, the kernel or e2fsprogs left, copies committed blocks home and marks the log
empty. Like jbd2 it makes three passes: scan (where does the log end?), revoke (which copies must not be replayed?),
replay. Unlike jbd2 it completes all checks before the first store, so that a refused log leaves the pool unchanged. It
runs before `daxfs.journal.journal.Journal.open` and knows no running transaction. Callers: the fs layer and the tools.

Sources: ``fs/jbd2/recovery.c``, ``fs/jbd2/revoke.c``; e2fsprogs ``e2fsck/recovery.c``, ``e2fsck/journal.c``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, CorruptKind
from daxfs.ext4 import jbd2
from daxfs.ext4.jbd2 import Compat, Format, Incompat, JournalSuperblock
from daxfs.journal import armed, fast_scan
from daxfs.journal.area import LogArea
from daxfs.journal.fast_scan import FastCommits
from daxfs.journal.log import load_superblock
from daxfs.journal.tail import JournalSuperblockWriter
from daxfs.pmem import atomics

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.pmem.pool import Pool

_M = 0xFFFFFFFF
_HALF = 0x80000000
_MAGIC_WORD = jbd2.MAGIC_BYTES


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """The result of a recovery.

    Attributes:
        clean: the log was empty, and the pool was not changed.
        transactions: committed transactions in the log.
        first_sequence: the sequence number of the first of them.
        next_sequence: the sequence number after that of the last one.
        replayed: blocks copied home.
        revoked: copies that were not replayed because of a revoke record.
        errno: ``s_errno``, which an aborted journal has set (0: none). It stays set until `Journal.clear_error`.
        fast: the fast commits that follow the last transaction; None: there are none.
    """

    clean: bool
    transactions: int
    first_sequence: int
    next_sequence: int
    replayed: int
    revoked: int
    errno: int
    fast: FastCommits | None = None


@dataclass(slots=True)
class _Copy:
    """A tag of a committed transaction: log block ``position`` is a copy of the block ``home``."""

    sequence: int
    position: int
    home: int
    flags: int
    checksum: int


def is_newer(sequence: int, other: int) -> bool:
    """Whether ``sequence`` comes after ``other``; sequence numbers wrap around (``tid_gt``)."""
    return 0 < (sequence - other & _M) < _HALF


def replay(pool: Pool, geometry: Geometry, area: LogArea) -> RecoveryReport:
    """Copy every committed block home, and mark the log empty.

    A replay after a power cut during a replay gives the same pool, because the log changes last, after a fence.

    If fast commits follow the last transaction (`RecoveryReport.fast`), the log is not marked empty. Its transactions
    are at home, and the caller makes one more of the fast commits, which are changes of structures
    (`daxfs.journal.continued`). Then it calls this function again.

    Args:
        pool: writable.
        geometry: of the file system.
        area: the blocks of the journal's inode.

    Raises:
        Corrupt: the journal's superblock is damaged, or a transaction is one that jbd2 would refuse: a bad checksum in
            a committed transaction, a revoke list or a block number out of bounds. The pool is unchanged; e2fsck can
            save what is left.
        Unsupported: the journal or a fast commit uses unknown features. The pool is unchanged.
        FsError: storage has failed. The log stays, for another replay.
    """
    superblock = load_superblock(pool, geometry, area)
    if not superblock.s_start:
        return _report(superblock, superblock.s_sequence + 1 & _M, 0, 0)
    reader = _Reader(pool, geometry, area, superblock)
    found = _Scan(reader)
    end = found.run()
    while _fired_late(pool, reader, end, found.behind):
        found = _Scan(reader)
        end = found.run()
    fast = _fast_commits(reader, end, found.behind, geometry.inode_size)
    copies = list(reader.committed(end))
    revokes = reader.revokes(end)
    final: dict[int, _Copy] = {}
    revoked = 0
    for copy in copies:
        until = revokes.get(copy.home)
        if until is not None and not is_newer(copy.sequence, until):
            revoked += 1
            continue
        reader.check_copy(copy)
        final[copy.home] = copy
    there: dict[int, bytes] = {}
    size = geometry.block_size
    for home, copy in final.items():
        content = reader.block(copy.position)
        whole = _MAGIC_WORD + content[4:] if copy.flags & jbd2.FLAG_ESCAPE else content
        if home * size < pool.memory_size:
            pool.replace(home * size, whole)
        else:  # the kernel's log of a pool with storage
            there[home * size] = bytes(whole)
    pool.store_there(there)
    pool.fence()
    if fast is None:
        _empty(pool, geometry, area, superblock, end + 1 & _M)
    return _report(superblock, end, len(final), revoked, fast)


def newest_copy(pool: Pool, geometry: Geometry, area: LogArea, block: int) -> bytearray | None:
    """Return the content of ``block`` in the last committed transaction that changed it; None if the log has no copy.

    The function only reads. So a tool may call it on a pool that a daemon is using at the same time.

    Raises:
        Corrupt: as `replay`; also when the log began anew during the call, so that a second call may succeed.
        Unsupported: as `replay`.
    """
    superblock = load_superblock(pool, geometry, area)
    if not superblock.s_start:
        return None
    reader = _Reader(pool, geometry, area, superblock)
    end = _Scan(reader).run()
    until = reader.revokes(end).get(block)
    copies = [copy for copy in reader.committed(end) if copy.home == block]
    if not copies or (until is not None and not is_newer(copies[-1].sequence, until)):
        return None
    reader.check_copy(copies[-1])
    content = bytearray(reader.block(copies[-1].position))
    if copies[-1].flags & jbd2.FLAG_ESCAPE:
        content[:4] = _MAGIC_WORD
    if load_superblock(pool, geometry, area) != superblock:
        raise Corrupt(CorruptKind.JOURNAL, "the log began anew while it was read")
    return content


def wipe(pool: Pool, geometry: Geometry, area: LogArea) -> bool:
    """Mark the log empty without replaying it, as the kernel does when ``needs_recovery`` is not set.

    Returns:
        Whether the log held anything.

    Raises:
        Corrupt: the journal's superblock is damaged.
        Unsupported: the journal uses unknown features.
    """
    superblock = load_superblock(pool, geometry, area)
    if not superblock.s_start:
        return False
    try:
        end = _Scan(_Reader(pool, geometry, area, superblock)).run()
    except Corrupt:
        end = superblock.s_sequence + area.blocks  # no transaction is shorter than a block
    _empty(pool, geometry, area, superblock, end + 1 & _M)
    return True


def _empty(pool: Pool, geometry: Geometry, area: LogArea, superblock: JournalSuperblock, sequence: int) -> None:
    JournalSuperblockWriter(pool, area.physical(0) * geometry.block_size, superblock).empty(sequence)
    pool.fence()


def _report(
    superblock: JournalSuperblock, end: int, replayed: int, revoked: int, fast: FastCommits | None = None
) -> RecoveryReport:
    clean = not superblock.s_start
    return RecoveryReport(
        clean=clean,
        transactions=0 if clean else end - superblock.s_sequence & _M,
        first_sequence=superblock.s_sequence,
        next_sequence=end,
        replayed=replayed,
        revoked=revoked,
        errno=superblock.s_errno,
        fast=fast,
    )


def _fired_late(pool: Pool, reader: _Reader, end: int, position: int) -> bool:
    """Disarm the transaction ``end``, if it begins at ``position``; return whether a client was faster.

    A client of an earlier mount may outlive its daemon, and fire what that has armed (`daxfs.journal.armed`): it counts
    as durable, so it is replayed, or it can't be fired.
    """
    header = jbd2.header(reader.block(position))
    if header is None or header != (jbd2.MAGIC, jbd2.DESCRIPTOR_BLOCK, end):
        return False
    tags = jbd2.unpack_tags(reader.block(position), reader.form)
    place = reader.place(reader.after(position, 1 + len(tags))) + jbd2.SEQUENCE_OFFSET
    word = armed.word(place, end)
    if not atomics.AVAILABLE or int.from_bytes(pool.memory[place : place + 4], sys.byteorder) != word.armed:
        return False
    return pool.store_bit(place, armed.DISARMING_BIT, word.disarming_value) == word.valid


def _fast_commits(reader: _Reader, end: int, position: int, inode_size: int) -> FastCommits | None:
    """Return the fast commits of the transaction ``end``, which would have begun at ``position``."""
    changes, count = fast_scan.scan(reader.fast_blocks(), end, inode_size)
    return FastCommits(tuple(changes), count, end, position) if count else None


class _Reader:
    """The blocks of one log, in the order in which they were written."""

    def __init__(self, pool: Pool, geometry: Geometry, area: LogArea, superblock: JournalSuperblock) -> None:
        self.superblock = superblock
        self.form = Format.of(superblock)
        self._memory = pool.memory.toreadonly()
        self._area = area
        self._size = geometry.block_size
        # The superblock at home may be older than the log, which then has blocks of groups that were added since.
        self._limit = pool.size // geometry.block_size

    def place(self, position: int) -> int:
        """Return where in the pool the block at a position of the log begins."""
        return self._area.physical(position) * self._size

    def block(self, position: int) -> memoryview:
        """Return the block at a position of the log."""
        start = self.place(position)
        return self._memory[start : start + self._size]

    def fast_blocks(self) -> Iterator[memoryview]:
        """Yield the blocks for fast commits, if the journal has any."""
        if self.superblock.incompat & Incompat.FAST_COMMIT:
            for position in range(self.superblock.log_end + 1, self.superblock.s_maxlen):
                yield self.block(position)

    def after(self, position: int, count: int = 1) -> int:
        """Return the position ``count`` blocks after ``position``, around the log's end (less than one lap)."""
        position += count
        superblock = self.superblock
        return position if position < superblock.log_end else position - (superblock.log_end - superblock.s_first)

    def headers(self, end: int | None = None) -> Iterator[tuple[int, jbd2.Header, memoryview, list[jbd2.Tag]]]:
        """Yield the blocks with a header, with position and tags, from ``s_start`` to the transaction before ``end``.

        The iterator stops at a block that does not belong to the expected transaction. It also stops where a
        transaction would reach around the log to ``s_start``. Such a transaction was never committed: a descriptor that
        a power cut tore can claim more blocks than it had, and a forged log without an end would keep jbd2 in an
        endless loop.
        """
        position, sequence = self.superblock.s_start, self.superblock.s_sequence
        left = self.superblock.log_end - self.superblock.s_first
        while sequence != end:
            content = self.block(position)
            header = jbd2.header(content)
            if header is None or header.h_sequence != sequence:
                return
            tags = jbd2.unpack_tags(content, self.form) if header.h_blocktype == jbd2.DESCRIPTOR_BLOCK else []
            left -= 1 + len(tags)
            if left < 0:
                return
            yield position, header, content, tags
            if header.h_blocktype == jbd2.COMMIT_BLOCK:
                sequence = sequence + 1 & _M
            position = self.after(position, 1 + len(tags))

    def committed(self, end: int) -> Iterator[_Copy]:
        """Yield every tag of the transactions before ``end``.

        Raises:
            Corrupt: a block number lies outside the file system, or inside the journal.
        """
        for position, header, _, tags in self.headers(end):
            for index, tag in enumerate(tags, 1):
                if tag.blocknr >= self._limit or self._area.holds(tag.blocknr):
                    raise Corrupt(CorruptKind.JOURNAL_BLOCK_NUMBER, f"{tag.blocknr} in transaction {header.h_sequence}")
                where = self.after(position, index)
                yield _Copy(header.h_sequence, where, tag.blocknr, tag.flags, tag.checksum)

    def revokes(self, end: int) -> dict[int, int]:
        """Return, for each revoked block, the last transaction before ``end`` that revoked it.

        Raises:
            Corrupt: a revoke list is longer than its block.
        """
        found: dict[int, int] = {}
        for _, header, content, _ in self.headers(end):
            if header.h_blocktype == jbd2.REVOKE_BLOCK:
                for block in jbd2.unpack_revoke(content, self.form):
                    found[block] = header.h_sequence
        return found

    def check_copy(self, copy: _Copy) -> None:
        """Check the tag's checksum against the block in the log.

        Raises:
            Corrupt: the checksum is wrong; jbd2 refuses to mount such a pool.
        """
        if not self.form.csum_version:
            return
        if jbd2.block_checksum(self.form, copy.sequence, self.block(copy.position)) != copy.checksum:
            raise Corrupt(
                CorruptKind.JOURNAL_BLOCK_CHECKSUM,
                f"copy of block {copy.home} in transaction {copy.sequence}, log block {copy.position}",
            )


class _Scan:
    """The first pass, which finds the end of the log; it follows jbd2's rules for blocks with a wrong checksum.

    Attributes:
        behind: where the log ends: the block after the last transaction that was committed.
    """

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self.behind = reader.superblock.s_start
        self._form = reader.form
        self._async = bool(reader.superblock.incompat & Incompat.ASYNC_COMMIT)
        self._v1 = bool(reader.superblock.compat & Compat.CHECKSUM)
        self._running = _M  # COMPAT_CHECKSUM: the checksum over descriptors and copies of the transaction
        self._torn = False  # a descriptor or revoke block of the transaction has a bad checksum
        self._failed: int | None = None  # async commit: the transaction whose commit checksum was wrong
        self._last_seconds = 0

    def run(self) -> int:
        """Return the first sequence number that was not committed.

        Raises:
            Corrupt: a committed transaction is damaged, and is not a stale one from an earlier lap of the log.
        """
        end = self._reader.superblock.s_sequence
        for position, header, content, tags in self._reader.headers():
            kind = header.h_blocktype
            if kind == jbd2.DESCRIPTOR_BLOCK:
                self._torn = self._torn or not jbd2.tail_is_valid(self._form, content)
                if self._v1:
                    self._sum(position, content, len(tags))
            elif kind == jbd2.REVOKE_BLOCK:
                self._torn = self._torn or not jbd2.tail_is_valid(self._form, content)
            elif kind == jbd2.COMMIT_BLOCK:
                if not self._accepts(header.h_sequence, content):
                    break
                end = header.h_sequence + 1 & _M
                if self._failed is None:
                    self.behind = self._reader.after(position)
            else:
                break
        return end if self._failed is None else self._failed

    def _sum(self, position: int, content: memoryview, count: int) -> None:
        self._running = jbd2.crc32_be(self._running, content)
        for index in range(1, count + 1):
            self._running = jbd2.crc32_be(self._running, self._reader.block(self._reader.after(position, index)))

    def _accepts(self, sequence: int, content: memoryview) -> bool:
        """Return whether the scan continues after this commit record."""
        commit = jbd2.unpack_commit(content)
        stale = commit.h_commit_sec < self._last_seconds
        if self._torn:
            if not stale:
                raise Corrupt(CorruptKind.JOURNAL_DESCRIPTOR_CHECKSUM, f"transaction {sequence}")
            return False
        wrong = not jbd2.commit_is_valid(self._form, content)
        if self._v1:
            if self._failed is not None:
                raise Corrupt(CorruptKind.JOURNAL_COMMIT_CHECKSUM, f"transaction {self._failed}")
            wrong = not commit.checksum_matches(self._running)
            self._running = _M
        if wrong:
            if stale:
                return False
            if not self._async:
                raise Corrupt(CorruptKind.JOURNAL_COMMIT_CHECKSUM, f"transaction {sequence}")
            self._failed = sequence if self._failed is None else self._failed
        self._last_seconds = commit.h_commit_sec
        return True
