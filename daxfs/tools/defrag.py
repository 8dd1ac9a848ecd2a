"""``daxfs defrag``: move the blocks of files on a mount to where 2 MiB pages map them, while programs use the files.

The daemon moves the blocks (`daxfs.fuse.kernel.defragmenting`), a part of a file at each request, so that the rate can
be bounded here and Ctrl-C ends it. What it was worth is counted as `daxfs map` counts, if the caller may read the pool.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from daxfs.errors import FsError, UserError
from daxfs.fs.types import REASONS_TO_STAY, Stayed
from daxfs.fuse.kernel.defragmenting import DEFRAGMENT, QUESTION
from daxfs.pmem.kinds import HUGE_PAGE
from daxfs.tools import command, mapview, mountpoints
from daxfs.tools.printing import printable
from daxfs.tools.sizes import format_size, parse_size

AT_ONCE = 8 * HUGE_PAGE
"""The bytes of a file that one request is about."""


FAILED = 1
"""The exit code if some files below a directory could not be defragmented."""


def run(place: str, *, recursive: bool = False, rate: str = "") -> int:
    """Defragment a file, or all files below a directory, and say what came of it.

    Below a directory a file that fails is named on standard error, and the others follow. Files that other programs
    remove meanwhile, and those whose blocks never move (of snapshots), are passed over.

    Args:
        place: a file or directory on a mount.
        recursive: go below a directory; a mountpoint is gone below in any case.
        rate: the most bytes a second that are moved, as `parse_size` has it; "": as fast as it goes.

    Returns:
        The exit code.

    Raises:
        UserError: the place is none, or the daemon refuses.
    """
    most = parse_size(rate) if rate else 0
    if not os.path.isdir(place) or os.path.islink(place):
        try:
            _defragment(place, most)
        except OSError as error:
            raise UserError(_why(place, error), _code(error)) from None
        return 0
    if not mapview.is_on_mount(place):
        raise UserError(f"{place} is not on a mount of daxfs; name a file or directory that is", os.EX_NOINPUT)
    if not recursive and mountpoints.find(place) is None:
        raise UserError(f"{place} is a directory; -r defragments all files below it", os.EX_USAGE)
    failed = 0

    def fails(error: OSError, path: str = "") -> None:
        nonlocal failed
        if error.errno not in (errno.ENOENT, errno.EINVAL):
            failed = FAILED
            print("daxfs:", printable(_why(path or error.filename, error)), file=sys.stderr)

    for path in _files(place, fails):
        try:
            _defragment(path, most)
        except OSError as error:
            fails(error, path)
    return failed


def _files(top: str, fails: Callable[[OSError], None]) -> Iterator[str]:
    """Yield the regular files below a directory, on its file system, each once; some may be gone by then."""
    device = os.lstat(top).st_dev
    seen: set[int] = set()
    for folder, folders, names in os.walk(top, onerror=fails):
        folders[:] = sorted(name for name in folders if _device(os.path.join(folder, name)) == device)
        for name in sorted(names):
            path = os.path.join(folder, name)
            try:
                status = os.lstat(path)
            except OSError as error:
                fails(error)
                continue
            if stat.S_ISREG(status.st_mode) and status.st_ino not in seen:
                if status.st_nlink > 1:
                    seen.add(status.st_ino)
                yield path


def _device(path: str) -> int | None:
    """Return the file system of a path; None: it is gone."""
    try:
        return os.lstat(path).st_dev
    except OSError:
        return None


def _why(path: str, error: OSError) -> str:
    """Say why a file was not defragmented."""
    if error.errno == errno.ENOTTY:
        return f"{path} is not on a mount of daxfs, or its session moves no blocks (session=kernel does)"
    if error.errno == errno.EBADF:
        return f"{path}: only root defragments a file that the caller may not write"
    if error.errno == errno.EINVAL:
        return f"{path}: its blocks stay where they are"
    return f"{path}: {os.strerror(error.errno or 0)}"


def _code(error: OSError) -> int:
    """Return the exit code for a single file: whether it was the daemon that refused."""
    return os.EX_UNAVAILABLE if error.filename is None else os.EX_NOINPUT


def _defragment(path: str, rate: int) -> None:
    """Defragment one file, and print a line about it if anything moved or stayed.

    Raises:
        OSError: it can't be opened (with its name), or the daemon refuses.
    """
    descriptor = _opened(path)
    try:
        before = _counted(path)
        moved, stayed = 0, []
        began = time.monotonic()
        offset: int | None = 0
        while offset is not None:
            done = _ask(descriptor, offset)
            offset = None if done["next"] is None else done["next"] & -HUGE_PAGE
            moved += done["moved"]
            stayed += [Stayed(**each) for each in done["stayed"]]
            if rate:
                time.sleep(max(moved / rate - (time.monotonic() - began), 0))
    finally:
        os.close(descriptor)
    if not moved and not stayed:
        return
    after = _counted(path)
    line = f"{printable(path)}: {format_size(moved)} moved"
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
    """Open a file for writing, or for reading if that is refused: root may have what it reads defragmented.

    Raises:
        OSError: neither is possible.
    """
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, os.O_RDWR | flags)
    except OSError:
        return os.open(path, os.O_RDONLY | flags)


def _ask(descriptor: int, offset: int) -> dict[str, Any]:
    """Have a part of a file defragmented. A signal that has a handler, or stops this process, ends the request early.

    Raises:
        OSError: the daemon refuses.
    """
    while True:
        with suppress(InterruptedError):
            answer: dict[str, Any] = command.ask(descriptor, DEFRAGMENT, QUESTION.pack(offset, AT_ONCE))
            return answer
