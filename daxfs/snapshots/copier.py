"""Copy before write: what the newest snapshot needs is copied into its store before it is overwritten.

`Copier` is the pool's hook (`daxfs.pmem.storehook`) while the pool has a snapshot. It keeps one bit for each snapshot
chunk, set if some snapshot needs the chunk's content and no store has it yet. Only the newest snapshot's store takes
copies: an older snapshot reads through the newer ones. A copy costs two fences and no transaction, so it can be made
anywhere, also inside a handle. Making the store larger takes a transaction, so the store has a reserve: when less than
that is left, the copier asks for more (`running_low`). If a chunk can't be copied, the snapshots are given up (`lost`),
never the store that was about to be made. This module knows no files; the fs layer makes copiers and grows stores.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from daxfs.errors import FsError, MissingMemory
from daxfs.runs import ByteRange

if TYPE_CHECKING:
    from daxfs.pmem.pool import Pool
    from daxfs.snapshots.store import Store

log = logging.getLogger("daxfs.snapshots")


class Copier:
    """The hook of a pool with snapshots.

    Attributes:
        store: of the newest snapshot.
        needed: one bit for each snapshot chunk of the pool, in the order of ext4's bitmaps. The owner may clear bits.
        bits: a snapshot chunk is ``1 << bits`` bytes.
        reserve: exceptions that the store should always have room for.
        copied: chunks copied since this object was made.

    Args:
        pool: the pool.
        store: as above.
        needed: as above; it has a bit for each chunk of the pool.
        reserve: as above.
        make_room: ``make_room(count, certain)`` is called before ``count`` chunks are copied that the store has no room
            for, or before so many may have to be copied (not ``certain``). It makes the store larger if it can.
        running_low: called when less than the reserve is left, once until `grown`.
        lost: ``lost(full)`` is called when a chunk can't be copied, because the store is full or because its memory is
            missing. It takes the hook off the pool.
    """

    def __init__(
        self,
        pool: Pool,
        store: Store,
        needed: bytearray,
        reserve: int,
        *,
        make_room: Callable[[int, bool], None],
        running_low: Callable[[], None],
        lost: Callable[[bool], None],
    ) -> None:
        self.store = store
        self.needed = needed
        self.reserve = reserve
        self.copied = 0
        self._pool = pool
        self.bits = store.bits
        self._pending = pool.faults.pending
        self._make_room = make_room
        self._running_low = running_low
        self._lost = lost
        self._asked = False

    # The hook

    def before(self, offset: int, length: int) -> None:
        """As `StoreHook.before`."""
        bits = self.bits
        first, last = offset >> bits, offset + length - 1 >> bits
        if first == last:
            needed = self.needed
            try:
                if needed[first >> 3] >> (first & 7) & 1:
                    self._copy_one(first)
            except IndexError:  # outside of the pool, which the store itself refuses
                return
        elif length > 0:
            found = self._needed(first, last + 1)
            if found:
                self._copy(found)

    def before_all(self, ranges: Iterable[ByteRange]) -> None:
        """As `StoreHook.before_all`."""
        found: set[int] = set()
        for begin, end in ranges:
            found.update(self._needed(begin >> self.bits, (end - 1 >> self.bits) + 1))
        if found:
            self._copy(sorted(found))

    def room(self) -> int:
        """As `StoreHook.room`."""
        return max(self.store.room - 2, 1) << self.bits

    def expect(self, length: int) -> None:
        """As `StoreHook.expect`."""
        chunks = (length >> self.bits) + 2
        if chunks > self.store.room:
            self._make_room(chunks, False)

    def unneeded(self, begin: int, end: int) -> Iterator[ByteRange]:
        """As `StoreHook.unneeded`."""
        bits = self.bits
        position = begin
        for chunk in self._needed(begin >> bits, (end - 1 >> bits) + 1) if begin < end else ():
            low, high = chunk << bits, chunk + 1 << bits
            if low > position:
                yield ByteRange(position, low)
            position = max(position, high)
        if position < end:
            yield ByteRange(position, end)

    # The owner's side

    def copy(self, chunks: Sequence[int]) -> None:
        """Copy those of some chunks that are needed still, though nobody is about to overwrite them.

        Raises:
            FsError: ENOSPC, there is no room for them. Nothing is lost.
            MissingMemory: memory is missing. Nothing is lost.
        """
        found = self._still_needed(chunks)
        if found and self._append(found) is None:
            raise FsError(errno.ENOSPC, f"{self._pool.path}: no room for what programs may store to")
        self.check_room()

    def grown(self) -> None:
        """Accept that the store was made larger, or could not be: ask again when it is time."""
        self._asked = False

    def check_room(self) -> None:
        """Ask for a larger store if less than the reserve is left."""
        if self.store.room < self.reserve and not self._asked:
            self._asked = True
            self._running_low()

    def _needed(self, first: int, end: int) -> Sequence[int]:
        """Return the chunks from ``first`` to before ``end`` that must be copied before they are overwritten."""
        word = int.from_bytes(self.needed[first >> 3 : (end + 7) >> 3], "little") >> (first & 7)
        every = (1 << end - first) - 1
        word &= every
        if not word:
            return ()
        if word == every:
            return range(first, end)
        flags = np.unpackbits(np.frombuffer(word.to_bytes(end - first + 7 >> 3, "little"), np.uint8), bitorder="little")
        found: list[int] = (np.flatnonzero(flags) + first).tolist()
        return found

    def _copy_one(self, chunk: int) -> None:
        """As `_copy`, of one chunk."""
        store = self.store
        left = store.capacity - store.count
        if self._pending[0] or not left:
            self._copy((chunk,))
            return
        try:
            store.append_one(chunk)
        except MissingMemory as error:
            self._fail(error)
            return
        self.needed[chunk >> 3] ^= 1 << (chunk & 7)
        self.copied += 1
        if left <= self.reserve and not self._asked:
            self.check_room()

    def _copy(self, chunks: Sequence[int]) -> None:
        """Copy chunks into the store; when it returns, they may be overwritten."""
        if self._pending[0]:
            return  # the operation has failed, and the store that it is about to make raises
        try:
            copied = self._append(chunks)
        except MissingMemory as error:
            self._fail(error)
            return
        if copied is None:
            self._lost(True)
            return
        self.copied += copied
        self.check_room()

    def _still_needed(self, chunks: Iterable[int]) -> list[int]:
        needed = self.needed
        return [chunk for chunk in chunks if needed[chunk >> 3] >> (chunk & 7) & 1]

    def _append(self, chunks: Sequence[int]) -> int | None:
        """Add chunks to the store, which is made larger if need be; return how many; None: there is no room."""
        needed = self.needed
        if len(chunks) > self.store.room:
            self._make_room(len(chunks), True)
            chunks = self._still_needed(chunks)  # making room may have copied some of them
        if len(chunks) > self.store.room:
            return None
        self.store.append(chunks)
        if isinstance(chunks, range):
            low, high = chunks.start >> 3, chunks.stop + 7 >> 3
            word = int.from_bytes(needed[low:high], "little")
            word &= ~((1 << len(chunks)) - 1 << (chunks.start & 7))
            needed[low:high] = word.to_bytes(high - low, "little")
        else:
            for chunk in chunks:
                needed[chunk >> 3] &= ~(1 << (chunk & 7))
        return len(chunks)

    def _fail(self, error: MissingMemory) -> None:
        log.error("%s: what a snapshot needs could not be copied: %s", self._pool.path, error.strerror)
        self._lost(False)
