"""The lease cache of one open file: epoch and cached extents, and the requests that fill it.

A ``LeaseCache`` keeps the leases of one holder. The fast path of ``files`` uses ``read_extent`` and ``write_extent``,
the cached extents that were used last, without a call into this module; every other access calls ``lookup``. This
module copies no data, unless another program has moved EOF (``_rewrite_appended``).

Why a copy never touches memory that belongs to another file by now (docs/DIRECT.md, rules 3 to 5):

1. A store raises ``active_stores`` first, then compares the status entry's epoch with the cached one, then copies.
2. DAXFS_RENEW is sent only after ``read_extent`` and ``write_extent`` were cleared and while ``active_stores`` is 0. A
   thread that raises ``active_stores`` later finds no extent, or a range list whose epoch is over, and stores nothing.
3. A read compares the epoch after its copy: if it is unchanged, no block was freed while the copy ran.

Single statements without calls are not interrupted by other threads (the global interpreter lock changes hands at calls
and backward jumps); ``active_stores += 1`` relies on it, and ``pool.attach`` refuses Pythons without that lock.
"""

from __future__ import annotations

import bisect
import errno
import os
import threading
import weakref
from typing import NamedTuple, TypeAlias

from daxfs import protocol
from daxfs.direct import requests
from daxfs.direct.limits import file_size
from daxfs.direct.pool import LOST, Pool
from daxfs.direct.trust import Refused
from daxfs.errors import FsError
from daxfs.protocol import FURTHEST, MOST_FILLED, Flag, Kind

RecentExtent: TypeAlias = tuple[int, int, int, int, memoryview]
"""A cached extent as the fast path reads it: first byte, end, distance from file offset to pool offset, all in bytes;
epoch; the words of the status entry (epoch, size)."""

NO_EXTENT: RecentExtent = (1, 0, 0, 0, memoryview(bytes(64)).cast("Q"))
"""An extent that no range lies in."""
HOLE = -1
"""Start of a range of a range list that reads as zeros."""

PERMANENT = {errno.ENOTTY, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM, errno.EROFS, errno.ENOSYS, errno.EACCES}
"""Errors after which no further lease is requested (docs/DIRECT.md, "The protocol")."""

_SMALL = 64 << 10  # bytes: smaller writes get blocks only if they continue the one before, and else go to the kernel
_MOST_EXTENTS = 4096  # cached at most; an answer that comes after that replaces the cache
_MOST_BACKOFF = 1024  # lookups
_TRIES = 4


class CachedExtent(NamedTuple):
    """A piece of the file that was granted."""

    start: int  # in the file, bytes
    end: int
    delta: int  # from offset in the file to offset in the pool; 0 unless the kind is MEMORY
    kind: int
    writable: bool  # granted for storing


class RangeList(NamedTuple):
    """Where a range of the file lies, as long as ``status[0]`` is ``epoch``."""

    ranges: list[tuple[int, int]]  # pool offset (or HOLE) and length, in bytes
    epoch: int
    status: memoryview


