"""One pyfuse3 session: mount, serve until unmounted or told to stop, unmount.

The session borrows an open `FileSystem`; whoever opened it closes it. It ends in one of three ways: the file system is
unmounted from outside; SIGTERM, SIGINT or SIGHUP ask for a clean end, which unmounts; or an unknown exception aborts
the journal and leaves the mountpoint in place, so that nobody takes an empty directory for the files (`SessionFailed`).

pyfuse3 keeps its session in module globals: one session per process.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import logging
import os
import signal
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import pyfuse3
import trio

from daxfs.errors import FsError, UserError
from daxfs.fuse import mounts
from daxfs.fuse.adapter import Adapter
from daxfs.fuse.options import MountOptions
from daxfs.fuse.wait import Gate

if TYPE_CHECKING:
    from daxfs.fs.filesystem import FileSystem

log = logging.getLogger("daxfs.fuse")

LONGEST_TICK_SECONDS = 1.0
SHORTEST_TICK_SECONDS = 0.1

_CAPABILITY_VERSION_3 = 0x20080522
_CAP_SYS_RESOURCE = 24


class SessionFailed(Exception):
    """The session met an exception that nobody expected; the journal is aborted, the mountpoint left in place."""


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
        SessionFailed: see above.
    """
    adapter = Adapter(core)
    by_helper = _mount(adapter, source, mountpoint, options)
    mounted = mounts.top_mount(mountpoint)
    read_without_splice()
    gate = Gate(options.poll_seconds)
    vars(pyfuse3)["trio"] = gate.module()
    # What is loaded by now stays: the collector need not look through it again while requests wait.
    gc.collect()
    gc.freeze()
    try:
        trio.run(_run, core, tick_seconds(options.commit_seconds), ready)
    except BaseException as error:
        log.critical("the session failed and ends; %s stays mounted", mountpoint, exc_info=True)
        core.abort(error)
        pyfuse3.close(unmount=False)
        raise SessionFailed(f"the session of {mountpoint} failed: {error!r}") from error
    adapter.close_all()
    pyfuse3.close(unmount=by_helper)
    if not by_helper and mounted is not None and mounts.top_mount(mountpoint) == mounted:
        mounts.unmount_device(mountpoint, mounts.MNT_DETACH)


async def _run(core: FileSystem, interval: float, ready: Callable[[], None]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tick, core, interval)
        await nursery.start(_stop_on_signal)
        ready()
        await pyfuse3.main(min_tasks=1, max_tasks=1)
        nursery.cancel_scope.cancel()


def tick_seconds(commit_seconds: float) -> float:
    """How often to ask the core whether a commit is due: often enough to keep the promise within a fifth."""
    return min(LONGEST_TICK_SECONDS, max(SHORTEST_TICK_SECONDS, commit_seconds / 5))


async def _tick(core: FileSystem, interval: float) -> None:
    """Let the core commit when it is time. A refusal is logged: the core has turned read-only if it had to."""
    last = ""
    while True:
        await trio.sleep(interval)
        try:
            core.tick()
        except FsError as error:
            if str(error) != last:
                last = str(error)
                log.error("commit: %s", error.strerror)


async def _stop_on_signal(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            log.info("%s: unmounting", signal.Signals(number).name)
            pyfuse3.terminate()


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
