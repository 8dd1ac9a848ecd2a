"""``daxfs resize``: make a file system larger, mounted or not, up to its file or device.

A mounted pool is resized by its daemon (`daxfs.fuse.kernel.resizing`), while programs use it. A pool that is not
mounted is opened as a library would open it. resize2fs(8) on the pool of a mount asks the daemon for the same.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os

from daxfs.errors import UserError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.steps import finish
from daxfs.fuse.kernel.resizing import BLOCKS, RESIZE, SIZE
from daxfs.tools import mountpoints
from daxfs.tools.sizes import format_size, parse_size

FAILED = 1
"""As resize2fs(8)."""


def run(place: str, size: str) -> None:
    """Resize a mount or a pool, and say how large it is now.

    Args:
        place: a mountpoint, or a pool.
        size: in bytes, as `parse_size` has it; "": as large as the file or device.

    Raises:
        UserError: the size is none, or the daemon refuses.
        PoolError, FsError, Corrupt, Unsupported: as `FileSystem.open` and `FileSystem.resize`.
    """
    wanted = parse_size(size) if size else 0
    found = mountpoints.find(place) or mountpoints.of_pool(os.path.realpath(place))
    if found is not None:
        before, now, block_size = _mounted(found.mountpoint, wanted)
    else:
        with FileSystem.open(place) as fs:
            block_size = fs.statfs().block_size
            before, now = finish(fs.steps.resize(_blocks(wanted, block_size)))
    if now == before:
        print(f"{place} has {format_size(now * block_size)} ({now} blocks) already")
    else:
        print(f"{place} has {format_size(now * block_size)} ({now} blocks) now")


def _blocks(wanted: int, block_size: int) -> int:
    """Return a size in whole blocks; at least 1, since 0 means everything."""
    return max(wanted // block_size, 1) if wanted else 0


def _mounted(mountpoint: str, wanted: int) -> tuple[int, int, int]:
    with mountpoints.root(mountpoint) as descriptor:
        block_size = os.fstatvfs(descriptor).f_frsize
        argument = bytearray(BLOCKS.pack(_blocks(wanted, block_size)).ljust(SIZE, b"\0"))
        try:
            fcntl.ioctl(descriptor, RESIZE, argument)
        except OSError as error:
            reason = error.strerror
            if error.errno == errno.ENOTTY:
                reason = "its session can't be asked to; unmount it and run: daxfs resize POOL"
            raise UserError(f"{mountpoint} can't be resized: {reason}", FAILED) from None
    answer = json.loads(argument.rstrip(b"\0"))
    if "errno" in answer:
        raise UserError(f"{mountpoint} can't be resized: {answer['reason'] or os.strerror(answer['errno'])}", FAILED)
    return answer["before"], answer["blocks"], block_size
