"""One pyfuse3 session: mount, serve until unmounted or told to stop, unmount.

The session borrows an open `FileSystem`; whoever opened it closes it. pyfuse3 keeps its session in module globals: one
session per process.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import pyfuse3

from daxfs.errors import UserError
from daxfs.fuse import mounts, serving
from daxfs.fuse.libfuse.adapter import Adapter
from daxfs.fuse.libfuse.wait import Gate
from daxfs.fuse.options import MountOptions

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
    by_helper = _mount(adapter, source, mountpoint, options)
    mounted = mounts.top_mount(mountpoint)
    read_without_splice()
    gate = Gate(options.poll_seconds)
    vars(pyfuse3)["trio"] = gate.module()
    try:
        serving.run(core, mountpoint, options.commit_seconds, _serve, pyfuse3.terminate, ready)
    except serving.SessionFailed:
        pyfuse3.close(unmount=False)
        raise
    adapter.close_all()
    pyfuse3.close(unmount=by_helper)
    if not by_helper and mounted is not None and mounts.top_mount(mountpoint) == mounted:
        mounts.unmount_device(mountpoint, mounts.MNT_DETACH)


async def _serve() -> None:
    await pyfuse3.main(min_tasks=1, max_tasks=1)


def _mount(adapter: Adapter, source: str, mountpoint: str, options: MountOptions) -> bool:
    """Mount and start the session; returns whether the helper did it, which then has to unmount too."""
    if os.geteuid() == 0:
        kernel = ["default_permissions", *(["allow_other"] if options.allow_other else []), *options.kernel]
        try:
            descriptor = mounts.mount_device(source, mountpoint, options.flags, kernel)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise UserError(f"mount on {mountpoint} failed: {error.strerror}", mounts.MOUNT_FAILED) from None
        else:
            pyfuse3.init(cast("pyfuse3.Operations", adapter), f"/dev/fd/{descriptor}", set(pyfuse3.default_options))
            return False
    _mount_by_helper(adapter, source, mountpoint, options)
    return True


def _mount_by_helper(adapter: Adapter, source: str, mountpoint: str, options: MountOptions) -> None:
    """Mount through libfuse and its set-uid helper, which write their errors to descriptor 2: it is read back."""
    asked = {"default_permissions", "subtype=daxfs", "fsname=" + source.replace("\\", "\\\\").replace(",", "\\,")}
    asked.update(options.kernel)
    if options.allow_other:
        asked.add("allow_other")
    if options.read_only:
        asked.add("ro")
    if options.flags & mounts.MS_NOEXEC:
        asked.add("noexec")
    with tempfile.TemporaryFile() as said:
        kept = os.dup(2)
        try:
            os.dup2(said.fileno(), 2)
            pyfuse3.init(cast("pyfuse3.Operations", adapter), mountpoint, asked)
        except RuntimeError:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"{mounts.HELPER} gave no reason"
            raise UserError(f"mount on {mountpoint} failed: {reason}", mounts.MOUNT_FAILED) from None
        finally:
            os.dup2(kept, 2)
            os.close(kept)


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
