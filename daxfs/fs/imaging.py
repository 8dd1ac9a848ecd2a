"""Images of snapshots: the pool as it was, as a file system of its own that is unmounted and clean.

`pieces` yields what the image holds: all blocks that were in use, without the log's, whose superblock says that it is
empty, and without the stores of older snapshots. All else is a hole (`unused`). `clean` then frees, in the image, what
was open without a name or waited for clients, and removes the names of those stores. So ``e2fsck -fn`` finds nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from daxfs.ext4.superblock import SUPERBLOCK_OFFSET
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.snapshots.past import PastView, needed_at
from daxfs.fs.types import Options
from daxfs.runs import ByteRange
from daxfs.snapshots.format import chunks_of
from daxfs.structures import inodes, mapping

if TYPE_CHECKING:
    from daxfs.pmem.pool import Pool
    from daxfs.snapshots.reading import Past


Chunks = npt.NDArray[np.intp]
IN_PIECE, AT_ONCE = 256, 1024
"""Chunks of a piece, and of the pieces that are read at once: the daemon of a mount is asked after each reading."""


def pieces(pool: Pool, past: Past) -> Iterator[tuple[int, bytes]]:
    """Yield the offsets and contents of the parts of an image that are no holes, whole chunks each, in order.

    Raises:
        Corrupt: the snapshot's metadata is damaged.
        NotAStore: a store is.
    """
    yield from parts(pool, past, chunks(pool, past))


def parts(pool: Pool, past: Past, numbers: Chunks) -> Iterator[tuple[int, bytes]]:
    """Yield the offsets and contents of some chunks of an image, given in order, neighbours together."""
    bits = past.chunk_bits
    wanted: list[ByteRange] = []
    chunks = 0
    for part in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
        for at in range(0, len(part), IN_PIECE):
            first, count = int(part[at]), min(IN_PIECE, len(part) - at)
            if chunks + count > AT_ONCE:
                yield from _read(past, wanted)
                wanted, chunks = [], 0
            wanted.append(ByteRange(first << bits, min(first + count << bits, pool.size)))
            chunks += count
    yield from _read(past, wanted)


def _read(past: Past, wanted: list[ByteRange]) -> Iterator[tuple[int, bytes]]:
    yield from zip((begin for begin, _ in wanted), past.read_all(wanted), strict=True)


def chunks(pool: Pool, past: Past) -> Chunks:
    """Return the numbers of the chunks that an image holds, in order.

    Raises:
        Corrupt: the snapshot's metadata is damaged.
        NotAStore: a store is.
    """
    view = PastView(pool, past)
    bits = past.chunk_bits
    flags = np.unpackbits(np.frombuffer(needed_at(view), np.uint8), bitorder="little")
    flags[SUPERBLOCK_OFFSET >> bits] = 1
    log = inodes.read(view, view.superblock().s_journal_inum)
    flags[mapping.lookup(view, log, 0).pblk << view.geometry.block_bits >> bits] = 1
    return np.flatnonzero(flags)


class Unfinished:
    """What an image holds, as a `Past`, before its first chunk is stored."""

    def __init__(self, pool: Pool, chunk_bits: int, first: bytes) -> None:
        self.chunk_bits = chunk_bits
        self._memory = pool.memory.toreadonly()
        self._first = first

    def read(self, offset: int, length: int) -> bytes:
        """As `Past.read`."""
        head = self._first[offset : offset + length]
        return head + bytes(self._memory[offset + len(head) : offset + length])

    def read_all(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """As `Past.read_all`."""
        return [self.read(begin, end - begin) for begin, end in ranges]


def unused(pool: Pool, past: Past, size: int) -> Iterator[ByteRange]:
    """Yield the parts of an image of so many bytes that its file system does not use, in order; its log is one of them,
    except for the log's superblock.

    Raises:
        FsError: the metadata is damaged or unknown.
    """
    bits = past.chunk_bits
    end = 0
    for number in (*chunks(pool, past).tolist(), chunks_of(size, bits)):
        if end < number:
            yield ByteRange(end << bits, min(number << bits, size))
        end = number + 1


def log_of(pool: Pool, past: Past) -> Iterator[ByteRange]:
    """Yield the parts of `unused` that are the log's. Raises as `unused`."""
    view = PastView(pool, past)
    bits = view.geometry.block_bits
    log = inodes.read(view, view.superblock().s_journal_inum)
    for extent in mapping.walk(view, log):
        first = extent.pblk + (extent.lblk == 0)  # its superblock stays
        if first < extent.pblk + extent.length:
            yield ByteRange(first << bits, extent.pblk + extent.length << bits)


def clean(image: str | os.PathLike[str] | Pool) -> None:
    """Make an image of a snapshot one of a file system that nobody uses and that has no snapshots itself."""
    with FileSystem.open(image, Options(atime="noatime")) as fs:
        for snapshot in fs.list_snapshots():
            fs.delete_snapshot(snapshot.name)
