"""Copy a sparse ext4 image into a mapped pool whose old content is unknown. Only ``mkfs`` uses this module.

mke2fs can't write to a ``/dev/dax`` device, so the image is made elsewhere and its data extents are copied. The holes
of the image matter too: mke2fs skips inode tables and the journal because a hole reads as zeros, and the device does
not. So blocks that the file system counts as used and that are holes in the image are zeroed; free blocks stay as they
are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

from daxfs.errors import UserError
from daxfs.pmem.pool import Pool
from daxfs.runs import ByteRange
from daxfs.tools.e2fsprogs import find_tool, run_tool

Progress: TypeAlias = Callable[[str, int, int], None]

_CHUNK = 8 << 20
_HEAD = 4096  # boot block and superblock


def copy_image(image: str, pool: Pool, progress: Progress | None = None) -> tuple[int, int]:
    """Copy the file system of ``image`` into ``pool``.

    The superblock is wiped first and written last, after a fence: an interrupted copy is not a file system.

    Returns:
        Bytes copied and bytes zeroed.
    """
    descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        length = os.fstat(descriptor).st_size
        data = list(data_extents(descriptor, length))
        holes = list(subtract(used_ranges(image), data))
        copied, zeroed = (sum(end - first for first, end in ranges) for ranges in (data, holes))
        done = 0
        pool.zero(0, _HEAD)
        pool.fence()
        for what, ranges in (("zeroing", holes), ("copying", data)):
            for first, end in ranges:
                for start in range(max(first, _HEAD), end, _CHUNK):
                    stop = min(start + _CHUNK, end)
                    if what == "zeroing":
                        pool.zero(start, stop - start)
                    else:
                        pool.write(start, _read(descriptor, start, stop - start))
                    done += stop - start
                    if progress is not None:
                        progress(what, done, copied + zeroed)
        pool.fence()
        pool.write(0, _read(descriptor, 0, _HEAD))
        pool.fence()
    finally:
        os.close(descriptor)
    return copied, zeroed


def data_extents(descriptor: int, length: int) -> Iterator[ByteRange]:
    """Yield the ranges of a file that are not holes, in order (lseek(2), SEEK_DATA)."""
    position = 0
    while position < length:
        try:
            first = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole follows
            return
        position = os.lseek(descriptor, first, os.SEEK_HOLE)
        yield ByteRange(first, position)


def used_ranges(image: str) -> list[ByteRange]:
    """Return the byte ranges whose blocks the file system counts as used, in order, by dumpe2fs."""
    result = run_tool([find_tool("dumpe2fs"), image])
    if result.returncode:
        raise UserError(f"dumpe2fs can't read the new file system: {result.stderr.strip()}", 1)
    match = re.search(r"^Block size: +([0-9]+)$", result.stdout, re.MULTILINE)
    block_size = int(match[1]) if match else _HEAD
    used: list[ByteRange] = [ByteRange(0, _HEAD)]
    group: ByteRange | None = None
    for line in result.stdout.splitlines():
        if match := re.match(r"Group [0-9]+: \(Blocks ([0-9]+)-([0-9]+)\)", line):
            group = ByteRange(int(match[1]), int(match[2]) + 1)
        elif group is not None and (match := re.match(r"  Free blocks: ?(.*)$", line)):
            free = [_numbers(run) for run in match[1].split(", ") if run]
            for first, end in subtract([group], free):
                _append(used, ByteRange(first * block_size, end * block_size))
            group = None
    return used


def subtract(ranges: list[ByteRange], taken: list[ByteRange]) -> Iterator[ByteRange]:
    """Yield the parts of ``ranges`` that are not in ``taken``; both lists are sorted."""
    index = 0
    for first, end in ranges:
        while index < len(taken) and taken[index].end <= first:
            index += 1
        look = index
        while look < len(taken) and taken[look].begin < end:
            if first < taken[look].begin:
                yield ByteRange(first, taken[look].begin)
            first = max(first, taken[look].end)
            look += 1
        if first < end:
            yield ByteRange(first, end)


def _append(ranges: list[ByteRange], new: ByteRange) -> None:
    if ranges and ranges[-1].end >= new.begin:
        ranges[-1] = ByteRange(ranges[-1].begin, max(ranges[-1].end, new.end))
    else:
        ranges.append(new)


def _numbers(run: str) -> ByteRange:
    first, _, last = run.partition("-")
    return ByteRange(int(first), int(last or first) + 1)


def _read(descriptor: int, offset: int, length: int) -> bytes:
    parts = []
    while length > 0:
        part = os.pread(descriptor, length, offset)
        if not part:
            raise UserError("the temporary image has become shorter", 1)
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return b"".join(parts)
