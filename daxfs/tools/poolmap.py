"""What each block of a pool holds: counted in chunks of 2 MiB, the unit of a large page table entry.

This module reads and counts; `pooldrawing` shows what it found. Damage is no error here: blocks of a group whose bitmap
can't be read are *unknown*, and a damaged file's blocks count as data. The pool is read beside its daemon, as by
`daxfs.tools.reading`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from daxfs.errors import FsError, UserError
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.inode import EXT4_ROOT_INO
from daxfs.fs import removal
from daxfs.fs.snapshots import files
from daxfs.pmem.kinds import HUGE_PAGE
from daxfs.structures import badblocks, blocks, groups, inodes, mapping
from daxfs.tools import mountpoints, snapshotsource
from daxfs.tools.imagecopy import Progress
from daxfs.tools.info import pool_of
from daxfs.tools.reading import Reading, reading
from daxfs.tools.watchedview import WatchedView

SLICE = 1 << 20
"""Blocks that are looked at together: a bound for the memory that a large pool takes."""


class Kind(IntEnum):
    """What a block holds. A later kind wins where two claim a block."""

    FREE = 0
    DATA = 1
    METADATA = 2
    JOURNAL = 3
    SNAPSHOT = 4
    UNKNOWN = 5
    BAD = 6


@dataclass(frozen=True, slots=True)
class PoolMap:
    """The blocks of a pool.

    Attributes:
        pool: its path.
        size: of the file system, in bytes.
        block_size: in bytes.
        chunks: a row for each 2 MiB of the pool, with the number of blocks of each `Kind`; the last may be shorter.
    """

    pool: str
    size: int
    block_size: int
    chunks: npt.NDArray[np.int64]

    def bytes_of(self, kind: Kind) -> int:
        """Return how many bytes hold a kind."""
        return int(self.chunks[:, kind].sum()) * self.block_size

    @property
    def whole(self) -> int:
        """The number of chunks of 2 MiB that are free as a whole."""
        return int((self.chunks[:, Kind.FREE] * self.block_size == HUGE_PAGE).sum())

    @property
    def broken(self) -> int:
        """The number of chunks of which a part is free and a part is not."""
        free = self.chunks[:, Kind.FREE]
        return int(((free > 0) & (free < self.chunks.sum(axis=1))).sum())


Run = tuple[int, int, Kind]
"""First block, number of blocks, what they hold."""


def examine(place: str, progress: Progress | None = None) -> PoolMap:
    """Return what the blocks of a pool hold, by its path or its mountpoint.

    Args:
        place: the pool or the mountpoint.
        progress: called now and then with what is done, and the bytes of it that are done and of all.

    Raises:
        UserError: there is no such pool or mount, or it is a snapshot's.
        FsError: the pool has no readable ext4.
    """
    path, mountpoint = pool_of(place)
    if snapshotsource.shown_by(path) is not None:
        raise UserError(f"{place} shows a snapshot, which has no blocks of its own; name its pool", os.EX_USAGE)
    if mountpoint:
        with suppress(OSError), mountpoints.root(mountpoint) as descriptor:
            os.fsync(descriptor)  # commits: the pool is read beside the daemon
    with reading(path) as found:
        view = WatchedView(found.pool, found.geometry)
        try:
            found.pool.faults.avoid()
            runs = sorted(_runs(found, view, progress), key=lambda run: run[2])
            return PoolMap(
                path, found.geometry.blocks_count << found.geometry.block_bits, found.geometry.block_size,
                _counted(found.geometry, view, runs),
            )  # fmt: skip
        finally:
            view.release()


def _runs(found: Reading, view: WatchedView, progress: Progress | None) -> Iterator[Run]:
    """Yield what is not free and not data."""
    geometry, bits = found.geometry, found.geometry.block_bits
    if geometry.first_data_block:
        yield 0, geometry.first_data_block, Kind.METADATA
    for begin, end in found.pool.bad:
        yield begin >> bits, (end - 1 >> bits) - (begin >> bits) + 1, Kind.BAD
    with suppress(FsError):
        for run in badblocks.listed(view):
            yield run.pblk, run.length, Kind.BAD
    journal = found.superblock.s_journal_inum
    if geometry.has_journal and journal:
        yield from _blocks_of(view, journal, Kind.JOURNAL)
    stores: set[int] = set()
    with suppress(FsError):
        stores.update(inode.number for _, inode in files.found(view))
    for group in range(geometry.groups_count):
        if progress is not None:
            progress("reading the pool", geometry.first_block(group) << bits, geometry.blocks_count << bits)
        with suppress(FsError):
            yield from ((run.start, run.length, Kind.METADATA) for run in groups.metadata_runs(view, group))
        for ino in _used_inodes(view, group):
            if ino != journal:
                yield from _blocks_of(view, ino, Kind.SNAPSHOT if ino in stores else Kind.DATA)


def _used_inodes(view: WatchedView, group: int) -> Iterator[int]:
    """Yield the numbers of the inodes in use of a group, from the root's on."""
    geometry = view.geometry
    with suppress(FsError):
        desc = groups.descriptor(view, group)
        if groups.inodes_uninit(geometry, desc):
            return
        bitmap = np.frombuffer(view.block(desc.inode_bitmap), np.uint8)
        used = np.flatnonzero(np.unpackbits(bitmap, count=geometry.inodes_per_group, bitorder="little"))
        first = group * geometry.inodes_per_group + 1
        yield from (ino for ino in (used + first).tolist() if ino >= EXT4_ROOT_INO)


