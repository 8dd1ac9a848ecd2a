"""One pyfuse3 session: mount, serve until unmounted or told to stop, unmount.

The session borrows an open `FileSystem`; whoever opened it closes it. pyfuse3 keeps its session in module globals: one
session per process.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import pyfuse3

from daxfs.fuse import serving
from daxfs.fuse.libfuse.adapter import Adapter
from daxfs.fuse.libfuse.wait import Gate
from daxfs.fuse.mountoptions import MountOptions

if TYPE_CHECKING:
    from daxfs.fs.filesystem import FileSystem

log = logging.getLogger("daxfs.fuse")

_CAPABILITY_VERSION_3 = 0x20080522
_CAP_SYS_RESOURCE = 24


def serve(
    core: FileSystem,
    source: str,
    mountpoint: str,
    options: MountOptions,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Mount ``core`` on ``mountpoint`` (a real path) and serve it until the end.

    Args:
        core: the open file system.
        source: what mount tables show as the device: the real path of the pool.
        mountpoint: where.
        options: of the mount.
        ready: called once the kernel has the mount, before the first request is answered.

    Raises:
        UserError: the mount was refused.
        SessionFailed: an unknown exception ended it.
    """
    adapter = Adapter(core)
    attachment = serving.Attachment(source, mountpoint, options)
    place = f"/dev/fd/{attachment.descriptor}"
    pyfuse3.init(cast("pyfuse3.Operations", adapter), place, set(pyfuse3.default_options))
    read_without_splice()
    gate = Gate(options.poll_seconds)
    vars(pyfuse3)["trio"] = gate.module()
    try:
        serving.run(core, mountpoint, _serve, pyfuse3.terminate, ready)
    except serving.SessionFailed:
        pyfuse3.close(unmount=False)
        raise
    with serving.failing(core, mountpoint):
        adapter.close_all()
    pyfuse3.close(unmount=False)
    attachment.detach()


async def _serve() -> None:
    await pyfuse3.main(min_tasks=1, max_tasks=1)


def read_without_splice() -> None:
    """Make libfuse read requests with read(2) instead of splice(2) through a pipe: 1.3 times the speed at 1 MiB.

    libfuse splices only when its pipe holds a whole request, which is one page more than an ordinary process may have
    in a pipe; only CAP_SYS_RESOURCE makes that possible. So the daemon gives this capability up. (pyfuse3 has no way
    to say ``no_splice_read``.)
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) != 0:
        return
    sets[0] &= ~(1 << _CAP_SYS_RESOURCE)
    if libc.capset(header, sets) != 0:
        log.debug("CAP_SYS_RESOURCE stays: %s", os.strerror(ctypes.get_errno()))
