"""The daemon's half of ``mount -o remount``: an ioctl on the root directory (`REMOUNT`) changes its options.

The other half is mount(2) with MS_REMOUNT, which changes the kernel's flags and does not reach the daemon.
`daxfs.tools.remount` orders both halves so that the kernel never lets writers in while the daemon is read-only.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from daxfs.errors import FsError, UserError
from daxfs.fuse import options
from daxfs.fuse.kernel import abi

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Connection
    from daxfs.fuse.kernel.request import Request

log = logging.getLogger("daxfs.fuse")

SIZE = 4096
"""Bytes of the argument: options with commas between them, padded with zeros."""
REMOUNT = 0x4000DA07 | SIZE << 16
"""_IOW(0xda, 7, char[SIZE])."""


def change(connection: Connection, request: Request, given: memoryview) -> bytes:
    """Answer the ioctl `REMOUNT`: change the options of the mount.

    Raises:
        FsError: ENOTTY, not the root directory; EPERM, not root; EINVAL, an option that can't be changed; EBUSY, files
            are open for writing, files without a name are in use, or clients hold leases; EROFS, see
            `daxfs.fs.remounting`.
    """
    if request.node != abi.ROOT_ID:
        raise FsError(errno.ENOTTY)
    if request.uid:
        raise FsError(errno.EPERM)
    core = connection.core
    try:
        text = bytes(given).partition(b"\0")[0].decode()
        wanted = options.remounted(connection.options, [text])
    except (UserError, UnicodeDecodeError) as error:
        log.warning("remount refused: %s", error)
        raise FsError(errno.EINVAL, str(error)) from None
    connection.process_forgets()
    if wanted.read_only and any(file.writable for file in connection.files.values()):
        raise FsError(errno.EBUSY, "files are open for writing")
    if wanted.read_only and connection.scheduler.works:
        raise FsError(errno.EBUSY, "a long request is in progress")
    core.remount(wanted.of_volume(core.options.mountpoint))
    connection.options = wanted
    log.info("remounted: %s", ",".join(wanted.listed()))
    return b""
