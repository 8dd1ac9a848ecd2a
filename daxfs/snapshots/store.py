"""One exception store: old contents of chunks of the pool, and the table that says which chunk is where.

`Store` adds to a store so that each store to the pool may be the last one before a power cut, and reads one of any
state. It stores with the pool's operations below the hook (`Pool.unhooked`): nobody needs a copy of a store's blocks.
It knows the places of its chunks in the pool, not which file they belong to. Callers: `copier`, `reading`, and the fs
layer.

How exceptions are added (`append`), and what a power cut leaves:

1. The old contents go to the next chunks, and the entries to the table, all but the second word of the first one. That
   word is 0, so that the table ends there. If the last entry of an area is taken, the next area is cleared. Fence. A
   cut before the next step leaves the table as it was, and *stale* entries after its end. They are cleared before
   anything is added (`clear_stale`).
2. The second word of the first entry is stored, an aligned word: all entries are in the table at once. Fence. The
   caller overwrites the chunks only after this fence, so nothing that was not copied is lost.

Invariants:

X1. An entry is durable only if the content that it names is.
X2. Before the last entry of an area is durable, the next area is, and its entries are 0 or were made by the same call.
X3. Beyond the end of the table, the area in which it ends holds no second word while exceptions are added.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from daxfs.snapshots import format as layout
from daxfs.snapshots.format import ENTRY_SIZE, NEW_AT, Header, NotAStore

if TYPE_CHECKING:
    from daxfs.pmem.pool import Pool

Chunks = npt.NDArray[np.uint64]
FEW = 16
"""Up to so many entries are cheaper without numpy."""


class ChunkRun(NamedTuple):
    """``length`` contiguous snapshot chunks of the pool, from ``start`` on."""

    start: int
    length: int


class Store:
    """The store of one snapshot.

    Attributes:
        runs: where its chunks lie in the pool, in order.
        chunks: how many it has.
        capacity: exceptions that it can hold.
        count: exceptions in its table, no more than that.
        bits: a snapshot chunk is ``1 << bits`` bytes.
    """

    def __init__(self, pool: Pool, bits: int, runs: Sequence[ChunkRun]) -> None:
        """Make an object for a store that lies in ``runs``; call `create` or `open` before anything else."""
        self.bits = bits
        self.count = 0
        self._pool = pool
        self._memory = pool.memory.toreadonly()
        self._size = 1 << bits
        self._entries = layout.entries_per_area(1 << bits)
        self._straight = 0  # how many of the next exceptions lie together, from the places below on
        self._entry = self._content = self._new = 0
        self._mapped = 0  # chunks of the store whose pages were mapped
        self.set_runs(runs)

    def set_runs(self, runs: Sequence[ChunkRun]) -> None:
        """Take in where the chunks lie: more than before after the store has grown."""
        self.runs = tuple(runs)
        ends = list(accumulate(length for _, length in self.runs))
        self.chunks = ends[-1] if ends else 0
        self._starts = [0, *ends[:-1]]
        self.capacity = layout.capacity(self.chunks, self._entries)
        self._straight = 0

    @property
    def room(self) -> int:
        """How many exceptions can be added."""
        return self.capacity - self.count

    # Headers

    def create(self, header: Header) -> None:
        """Make the store an empty one, without a fence: nothing names it yet."""
        raw = self._pool.unhooked
        size = 1 << self.bits
        raw.zero(self._place(0), size)
        raw.write(self._place(0), header.pack())
        raw.zero(self._place(1), size)
        self.count = self._straight = 0

    def header(self) -> Header:
        """Return what the header says.

        Raises:
            NotAStore: the header is not one of daxfs, or does not suit this pool.
        """
        if self.chunks < 2:
            raise NotAStore(f"the store of a snapshot has {self.chunks} chunks")
        start = self._place(0)
        header = Header.unpack(self._memory[start : start + layout.SMALLEST_CHUNK])
        if header.chunk_bits != self.bits or header.origin_chunks != self._origin_chunks:
            raise NotAStore("the snapshot is of a pool of another size or block size")
        return header

    def invalidate(self, reason: int) -> None:
        """Mark the snapshot as having lost content, durably; ``reason`` becomes durable before that."""
        raw, start = self._pool.unhooked, self._place(0)
        raw.store_word(start + layout.REASON_AT, reason, 8)
        raw.fence()
        raw.store_word(start + layout.VALID_AT, 0)
        raw.fence()

    def set_role(self, role: int) -> None:
        """Tell other processes what the store is from now on (`format.ROLE_AT`), before anything is stored for it."""
        raw = self._pool.unhooked
        raw.store_word(self._place(0) + layout.ROLE_AT, role, 8)
        raw.fence()

    def set_mapped(self, copied: int, skipped: int) -> None:
        """Say how many chunks that clients might store to were copied at the making, or left out (`Header`)."""
        raw, start = self._pool.unhooked, self._place(0)
        raw.store_word(start + layout.MAPPED_AT, copied, 8)
        raw.store_word(start + layout.SKIPPED_AT, skipped, 8)
        raw.fence()

    def head(self) -> bytes:
        """Return the header's bytes as they are: another process can see in them whether a store is what it was."""
        start = self._place(0)
        return bytes(self._memory[start : start + layout.ROLE_AT + 8])

    # The table

    def open(self) -> None:
        """Find the end of the table.

        Raises:
            NotAStore: the header or the table is damaged.
        """
        self.header()
        self.count = sum(len(old) for old, _ in self._tables(0))
        self._mapped = layout.data_chunk(self.count, self._entries)
        self._straight = 0

    def table(self, first: int = 0, most: int | None = None) -> tuple[Chunks, Chunks]:
        """Return the exceptions from number ``first`` on, as the medium has them now: chunks of the pool, and chunks of
        the store that hold their old content. ``most`` is how many at most (None: all).

        Another process may read the table of a mounted pool: what it finds stays so.

        Raises:
            NotAStore: the table is damaged.
        """
        none = np.zeros(0, np.uint64)
        parts, found = [(none, none)], 0
        for part in self._tables(first):
            parts.append(part)
            found += len(part[0])
            if most is not None and found >= most:
                break
        return np.concatenate([old for old, _ in parts])[:most], np.concatenate([new for _, new in parts])[:most]

    def content(self, new: int) -> memoryview:
        """Return the content of a chunk of the store."""
        start = self._place(new)
        return self._memory[start : start + (1 << self.bits)]

    def clear_stale(self) -> None:
        """Clear the second words after the end of the table, which a power cut has left there (invariant X3)."""
        raw = self._pool.unhooked
        area, at = divmod(self.count, self._entries)
        start = self._place(layout.area_chunk(area, self._entries))
        cleared = False
        for index in (at + np.flatnonzero(self._words(area)[at:, 1])).tolist():
            raw.store_word(start + index * ENTRY_SIZE + NEW_AT, 0, 8)
            cleared = True
        if cleared:
            raw.fence()

    def append(self, old: Sequence[int], contents: Mapping[int, bytes] | None = None) -> None:
        """Add exceptions for chunks of the pool, durably.

        Args:
            old: the chunks, none of them in the table, and no more than there is `room` for.
            contents: what to keep in the place of the present content of a chunk; such a chunk is in ``old`` too.

        Raises:
            ValueError: there is no room.
        """
        if len(old) > self.room:
            raise ValueError(f"{len(old)} exceptions in a store that has room for {self.room}")
        if isinstance(old, range) and not contents and self._is_straight(len(old)):
            self._append_straight(old.start, len(old))
        elif old:
            self._append_anywhere(old, contents or {})

    def append_one(self, old: int) -> None:
        """Add an exception for one chunk with its present content, as `append` does; there must be room for it."""
        if self._straight or self._is_straight(1):
            self._append_straight(old, 1)
        else:
            self._append_anywhere((old,), {})

    def _is_straight(self, count: int) -> bool:
        """Return whether the next ``count`` exceptions lie together, and none is the last of its area."""
        if not self._straight:
            area, at = divmod(self.count, self._entries)
            self._new = layout.data_chunk(self.count, self._entries)
            self._entry = self._place(layout.area_chunk(area, self._entries)) + at * ENTRY_SIZE
            self._content = self._place(self._new)
            self._straight = min(self._entries - 1 - at, self._contiguous(self._new))
            self._prefault(self._new + self._straight)
        return count <= self._straight

    def _append_straight(self, old: int, count: int) -> None:
        """Add exceptions for neighbours, which are all `_is_straight`."""
        raw, entry, content, new, start = self._pool.unhooked, self._entry, self._content, self._new, old << self.bits
        size = count << self.bits
        raw.write(content, self._memory[start : start + size])  # cut at the end of the pool
        if count == 1:
            raw.store_word(entry, old, 8)
        else:
            raw.write(entry, _entries(range(old, old + count), new, whole=False))
        raw.fence()
        raw.store_word(entry + NEW_AT, new, 8)
        raw.fence()
        self.count += count
        self._straight -= count
        self._entry = entry + count * ENTRY_SIZE
        self._content = content + size
        self._new = new + count

    def _append_anywhere(self, old: Sequence[int], contents: Mapping[int, bytes]) -> None:
        raw = self._pool.unhooked
        self._prefault(layout.data_chunk(self.count + len(old) - 1, self._entries) + 1)
        self._store_contents(old, contents)
        place_of_first = new_of_first = 0
        for area, at, first, end in self._segments(len(old)):
            place = self._place(layout.area_chunk(area, self._entries)) + at * ENTRY_SIZE
            new = layout.area_chunk(area, self._entries) + 1 + at
            raw.write(place, _entries(old[first:end], new, whole=first > 0))
            if not first:
                place_of_first, new_of_first = place + NEW_AT, new
            if at + end - first == self._entries:
                raw.zero(self._place(layout.area_chunk(area + 1, self._entries)), 1 << self.bits)
        raw.fence()
        raw.store_word(place_of_first, new_of_first, 8)
        raw.fence()
        self.count += len(old)
        self._straight = 0

    def _prefault(self, end: int) -> None:
        """Have the chunks of the store before ``end`` mapped, some more of them than needed now.

        Holes of the pool's file get blocks first.

        Raises:
            MissingMemory: the file system below the pool has no room for them.
        """
        while self._mapped < end:
            count = min(self._contiguous(self._mapped), self._entries)
            place = self._place(self._mapped)
            self._pool.make_room(place, count << self.bits)
            self._pool.prefault(place, count << self.bits)
            self._mapped += count

    def _segments(self, count: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield where the next ``count`` entries lie: the area, the entry in it, the first and the end of ``count``."""
        first = 0
        while first < count:
            area, at = divmod(self.count + first, self._entries)
            end = min(first + self._entries - at, count)
            yield area, at, first, end
            first = end

    def _store_contents(self, old: Sequence[int], contents: Mapping[int, bytes]) -> None:
        """Store the old contents, neighbours together."""
        write, bits, memory = self._pool.unhooked.write, self.bits, self._memory
        at = 0
        contiguous = isinstance(old, range)
        while at < len(old):
            new = layout.data_chunk(self.count + at, self._entries)
            place = self._place(new)
            given = contents.get(old[at])
            if given is not None:
                write(place, given)
                at += 1
                continue
            most = min(len(old) - at, self._entries - (self.count + at) % self._entries, self._contiguous(new))
            length = most if contiguous and not contents else 1
            while length < most and old[at + length] == old[at] + length and old[at + length] not in contents:
                length += 1
            start = old[at] << bits
            write(place, memory[start : start + (length << bits)])  # cut at the end of the pool
            at += length

    def _tables(self, first: int) -> Iterator[tuple[Chunks, Chunks]]:
        area, at = divmod(first, self._entries)
        found = first
        while True:
            words = self._words(area)[at:]
            ends = np.flatnonzero(words[:, 1] == 0)
            whole = not len(ends)
            used = words if whole else words[: int(ends[0])]
            old, new = used[:, 0].copy(), used[:, 1].copy()
            found += len(old)
            if found > self.capacity or not self._plausible(old, new):
                raise NotAStore(f"the table of a snapshot is damaged in its area {area}")
            yield old, new
            if not whole:
                return
            area, at = area + 1, 0

    def _plausible(self, old: Chunks, new: Chunks) -> bool:
        stride = self._entries + 1
        in_store = (new > 1) & (new < self.chunks) & (new % stride != 1)
        return bool(in_store.all() and (old < self._origin_chunks).all())

    def _words(self, area: int) -> Chunks:
        """Return the entries of an area as rows of two words."""
        chunk = layout.area_chunk(area, self._entries)
        if chunk >= self.chunks:
            raise NotAStore(f"the table of a snapshot goes on after the end of its store, in area {area}")
        return np.frombuffer(self.content(chunk), "<u8").reshape(-1, 2)

    @property
    def _origin_chunks(self) -> int:
        return layout.chunks_of(self._pool.size, self.bits)

    # Places

    def _run_at(self, chunk: int) -> int:
        return bisect_right(self._starts, chunk) - 1

    def _place(self, chunk: int) -> int:
        """Return the pool offset of a chunk of the store."""
        if not 0 <= chunk < self.chunks:
            raise ValueError(f"chunk {chunk} of a store that has {self.chunks}")
        index = self._run_at(chunk)
        return self.runs[index].start + chunk - self._starts[index] << self.bits

    def _contiguous(self, chunk: int) -> int:
        """Return how many chunks of the store lie together in the pool from ``chunk`` on."""
        index = self._run_at(chunk)
        return self._starts[index] + self.runs[index].length - chunk


def _entries(old: Sequence[int], new: int, *, whole: bool) -> bytes:
    """Return the entries of chunks that are copied to ``new`` and after it; not ``whole``: without the first's word."""
    count = len(old)
    if count <= FEW:
        words = [0] * (2 * count)
        words[::2] = old
        words[1::2] = range(new, new + count)
        if not whole:
            words[1] = 0
        return struct.pack(f"<{2 * count}Q", *words)
    entries = np.empty((count, 2), "<u8")
    entries[:, 0] = np.arange(old.start, old.stop) if isinstance(old, range) else old
    entries[:, 1] = np.arange(new, new + count)
    if not whole:
        entries[0, 1] = 0
    return entries.tobytes()
