"""What one open file was told of its memory, and how more is asked for.

A ``Holding`` is a cache of lease answers under one holder number. ``files`` reads its two windows, the parts that were
used last, without asking anybody; everything else goes through ``plan``. Nothing here copies data.

Why a copy never hits memory that became somebody else's (docs/DIRECT.md, rules 3 to 5, as they are kept here):

1. A store is made with ``active`` raised, and only after the status entry's epoch was found to be the answer's.
2. RENEW is said only after both windows were taken away and with ``active`` at zero. Whoever raises ``active`` later
   finds no window, or a plan whose epoch the status entry no longer has, and stores nothing.
3. A read is checked behind the copy: the same epoch means that nothing was freed while it ran.

Single statements without calls are not interrupted by other threads (the global interpreter lock changes hands at calls
and backward jumps); ``active += 1`` relies on it, and ``pool.attach`` refuses Pythons without that lock.
"""

from __future__ import annotations

import bisect
import errno
import fcntl
import os
import threading
import weakref
from typing import NamedTuple, TypeAlias

from daxfs import protocol
from daxfs.direct import answers
from daxfs.direct.limits import file_size
from daxfs.direct.pool import Pool
from daxfs.direct.trust import Refused
from daxfs.errors import FsError
from daxfs.protocol import FURTHEST, MOST_FILLED, Flag, Kind

Window: TypeAlias = tuple[int, int, int, int, memoryview]
"""First byte, end, distance from file to pool, epoch, the status entry's words (epoch, size)."""

NOWHERE: Window = (1, 0, 0, 0, memoryview(bytes(64)).cast("Q"))
HOLE = -1
"""Start of a range of a plan that reads as zeros."""

PERMANENT = {errno.ENOTTY, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM, errno.EROFS, errno.ENOSYS, errno.EACCES}

_SMALL = 64 << 10  # bytes: a smaller write into a hole or past EOF is the kernel's, unless another went before it
_PARTS = 4096  # remembered at most; a file in more pieces is asked for anew
_TRIES = 4


class Part(NamedTuple):
    """A part of the file."""

    start: int
    end: int
    delta: int  # from offset in the file to offset in the pool
    kind: int
    writable: bool


class Plan(NamedTuple):
    """Where a range of the file lies, as long as ``words[0]`` is ``epoch``."""

    ranges: list[tuple[int, int]]  # start in the pool (or HOLE) and length
    epoch: int
    words: memoryview


def random_holder() -> int:
    """A number that no other process has; never 0."""
    return int.from_bytes(os.urandom(8), "little") or 1


def lease(pool: Pool, descriptor: int, request: protocol.Lease, buffer: bytearray) -> protocol.Lease:
    """Ask, and check that the answer is about this pool.

    Raises:
        OSError: the daemon's.
        Refused: the answer makes no sense, is about another pool, or about a part of it that is not mapped here.
    """
    request._replace(token=pool.token).pack_into(buffer)
    control(descriptor, protocol.IOC_LEASE, buffer)
    answer = answers.read_lease(request, buffer)
    if (answer.device, answer.inode) != (pool.record.device, pool.record.inode):
        raise Refused("the file lies in another pool now")
    ends = [extent.pool_offset + extent.length for extent in answer.extents if extent.kind == Kind.MEMORY]
    if max(ends, default=0) > pool.size or answer.entry + protocol.ENTRY.size > pool.size:
        raise Refused("the pool has grown; open the file again")
    return answer


def control(descriptor: int, request: int, record: bytes | bytearray) -> None:
    """ioctl(2); a bytearray is question and answer.

    Raises:
        OSError: the daemon's.
    """
    fcntl.ioctl(descriptor, request, record, True)


