"""A file's bytes as one buffer of this process: the pool's memory itself, also where the file lies in pieces.

``map`` is what programs call. Address space is reserved first, at an address that is congruent with the pool's so that
the kernel can use pages of 2 MiB, and then filled piece by piece with mappings of the pool, and of the file itself for
what has no memory (DAXFS_KERNEL). Holder and anchor are those of docs/DIRECT.md, rule 6.

The mapping ends when ``close`` was called, or the object is gone, *and* nobody has a view of it any more: a NumPy array
made of it stays valid.

Threads: everything but ``close`` may be called by several at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import weakref
from types import TracebackType
from typing import NamedTuple, Protocol

from daxfs.direct import holding
from daxfs.direct.pool import Pool, attach, libc, os_error, write_back
from daxfs.direct.trust import Refused
from daxfs.pmem.kinds import HUGE_PAGE
from daxfs.protocol import (
    DURABLE,
    ENTRY,
    IOC_STORED,
    LEASE_SIZE,
    MOST_FILLED,
    Flag,
    Kind,
    Lease,
    StatusEntry,
    Stored,
)

_NORESERVE = 0x4000
_FIXED = 0x10
_TRIES = 8

libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
libc.mmap.restype = ctypes.c_void_p
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class HasDescriptor(Protocol):
    """An open file."""

    def fileno(self) -> int:
        """Its descriptor."""


class Piece(NamedTuple):
    """What is to be mapped: ``start`` counts from the mapping's first byte, ``place`` in the pool; None: the file."""

    start: int
    length: int
    place: int | None


class Layout(NamedTuple):
    """All pieces, and they are right as long as the status entry shows the epoch."""

    pieces: list[Piece]
    entry: int
    epoch: int


class Mapping:
    """A mapped range of a file; made by ``map``.

    Attributes:
        view: its bytes; read-only unless it was mapped with ``rw``. ``numpy.frombuffer`` takes it.
        direct: whether it is the pool's memory; else the kernel's mapping of the file.
        why: if not, the reason.
    """

    def __init__(self, descriptor: int, offset: int, length: int, *, writable: bool, fill: bool) -> None:
        self._writable = writable
        self._skip = offset % mmap.PAGESIZE
        self._told = False
        self._length = length
        self.why = ""
        total = self._skip + length
        self._ground: _Ground | None = None
        self._view: memoryview | None = None
        self._mapped: mmap.mmap | None = None
        try:
            self._ground = _lay(descriptor, offset - self._skip, total, writable=writable, fill=fill)
        except Refused as refusal:
            self.why = str(refusal)
        self.direct = self._ground is not None
        if self._ground is not None:
            whole = self._ground.memory()
        else:
            try:
                access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
                mapped = mmap.mmap(descriptor, total, offset=offset - self._skip, access=access)
            finally:
                os.close(descriptor)
            self._mapped = mapped
            whole = memoryview(mapped)
        view = whole[self._skip : total]
        self._view = view if writable else view.toreadonly()

    @property
    def view(self) -> memoryview:
        """The bytes.

        Raises:
            ValueError: the mapping is closed.
        """
        if self._view is None:
            raise ValueError("the mapping is closed")
        return self._view

    def __len__(self) -> int:
        return self._length

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._view is None

    @property
    def stale(self) -> bool:
        """Whether the file changed below the mapping (cut, punched, moved): map it anew to see what it is now.

        A stale mapping can be read and stored to, but parts of it may be nobody's memory any more.
        """
        return self._ground is not None and self._ground.stale

    def flush(self, offset: int = 0, length: int | None = None) -> None:
        """Return when stores to the range are durable.

        The first flush also makes the file's times durable; the file's place in the pool was so before it was mapped.

        Raises:
            ValueError: outside the mapping, or it is closed.
            OSError: the system's; EIO if the medium failed.
        """
        end = self._length if length is None else offset + length
        if self._view is None or not 0 <= offset <= end <= self._length:
            raise ValueError(f"bytes {offset} to {end} of a mapping of {self._length}, or it is closed")
        if not self._writable or offset == end:
            return
        start = self._skip + offset
        if self._ground is None:
            if self._mapped is not None:
                low = start & -mmap.PAGESIZE
                self._mapped.flush(low, self._skip + end - low)
            return
        self._ground.flush(start, end - offset)
        if not self._told:
            self._ground.tell(DURABLE)
            self._told = True

    def close(self) -> None:
        """Let go of the memory; it is unmapped when the last view of it is gone. May be repeated."""
        self._view = self._ground = self._mapped = None

    def __enter__(self) -> Mapping:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "direct" if self.direct else f"through the kernel: {self.why}"
        return f"<{type(self).__name__} {self._length} bytes {state}>"


