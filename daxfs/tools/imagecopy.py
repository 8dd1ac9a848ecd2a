"""Copy a sparse ext4 image into a mapped pool whose old content is unknown. Only ``mkfs`` uses this module.

mke2fs can't write to a ``/dev/dax`` device, so the image is made elsewhere and its data extents are copied. The holes
of the image matter too: mke2fs skips inode tables and the journal because a hole reads as zeros, and the device does
not. So blocks that the file system counts as used and that are holes in the image are zeroed; free blocks stay as they
are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from itertools import chain
from typing import TypeAlias

from daxfs.errors import UserError
from daxfs.pmem.holes import data_extents
from daxfs.pmem.pool import Pool
from daxfs.runs import ByteRange, joined, subtract
from daxfs.tools import pieces
from daxfs.tools.e2fsprogs import find_tool, run_tool
from daxfs.tools.pieces import HEAD, Piece

Progress: TypeAlias = Callable[[str, int, int], None]


def copy_image(image: str, pool: Pool, progress: Progress | None = None) -> tuple[int, int]:
    """Copy the file system of ``image`` into ``pool``.

    The superblock is wiped first and written last, after a fence: an interrupted copy is not a file system.

    Returns:
        Bytes copied and bytes zeroed.
    """
    descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = list(data_extents(descriptor, os.fstat(descriptor).st_size))
        holes = list(subtract(used_ranges(image), data))
        copied, zeroed = (sum(end - first for first, end in ranges) for ranges in (data, holes))

        def report(piece: Piece, done: int) -> None:
            if progress is not None:
                progress("zeroing" if piece.content is None else "copying", done, copied + zeroed)

        found = chain(pieces.zeros(holes), pieces.of_ranges(descriptor, data))
        pieces.into_pool(pool, os.pread(descriptor, HEAD, 0), pieces.reported(found, report))
    finally:
        os.close(descriptor)
    return copied, zeroed


def used_ranges(image: str) -> list[ByteRange]:
    """Return the byte ranges whose blocks the file system counts as used, in order, by dumpe2fs."""
    result = run_tool([find_tool("dumpe2fs"), image])
    if result.returncode:
        raise UserError(f"dumpe2fs can't read the new file system: {result.stderr.strip()}", 1)
    match = re.search(r"^Block size: +([0-9]+)$", result.stdout, re.MULTILINE)
    block_size = int(match[1]) if match else HEAD
    used: list[ByteRange] = [ByteRange(0, HEAD)]
    group: ByteRange | None = None
    for line in result.stdout.splitlines():
        if match := re.match(r"Group [0-9]+: \(Blocks ([0-9]+)-([0-9]+)\)", line):
            group = ByteRange(int(match[1]), int(match[2]) + 1)
        elif group is not None and (match := re.match(r"  Free blocks: ?(.*)$", line)):
            free = [_numbers(run) for run in match[1].split(", ") if run]
            for first, end in subtract([group], free):
                used.append(ByteRange(first * block_size, end * block_size))
            group = None
    return list(joined(used))


def _numbers(run: str) -> ByteRange:
    first, _, last = run.partition("-")
    return ByteRange(int(first), int(last or first) + 1)