class Holding:
    """The leases of one open file.

    Attributes:
        reads: window to copy from.
        stores: window to copy to.
        active: stores that run now.
        end: the file is this long for whoever uses this object, though the daemon was not told; 0 if it knows.
        stored: something was stored that the daemon was not told of.
        words: the status entry.
        why: why nothing more is asked, "" as long as it is.
        may_store: whether stores may go to memory.
    """

    __slots__ = (
        "__weakref__",
        "_base",
        "_buffer",
        "_descriptor",
        "_epoch",
        "_granted",
        "_holder",
        "_lock",
        "_next",
        "_parts",
        "_readable",
        "_skip",
        "_skips",
        "_step",
        "active",
        "end",
        "may_store",
        "pool",
        "reads",
        "stored",
        "stores",
        "why",
        "words",
    )

    def __init__(self, pool: Pool, descriptor: int, *, readable: bool, may_store: bool) -> None:
        self.pool = pool
        self.may_store = may_store and pool.writable
        self.why = ""
        self._descriptor = descriptor
        self._readable = readable
        self._buffer = bytearray(protocol.LEASE_SIZE)
        self.end = self._base = self._granted = 0
        self.stored = False
        self._next = -1  # where the last small write that needed blocks ended
        self._step = protocol.FIRST_STEP
        self._skip, self._skips = 0, 1
        self.forget()
        _holdings.add(self)

    def forget(self) -> None:
        """As if nothing had been asked, under a new holder: at the start, and in a forked child."""
        self._holder = random_holder()
        self._lock = threading.Lock()
        self._parts: list[Part] = []
        self.reads = self.stores = NOWHERE
        self.words = NOWHERE[4]
        self._epoch = -1
        self.active = self._granted = 0

    def first(self) -> None:
        """Ask once, to know whether direct access is given at all.

        Raises:
            Refused: it is not.
        """
        with self._lock:
            if not self._ask_about_size() and self.why:
                raise Refused(self.why)

    def size(self) -> int | None:
        """Bytes in the file, for the user of this object; None if only the kernel can say."""
        if self.words[0] != self._epoch:
            if self._lock.acquire(blocking=False):
                try:
                    self._ask_about_size()
                finally:
                    self._lock.release()
            if self.words[0] != self._epoch:
                return None
        size = max(self.words[1], self.end)
        return size if size <= FURTHEST else None

    def plan(self, offset: int, end: int, *, store: bool) -> Plan | None:
        """Where the range lies, asking where that is unknown; None: let the kernel do it.

        The window becomes the part that the range ends in.
        """
        if self.why or (store and end > file_size()) or not self._lock.acquire(blocking=False):
            return None
        try:
            if self._skip:
                self._skip -= 1
                return None
            for _ in range(_TRIES):
                epoch = self._epoch
                if self.words[0] == epoch:
                    ranges = self._ranges(offset, end, store)
                    if ranges is None or self._epoch == epoch:
                        return None if ranges is None else Plan(ranges, epoch, self.words)
                elif not self._ask(offset, self._want(offset, end, store), Flag.WRITE if store else Flag(0)):
                    return None
            return None
        finally:
            self._lock.release()

    def committed(self, offset: int, end: int) -> list[tuple[int, int]] | None:
        """Where the range lies, if a lease to store has told all of it, so that its blocks are durable; else None."""
        ranges = []
        while offset < end:
            part = self._find(offset)
            if part is None or not part.writable or part.kind != Kind.MEMORY or self.words[0] != self._epoch:
                return None
            stop = min(end, part.end)
            ranges.append((offset + part.delta, stop - offset))
            offset = stop
        return ranges

    def settle(self, flags: int = 0) -> None:
        """Tell the daemon what was stored: times move, and the file is as long as it was made.

        Raises:
            OSError: the daemon's; EIO as `_rescue`.
        """
        begin, end = self._base, self.end
        if not (end or self.stored or flags):
            return
        self.stored = False
        try:
            if end:
                appended = protocol.Appended(begin, end, self._holder, flags)
                control(self._descriptor, protocol.IOC_APPENDED, appended.pack())
            else:
                control(self._descriptor, protocol.IOC_STORED, protocol.Stored(0, flags).pack())
        except OSError as error:
            if error.errno != errno.EAGAIN:
                self.stored = True
                raise
            self._rescue(begin, end)
            return
        if self.end == end:
            self.end = 0
        self._base = self.words[1]

    def _rescue(self, begin: int, end: int) -> None:
        """Somebody else made the file longer or shorter, which ended the growth; what was stored there is left.

        The blocks past EOF went, but until this holder renews they are nobody else's: what lies in them is
        written again, through the kernel. A file that was cut stays cut: the stores count as made before it.

        Raises:
            FsError: EIO, the growth began in the middle of a block, which is the file's and had to be cleared.
            OSError: the system's.
        """
        if self.end == end:
            self.end = 0
        self._granted, self.stores = 0, NOWHERE
        if self.words[1] < begin:
            return
        place = min(begin + -begin % self.pool.record.block_size, end)
        lost = place - begin
        while place < end and (part := self._find(place)) is not None:
            start, stop = place + part.delta, min(end, part.end) + part.delta
            place += os.pwrite(self._descriptor, self.pool.memory[start:stop], place)
        lost += end - place
        if lost:
            raise FsError(errno.EIO, f"{lost} bytes from {begin} on are lost: another program made the file longer too")

    def give_up(self, why: str) -> None:
        """From now on the kernel does it."""
        self.why = why
        self.reads = self.stores = NOWHERE

    def end_lease(self, why: str) -> None:
        """Nothing of it is used any more; blocks that were taken past EOF go.

        A store that runs in another thread keeps the lease until the file is closed. One that has a plan and has not
        begun finds other words.
        """
        self.give_up(why)
        self.words = NOWHERE[4]
        if not self.active:
            take_back(self.pool, self._descriptor, self._holder)

    def _ranges(self, offset: int, end: int, store: bool) -> list[tuple[int, int]] | None:
        """``plan`` while the epoch holds; a lease that is asked for may change it."""
        ranges = []
        place = offset
        if store and end > max(self.words[1], self._granted) and not self._grow(offset, end):
            return None
        while place < end:
            part = self._find(place)
            if part is None or (store and (part.kind == Kind.HOLE or not part.writable)):
                flags, length = Flag.WRITE if store else Flag(0), self._want(place, end, store)
                if store and part is not None and part.kind == Kind.HOLE:
                    if not self._worth(place, end):
                        return None
                    flags |= Flag.FILL
                    length = min(max(end, place + self._next_step()), part.end) - place
                epoch = self._epoch
                if not self._ask(place, length, flags):
                    return None
                if flags & Flag.FILL and (filled := self._find(place)) is not None:
                    self._next = filled.end  # a write that begins there goes on in order
                if self._epoch != epoch:
                    return []  # the caller sees it
                part = self._find(place)
                if store and part is not None and part.kind == Kind.HOLE and not flags & Flag.FILL:
                    continue  # now that it is known as a hole, it may be worth filling
            if part is None or part.kind == Kind.KERNEL:
                return None
            if store and (part.kind == Kind.HOLE or not part.writable):
                return None
            stop = min(end, part.end)
            ranges.append((HOLE if part.kind == Kind.HOLE else place + part.delta, stop - place))
            place = stop
            self._look_at(part)
        return ranges

    def _grow(self, offset: int, end: int) -> bool:
        """Take blocks past EOF, for a write that begins there; not for one that leaves a gap.

        What is stored there and not told yet is thus one range, which `_rescue` counts on.
        """
        size = max(self.words[1], self.end)
        if offset > size or not (self._granted or self._worth(offset, end)):
            return False
        if self.end:
            self.settle()
        return self._ask(offset, max(end - offset, self._next_step()), Flag.WRITE | Flag.FILL | Flag.GROW)

    def _worth(self, place: int, end: int) -> bool:
        """Whether blocks are taken for a write: not for a single small one, which the kernel does as well."""
        follows, self._next = place == self._next, end
        return follows or end - place >= _SMALL

    def _want(self, place: int, end: int, store: bool) -> int:
        rest = max(self.words[1], end) - place
        return max(end - place, min(rest, MOST_FILLED)) if store else rest

    def _next_step(self) -> int:
        step = self._step
        self._step = min(step * 4, protocol.LAST_STEP)
        return step

    def _ask_about_size(self) -> bool:
        """Ask for the whole file in passing; for one byte if that would make zeros of reserved blocks."""
        return self._ask(0, FURTHEST, Flag(0)) if self._readable else self._ask(0, 1, Flag.WRITE)

    def _look_at(self, part: Part) -> None:
        if part.kind == Kind.MEMORY:
            window = (part.start, part.end, part.delta, self._epoch, self.words)
            if self._readable:
                self.reads = window
            if part.writable and self.may_store:
                # Behind the end stores are this holder's only as far as blocks were given for it to grow.
                limit = max(self._granted, self.words[1])
                self.stores = (part.start, min(part.end, limit, file_size()), *window[2:])

    def _find(self, place: int) -> Part | None:
        parts = self._parts
        index = bisect.bisect_right(parts, place, key=_start_of) - 1
        return parts[index] if index >= 0 and place < parts[index].end else None

    def _ask(self, offset: int, length: int, flags: Flag) -> bool:
        """One request; False if there is no answer to use. The lock is held."""
        if self.words[0] != self._epoch:
            self.reads = self.stores = NOWHERE
            if self.end:
                self.settle()
            self._parts = []
            self._granted = 0
            if not self.active:
                flags |= Flag.RENEW
        try:
            self.pool.check_rights()
        except Refused as refusal:
            self.give_up(str(refusal))
            return False
        block = self.pool.record.block_size
        start, end = offset - offset % block, offset + length
        request = protocol.Lease(self._holder, start, min(end + -end % block, FURTHEST) - start, flags)
        try:
            answer = lease(self.pool, self._descriptor, request, self._buffer)
        except OSError as error:
            if error.errno in PERMANENT:
                if flags & Flag.WRITE and self._readable:
                    self.may_store, self.stores = False, NOWHERE
                else:
                    self.give_up(f"the daemon gives no lease: {error.strerror}")
            else:
                self._skip = self._skips = min(self._skips * 2, 1024)
            return False
        except Refused as refusal:
            self.give_up(str(refusal))
            return False
        self._skips = 1
        self._take(answer, bool(flags & Flag.WRITE))
        if flags & Flag.GROW:
            self._granted = max(self._granted, answer.next)
        return True

    def _take(self, answer: protocol.Lease, writable: bool) -> None:
        """Remember an answer in place of what was known of its range."""
        if not answer.entry:
            self.words = memoryview(protocol.StatusEntry(answer.epoch, answer.size, 0).pack()).cast("Q")
        else:
            self.words = self.pool.memory[answer.entry : answer.entry + protocol.ENTRY.size].cast("Q")
        old = self._parts if answer.epoch == self._epoch and len(self._parts) < _PARTS else []
        self._epoch = answer.epoch
        if not self.end:
            self._base = answer.size
        self.reads = self.stores = NOWHERE
        new = [
            Part(offset, offset + length, pool_offset - offset if kind == Kind.MEMORY else 0, kind, writable)
            for offset, pool_offset, length, kind in answer.extents
        ]
        if new:
            low, high = new[0].start, new[-1].end
            new += [part._replace(end=min(part.end, low)) for part in old if part.start < low]
            new += [part._replace(start=max(part.start, high)) for part in old if part.end > high]
            new.sort()
        self._parts = _joined(new or old)


