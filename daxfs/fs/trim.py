"""Giving free memory back to the system: FITRIM, as fstrim(8) asks for it.

A pool in a file keeps the pages of every block that was ever written; on tmpfs that is the machine's memory. Trimming
punches them out of the file. It changes no metadata and needs no handle: it looks at committed bitmaps, and since no
other operation runs meanwhile, none of the blocks can be given out before it returns. What is free holds nothing that
anybody reads: blocks are filled or zeroed when they are allocated.

Source: ``ext4_trim_fs`` in fs/ext4/mballoc.c. ext4 also remembers which groups were trimmed; here asking again does
the work again.
"""

from __future__ import annotations

import errno

from daxfs.errors import FsError
from daxfs.fs.volume import Volume
from daxfs.structures import blocks


def trim(volume: Volume, start: int, length: int, minimum: int) -> int:
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
    first, stop = start >> bits, min((start >> bits) + (length >> bits), geometry.blocks_count)
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
    for group in range(geometry.group_of_block(first), geometry.group_of_block(stop - 1) + 1):
        for begin, count in blocks.free_runs(volume.view, group, least):
            end = min(begin + count, stop)
            begin = max(begin, first)
            if end - begin >= least:
                volume.pool.discard(begin << bits, end - begin << bits)
                trimmed += end - begin
    return trimmed << bits
