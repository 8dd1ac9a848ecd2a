"""``daxfs defrag``: move the blocks of files on a mount to where 2 MiB pages map them, while programs use the files.

The daemon moves the blocks (`daxfs.fuse.kernel.defragmenting`), a part of a file at each request, so that the rate can
be bounded here and Ctrl-C ends it. What it was worth is counted as `daxfs map` counts, if the caller may read the pool.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from typing import Any

from daxfs.errors import FsError, UserError
from daxfs.fs.types import REASONS_TO_STAY, Stayed
from daxfs.fuse.kernel.defragmenting import DEFRAGMENT, QUESTION
from daxfs.pmem.kinds import HUGE_PAGE
from daxfs.tools import mapview, mountpoints
from daxfs.tools.sizes import format_size, parse_size

AT_ONCE = 8 * HUGE_PAGE
"""The bytes of a file that one request is about."""


def run(place: str, *, recursive: bool = False, rate: str = "") -> None:
    """Defragment a file, or all files below a directory, and say what came of it.

    Args:
        place: a file or directory on a mount.
        recursive: go below a directory; a mountpoint is gone below in any case.
        rate: the most bytes a second that are moved, as `parse_size` has it; "": as fast as it goes.

    Raises:
        UserError: the place is none, or the daemon refuses.
    """
    most = parse_size(rate) if rate else 0
    if not os.path.isdir(place) or os.path.islink(place):
        _defragment(place, most)
        return
    if not recursive and mountpoints.find(place) is None:
        raise UserError(f"{place} is a directory; -r defragments all files below it", os.EX_USAGE)
    seen: set[int] = set()
    for path in _files(place):
        number = os.lstat(path).st_ino
        if number not in seen:
            seen.add(number)
            _defragment(path, most)


def _files(top: str) -> Iterator[str]:
    """Yield the regular files below a directory, on its file system."""
    device = os.lstat(top).st_dev
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if os.lstat(os.path.join(folder, name)).st_dev == device)
        for name in sorted(names):
            path = os.path.join(folder, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                yield path


def _defragment(path: str, rate: int) -> None:
    """Defragment one file, and print a line about it if anything moved or stayed."""
    before = _counted(path)
    descriptor = _opened(path)
    try:
        size = os.fstat(descriptor).st_size
        moved, stayed = 0, []
        began = time.monotonic()
        for offset in range(0, max(size, 1), AT_ONCE):
            done = _ask(descriptor, path, offset)
            moved += done["moved"]
            stayed += [Stayed(**each) for each in done["stayed"]]
            if rate:
                time.sleep(max(moved / rate - (time.monotonic() - began), 0))
    finally:
        os.close(descriptor)
    if not moved and not stayed:
        return
    after = _counted(path)
    line = f"{path}: {format_size(moved)} moved"
    if before is not None and after is not None:
        share = [100 * found.huge // found.allocated if found.allocated else 0 for found in (before, after)]
        line += f"; {len(before.runs)} -> {len(after.runs)} extents, {share[0]} -> {share[1]} % in 2 MiB pages"
    print(line)
    for part in stayed:
        whose = f": process {', '.join(map(str, part.pids))}" if part.pids else ""
        print(f"  {format_size(part.length)} at {part.offset} stay: {REASONS_TO_STAY[part.why]}{whose}")


def _counted(path: str) -> mapview.FileMap | None:
    """Return the file's map as `daxfs map` shows it; None: the caller can't read the pool."""
    try:
        return mapview.examine(path)
    except (OSError, UserError, FsError):
        return None


def _opened(path: str) -> int:
    """Open a file for writing, or for reading if that is refused: root may have what it reads defragmented."""
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        try:
            return os.open(path, os.O_RDWR | flags)
        except OSError:
            return os.open(path, os.O_RDONLY | flags)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", os.EX_NOINPUT) from None


def _ask(descriptor: int, path: str, offset: int) -> dict[str, Any]:
    argument = bytearray(QUESTION.pack(offset, AT_ONCE))
    try:
        fcntl.ioctl(descriptor, DEFRAGMENT, argument)
    except OSError as error:
        raise UserError(f"{path}: {os.strerror(error.errno or 0)}", os.EX_UNAVAILABLE) from None
    answer: dict[str, Any] = json.loads(bytes(argument).rstrip(b"\0"))
    return answer
