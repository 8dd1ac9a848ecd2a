"""``daxfs map``: show the extents of a file in its pool, and how much of it a program can map with 2 MiB pages.

A page table entry for 2 MiB needs 2 MiB of contiguous pool that begin on a multiple of 2 MiB, at a file offset that is
a multiple of 2 MiB too. A mounted file is made durable first (fsync), then its map is read from the pool beside the
daemon: FUSE has no FIEMAP.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, dataclass

from daxfs import protocol
from daxfs.errors import UserError
from daxfs.fs.ranges import FIEMAP_EXTENT_UNWRITTEN
from daxfs.fs.types import ROOT_INO, FileExtent
from daxfs.pmem.kinds import HUGE_PAGE, Mount, read_mounts
from daxfs.structures import mapping
from daxfs.tools import mountpoints
from daxfs.tools.printing import printable
from daxfs.tools.reading import Reading, reading
from daxfs.tools.sizes import format_size

REGULAR = 0o100000
MAX_RUNS = 1 << 20


@dataclass(frozen=True, slots=True)
class FileMap:
    """The extents of a file in its pool. ``huge`` bytes of it can be mapped with 2 MiB pages."""

    pool: str
    ino: int
    size: int
    allocated: int
    huge: int
    runs: list[FileExtent]


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
        raise UserError(f"{file}: {error.strerror}; name a file on a mount, or POOL:/PATH", os.EX_NOINPUT) from None
    try:
        status = os.fstat(descriptor)
        found = _mount_of(status)
        if found is None:
            raise UserError(f"{file} is not on a mount of daxfs; name one that is, or POOL:/PATH", os.EX_NOINPUT)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return found.source, str(ROOT_INO if status.st_ino == 1 else status.st_ino)


def is_whole_pool(place: str) -> bool:
    """Return whether a mountpoint or a pool is named, and not a file in one."""
    if os.path.isdir(place):
        return mountpoints.find(place) is not None
    try:
        status = os.stat(place)
    except OSError:
        return False
    return _mount_of(status) is None and not stat.S_ISFIFO(status.st_mode) and not stat.S_ISSOCK(status.st_mode)


def is_on_mount(path: str) -> bool:
    """Return whether a path that exists is on a mount of daxfs."""
    return _mount_of(os.lstat(path)) is not None


def _mount_of(status: os.stat_result) -> Mount | None:
    """Return the mount of daxfs that a file is on; None: it is on another file system."""
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    found = next((mount for mount in read_mounts() if mount.device == device), None)
    return found if found is not None and found.filesystem == protocol.FILESYSTEM_TYPE else None


def examine(file: str, pool: str = "") -> FileMap:
    """Return the extents of ``file``, by its path on a mount or in ``pool``."""
    path, which = locate(file, pool)
    with reading(path) as found:
        return _gather(found, which, file)


def _gather(found: Reading, which: str, file: str) -> FileMap:
    inode = found.inode(which)
    if inode.mode & 0xF000 not in (REGULAR, 0o040000):
        raise UserError(f"{file} is neither a regular file nor a directory, and has no blocks to map", os.EX_USAGE)
    bits = found.geometry.block_bits
    runs: list[FileExtent] = []
    for extent in mapping.walk(found.view, inode):
        flags = FIEMAP_EXTENT_UNWRITTEN if extent.unwritten else 0
        run = FileExtent(extent.lblk << bits, extent.pblk << bits, extent.length << bits, flags)
        if runs and _continues(runs[-1], run):
            runs[-1] = runs[-1]._replace(length=runs[-1].length + run.length)
        elif len(runs) < MAX_RUNS:
            runs.append(run)
        else:
            raise UserError(f"{file} is in more than {MAX_RUNS} pieces", os.EX_USAGE)
    allocated = sum(run.length for run in runs)
    return FileMap(found.pool.path, inode.number, inode.size, allocated, huge_bytes(runs), runs)


def _continues(before: FileExtent, run: FileExtent) -> bool:
    return (
        before.flags == run.flags
        and before.logical + before.length == run.logical
        and before.physical + before.length == run.physical
    )


def huge_bytes(runs: list[FileExtent]) -> int:
    """Return how many bytes of the runs 2 MiB pages can map."""
    huge, begin, end, shift = 0, 0, 0, -1
    for run in [*runs, FileExtent(0, 1, 0, 0)]:
        # Adjacent unwritten and written blocks are one piece of memory.
        if run.logical == end and run.physical - run.logical == shift:
            end += run.length
            continue
        if shift % HUGE_PAGE == 0:
            huge += max(0, end // HUGE_PAGE - -(-begin // HUGE_PAGE)) * HUGE_PAGE
        begin, end, shift = run.logical, run.logical + run.length, run.physical - run.logical
    return huge


def _as_json(run: FileExtent) -> dict[str, int | bool]:
    return {
        "offset": run.logical,
        "pool_offset": run.physical,
        "length": run.length,
        "unwritten": bool(run.flags & FIEMAP_EXTENT_UNWRITTEN),
    }


def show(file: str, *, pool: str = "", as_json: bool = False) -> None:
    """Print the extents of a file."""
    found = examine(file, pool)
    if as_json:
        runs = [_as_json(run) for run in found.runs]
        print(json.dumps({**asdict(found), "runs": runs}, indent=2))
        return
    allocated = format_size(found.allocated)
    print(f"{printable(file)}: inode {found.ino} of {found.pool}, {found.size} bytes, {allocated} allocated")
    print(f"{'offset':>16} {'length':>14} {'pool offset':>16}  {'of 2 MiB':<9}")
    for run in found.runs:
        past = run.physical % HUGE_PAGE
        aligned = "aligned" if past == 0 else f"+{past >> 10} KiB"
        unwritten = " unwritten" if run.flags & FIEMAP_EXTENT_UNWRITTEN else ""
        print(f"{run.logical:>16} {run.length:>14} {run.physical:>16}  {aligned:<9}{unwritten}")
    share = 100 * found.huge / found.allocated if found.allocated else 0.0
    print(f"{len(found.runs)} extents; {format_size(found.huge)} ({share:.0f} %) can be mapped with 2 MiB pages")
