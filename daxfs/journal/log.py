"""Layer 4: writing the jbd2 log.

`Log` makes one transaction durable: descriptors, copies of blocks, revoke blocks and a commit record go into the log
in jbd2's own format, so that the kernel, e2fsck and `daxfs.journal.recovery` can replay them. It knows no handles and
no hooks, and it never reads the log back. Its one caller is `daxfs.journal.journal.Journal`.

The order of stores, and what a power cut leaves (docs/CRASH.md has the proof):

1. all blocks of the transaction are stored, the commit record with a wrong sequence number; fence
2. the sequence number of the commit record is stored, one atomic word; fence: the transaction is durable
3. the journal copies the blocks home; the next fence of any kind makes those copies durable
4. only when the log has no room, or at close: fence (the home copies), then the tail moves, by one atomic word; fence

Invariants:

L1. Between ``tail`` and ``head`` lie whole, committed transactions; every one of them is stored at home, but for the
    superblock, which is stored before the tail moves (`Log.store_later`).
L2. At least one block of the log is free, and the block at ``head`` does not look like one of the next transaction:
    whoever scans the log stops there.
L3. ``s_start`` is 0 exactly as long as nothing was logged since the log was last empty.
L4. From `arm` to `settle` nothing else is logged, and the blocks at ``head`` are those of the armed transactions.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, CorruptKind, FsError, Unsupported
from daxfs.ext4 import jbd2
from daxfs.ext4.checksum import crc32c
from daxfs.ext4.jbd2 import Compat, Format, Incompat, JournalSuperblock
from daxfs.journal import armed
from daxfs.journal.area import LogArea
from daxfs.journal.armed import CommitWord
from daxfs.journal.tail import JournalSuperblockWriter

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.pmem.persist import Buffer
    from daxfs.pmem.pool import Pool

__all__ = ["Log", "LogArea", "erase_fast_commits", "load_superblock", "usable_features"]

_M = 0xFFFFFFFF
_MAGIC_FIRST = jbd2.MAGIC_BYTES[0]
_MAGIC_WORD = int.from_bytes(jbd2.MAGIC_BYTES, "little")  # as the pool's words are read
_ESCAPED = bytes(4)
_WORD = 8
_INVALIDATE_AHEAD = 16  # blocks
_INVALIDATE_STOCK = 64  # blocks invalidated at once when fewer are left: checking many at once costs less for each
_SEQUENCE_END = jbd2.SEQUENCE_OFFSET + 4


def load_superblock(pool: Pool, geometry: Geometry, area: LogArea) -> JournalSuperblock:
    """Read and check the journal's superblock, and that the area lies inside the file system.

    Raises:
        Corrupt: the superblock is damaged, or the area lies outside.
        Unsupported: the journal has features that daxfs does not know.
    """
    area.check(min(geometry.blocks_count, pool.size // geometry.block_size))
    start = area.physical(0) * geometry.block_size
    content = pool.memory[start : start + jbd2.SUPERBLOCK_SIZE]
    return jbd2.verify_superblock(content, geometry.block_size, area.blocks)


def usable_features(superblock: JournalSuperblock, geometry: Geometry) -> JournalSuperblock:
    """Return the superblock of an empty log with the features that the kernel sets when it mounts such a file system.

    The journal gets csum v3 if the file system has metadata_csum, else no checksums. It gets 64bit if the file system
    has 64bit, and always revoke. It loses async_commit (``ext4_load_journal``, ``set_journal_csum_feature_set`` in
    fs/ext4/super.c). It keeps fast_commit, since features can't be stored at once with their checksum.
    """
    incompat = superblock.s_feature_incompat | Incompat.REVOKE
    incompat &= ~int(Incompat.CSUM_V2 | Incompat.CSUM_V3 | Incompat.ASYNC_COMMIT)
    checksum_type = superblock.s_checksum_type
    if geometry.metadata_csum:
        incompat |= Incompat.CSUM_V3
        checksum_type = jbd2.CRC32C_CHKSUM
    if geometry.is_64bit:
        incompat |= Incompat.BIT64
    return superblock._replace(
        s_feature_compat=superblock.s_feature_compat & ~int(Compat.CHECKSUM),
        s_feature_incompat=int(incompat),
        s_checksum_type=checksum_type,
    )


def erase_fast_commits(pool: Pool, area: LogArea, superblock: JournalSuperblock) -> None:
    """Make the area for fast commits empty, durably, by the first word of its HEAD.

    It must be empty whenever the log holds transactions that they do not follow: e2fsck 1.47 takes a HEAD of
    another transaction for an error, and does not replay the log.
    """
    first = superblock.log_end + 1
    if superblock.incompat & Incompat.FAST_COMMIT and first < superblock.s_maxlen:
        place = area.physical(first) * superblock.s_blocksize
        if any(pool.memory[place : place + _WORD]):
            pool.store_word(place, 0, _WORD)
            pool.fence()


def unchanged(content: memoryview) -> None:
    """Change nothing: the default ``before_home`` hook of a commit writer."""


class Log:
    """The jbd2 log of one pool, empty when it is opened.

    Attributes:
        before_home: called with a block that waited (`store_later`) right before its store; may change it in place.
        limit: the most blocks that one transaction may have: a quarter of the log, as in jbd2.
        revokes_per_block: block numbers in one revoke block.
        tail_moves: how often the log was full, so that its tail moved.
        blocks: the blocks of the log that transactions may fill.
    """

    def __init__(self, pool: Pool, geometry: Geometry, area: LogArea) -> None:
        """Open the log and set its features; the log must be empty.

        Raises:
            Corrupt: the superblock is damaged, or there are transactions to replay.
            Unsupported: the journal has a version 1 superblock, or features that daxfs does not know.
            MissingMemory: the log lies in holes of the pool's file, and its file system has no room for it.
        """
        if pool.reserve is not None:
            for start, count in area.runs:
                pool.reserve(start * geometry.block_size, count * geometry.block_size, around=True)
        superblock = load_superblock(pool, geometry, area)
        if superblock.h_blocktype != jbd2.SUPERBLOCK_V2:
            raise Unsupported(["journal superblock version 1"])
        if superblock.s_start:
            raise Corrupt(CorruptKind.JOURNAL_NOT_EMPTY, f"transaction {superblock.s_sequence} waits for recovery")
        usable = usable_features(superblock, geometry)
        tail = JournalSuperblockWriter(pool, area.physical(0) * geometry.block_size, superblock)
        erase_fast_commits(pool, area, superblock)
        if usable != superblock:
            tail.rewrite(usable)
        self._begin(pool, area, tail)

    def _begin(self, pool: Pool, area: LogArea, tail: JournalSuperblockWriter) -> None:
        """Set the attributes, as for an empty log."""
        superblock = tail.superblock
        self._pool = pool
        self._words = pool.memory.toreadonly().cast("I")
        self._area = area
        self._size = superblock.s_blocksize
        self._tail = tail
        self._form = Format.of(superblock)
        self._tags_per_descriptor = self._form.tags_per_descriptor
        self._first = superblock.s_first
        self._end = superblock.log_end
        self._sequence = superblock.s_sequence + 1 & _M  # the next transaction's
        self._head = self._first
        self._free = 0  # nothing is logged before s_start is set
        self._invalidated = 0
        self._seconds = 0
        self._run = (0, 0, 0)  # the run of the area that was looked up last
        self._image = memoryview(bytearray())  # a buffer, used again, in which blocks are assembled before their store
        self._waiting: dict[int, memoryview] = {}  # committed blocks that are not stored at home
        self._armed: list[CommitWord] = []  # of the armed transactions, in order
        self.before_home: Callable[[memoryview], None] = unchanged
        self.blocks = self._end - self._first
        self.limit = self.blocks // 4
        self.revokes_per_block = self._form.revokes_per_block
        self.tail_moves = 0

    @property
    def blocks_used(self) -> int:
        """Blocks that hold transactions; the log begins anew when the next transaction has no room after them."""
        return self.blocks - self._free if self._tail.superblock.s_start else 0

    def prepare(self, blocks: int) -> None:
        """As `CommitWriter.prepare`."""
        self._reserve_image(min(blocks, self._tags_per_descriptor) + 2)

    def commit(self, copies: Mapping[int, memoryview], revokes: Collection[int]) -> int:
        """Make the transaction durable; return the log blocks it took.

        Args:
            copies: block number -> content, already sealed.
            revokes: blocks that were freed, none of which is in ``copies``.

        Raises:
            FsError: ENOSPC when the transaction is larger than the log.
        """
        needed = self.blocks_needed(len(copies), len(revokes))
        if needed >= self._free:
            if needed >= self._end - self._first:
                raise FsError(
                    errno.ENOSPC,
                    f"{self._pool.path}: a transaction of {needed} blocks in a log of {self._end - self._first}",
                )
            self._make_room()
        if needed > self._invalidated and self._invalidate(needed):
            self._pool.fence()
        pool, sequence = self._pool, self._sequence
        last = self._wrapped(self._head + needed - 1)
        number = self._place(last) + jbd2.SEQUENCE_OFFSET
        word = int.from_bytes(sequence.to_bytes(4, "big"), "little")
        if self._words[number >> 2] == word:
            # Until the fence, each word of the commit record may still be the old block's, and the sequence number must
            # be wrong in either case. By chance or by design the old word is the right number: overwrite it first.
            pool.store_word(number, word ^ _M)
            pool.fence()
        self._write(sequence, copies, revokes)
        # Invalidate room for another transaction of this size, so that the next commit needs no extra fence (L2).
        if self._invalidated < needed + max(needed, _INVALIDATE_AHEAD):
            self._invalidate(min(needed + max(needed, _INVALIDATE_STOCK), self._free))
        pool.fence()
        pool.store_word(number, word)
        pool.fence()
        self._head = self._wrapped(last + 1)
        self._free -= needed
        self._invalidated -= needed
        self._sequence = sequence + 1 & _M
        return needed

    def arm(self, number: int, images: Sequence[bytes]) -> list[CommitWord]:
        """Store transactions that lack only their commit words; each gives block ``number`` the next of the contents.

        Returns:
            The words, fewer than contents if the log has no room. `settle` comes before anything else is logged.
        """
        pool, needed = self._pool, self.blocks_needed(1)
        count = min(len(images), max(self._free - 1, 0) // needed)
        if not count:
            return []
        whole = count * needed
        if self._invalidated < whole + 1:
            self._invalidate(min(whole + _INVALIDATE_AHEAD, self._free))
            pool.fence()
        position, words = self._head, []
        for k in range(count):
            sequence = self._sequence + k & _M
            place = self._place(self._wrapped(position + needed - 1)) + jbd2.SEQUENCE_OFFSET
            word = armed.word(place, sequence)
            if self._words[place >> 2] == word.valid:  # as in `commit`
                pool.store_word(place, word.valid ^ _M)
                pool.fence()
            image = self._assemble(sequence, [(number, memoryview(images[k]))], last=True)
            at = len(image) - self._size + jbd2.SEQUENCE_OFFSET
            image[at : at + 4] = word.armed.to_bytes(4, sys.byteorder)
            position = self._store(position, image)
            words.append(word)
        pool.fence()
        self._armed = words
        return words[:]

    def settle(self) -> int:
        """Return how many armed transactions were fired; the others can't be any longer.

        What was fired is durable then, also if its client has ended between the instruction and its write-back.
        """
        pool, words, fired = self._pool, self._armed, 0
        self._armed = []
        for word in words:
            now = self._words[word.place >> 2]
            if now != word.valid:
                now = pool.store_bit(word.place, armed.DISARMING_BIT, word.disarming_value)
            if now != word.valid:
                break
            pool.flush(word.place, 4)
            fired += 1
        needed = self.blocks_needed(1)
        self._head = self._wrapped(self._head + fired * needed)
        self._free -= fired * needed
        self._invalidated -= fired * needed
        self._sequence = self._sequence + fired & _M
        if fired < len(words):
            self._invalidated = 0  # L2: the first block looks like one of the next transaction
            self._invalidate(min((len(words) - fired) * needed + _INVALIDATE_AHEAD, self._free))
        pool.fence()
        return fired

    def after_checkpoint(self) -> None:
        """Do nothing: the log has the blocks until the tail moves, and a fence comes before that."""

    def store_later(self, number: int, content: memoryview) -> bool:
        """Keep the block, in its latest version, and return True; it is stored at home before the tail moves."""
        self._waiting[number] = content
        return True

    def store_waiting(self) -> None:
        """Store the waiting blocks at home, without a fence."""
        for number, content in self._waiting.items():
            self.before_home(content)
            self._pool.replace(number * self._size, content)
        self._waiting.clear()

    def empty(self) -> None:
        """Make the log's blocks durable at home, then mark the log empty (invariant L3). It may be filled again."""
        if self._tail.superblock.s_start:
            used = self.blocks if self.tail_moves else self.blocks_used
            self._head, self._invalidated = self._tail.superblock.s_start, 0
            self.store_waiting()
            self._pool.fence()
            self._tail.empty(self._sequence)
            self._free = 0
            self._pool.fence()
            self._invalidate(used)  # sequence numbers come again, and the kernel does not check old blocks for them
        self._pool.fence()

    def follow_size(self) -> None:
        """Read the log where the pool's memory is now: a pool that has changed its size may lie at other addresses."""
        self._words.release()
        self._words = self._pool.memory.toreadonly().cast("I")

    def make_empty(self, area: LogArea) -> None:
        """Make an empty log like this one at another place, durably; this one is empty too.

        Args:
            area: as many blocks as the log has, which nobody else uses.
        """
        pool, size = self._pool, self._size
        for start, count in area.runs:
            place = start * size
            words = self._words[place >> 2 : place + count * size >> 2 : size >> 2]
            for at, word in enumerate(words.tolist()):
                if word == _MAGIC_WORD:
                    pool.store_word(place + at * size, 0)
        erase_fast_commits(pool, area, self._tail.superblock)
        place = self._area.physical(0) * size
        pool.block_store(area.physical(0) * size, pool.memory[place : place + size])
        pool.fence()

    def end(self) -> None:
        """Use this log no longer: it is empty, and another one is in use."""
        self._words.release()

    def close(self) -> None:
        """Empty the log for good."""
        self.empty()
        self._words.release()

    def record_error(self, number: int) -> None:
        """Store ``s_errno``; the content of the log stays."""
        if self._tail.superblock.s_errno != number:
            self._pool.fence()
            self._tail.write(errno=number)
            self._pool.fence()

    # Positions

    def _wrapped(self, position: int) -> int:
        return position if position < self._end else position - (self._end - self._first)

    def _place(self, position: int) -> int:
        """Return the pool offset of a log block; the log is contiguous from there to position ``_run[1]``."""
        first, end, start = self._run
        if not first <= position < end:
            first, end, start = self._area.run(position)
            self._run = first, min(end, self._end), start
        return (start + position - first) * self._size

    def blocks_needed(self, blocks: int, revokes: int = 0) -> int:
        """Return the blocks of the log that a transaction takes."""
        descriptors = -(-blocks // self._tags_per_descriptor)
        return blocks + descriptors - (-revokes // self.revokes_per_block) + 1

    def _make_room(self) -> None:
        """Begin the log anew, once the home copies of the old transactions are durable."""
        pool = self._pool
        self.store_waiting()
        pool.fence()
        if self._tail.superblock.s_start:
            self.tail_moves += 1
        self._sequence, self._head = self._tail.restart(self._sequence, self._end, self._is_stale)
        self._free = self._end - self._first
        self._invalidated = 0
        pool.fence()  # before the first of the old transactions is invalidated or written over

    def _is_stale(self, position: int, sequence: int) -> bool:
        """Whether recovery would take the old block at this position for a block of the transaction ``sequence``."""
        at = self._place(position) >> 2
        header = self._words[at : at + jbd2.HEADER_SIZE // 4].tobytes()
        return header[:4] == jbd2.MAGIC_BYTES and header[jbd2.SEQUENCE_OFFSET : _SEQUENCE_END] == sequence.to_bytes(
            4, "big"
        )

    def _invalidate(self, count: int) -> bool:
        """Clear the magic of old blocks among the ``count`` blocks from ``head`` on; return whether any had it."""
        done, stored, size = self._invalidated, False, self._size
        while done < count:
            position = self._wrapped(self._head + done)
            place = self._place(position)
            length = min(count - done, self._run[1] - position)
            for first in self._words[place >> 2 : place + length * size >> 2 : size >> 2].tolist():
                if first == _MAGIC_WORD:
                    self._pool.store_word(place, 0)
                    stored = True
                place += size
            done += length
        self._invalidated = max(done, self._invalidated)
        return stored

    # Blocks

    def _write(self, sequence: int, copies: Mapping[int, memoryview], revokes: Collection[int]) -> None:
        """Store the transaction from ``head`` on, with a wrong sequence number in its commit record."""
        position = self._head
        numbers, image = sorted(revokes), self._reserve_image(1)[: self._size]
        for at in range(0, len(numbers), self.revokes_per_block):
            jbd2.fill_revoke(self._form, image, sequence, numbers[at : at + self.revokes_per_block])
            position = self._store(position, image)
        entries, most = list(copies.items()), self._tags_per_descriptor
        while len(entries) > most:
            position = self._store(position, self._assemble(sequence, entries[:most], last=False))
            del entries[:most]
        self._store(position, self._assemble(sequence, entries, last=True))

    def _reserve_image(self, blocks: int) -> memoryview:
        """Return the buffer in which blocks are assembled, which has room for so many."""
        if len(self._image) < blocks * self._size:
            self._image = memoryview(bytearray(blocks * self._size))
        return self._image

    def _assemble(self, sequence: int, entries: list[tuple[int, memoryview]], *, last: bool) -> memoryview:
        """Assemble a descriptor and the blocks that it describes, followed, if these are the ``last``, by the commit
        record.
        """
        form, size = self._form, self._size
        blocks = len(entries) + bool(entries) + last
        image, length = self._reserve_image(blocks), blocks * size
        at = 0
        if entries:
            seed = jbd2.sequence_seed(form, sequence)
            tags: list[tuple[int, int, int]] = []
            for number, content in entries:
                at += size
                image[at : at + size] = content
                flags = 0
                if content[0] == _MAGIC_FIRST and jbd2.escapes(content):
                    image[at : at + 4] = _ESCAPED
                    content, flags = image[at : at + size], jbd2.FLAG_ESCAPE
                tags.append((number, flags, crc32c(seed, content) if form.csum_version else 0))
            jbd2.fill_descriptor(form, image[:size], sequence, tags)
            at += size
        if last:
            seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
            self._seconds = max(self._seconds, seconds)  # jbd2 takes a commit with an earlier time for a stale block
            jbd2.fill_commit(form, image[at:length], sequence, self._seconds, nanoseconds)
            at += jbd2.SEQUENCE_OFFSET
            image[at : at + 4] = (sequence ^ _M).to_bytes(4, "big")
        return image[:length]

    def _store(self, position: int, content: Buffer) -> int:
        """Store blocks from ``position`` on, around the log's end; return the position after them."""
        size, store = self._size, self._pool.block_store
        blocks = len(content) // size
        while True:
            place = self._place(position)
            room = self._run[1] - position
            if blocks <= room:
                store(place, content)
                return self._wrapped(position + blocks)
            store(place, content[: room * size])
            content = content[room * size :]
            blocks -= room
            position = self._wrapped(position + room)
