"""Reading the pool as it was: from the stores of a snapshot and of all newer ones, else from the pool itself.

The pool may change meanwhile, also through another process that has it mounted. What no store has is copied from the
pool first; if the newest store has it after that, it may have been overwritten while it was copied, and the store's
content counts. This is right because the entry of a copy is durable before the chunk is overwritten.

Snapshots may be made and deleted meanwhile as well. A mount tells readers in other processes by a word in each store's
header, before it stores anything that they would not see (`format.ROLE_AT`). `Follower` looks at these words after each
reading, and begins again with the present stores if they have changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from daxfs.errors import FsError
from daxfs.runs import ByteRange
from daxfs.snapshots.format import FOLLOWED, NEWEST, ROLE_AT, VALID_AT, NotAStore

if TYPE_CHECKING:
    from daxfs.pmem.pool import Pool
    from daxfs.snapshots.store import Store

TRIES = 50
PAUSE_SECONDS = 0.02
"""How often, and how long apart, what a mount is just changing is read."""


class Past(Protocol):
    """What a snapshot shows of the pool.

    Attributes:
        chunk_bits: a snapshot chunk is ``1 << chunk_bits`` bytes.
    """

    @property
    def chunk_bits(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the pool as it was."""

    def read_all(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """Return the bytes of several ranges; this is cheaper than to read one after the other."""


class Chain:
    """What a snapshot shows of a pool whose snapshots stay as they are meanwhile.

    Args:
        pool: the pool.
        stores: those of the snapshot and of all newer ones, in the order of their making.
        enlarge: called when the table of the newest store names chunks that its object does not know, since it has
            grown meanwhile; gives the object its new runs. None: the caller's own process grows it.
    """

    def __init__(self, pool: Pool, stores: Sequence[Store], enlarge: Callable[[], None] | None = None) -> None:
        self.stores = tuple(stores)
        self.chunk_bits = stores[0].bits
        self._pool = pool
        self._memory = pool.memory.toreadonly()
        self._enlarge = enlarge
        self._heads = [store.head() for store in stores]
        self._tables: list[dict[int, int]] = [{} for _ in stores]
        self._known = [0] * len(stores)
        for at in range(len(stores)):
            self._refresh(at)

    def read(self, offset: int, length: int) -> bytes:
        """As `Past.read`; the range lies in the pool.

        Raises:
            MissingMemory: memory of it is missing.
            NotAStore: a store is damaged.
        """
        found = bytearray(length)
        bits = self.chunk_bits
        with self._pool.faults.checked():
            live = [
                number
                for number in range(offset >> bits, (offset + length - 1 >> bits) + 1)
                if not self._copied(number, found, offset)
            ]
            for number in live:
                start = max(number << bits, offset)
                end = min(number + 1 << bits, offset + length)
                found[start - offset : end - offset] = self._memory[start:end]
            if live:
                self._refresh(-1)
                for number in live:
                    self._copied(number, found, offset)
        return bytes(found)

    def read_all(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """As `Past.read_all`; raises as `read`."""
        return [self.read(begin, end - begin) for begin, end in ranges]

    @property
    def settled(self) -> bool:
        """Whether all stores are valid, the last one takes the copies, and none is about to go, as its mount says."""
        valid = all(head[VALID_AT] == 1 for head in self._heads)
        roles = [int.from_bytes(head[ROLE_AT:], "little") for head in self._heads]
        return valid and roles == [FOLLOWED] * (len(roles) - 1) + [NEWEST]

    @property
    def unchanged(self) -> bool:
        """Whether all stores are what they were when this object was made."""
        return all(store.head() == head for store, head in zip(self.stores, self._heads, strict=True))

    def overwritten(self, later: int) -> set[int]:
        """Return the chunks that were overwritten between the snapshot and the one that is ``later`` in the chain, of
        those that the snapshot needs; and perhaps others.
        """
        return {number for table in self._tables[:later] for number in table}

    def _copied(self, number: int, found: bytearray, offset: int) -> bool:
        """Put the content of a chunk into its place in what is found from ``offset`` on, if a store has the chunk."""
        for store, table in zip(self.stores, self._tables, strict=True):
            new = table.get(number)
            if new is not None:
                first = number << self.chunk_bits
                start = max(first, offset)
                end = min(first + (1 << self.chunk_bits), offset + len(found))
                found[start - offset : end - offset] = store.content(new)[start - first : end - first]
                return True
        return False

    def _refresh(self, at: int) -> None:
        """Take in what was added to a store."""
        if self._enlarge is not None:
            self._enlarge()
        old, new = self.stores[at].table(self._known[at])
        if len(old):
            self._known[at] += len(old)
            self._tables[at].update(zip(old.tolist(), new.tolist(), strict=True))


class Follower:
    """What a snapshot shows of a pool that another process has mounted.

    Args:
        found: returns a chain of the present stores.
        confirm: called after each reading; raises if the mount is gone, and with it what holds for its stores.

    Raises:
        FsError: as `read`.
    """

    def __init__(self, found: Callable[[], Chain], confirm: Callable[[], None]) -> None:
        self._found = found
        self._confirm = confirm
        self._chain = self._present()
        self.chunk_bits = self._chain.chunk_bits

    def read(self, offset: int, length: int) -> bytes:
        """As `Past.read`.

        Raises:
            FsError: the snapshot is lost or deleted, the mount is gone, or as `Chain.read`.
        """
        return self.read_all([ByteRange(offset, offset + length)])[0]

    def read_all(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """As `Past.read_all`; the mount is asked once. Raises as `read`."""
        for _ in range(TRIES):
            try:
                content = self._chain.read_all(ranges)
            except (FsError, ValueError):  # ValueError: a table of what was a store names chunks outside of it
                if self._chain.unchanged:
                    raise
            else:
                if self._chain.unchanged:
                    self._confirm()
                    return content
            self._chain = self._present()
        raise NotAStore("snapshots are made and deleted all the time")

    def _present(self) -> Chain:
        """Return a chain of the present stores, when the mount has settled them."""
        for _ in range(TRIES):
            chain = self._found()
            if chain.settled:
                return chain
            time.sleep(PAUSE_SECONDS)
        raise NotAStore("the mount does not say which snapshot is the newest; unmount it and mount it again")