def take_back(pool: Pool, descriptor: int, holder: int) -> None:
    """Tell the daemon that a holder uses nothing any more; it need not hear it (the lease ends with the open file)."""
    request = protocol.Lease(holder, 0, 0, Flag.RENEW, token=pool.token)
    buffer = bytearray(request.pack(protocol.SHORT_LEASE_SIZE))
    try:
        control(descriptor, protocol.IOC_SHORT_LEASE, buffer)
    except OSError:
        return


def _joined(parts: list[Part]) -> list[Part]:
    """Neighbours that lie together become one."""
    joined: list[Part] = []
    for part in parts:
        if joined and joined[-1][1:] == (part.start, *part[2:]):
            joined[-1] = joined[-1]._replace(end=part.end)
        else:
            joined.append(part)
    return joined


def _start_of(part: Part) -> int:
    return part.start


_holdings: weakref.WeakSet[Holding] = weakref.WeakSet()


def close_windows() -> None:
    """Every store asks for its place again: the limit of file sizes changes."""
    for holding in list(_holdings):
        holding.stores = NOWHERE


def before_fork() -> None:
    """Send the sizes and write notifications that wait: a child finds full sizes and sends nothing for its parent."""
    for holding in list(_holdings):
        if holding.end and not holding.why:
            try:
                holding.settle()
            except OSError:
                continue  # told again by the parent's next flush


def after_fork() -> None:
    """In the child: what the parent was told is the parent's."""
    for holding in list(_holdings):
        holding.forget()
        holding.end, holding.stored = 0, False
