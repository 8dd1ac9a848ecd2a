"""Run one pyfuse3 session: mount, serve until the mount is gone or a signal stops the session, unmount.

The session borrows an open `FileSystem`; its opener closes it. pyfuse3 keeps its session in module globals, so a
process has at most one.
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
        mountpoint: the directory to mount on.
        options: of the mount.
        ready: called when the mount exists, before the first request is answered.

    Raises:
        UserError: the mount was refused.
        SessionFailed: an unexpected exception ended the session.
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

    libfuse splices only when its pipe can hold a whole request. That is one page more than the limit of an ordinary
    process; CAP_SYS_RESOURCE lifts the limit, so this function drops the capability. (pyfuse3 has no option for
    ``no_splice_read``.)
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) != 0:
        return
    sets[0] &= ~(1 << _CAP_SYS_RESOURCE)
    if libc.capset(header, sets) != 0:
        log.debug("CAP_SYS_RESOURCE can't be dropped: %s", os.strerror(ctypes.get_errno()))