def _blocks_of(view: WatchedView, ino: int, kind: Kind) -> Iterator[Run]:
    """Yield the blocks of an inode that are not data, as far as they can be read."""
    view.asked.clear()
    with suppress(FsError):
        inode = inodes.read(view, ino)
        view.asked.clear()  # of the inode's own block, which is in a table
        if inode.file_acl:
            yield inode.file_acl, 1, Kind.METADATA
        if kind is Kind.DATA and inode.is_dir:
            kind = Kind.METADATA
        for run in mapping.walk(view, inode) if removal.holds_blocks(inode) else ():
            if kind is not Kind.DATA:
                yield run.pblk, run.length, kind
    yield from ((number, 1, Kind.METADATA) for number in sorted(view.asked))


def _counted(geometry: Geometry, view: WatchedView, runs: list[Run]) -> npt.NDArray[np.int64]:
    """Return the row of each chunk."""
    per_chunk = HUGE_PAGE >> geometry.block_bits
    chunks = np.zeros((-(-geometry.blocks_count // per_chunk), len(Kind)), np.int64)
    starts = np.array([run[0] for run in runs], np.int64)
    ends = starts + np.array([run[1] for run in runs], np.int64)
    for first in range(0, geometry.blocks_count, SLICE):
        end = min(first + SLICE, geometry.blocks_count)
        kinds = _used(geometry, view, first, end)
        for number in np.flatnonzero((starts < end) & (ends > first)).tolist():
            start, length, kind = runs[number]
            kinds[max(start - first, 0) : start + length - first] = kind
        where = np.arange(first, end) // per_chunk * len(Kind) + kinds
        low = first // per_chunk
        counts = np.bincount(where - low * len(Kind))
        rows = -(-len(counts) // len(Kind))
        counts.resize(rows * len(Kind))
        chunks[low : low + rows] += counts.reshape(rows, len(Kind))
    return chunks


def _used(geometry: Geometry, view: WatchedView, first: int, end: int) -> npt.NDArray[np.uint8]:
    """Return of each block from ``first`` to ``end`` what its group's bitmap says: free, data or unknown."""
    kinds = np.full(end - first, Kind.FREE, np.uint8)
    for group in range(geometry.group_of_block(max(first, geometry.first_data_block)), geometry.groups_count):
        low = geometry.first_block(group)
        if low >= end:
            break
        bits = geometry.blocks_in_group(group)
        try:
            bitmap = np.frombuffer(blocks.bitmap(view, group), np.uint8)
            made = np.unpackbits(bitmap, count=bits, bitorder="little") * np.uint8(Kind.DATA)
        except FsError:
            made = np.full(bits, Kind.UNKNOWN, np.uint8)
        begin, stop = max(low, first), min(low + bits, end)
        kinds[begin - first : stop - first] = made[begin - low : stop - low]
    return kinds