class _Ground:
    """The mapped pieces, their lease and their anchor; ends with the last view of ``memory``."""

    def __init__(self, pool: Pool, descriptor: int, holder: int, *, writable: bool) -> None:
        self._pool = pool
        self._descriptor = descriptor
        self._holder = holder
        self._writable = writable
        self._anchor = 0
        self._base = self._total = 0
        self._through_kernel = False
        self._words = holding.NOWHERE[4]
        self._epoch = 0
        self.shared = False
        _grounds.add(self)

    def ask(self, offset: int, total: int, flags: Flag) -> Layout | None:
        """All pieces of the range; None if they changed while they were asked for.

        To store, it is looked first how much has no memory: holes that are answered with MAP stay out of reach for all
        other direct users of the file, and filling them takes room that a sparse file's owner may not want to give.

        Raises:
            OSError: the daemon's.
            Refused: another pool, or blocks that no page holds.
        """
        if flags & Flag.WRITE and not flags & Flag.FILL:
            seen = self._ask(offset, total, Flag.WRITE)
            if seen is None:
                return None
            if sum(piece.length for piece in seen.pieces if piece.place is None) <= MOST_FILLED:
                flags |= Flag.FILL
        return self._ask(offset, total, flags)

    def _ask(self, offset: int, total: int, flags: Flag) -> Layout | None:
        buffer = bytearray(LEASE_SIZE)
        end = offset + total + -total % mmap.PAGESIZE
        pieces: list[Piece] = []
        epochs: set[int] = set()
        place, entry = offset, 0
        while place < end:
            request = Lease(self._holder, place, end - place, flags if not epochs else flags & ~Flag.RENEW)
            answer = holding.lease(self._pool, self._descriptor, request, buffer)
            epochs.add(answer.epoch)
            entry = answer.entry
            for extent in answer.extents:
                where = extent.pool_offset if extent.kind == Kind.MEMORY else None
                stop = min(extent.offset + extent.length, end)
                if (extent.offset | (where or 0) | stop) % mmap.PAGESIZE:
                    raise Refused("the file's blocks are no whole pages")
                if stop > extent.offset:
                    _add(pieces, Piece(extent.offset - offset, stop - extent.offset, where))
            if answer.next <= place:
                break
            place = answer.next
        if place < end:
            _add(pieces, Piece(place - offset, end - place, None))
        # Filling changes the epoch, but not when it is all asked for again.
        return Layout(pieces, entry, epochs.pop()) if len(epochs) == 1 else None

    def lay(self, layout: Layout, total: int, offset: int) -> None:
        """Map the pieces; ``offset`` is the mapping's in the file.

        Raises:
            OSError: the system's.
        """
        self.clear()
        self._words = _words(self._pool, layout)
        self._epoch = layout.epoch
        largest = max(layout.pieces, key=lambda piece: piece.length if piece.place is not None else 0)
        wanted = ((largest.place or 0) - largest.start) % HUGE_PAGE
        room = total + -total % mmap.PAGESIZE
        got = _mmap(0, room + HUGE_PAGE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE, -1, 0)
        base = got + (wanted - got) % HUGE_PAGE
        self._base, self._total = base, room
        for low, high in ((got, base), (base + room, got + room + HUGE_PAGE)):
            if high > low:
                libc.munmap(low, high - low)
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if self._writable else 0)
        for start, length, place in layout.pieces:
            if place is None:
                self._through_kernel = True
                _mmap(base + start, length, protection, mmap.MAP_SHARED | _FIXED, self._descriptor, offset + start)
                continue
            flags = self._pool.map_flags | _FIXED
            _mmap(base + start, length, protection, flags, self._pool.descriptor, place)
            if length >= HUGE_PAGE:
                libc.madvise(base + start, length, mmap.MADV_HUGEPAGE)
        if not self._anchor:
            self._anchor = _mmap(0, mmap.PAGESIZE, 0, mmap.MAP_PRIVATE, self._descriptor, 0)

    @property
    def stale(self) -> bool:
        """Whether the layout holds no more."""
        return self._words[0] != self._epoch

    def memory(self) -> memoryview:
        """The bytes, in an object whose end is the mapping's."""
        array = (ctypes.c_char * self._total).from_address(self._base)
        weakref.finalize(array, self.release).atexit = False
        return memoryview(array).cast("B")

    def flush(self, start: int, length: int) -> None:
        """Stores to these bytes are durable on return."""
        self._pool.flush(self._base + start, length)
        if self._through_kernel:
            low = (self._base + start) & -mmap.PAGESIZE
            write_back(low, self._base + start + length - low)

    def tell(self, flags: int) -> None:
        """The file was stored to."""
        holding.control(self._descriptor, IOC_STORED, Stored(0, flags).pack())

    def clear(self) -> None:
        """Unmap the pieces."""
        if self._total:
            libc.munmap(self._base, self._total)
        self._base = self._total = 0

    def release(self) -> None:
        """Unmap, tell that there may have been stores, give back."""
        if self._writable:
            # Nobody is left to be told when this fails.
            with contextlib.suppress(OSError):
                self.tell(0)
        descriptor = self._descriptor
        self.abandon()
        os.close(descriptor)

    def abandon(self) -> None:
        """Unmap and give back; a forked process that has the same mapping keeps the lease by its anchor."""
        self.clear()
        if not self.shared:
            holding.take_back(self._pool, self._descriptor, self._holder)
        if self._anchor:
            libc.munmap(self._anchor, mmap.PAGESIZE)


