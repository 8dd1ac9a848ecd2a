"""``daxfs map``: show the extents of a file in its pool, and how much of it a program can map with 2 MiB pages.

A page table entry for 2 MiB needs 2 MiB of contiguous pool that begin on a multiple of 2 MiB, at a file offset that is
a multiple of 2 MiB too. A mounted file is made durable first (fsync), then its map is read from the pool beside the
daemon: FUSE has no FIEMAP.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import NamedTuple

from daxfs import protocol
from daxfs.errors import UserError
from daxfs.fs.types import ROOT_INO
from daxfs.pmem.kinds import HUGE_PAGE, read_mounts
from daxfs.structures import mapping
from daxfs.tools.reading import NO_INPUT, Reading, reading
from daxfs.tools.sizes import format_size

REGULAR = 0o100000
MAX_RUNS = 1 << 20
USAGE = 64


class Run(NamedTuple):
    """Blocks that are contiguous in the file and in the pool, in bytes; ``unwritten``: allocated, read as zeros."""

    offset: int
    pool_offset: int
    length: int
    unwritten: bool


@dataclass(frozen=True, slots=True)
class FileMap:
    """The extents of a file in its pool. ``huge`` bytes of it can be mapped with 2 MiB pages."""

    pool: str
    ino: int
    size: int
    allocated: int
    huge: int
    runs: list[Run]


def locate(file: str, pool: str = "") -> tuple[str, str]:
    """Return the pool of a file, and its inode number or its path in the pool.

    Raises:
        UserError: the file does not exist, or is not on a mount of daxfs.
    """
    if pool:
        return pool, "/" + file.lstrip("/")
    if not os.path.exists(file) and ":" in file:
        left, _, path = file.rpartition(":")
        if os.path.exists(left):
            return left, "/" + path.lstrip("/")
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; name a file on a mount, or POOL:/PATH", NO_INPUT) from None
    try:
        status = os.fstat(descriptor)
        device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
        found = next((mount for mount in read_mounts() if mount.device == device), None)
        if found is None or found.filesystem != protocol.FILESYSTEM_TYPE:
            raise UserError(f"{file} is not on a mount of daxfs; name one that is, or POOL:/PATH", NO_INPUT)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return found.source, str(ROOT_INO if status.st_ino == 1 else status.st_ino)


def examine(file: str, pool: str = "") -> FileMap:
    """Return the extents of ``file``, by its path on a mount or in ``pool``."""
    path, which = locate(file, pool)
    with reading(path) as found:
        return _gather(found, which, file)


def _gather(found: Reading, which: str, file: str) -> FileMap:
    inode = found.inode(which)
    if inode.mode & 0xF000 not in (REGULAR, 0o040000):
        raise UserError(f"{file} is neither a regular file nor a directory, and has no blocks to map", USAGE)
    bits = found.geometry.block_bits
    runs: list[Run] = []
    for extent in mapping.walk(found.view, inode):
        run = Run(extent.lblk << bits, extent.pblk << bits, extent.length << bits, extent.unwritten)
        if runs and _continues(runs[-1], run):
            runs[-1] = runs[-1]._replace(length=runs[-1].length + run.length)
        elif len(runs) < MAX_RUNS:
            runs.append(run)
        else:
            raise UserError(f"{file} is in more than {MAX_RUNS} pieces", USAGE)
    allocated = sum(run.length for run in runs)
    return FileMap(found.pool.path, inode.number, inode.size, allocated, huge_bytes(runs), runs)


def _continues(before: Run, run: Run) -> bool:
    return (
        before.unwritten == run.unwritten
        and before.offset + before.length == run.offset
        and before.pool_offset + before.length == run.pool_offset
    )


def huge_bytes(runs: list[Run]) -> int:
    """Return how many bytes of the runs 2 MiB pages can map."""
    huge, begin, end, shift = 0, 0, 0, -1
    for run in [*runs, Run(0, 1, 0, False)]:
        # Adjacent unwritten and written blocks are one piece of memory.
        if run.offset == end and run.pool_offset - run.offset == shift:
            end += run.length
            continue
        if shift % HUGE_PAGE == 0:
            huge += max(0, end // HUGE_PAGE - -(-begin // HUGE_PAGE)) * HUGE_PAGE
        begin, end, shift = run.offset, run.offset + run.length, run.pool_offset - run.offset
    return huge


def show(file: str, *, pool: str = "", as_json: bool = False) -> None:
    """Print the extents of a file."""
    found = examine(file, pool)
    if as_json:
        runs = [run._asdict() for run in found.runs]
        print(json.dumps({**asdict(found), "runs": runs}, indent=2))
        return
    print(f"{file}: inode {found.ino} of {found.pool}, {found.size} bytes, {format_size(found.allocated)} allocated")
    print(f"{'offset':>16} {'length':>14} {'pool offset':>16}  {'of 2 MiB':<9}")
    for run in found.runs:
        past = run.pool_offset % HUGE_PAGE
        aligned = "aligned" if past == 0 else f"+{past >> 10} KiB"
        print(f"{run.offset:>16} {run.length:>14} {run.pool_offset:>16}  {aligned:<9}{' unwritten' * run.unwritten}")
    share = 100 * found.huge / found.allocated if found.allocated else 0.0
    print(f"{len(found.runs)} extents; {format_size(found.huge)} ({share:.0f} %) can be mapped with 2 MiB pages")
