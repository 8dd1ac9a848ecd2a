"""Map a file's bytes as one buffer of this process: the pool's memory itself, even if the file has many extents.

Programs call ``map``. It reserves address space first, congruent with the pool offset of the largest piece modulo
2 MiB, so that the kernel can use huge pages. It then fills that space piece by piece: with mappings of the pool, and
with mappings of the file itself where the file has no memory (DAXFS_KERNEL). Holder and anchor follow docs/DIRECT.md,
rule 6.

The memory is unmapped when the ``Mapping`` was closed or collected *and* its last view is gone: a NumPy array over it
stays valid.

Threads: several threads may call every method but ``close`` at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import weakref
from types import TracebackType
from typing import NamedTuple, Protocol

from daxfs.direct import requests
from daxfs.direct.lease_cache import NO_EXTENT
from daxfs.direct.pool import Pool, attach, libc, write_back
from daxfs.direct.trust import Refused
from daxfs.direct.units import Piece, choose
from daxfs.pmem.kinds import HUGE_PAGE
from daxfs.pmem.libc import last_error
from daxfs.protocol import DURABLE, LEASE_SIZE, MOST_FILLED, Flag, Kind, Lease

_NORESERVE = 0x4000
_FIXED = 0x10
_TRIES = 8

libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
libc.mmap.restype = ctypes.c_void_p
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class HasDescriptor(Protocol):
    """An open file, as ``map`` takes it."""

    def fileno(self) -> int:
        """Return the descriptor."""


class Layout(NamedTuple):
    """The pieces of a mapping; they hold as long as the status entry shows ``epoch``."""

    pieces: list[Piece]  # from the first byte that was asked for, which may lie before or after the first piece
    entry: int  # pool offset of the status entry; 0: nothing will change
    epoch: int


class Mapping:
    """A mapped range of a file; made by ``map``.

    Attributes:
        view: the bytes as a memoryview, read-only unless ``access`` was ``rw``. ``numpy.frombuffer`` takes it.
        direct: whether the memory is the pool's; else it is the kernel's mapping of the file.
        why: the reason if ``direct`` is False, else "".
    """

    def __init__(self, descriptor: int, offset: int, length: int, *, writable: bool, fill: bool) -> None:
        self._writable = writable
        self._skip = offset % mmap.PAGESIZE
        self._times_durable = False
        self._length = length
        self.why = ""
        total = self._skip + length
        self._region: _Region | None = None
        self._view: memoryview | None = None
        self._mapped: mmap.mmap | None = None
        try:
            self._region = _map_region(descriptor, offset - self._skip, total, writable=writable, fill=fill)
        except Refused as refusal:
            self.why = str(refusal)
        self.direct = self._region is not None
        if self._region is not None:
            whole = self._region.memory()
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
        """The bytes as a memoryview.

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
        """Whether the file was cut, punched or moved since it was mapped: map it again to see its current bytes.

        A stale mapping can be read and stored to, but parts of its memory may belong to no file.
        """
        return self._region is not None and self._region.stale

    def flush(self, offset: int = 0, length: int | None = None) -> None:
        """Make stores to the range durable; return when they are.

        The first flush also makes the file's times durable. The block map needs no flush: it was committed before the
        file was mapped.

        Raises:
            ValueError: the range lies outside the mapping, or the mapping is closed.
            OSError: the system's; EIO if the medium failed.
        """
        end = self._length if length is None else offset + length
        if self._view is None or not 0 <= offset <= end <= self._length:
            raise ValueError(f"bytes {offset} to {end} of a mapping of {self._length}, or it is closed")
        if not self._writable or offset == end:
            return
        start = self._skip + offset
        if self._region is None:
            if self._mapped is not None:
                low = start & -mmap.PAGESIZE
                self._mapped.flush(low, self._skip + end - low)
            return
        self._region.flush(start, end - offset)
        if not self._times_durable:
            self._region.report_stores(DURABLE)
            self._times_durable = True

    def close(self) -> None:
        """Drop this object's view; the memory is unmapped when the last view of it is gone. May be repeated."""
        self._view = self._region = self._mapped = None

    def __enter__(self) -> Mapping:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "direct" if self.direct else f"through the kernel: {self.why}"
        return f"<{type(self).__name__} {self._length} bytes {state}>"