def _lay(descriptor: int, offset: int, total: int, *, writable: bool, fill: bool) -> _Ground:
    """Ask where the range lies, and map it; the descriptor becomes the ground's.

    Raises:
        Refused: it can't be mapped from the pool; the descriptor is still the caller's.
    """
    pool = attach(descriptor)
    if writable and not pool.writable:
        raise Refused("the pool is open for reading only")
    ground = _Ground(pool, descriptor, holding.random_holder(), writable=writable)
    refused = "the file changed all the time"
    try:
        for turn in range(_TRIES):
            # Only at first: what is mapped through the kernel, given up and taken again, would change the epoch.
            flags = Flag.MAP if turn else Flag.MAP | Flag.RENEW
            if writable:
                flags |= Flag.WRITE | (Flag.FILL if fill else Flag(0))
            layout = ground.ask(offset, total, flags)
            if layout is not None:
                ground.lay(layout, total, offset)
                if not ground.stale:
                    return ground
    except Refused as refusal:
        refused = str(refusal)
    except OSError as error:
        refused = f"the daemon gives no lease, or the pool no mapping: {error.strerror}"
    ground.abandon()
    raise Refused(refused)


def _add(pieces: list[Piece], new: Piece) -> None:
    """Append, or lengthen the last one."""
    if pieces:
        start, length, place = pieces[-1]
        follows = new.place is None if place is None else new.place == place + length
        if follows:
            pieces[-1] = Piece(start, length + new.length, place)
            return
    pieces.append(new)


def _words(pool: Pool, layout: Layout) -> memoryview:
    if not layout.entry:
        return memoryview(StatusEntry(layout.epoch, 0, 0).pack()).cast("Q")
    return pool.memory[layout.entry : layout.entry + ENTRY.size].cast("Q")


def _mmap(address: int, length: int, protection: int, flags: int, descriptor: int, offset: int) -> int:
    got = libc.mmap(address or None, length, protection, flags, descriptor, offset)
    if got is None or got == ctypes.c_void_p(-1).value:
        raise os_error()
    return int(got)


def map(
    file: HasDescriptor | str | bytes | os.PathLike[str],
    offset: int = 0,
    length: int | None = None,
    access: str = "r",
    *,
    fill: bool = False,
) -> Mapping:
    """Map a range of a file.

    Args:
        file: a path, or an open file (which may be closed afterwards).
        offset: first byte; any.
        length: bytes; to the end of the file if None.
        access: ``r``, or ``rw`` to store; the file does not grow by it.
        fill: give blocks to all holes of the range, not only if they are few (64 MiB).

    Raises:
        ValueError: nothing to map there, or another access.
        OSError: the system's.
    """
    if access not in {"r", "rw"}:
        raise ValueError(f"access {access!r}; use r or rw")
    writable = access == "rw"
    if isinstance(file, str | bytes | os.PathLike):
        descriptor = os.open(file, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    else:
        descriptor = os.dup(file.fileno())
    try:
        size = os.fstat(descriptor).st_size
        wanted = size - offset if length is None else length
        if offset < 0 or wanted <= 0 or offset + wanted > size:
            raise ValueError(f"{wanted} bytes at offset {offset} of a file of {size}")
    except BaseException:
        os.close(descriptor)
        raise
    return Mapping(descriptor, offset, wanted, writable=writable, fill=fill)


_grounds: weakref.WeakSet[_Ground] = weakref.WeakSet()


def before_fork() -> None:
    """The child has every mapping too: none of them may be given back before both have unmapped it."""
    for ground in list(_grounds):
        ground.shared = True
