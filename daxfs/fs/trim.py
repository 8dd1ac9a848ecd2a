"""Giving free memory back to the system: FITRIM, as fstrim(8) asks for it.

A pool in a file keeps the pages of every block that was ever written; on tmpfs that is the machine's memory. Trimming
punches them out of the file. It changes no metadata and needs no handle: each step looks at committed bitmaps, and
since no other operation runs within a step, none of the blocks can be given out before they are punched. What is free
holds nothing that anybody reads: blocks are filled or zeroed when they are allocated.

Source: ``ext4_trim_fs`` in fs/ext4/mballoc.c. ext4 also remembers which groups were trimmed; here asking again does
the work again.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from daxfs.errors import FsError
from daxfs.fs.steps import Steps
from daxfs.fs.volume import Volume
from daxfs.runs import ByteRange
from daxfs.structures import blocks

BYTES_PER_STEP = 8 << 20
CALL_BYTES = 64 << 10
"""As how many bytes one call counts at least."""


def trim(volume: Volume, start: int, length: int, minimum: int) -> Steps[int]:
    """Discard the free runs of ``minimum`` bytes or more among the bytes [start, start + length) of the pool.

    Blocks that the running transaction has freed are still needed if it is lost, so it is committed first. Runs
    smaller than a page of the pool's memory stay, they can't be given back.

    Returns:
        How many bytes were discarded.

    Raises:
        FsError: EINVAL (less than a block, beyond the end, or ``minimum`` larger than a group), EOPNOTSUPP (the pool
            can't give memory back), EROFS.
    """
    volume.writable()
    geometry, bits = volume.geometry, volume.block_bits
    first, stop = start >> bits, min((start >> bits) + (length >> bits), geometry.memory_blocks)
    least = minimum >> bits
    if length < volume.block_size or first >= geometry.blocks_count or least > geometry.blocks_per_group:
        raise FsError(errno.EINVAL)
    least = max(least, volume.pool.align >> bits, 1)
    if volume.pending_frees():
        volume.commit()
    first = max(first, geometry.first_data_block)
    if stop <= first:
        return 0
    trimmed = 0
    unit = max(volume.pool.align >> bits, 1)
    for group in range(geometry.group_of_block(first), geometry.group_of_block(stop - 1) + 1):
        position = first
        while position < stop:
            wanted = (
                (max(begin, position), min(begin + count, stop))
                for begin, count in blocks.free_runs(volume.view, group, least, position)
                if min(begin + count, stop) - max(begin, first) >= least
            )
            done, position = trim_step(volume, wanted, unit, stop)
            trimmed += done
            yield
    return trimmed << bits


def discardable(volume: Volume, begin: int, end: int) -> Iterable[ByteRange]:
    """Return the parts of free bytes [begin, end) that no snapshot needs."""
    hook = volume.pool.hook
    return (ByteRange(begin, end),) if hook is None else hook.unneeded(begin, end)


def trim_step(volume: Volume, runs: Iterable[tuple[int, int]], unit: int, stop: int) -> tuple[int, int]:
    """Discard the first of the runs [begin, end), in blocks, as many as one step can.

    Returns:
        How many blocks were discarded, and the block at which to continue; ``stop``: nothing is left.
    """
    bits = volume.block_bits
    trimmed, room = 0, BYTES_PER_STEP >> bits
    for begin, end in runs:
        # A run that is too long ends on a boundary of the memory's pages, so that no page is in two steps.
        upto = end if end - begin <= room else (begin + room) // unit * unit
        for first, last in discardable(volume, begin << bits, upto << bits):
            volume.pool.discard(first, last - first)
        trimmed += upto - begin
        room -= max(upto - begin, CALL_BYTES >> bits)
        if room < unit or upto < end:
            return trimmed, upto
    return trimmed, stop
