"""Copy whole file systems between pools, files and pipes, in pieces: bytes, or a length of zeros.

A source yields the pieces of a pool, a file or a stream in order; a target stores them. A hole of a file is neither
read nor filled: even a load from a hole of a tmpfs file would allocate it. A pool gets its superblock last, after a
fence, so that an interrupted copy is not a file system.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from daxfs.errors import BadMemory, MissingMemory, UserError
from daxfs.pmem.persist import Buffer
from daxfs.pmem.pool import Pool
from daxfs.runs import ByteRange, overlap

HEAD = 4096
"""Bytes of the boot block and the superblock; a pool without them is not a file system."""
_CHUNK = 1 << 20
_GRAIN = 64 << 10
"""Bytes. So many zeros that begin at a multiple of it are a piece of zeros."""
_ZEROS = bytes(_GRAIN)
_FAILED = 1


class Piece(NamedTuple):
    """``length`` bytes at ``offset``; ``content`` None: zeros."""

    offset: int
    length: int
    content: Buffer | None


def zeros(ranges: Iterable[ByteRange]) -> Iterator[Piece]:
    """Yield ranges as zeros."""
    for first, end in _chunks(ranges):
        yield Piece(first, end - first, None)


def of_ranges(descriptor: int, ranges: Iterable[ByteRange]) -> Iterator[Piece]:
    """Yield the content of ranges of an open file.

    Raises:
        UserError: the file has become shorter.
    """
    for first, end in _chunks(ranges):
        yield Piece(first, end - first, _read(descriptor, first, end - first))


def of_stream(read: Callable[[int], bytes], offset: int) -> Iterator[Piece]:
    """Yield the rest of a stream from ``offset`` on, its runs of zeros as zeros."""
    while content := read(_CHUNK - offset % _CHUNK):
        yield from split(memoryview(content), offset)
        offset += len(content)


def of_pool(pool: Pool, lost: list[ByteRange] | None = None) -> Iterator[Piece]:
    """Yield a whole pool, its holes and its runs of zeros as zeros. Content is the pool's own memory.

    Args:
        pool: to read.
        lost: gets the pages that are missing, which are yielded as zeros; None: the first one is an error.

    Raises:
        MissingMemory: memory of the pool is missing.
    """
    position = 0
    for first, end in pool.data_ranges():
        yield from zeros([ByteRange(position, first)])
        for begin, stop in _chunks([ByteRange(first, end)]):
            try:
                found = _loaded(pool, begin, stop)
            except MissingMemory:
                if lost is None:
                    raise
                found = _rescued(pool, begin, stop, lost)
            yield from found
        position = end
    yield from zeros([ByteRange(position, pool.size)])


def reported(pieces: Iterable[Piece], report: Callable[[Piece, int], None]) -> Iterator[Piece]:
    """Yield pieces, and report each when it was stored, with the bytes so far."""
    done = 0
    for piece in pieces:
        yield piece
        done += piece.length
        report(piece, done)


def into_pool(pool: Pool, head: bytes, pieces: Iterable[Piece]) -> None:
    """Store pieces in a pool. Its first `HEAD` bytes are zero until everything else is durable; then they are ``head``.

    Zeros for a hole of the pool's file leave it a hole.

    Raises:
        MissingMemory: memory of the pool is missing (EIO), or its file has holes and there is no room (ENOSPC).
    """
    pool.make_room(0, HEAD)
    pool.zero(0, HEAD)
    pool.fence()
    filled = list(pool.data_ranges())
    for offset, length, content in pieces:
        skipped = max(0, HEAD - offset)
        if skipped >= length:
            continue
        if content is None:
            for first, end in overlap(filled, offset + skipped, offset + length):
                pool.zero(first, end - first)
        else:
            pool.make_room(offset, length)
            pool.write(offset + skipped, memoryview(content)[skipped:])
    pool.fence()
    pool.write(0, head)
    pool.fence()


def into_file(descriptor: int, pieces: Iterable[Piece]) -> None:
    """Store pieces in an open empty file: zeros become holes. The caller sets its size."""
    for offset, _, content in pieces:
        if content is not None:
            view = memoryview(content)
            while view:
                done = os.pwrite(descriptor, view, offset)
                view, offset = view[done:], offset + done


def into_stream(descriptor: int, pieces: Iterable[Piece]) -> None:
    """Write pieces one after the other."""
    for _, length, content in pieces:
        if content is not None:
            _write(descriptor, memoryview(content))
            continue
        for first in range(0, length, _GRAIN):
            _write(descriptor, memoryview(_ZEROS)[: length - first])


def _chunks(ranges: Iterable[ByteRange]) -> Iterator[ByteRange]:
    """Cut ranges into parts of at most 1 MiB, at multiples of it."""
    for first, end in ranges:
        while first < end:
            stop = min(first - first % _CHUNK + _CHUNK, end)
            yield ByteRange(first, stop)
            first = stop


def _loaded(pool: Pool, first: int, end: int) -> list[Piece]:
    """Return a range of a pool.

    Raises:
        MissingMemory: some of it is missing.
    """
    _refuse_bad(pool, first, end)
    found = list(split(pool.memory[first:end], first))
    pool.faults.check()
    return found


def _rescued(pool: Pool, first: int, end: int, lost: list[ByteRange]) -> list[Piece]:
    """Return a range of a pool page by page: copies, and zeros for the pages that are missing."""
    found = []
    for begin in range(first, end, mmap.PAGESIZE):
        stop = min(begin + mmap.PAGESIZE, end)
        try:
            _refuse_bad(pool, begin, stop)
            content = bytes(pool.memory[begin:stop])
            pool.faults.check()
            found.append(Piece(begin, stop - begin, content))
        except MissingMemory:
            joined = lost.pop().begin if lost and lost[-1].end == begin else begin
            lost.append(ByteRange(joined, stop))
            found.append(Piece(begin, stop - begin, None))
    return found


def _refuse_bad(pool: Pool, first: int, end: int) -> None:
    if pool.bad and (bad := pool.bad.first(first, end)):
        raise BadMemory(f"{pool.path}: bad memory at offset {bad.begin}; see: daxfs badblocks {pool.path}")


def split(content: memoryview, offset: int) -> Iterator[Piece]:
    """Yield the bytes at ``offset`` as few pieces of content and of zeros."""
    begin, empty = 0, False
    at = 0
    while at < len(content):
        end = min(at + _GRAIN - (offset + at) % _GRAIN, len(content))
        found = bytes(content[at:end]) == _ZEROS[: end - at]
        if found != empty:
            if begin < at:
                yield Piece(offset + begin, at - begin, None if empty else content[begin:at])
            begin, empty = at, found
        at = end
    if begin < at:
        yield Piece(offset + begin, at - begin, None if empty else content[begin:at])


def _read(descriptor: int, offset: int, length: int) -> bytes:
    parts = []
    while length > 0:
        part = os.pread(descriptor, length, offset)
        if not part:
            raise UserError("the image has become shorter while it was copied", _FAILED)
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return b"".join(parts)


def _write(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]