class LeaseCache:
    """The leases of one open file.

    Attributes:
        read_extent: the cached extent that the fast path reads from.
        write_extent: the cached extent that the fast path stores to.
        active_stores: number of stores that run now.
        appended_end: end in bytes of what this object stored past EOF and has not reported; 0: nothing.
        unreported: whether the daemon lacks a write notification for stores that were made.
        status: the words of the status entry (epoch, size).
        why: why no lease is requested any longer; "" while leases are requested.
        may_store: whether stores may go to memory.
    """

    __slots__ = (
        "__weakref__",
        "_backoff",
        "_backoff_left",
        "_base",
        "_buffer",
        "_descriptor",
        "_epoch",
        "_extents",
        "_fill_step",
        "_granted_end",
        "_holder",
        "_lock",
        "_next_write",
        "_readable",
        "active_stores",
        "appended_end",
        "may_store",
        "pool",
        "read_extent",
        "status",
        "unreported",
        "why",
        "write_extent",
    )

    def __init__(self, pool: Pool, descriptor: int, *, readable: bool, may_store: bool) -> None:
        self.pool = pool
        self.may_store = may_store and pool.writable
        self.why = ""
        self._descriptor = descriptor
        self._readable = readable
        self._buffer = bytearray(protocol.LEASE_SIZE)
        self.appended_end = self._base = self._granted_end = 0
        self.unreported = False
        self._next_write = -1  # end of the last write that needed blocks
        self._fill_step = protocol.FIRST_STEP
        self._backoff_left, self._backoff = 0, 1  # lookups that go to the kernel after a request failed for now
        self.reset()
        _caches.add(self)

    def reset(self) -> None:
        """Start empty under a new holder number: at the start, and in a forked child."""
        self._holder = requests.random_holder()
        self._lock = threading.Lock()
        self._extents: list[CachedExtent] = []
        self.read_extent = self.write_extent = NO_EXTENT
        self.status = NO_EXTENT[4]
        self._epoch = -1
        self.active_stores = self._granted_end = 0

    def probe(self) -> None:
        """Request a first lease.

        Raises:
            Refused: the file gets no direct access.
        """
        with self._lock:
            if not self._request_size() and self.why:
                raise Refused(self.why)

    def size(self) -> int | None:
        """Return the file size in bytes, unreported stores past EOF included; None if only the kernel knows it."""
        if self.status[0] != self._epoch:
            if self._lock.acquire(blocking=False):
                try:
                    self._request_size()
                finally:
                    self._lock.release()
            if self.status[0] != self._epoch:
                return None
        size = max(self.status[1], self.appended_end)
        return size if size <= FURTHEST else None

    def lookup(self, offset: int, end: int, *, store: bool) -> RangeList | None:
        """Return where the range lies, with requests for what is not cached; None: leave the range to the kernel.

        The extent that the range ends in becomes ``read_extent`` and ``write_extent``. Another thread's lookup is not
        waited for: the result is then None.
        """
        if self.why or (store and end > file_size()) or not self._lock.acquire(blocking=False):
            return None
        try:
            if self._backoff_left:
                self._backoff_left -= 1
                return None
            for _ in range(_TRIES):
                epoch = self._epoch
                if self.status[0] == epoch:
                    ranges = self._lookup_in_epoch(offset, end, store)
                    if ranges is None or self._epoch == epoch:
                        return None if ranges is None else RangeList(ranges, epoch, self.status)
                else:
                    length = self._request_length(offset, end, store)
                    if not self._request(offset, length, Flag.WRITE if store else Flag(0)):
                        return None
            return None
        finally:
            self._lock.release()

    def committed_ranges(self, offset: int, end: int) -> list[tuple[int, int]] | None:
        """Return where the range lies if all of it was granted for storing, else None.

        The daemon commits blocks before it grants them for storing, so that the result needs no fsync(2), only a flush.
        """
        ranges = []
        while offset < end:
            extent = self._find(offset)
            if extent is None or not extent.writable or extent.kind != Kind.MEMORY or self.status[0] != self._epoch:
                return None
            stop = min(end, extent.end)
            ranges.append((offset + extent.delta, stop - offset))
            offset = stop
        return ranges

    def report_stores(self, flags: int = 0) -> None:
        """Send the write notification that is due: the file's times change, and its size if stores went past EOF.

        Without unreported stores a notification is sent only if there are ``flags``.

        Raises:
            OSError: the daemon's; EIO as ``_rewrite_appended``.
        """
        begin, end = self._base, self.appended_end
        if not (end or self.unreported or flags):
            return
        self.unreported = False
        try:
            if end:
                requests.notify_appended(self._descriptor, begin, end, self._holder, flags)
            else:
                requests.notify_stored(self._descriptor, flags)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                self.unreported = True
                raise
            self._rewrite_appended(begin, end)
            return
        if self.appended_end == end:
            self.appended_end = 0
        self._base = self.status[1]

    def _rewrite_appended(self, begin: int, end: int) -> None:
        """Write [begin, end) again, through the kernel, after another program has moved EOF away from ``begin``.

        The daemon took the blocks past EOF out of the file, but no other file gets them before this holder renews, so
        that they still hold what was stored. A file that was cut stays cut: the stores count as made before the cut.

        Raises:
            FsError: EIO, ``begin`` lies inside a block. That block stayed in the file and was cleared: its bytes are
                lost.
            OSError: the system's.
        """
        if self.appended_end == end:
            self.appended_end = 0
        self._granted_end, self.write_extent = 0, NO_EXTENT
        if self.pool.faults[0]:
            raise FsError(errno.EIO, f"{end - begin} bytes from {begin} on are lost: {LOST}")
        if self.status[1] < begin:
            return
        place = min(begin + -begin % self.pool.record.block_size, end)
        lost = place - begin
        while place < end and (extent := self._find(place)) is not None:
            start, stop = place + extent.delta, min(end, extent.end) + extent.delta
            place += os.pwrite(self._descriptor, self.pool.memory[start:stop], place)
        lost += end - place
        if lost:
            raise FsError(errno.EIO, f"{lost} bytes from {begin} on are lost: another program made the file longer too")

    def disable(self, why: str) -> None:
        """Leave all further reads and writes to the kernel."""
        self.why = why
        self.read_extent = self.write_extent = NO_EXTENT

    def end_lease(self, why: str) -> None:
        """Disable the cache and give back what was granted, the blocks past EOF included.

        While another thread stores, the lease stays until the file is closed. A store that has a range list and has
        not begun finds another ``status`` and gives up.
        """
        self.disable(why)
        self.status = NO_EXTENT[4]
        if not self.active_stores:
            requests.renew(self.pool, self._descriptor, self._holder)

    def _lookup_in_epoch(self, offset: int, end: int, store: bool) -> list[tuple[int, int]] | None:
        """Return the ranges as pool offsets and lengths; None: leave them to the kernel.

        The result is worthless if ``_epoch`` has changed: a request that was made here may end the epoch.
        """
        ranges = []
        place = offset
        if store and end > max(self.status[1], self._granted_end) and not self._preallocate(offset, end):
            return None
        while place < end:
            extent = self._find(place)
            if extent is None or (store and (extent.kind == Kind.HOLE or not extent.writable)):
                flags, length = Flag.WRITE if store else Flag(0), self._request_length(place, end, store)
                if store and extent is not None and extent.kind == Kind.HOLE:
                    if not self._is_worth_blocks(place, end):
                        return None
                    flags |= Flag.FILL
                    length = min(max(end, place + self._next_fill_step()), extent.end) - place
                epoch = self._epoch
                if not self._request(place, length, flags):
                    return None
                if flags & Flag.FILL and (filled := self._find(place)) is not None:
                    self._next_write = filled.end  # a write that begins there continues this one
                if self._epoch != epoch:
                    return []
                extent = self._find(place)
                if store and extent is not None and extent.kind == Kind.HOLE and not flags & Flag.FILL:
                    continue  # now that it is known as a hole, it may be worth filling
            if extent is None or extent.kind == Kind.KERNEL:
                return None
            if store and (extent.kind == Kind.HOLE or not extent.writable):
                return None
            stop = min(end, extent.end)
            ranges.append((HOLE if extent.kind == Kind.HOLE else place + extent.delta, stop - place))
            place = stop
            self._use(extent)
        return ranges

    def _preallocate(self, offset: int, end: int) -> bool:
        """Request blocks past EOF for a write; False if there are none, or if the write would leave a gap.

        Unreported stores past EOF thus form one range, which ``_rewrite_appended`` relies on.
        """
        size = max(self.status[1], self.appended_end)
        if offset > size or not (self._granted_end or self._is_worth_blocks(offset, end)):
            return False
        if self.appended_end:
            self.report_stores()
        return self._request(offset, max(end - offset, self._next_fill_step()), Flag.WRITE | Flag.FILL | Flag.EXTEND)

    def _is_worth_blocks(self, place: int, end: int) -> bool:
        """Return whether to request blocks for a write: not for a single small one, which costs the kernel no more."""
        follows, self._next_write = place == self._next_write, end
        return follows or end - place >= _SMALL

    def _request_length(self, place: int, end: int, store: bool) -> int:
        """Return the length of a request that begins at ``place``: to EOF, with a bound for storing."""
        rest = max(self.status[1], end) - place
        return max(end - place, min(rest, MOST_FILLED)) if store else rest

    def _next_fill_step(self) -> int:
        """Return how many bytes of blocks to request at once; each step is four times the last one, up to a bound."""
        step = self._fill_step
        self._fill_step = min(step * 4, protocol.LAST_STEP)
        return step

    def _request_size(self) -> bool:
        """Request a lease to learn the size: of the whole file for reading, of one byte for storing.

        A longer request for storing would turn unwritten blocks into zeroed ones.
        """
        return self._request(0, FURTHEST, Flag(0)) if self._readable else self._request(0, 1, Flag.WRITE)

    def _use(self, extent: CachedExtent) -> None:
        """Make ``extent`` the one of the fast path."""
        if extent.kind == Kind.MEMORY:
            recent = (extent.start, extent.end, extent.delta, self._epoch, self.status)
            if self._readable:
                self.read_extent = recent
            if extent.writable and self.may_store:
                # Past EOF this holder may store only in the blocks that were preallocated for it.
                limit = max(self._granted_end, self.status[1])
                self.write_extent = (extent.start, min(extent.end, limit, file_size()), *recent[2:])

    def _find(self, place: int) -> CachedExtent | None:
        """Return the cached extent that the byte lies in."""
        extents = self._extents
        index = bisect.bisect_right(extents, place, key=_start_of) - 1
        return extents[index] if index >= 0 and place < extents[index].end else None

    def _request(self, offset: int, length: int, flags: Flag) -> bool:
        """Send one lease request and cache its answer; False if no answer can be used. The lock is held."""
        if self.status[0] != self._epoch:
            self.read_extent = self.write_extent = NO_EXTENT
            if self.appended_end:
                self.report_stores()
            self._extents = []
            self._granted_end = 0
            if not self.active_stores:
                flags |= Flag.RENEW
        if self.pool.faults[0]:
            self.disable(LOST)
            return False
        try:
            self.pool.check_rights()
        except Refused as refusal:
            self.disable(str(refusal))
            return False
        block = self.pool.record.block_size
        start, end = offset - offset % block, offset + length
        request = protocol.Lease(self._holder, start, min(end + -end % block, FURTHEST) - start, flags)
        try:
            answer = requests.lease(self.pool, self._descriptor, request, self._buffer)
            status = requests.status_words(self.pool, answer.entry, answer.size)
        except OSError as error:
            if error.errno in PERMANENT:
                if flags & Flag.WRITE and self._readable:
                    self.may_store, self.write_extent = False, NO_EXTENT
                else:
                    self.disable(f"the daemon gives no lease: {error.strerror}")
            else:
                self._backoff_left = self._backoff = min(self._backoff * 2, _MOST_BACKOFF)
            return False
        except Refused as refusal:
            self.disable(str(refusal))
            return False
        self._backoff = 1
        self._insert(answer, status, bool(flags & Flag.WRITE))
        if flags & Flag.EXTEND:
            self._granted_end = max(self._granted_end, answer.next)
        return True

    def _insert(self, answer: protocol.Lease, status: memoryview, writable: bool) -> None:
        """Cache an answer in place of what was cached of its range."""
        self.status = status
        old = self._extents if answer.epoch == self._epoch and len(self._extents) < _MOST_EXTENTS else []
        self._epoch = answer.epoch
        if not self.appended_end:
            self._base = answer.size
        self.read_extent = self.write_extent = NO_EXTENT
        new = [
            CachedExtent(offset, offset + length, pool_offset - offset if kind == Kind.MEMORY else 0, kind, writable)
            for offset, pool_offset, length, kind in answer.extents
        ]
        if new:
            low, high = new[0].start, new[-1].end
            new += [extent._replace(end=min(extent.end, low)) for extent in old if extent.start < low]
            new += [extent._replace(start=max(extent.start, high)) for extent in old if extent.end > high]
            new.sort()
        self._extents = _merge_adjacent(new or old)


def _merge_adjacent(extents: list[CachedExtent]) -> list[CachedExtent]:
    """Merge extents of one kind that follow each other in the file and in the pool."""
    merged: list[CachedExtent] = []
    for extent in extents:
        if merged and merged[-1][1:] == (extent.start, *extent[2:]):
            merged[-1] = merged[-1]._replace(end=extent.end)
        else:
            merged.append(extent)
    return merged


def _start_of(extent: CachedExtent) -> int:
    return extent.start


_caches: weakref.WeakSet[LeaseCache] = weakref.WeakSet()


def clear_write_extents() -> None:
    """Clear ``write_extent`` of every cache, so that the next store reads the limit of file sizes, which changes."""
    for cache in list(_caches):
        cache.write_extent = NO_EXTENT


def before_fork() -> None:
    """Report stores past EOF, so that the child sees the full size and the parent's blocks hold nothing unreported."""
    for cache in list(_caches):
        if cache.appended_end and not cache.why:
            try:
                cache.report_stores()
            except OSError:
                continue  # the parent's next flush reports it again


def after_fork() -> None:
    """Empty every cache, in the child: the leases are the parent's."""
    for cache in list(_caches):
        cache.reset()
        cache.appended_end, cache.unreported = 0, False