class _Region:
    """The address space of a mapping, with its lease and its anchor; released with the last view of ``memory``."""

    def __init__(self, pool: Pool, descriptor: int, holder: int, *, writable: bool) -> None:
        self._pool = pool
        self._descriptor = descriptor
        self._holder = holder
        self._writable = writable
        self._anchor = 0
        self._base = self._total = self._lead = 0
        self._pieces: list[Piece] = []
        self._offset = 0
        self._filled = False
        self._status = NO_EXTENT[4]
        self._epoch = 0
        self._moved = False
        self.forked = False
        _regions.add(self)

    def request_layout(self, offset: int, total: int, flags: Flag) -> Layout | None:
        """Return all pieces of the range; None if they changed between the requests.

        For storing, a first pass without DAXFS_MAP adds up the bytes that have no memory. Up to ``MOST_FILLED`` of them
        are filled: a hole that is granted with DAXFS_MAP is DAXFS_KERNEL for all other clients from then on. More are
        not: filling takes space that the owner of a sparse file may not want to give.

        Raises:
            OSError: the daemon's.
            Refused: the file lies in another pool, or its blocks are no whole pages.
        """
        if self._pool.unit > mmap.PAGESIZE:
            return self._request_units(offset, offset + total + -total % mmap.PAGESIZE, flags)
        if flags & Flag.WRITE and not flags & Flag.FILL:
            seen = self._request_layout(offset, total, Flag.WRITE)
            if seen is None:
                return None
            if sum(piece.length for piece in seen.pieces if piece.place is None) <= MOST_FILLED:
                flags |= Flag.FILL
        return self._request_layout(offset, total, flags)

    def _request_units(self, offset: int, end: int, flags: Flag) -> Layout | None:
        """As ``request_layout``, for a pool that is mapped in units. What is no unit is announced as mapped."""
        unit = self._pool.unit
        begin = max(offset - unit, 0)
        flags &= ~Flag.MAP
        seen = self._request_layout(begin, end + unit - begin, flags & ~Flag.FILL)
        if seen is None:
            return None
        pieces = [piece._replace(start=begin + piece.start) for piece in seen.pieces]
        holes = sum(
            max(min(start + length, end) - max(start, offset), 0) for start, length, place in pieces if place is None
        )
        if holes and flags & Flag.WRITE and not self._filled and (flags & Flag.FILL or holes <= MOST_FILLED):
            self._filled = True  # once: what was announced stays a hole
            self._request_layout(offset, end - offset, flags | Flag.FILL)
            return None
        chosen = choose(pieces, offset, end, unit)
        epochs = {seen.epoch}
        for piece in chosen:
            if piece.place is None:
                epochs.add(self.announce(piece.start, piece.length))
        if len(epochs) > 1:
            return None
        return Layout([piece._replace(start=piece.start - offset) for piece in chosen], seen.entry, seen.epoch)

    def announce(self, offset: int, length: int) -> int:
        """Have the daemon keep other clients away from bytes that are mapped through the kernel; return the epoch.

        Other regions of this process then map these bytes through the kernel, too.

        Raises:
            OSError: the daemon's.
            Refused: as `requests.lease`.
        """
        epoch = self._announce_own(offset, length)
        for other in list(_regions):
            if other is not self and other.is_of(self._descriptor):
                epoch = other.leave_units(offset, offset + length) or epoch
        return epoch

    def _announce_own(self, offset: int, length: int) -> int:
        """As ``announce``, for this region alone."""
        request = Lease(self._holder, offset, length, Flag.MAP | Flag.PAGES)
        return requests.lease(self._pool, self._descriptor, request, bytearray(LEASE_SIZE)).epoch

    def is_of(self, descriptor: int) -> bool:
        """Whether the region maps the file that is open as ``descriptor``."""
        return self._total > 0 and os.path.samestat(os.fstat(self._descriptor), os.fstat(descriptor))

    def leave_units(self, begin: int, end: int) -> int:
        """Map the units that contain bytes of [begin, end) of the file through the kernel; return the epoch, or 0."""
        epoch, unit = 0, self._pool.unit
        pieces: list[Piece] = []
        for piece in self._pieces:
            start, stop = self._offset + piece.start, self._offset + piece.start + piece.length
            low = start + max(begin - start, 0) // unit * unit
            high = min(stop, end + -(end - low) % unit)
            if piece.place is None or low >= high:
                pieces.append(piece)
                continue
            if self._writable:
                self.flush(low - self._offset, high - low)
            self._map_through_kernel(low - self._offset, high - low)
            epoch = self._announce_own(low, high - low)
            for part, until, place in ((start, low, piece.place), (low, high, None), (high, stop, piece.place)):
                if part < until:
                    shifted = None if place is None else place + part - start
                    pieces.append(Piece(part - self._offset, until - part, shifted))
        self._pieces = pieces
        return epoch

    def _request_layout(self, offset: int, total: int, flags: Flag) -> Layout | None:
        buffer = bytearray(LEASE_SIZE)
        end = offset + total + -total % mmap.PAGESIZE
        pieces: list[Piece] = []
        epochs: set[int] = set()
        place, entry = offset, 0
        while place < end:
            request = Lease(self._holder, place, end - place, flags if not epochs else flags & ~Flag.RENEW)
            answer = requests.lease(self._pool, self._descriptor, request, buffer)
            epochs.add(answer.epoch)
            entry = answer.entry
            for extent in answer.extents:
                where = extent.pool_offset if extent.kind == Kind.MEMORY else None
                stop = min(extent.offset + extent.length, end)
                if (extent.offset | (where or 0) | stop) % mmap.PAGESIZE:
                    raise Refused("the file's blocks are no whole pages")
                if stop > extent.offset:
                    _append(pieces, Piece(extent.offset - offset, stop - extent.offset, where))
            if answer.next <= place:
                break
            place = answer.next
        if place < end:
            _append(pieces, Piece(place - offset, end - place, None))
        # Filling changes the epoch; the next try finds everything filled, so that its epoch stays.
        return Layout(pieces, entry, epochs.pop()) if len(epochs) == 1 else None

    def map_pieces(self, layout: Layout, offset: int) -> None:
        """Map the pieces; ``offset`` is the place of the mapping's first byte in the file.

        Raises:
            OSError: the system's.
        """
        self.unmap_pieces()
        self._pieces, self._offset = layout.pieces, offset
        self._lead = -layout.pieces[0].start
        last = layout.pieces[-1]
        align = max(HUGE_PAGE, self._pool.unit)
        self._status = requests.status_words(self._pool, layout.entry, 0)
        self._epoch, self._moved = layout.epoch, False
        largest = max(layout.pieces, key=lambda piece: piece.length if piece.place is not None else 0)
        wanted = ((largest.place or 0) - largest.start - self._lead) % align
        room = self._lead + last.start + last.length
        got = _mmap(0, room + align, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE, -1, 0)
        base = got + (wanted - got) % align
        self._base, self._total = base, room
        for low, high in ((got, base), (base + room, got + room + align)):
            if high > low:
                libc.munmap(low, high - low)
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if self._writable else 0)
        for start, length, place in layout.pieces:
            if place is None:
                self._map_through_kernel(start, length)
                continue
            flags = self._pool.map_flags | _FIXED
            address = base + self._lead + start
            _mmap(address, length, protection, flags, self._pool.descriptor, place)
            if length >= HUGE_PAGE:
                libc.madvise(address, length, mmap.MADV_HUGEPAGE)
        if not self._anchor:
            self._anchor = _mmap(0, mmap.PAGESIZE, 0, mmap.MAP_PRIVATE, self._descriptor, 0)

    def _map_through_kernel(self, start: int, length: int) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if self._writable else 0)
        address = self._base + self._lead + start
        _mmap(address, length, protection, mmap.MAP_SHARED | _FIXED, self._descriptor, self._offset + start)

    @property
    def stale(self) -> bool:
        """Whether the layout no longer holds. An epoch also ends when nothing has moved, for example for a snapshot."""
        if self._status[0] != self._epoch and not self._moved:
            self._moved = not self._confirmed()
        return self._moved

    def _confirmed(self) -> bool:
        """Ask where the range lies, and take over the epoch if it lies where it is mapped from."""
        if self._pool.unit > mmap.PAGESIZE:
            return False
        last = self._pieces[-1]
        first, end = self._pieces[0].start, last.start + last.length
        try:
            layout = self._request_layout(self._offset + first, end - first, Flag.WRITE if self._writable else Flag(0))
        except (OSError, Refused):
            return False
        if layout is None or [piece._replace(start=piece.start + first) for piece in layout.pieces] != self._pieces:
            return False
        self._status, self._epoch = requests.status_words(self._pool, layout.entry, 0), layout.epoch
        return True

    def memory(self) -> memoryview:
        """Return the bytes; the region is released when the last view of them is gone."""
        array = (ctypes.c_char * (self._total - self._lead)).from_address(self._base + self._lead)
        weakref.finalize(array, self.release).atexit = False
        return memoryview(array).cast("B")

    def flush(self, start: int, length: int) -> None:
        """Make stores to these bytes durable; return when they are."""
        first = self._base + self._lead
        for piece in self._pieces:
            low, high = max(start, piece.start), min(start + length, piece.start + piece.length)
            if low >= high:
                continue
            if piece.place is not None:
                self._pool.flush(first + low, high - low)
            else:
                page = (first + low) & -mmap.PAGESIZE
                write_back(page, first + high - page)

    def report_stores(self, flags: int) -> None:
        """Send a write notification: the mapping may have stored."""
        requests.notify_stored(self._descriptor, flags)

    def unmap_pieces(self) -> None:
        """Unmap the pieces."""
        if self._total:
            libc.munmap(self._base, self._total)
        self._base = self._total = 0

    def release(self) -> None:
        """Report stores, unmap, give the lease back and close the descriptor."""
        if self._writable:
            # No caller is left that could handle a failure.
            with contextlib.suppress(OSError):
                self.report_stores(0)
        descriptor = self._descriptor
        self.unmap()
        os.close(descriptor)

    def unmap(self) -> None:
        """Unmap, and give the lease back unless a forked process shares it: its anchor then keeps the lease."""
        self.unmap_pieces()
        if not self.forked:
            requests.renew(self._pool, self._descriptor, self._holder)
        if self._anchor:
            libc.munmap(self._anchor, mmap.PAGESIZE)


