"""``daxfs resize``: make a file system larger or smaller, mounted or not, together with the pool's file.

A mounted pool is resized by its daemon (`daxfs.fuse.kernel.resizing`), while programs use it. A pool that is not
mounted is opened as a library would open it. resize2fs(8) on the pool of a mount asks the daemon for more room, and
refuses to ask for less.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from daxfs.errors import UserError
from daxfs.fs.filesystem import FileSystem
from daxfs.fuse.kernel.resizing import CHANGE, LEAST, LEFT, QUESTION, RESIZE
from daxfs.tools import command, mountpoints
from daxfs.tools.progress import progress_bar
from daxfs.tools.sizes import format_size, parse_size

FAILED = 1
"""As resize2fs(8)."""
SECONDS_PER_LOOK = 0.2
"""How often the progress bar asks what is left."""


def run(place: str, size: str | None) -> None:
    """Resize a mount or a pool, and say how large it is now.

    Args:
        place: a mountpoint, or a pool.
        size: in bytes, as `parse_size` has it; None: as large as the file or device.

    Raises:
        UserError: the size is none, or the daemon refuses.
        PoolError, FsError, Corrupt, Unsupported: as `FileSystem.open` and `FileSystem.resize`.
    """
    wanted = 0 if size is None else parse_size(size)
    mountpoint = _mountpoint(place)
    if mountpoint is not None:
        before, now, block_size = _mounted(mountpoint, wanted)
    else:
        with FileSystem.open(place) as fs:
            block_size = fs.statfs().block_size
            before, now = fs.resize(_blocks(wanted, block_size))
    if now == before:
        print(f"{place} has {format_size(now * block_size)} ({now} blocks) already")
    else:
        print(f"{place} has {format_size(now * block_size)} ({now} blocks) now")


def show_minimum(place: str) -> None:
    """Say how small a mount or a pool can become, in bytes, so that the number can be given to `run`.

    Raises:
        UserError, PoolError, FsError, Corrupt, Unsupported: as `run`.
    """
    mountpoint = _mountpoint(place)
    if mountpoint is not None:
        with mountpoints.root(mountpoint) as descriptor:
            print(ask(descriptor, mountpoint, LEAST)["least"] * os.fstatvfs(descriptor).f_frsize)
    else:
        with FileSystem.open(place) as fs:
            print(fs.minimum_size() * fs.statfs().block_size)


def _mountpoint(place: str) -> str | None:
    found = mountpoints.find(place) or mountpoints.of_pool(os.path.realpath(place))
    return found.mountpoint if found is not None else None


def _blocks(wanted: int, block_size: int) -> int:
    """Return a size in whole blocks; at least 1, since 0 means everything."""
    return max(wanted // block_size, 1) if wanted else 0


def _mounted(mountpoint: str, wanted: int) -> tuple[int, int, int]:
    with mountpoints.root(mountpoint) as descriptor:
        block_size = os.fstatvfs(descriptor).f_frsize
        with _progress(descriptor, block_size):
            answer = ask(descriptor, mountpoint, CHANGE, _blocks(wanted, block_size))
    return answer["before"], answer["blocks"], block_size


def ask(descriptor: int, mountpoint: str, what: int, blocks: int = 0) -> dict[str, Any]:
    """Send `RESIZE` to the root of a mount, and return its answer; UserError if it is refused.

    A signal that stops this process for a while ends the request early, which is sent once more then.
    """
    try:
        answer: dict[str, Any] = command.ask(descriptor, RESIZE, QUESTION.pack(what, blocks))
    except InterruptedError:
        return ask(descriptor, mountpoint, what, blocks)
    except OSError as error:
        reason = error.strerror
        if error.errno == errno.ENOTTY:
            reason = "its session can't be asked to; unmount it and run: daxfs resize POOL"
        raise UserError(f"{mountpoint} can't be resized: {reason}", FAILED) from None
    if answer.get("errno") == errno.EINTR:
        return ask(descriptor, mountpoint, what, blocks)
    if "errno" in answer:
        raise UserError(f"{mountpoint} can't be resized: {answer['reason'] or os.strerror(answer['errno'])}", FAILED)
    return answer


@contextmanager
def _progress(descriptor: int, block_size: int) -> Iterator[None]:
    """Show on a terminal how much was moved, while the daemon works."""
    ended = threading.Event()
    with progress_bar() as progress:
        if progress is None:
            yield
            return
        move = progress

        def look() -> None:
            most = 0
            while not ended.wait(SECONDS_PER_LOOK):
                with suppress(UserError):
                    left = ask(descriptor, "", LEFT)["left"]
                    most = max(most, left)
                    if most:
                        move("moving files", (most - left) * block_size, most * block_size)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
