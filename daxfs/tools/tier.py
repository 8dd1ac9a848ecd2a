"""``daxfs tier``: show what a mount has in memory and on storage, and move files between them (docs/TIERS.md).

The daemon moves the data (`daxfs.fuse.kernel.tiering`), a part of a file at each request, so that Ctrl-C ends it.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import Any

from daxfs.errors import UserError
from daxfs.fuse.kernel.tiering import QUESTION, TIER, Action
from daxfs.pmem.kinds import HUGE_PAGE
from daxfs.tools import command, mountpoints
from daxfs.tools.sizes import format_size
from daxfs.tools.stats import hits, moves

AT_ONCE = 8 * HUGE_PAGE
"""The bytes of a file that one request is about."""


def show(mountpoint: str, *, as_json: bool = False) -> None:
    """Print how much memory and storage a mount has and uses, and what was moved since it was made.

    Raises:
        UserError: nothing is mounted there, or its pool has no storage.
    """
    with mountpoints.root(mountpoints.require(mountpoint).mountpoint) as descriptor:
        found = _ask(descriptor, mountpoint, Action.SHOW)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for name in ("memory", "storage"):
        size, free = found[name], found[f"{name}_free"]
        used = 100 - 100 * free // size
        print(f"{name + ':':<10} {format_size(size)}, {format_size(free)} free ({used} % used)")
    for each in found["members"]:
        path, size, free, failed = each
        line = f"{'member:':<10} {path}, {format_size(size)}, {format_size(free)} free"
        print(line + (f", failed: {failed}" if failed else ""))
    print(f"{'hits:':<10} {hits(found)}")
    print(f"{'since:':<10} {moves(found)}")


def move(path: str, action: Action) -> None:
    """Demote or promote a file, and say what came of it.

    Raises:
        UserError: it is not a file of a mount with storage, or the daemon refuses.
    """
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, os.O_RDONLY | flags) if os.geteuid() == 0 else os.open(path, os.O_RDWR | flags)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", os.EX_NOINPUT) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"{path} is not a regular file", os.EX_NOINPUT)
        moved = stayed = 0
        for offset in range(0, max(os.fstat(descriptor).st_size, 1), AT_ONCE):
            done = _ask(descriptor, path, action, offset)
            moved, stayed = moved + done["moved"], stayed + done["stayed"]
    finally:
        os.close(descriptor)
    line = f"{path}: {format_size(moved)} {'demoted' if action is Action.DEMOTE else 'promoted'}"
    print(line + (f", {format_size(stayed)} stay" if stayed else ""))


def _ask(descriptor: int, place: str, action: Action, offset: int = 0) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = command.ask(descriptor, TIER, QUESTION.pack(action, offset, AT_ONCE))
    except OSError as error:
        number = error.errno or errno.EIO
        what = {errno.EOPNOTSUPP: "its pool has no storage", errno.ENOTTY: "it is not on a mount of daxfs"}
        raise UserError(f"{place}: {what.get(number, os.strerror(number))}", os.EX_UNAVAILABLE) from None
    return answer
