"""Reading the pool as it was: from the stores of a snapshot and of all newer ones, else from the pool itself.

The pool may change meanwhile, also through another process that has it mounted. A chunk that no store has is copied
from the pool first; if the newest store has it after that, it may have been overwritten while it was copied, and the
store's content counts. This is right because the entry of a copy is durable before the chunk is overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daxfs.pmem.pool import Pool
    from daxfs.snapshots.store import Store


class Chain:
    """What a snapshot shows of the pool.

    Args:
        pool: the pool.
        stores: those of the snapshot and of all newer ones, in the order of their making.
        enlarge: called when the table of the newest store names chunks that its object does not know, since it has
            grown meanwhile; gives the object its new runs. None: the caller's own process grows it.
    """

    def __init__(self, pool: Pool, stores: Sequence[Store], enlarge: Callable[[], None] | None = None) -> None:
        self.stores = tuple(stores)
        self.chunk_bits = stores[0].bits
        self._memory = pool.memory.toreadonly()
        self._enlarge = enlarge
        self._tables: list[dict[int, int]] = [{} for _ in stores]
        self._known = [0] * len(stores)
        for at in range(len(stores)):
            self._refresh(at)

    def chunk(self, number: int) -> bytes:
        """Return the content of a chunk of the pool; the last one of the pool may be shorter."""
        found = self._copied(number)
        if found is None:
            start = number << self.chunk_bits
            found = bytes(self._memory[start : start + (1 << self.chunk_bits)])
            self._refresh(-1)
            copied = self._copied(number)
            if copied is not None:
                found = copied
        return found[: max(len(self._memory) - (number << self.chunk_bits), 0)]

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the pool."""
        bits = self.chunk_bits
        first, last = offset >> bits, offset + length - 1 >> bits
        if first == last:
            at = offset - (first << bits)
            return self.chunk(first)[at : at + length]
        whole = b"".join(self.chunk(number) for number in range(first, last + 1))
        at = offset - (first << bits)
        return whole[at : at + length]

    def _copied(self, number: int) -> bytes | None:
        for store, table in zip(self.stores, self._tables, strict=True):
            new = table.get(number)
            if new is not None:
                return bytes(store.content(new))
        return None

    def _refresh(self, at: int) -> None:
        """Take in what was added to a store."""
        if self._enlarge is not None:
            self._enlarge()
        old, new = self.stores[at].table(self._known[at])
        if len(old):
            self._known[at] += len(old)
            self._tables[at].update(zip(old.tolist(), new.tolist(), strict=True))