def _map_region(descriptor: int, offset: int, total: int, *, writable: bool, fill: bool) -> _Region:
    """Request the layout of a range and map it; the region takes the descriptor over.

    Raises:
        Refused: the range can't be mapped from the pool. The descriptor stays the caller's.
    """
    pool = attach(descriptor)
    if writable and not pool.writable:
        raise Refused("the pool is open for reading only")
    region = _Region(pool, descriptor, requests.random_holder(), writable=writable)
    refused = "the file changed all the time"
    try:
        for turn in range(_TRIES):
            # RENEW only at first: to give up and take again what is mapped through the kernel changes the epoch.
            flags = Flag.MAP if turn else Flag.MAP | Flag.RENEW
            if writable:
                flags |= Flag.WRITE | (Flag.FILL if fill else Flag(0))
            layout = region.request_layout(offset, total, flags)
            if layout is not None:
                region.map_pieces(layout, offset)
                if not region.stale:
                    return region
    except Refused as refusal:
        refused = str(refusal)
    except OSError as error:
        refused = f"the daemon gives no lease, or the pool no mapping: {error.strerror}"
    region.unmap()
    with contextlib.suppress(OSError, Refused):
        region.announce(offset, total + -total % mmap.PAGESIZE)
    raise Refused(refused)


def _append(pieces: list[Piece], new: Piece) -> None:
    """Append a piece, or extend the last one if the new piece continues it."""
    if pieces:
        start, length, place = pieces[-1]
        follows = new.place is None if place is None else new.place == place + length
        if follows:
            pieces[-1] = Piece(start, length + new.length, place)
            return
    pieces.append(new)


def _mmap(address: int, length: int, protection: int, flags: int, descriptor: int, offset: int) -> int:
    got = libc.mmap(address or None, length, protection, flags, descriptor, offset)
    if got is None or got == ctypes.c_void_p(-1).value:
        raise last_error()
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
        offset: first byte; it need not be aligned.
        length: bytes; up to EOF if None.
        access: ``r``, or ``rw`` to store. A mapping never makes the file longer.
        fill: give blocks to all holes of the range, not only if they have at most 64 MiB together.

    Raises:
        ValueError: the range is empty or not inside the file, or ``access`` is another one.
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


_regions: weakref.WeakSet[_Region] = weakref.WeakSet()


def before_fork() -> None:
    """Mark every region as shared with a child: its lease ends when both processes have unmapped it."""
    for region in list(_regions):
        region.forked = True
