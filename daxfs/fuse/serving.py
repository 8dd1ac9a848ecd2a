"""The duties of every session besides answering requests: mounting, periodic commits, ending on a signal or a failure.

A session ends in one of three ways. The file system is unmounted from outside. Or SIGTERM, SIGINT or SIGHUP requests a
clean end, and the session unmounts. Or an exception interrupts a change: the session aborts the journal and leaves the
mountpoint in place, so that nobody mistakes an empty directory for the files (`SessionFailed`).
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from daxfs.errors import FsError, UserError
from daxfs.fuse import logs, mounts, unexpected

if TYPE_CHECKING:
    from daxfs.fs.filesystem import FileSystem
    from daxfs.fuse.mountoptions import MountOptions

log = logging.getLogger("daxfs.fuse")

LONGEST_TICK_SECONDS = 1.0
SHORTEST_TICK_SECONDS = 0.1
LOOK_SECONDS = 1.5
"""The shortest time between two checks for other owners of the pool: every second tick checks if ticks take 1 s."""
LAST_SECONDS = 30
"""How long a process may take to end after its session failed."""


class SessionFailed(Exception):
    """An unexpected exception ended the session: the journal is aborted, and the mountpoint is left in place."""


class Attachment:
    """The mount of one session, made by mount(2) where the process may, else by the helper.

    Attributes:
        descriptor: of /dev/fuse; the session closes it.

    Raises:
        UserError: the mount was refused.
    """

    def __init__(self, source: str, mountpoint: str, options: MountOptions) -> None:
        kernel = ["default_permissions", *(["allow_other"] if options.allow_other else []), *options.kernel]
        self._mountpoint = mountpoint
        self._by_helper = os.geteuid() != 0
        if not self._by_helper:
            try:
                self.descriptor = mounts.mount_device(source, mountpoint, options.mount_flags, kernel)
            except OSError as error:
                if error.errno != errno.EPERM:
                    raise UserError(f"mount on {mountpoint} failed: {error.strerror}", mounts.MOUNT_FAILED) from None
                self._by_helper = True
        if self._by_helper:
            self.descriptor = mounts.mount_by_helper(source, mountpoint, options.mount_flags, kernel)
        self._mounted = mounts.top_mount(mountpoint)

    def detach(self) -> None:
        """Unmount, if the mount still exists. Its connection is closed already, so a failure loses nothing."""
        if self._mounted is None or mounts.top_mount(self._mountpoint) != self._mounted:
            return
        try:
            if self._by_helper:
                mounts.unmount(self._mountpoint, lazy=True)
            else:
                mounts.unmount_device(self._mountpoint, mounts.MNT_DETACH)
        except (UserError, OSError) as error:
            log.warning("%s stays mounted: %s", self._mountpoint, error)


def run(
    core: FileSystem,
    mountpoint: str,
    serve: Callable[[], Awaitable[None]],
    stop: Callable[[], None],
    ready: Callable[[], None],
) -> None:
    """Run ``serve``, periodic commits and the handling of signals, until ``serve`` returns.

    Args:
        core: the open file system.
        mountpoint: for messages.
        serve: answers requests until the mount is gone or ``stop`` was called.
        stop: makes ``serve`` return soon.
        ready: called before the first request is answered.

    Raises:
        SessionFailed: an exception came out of one of them.
    """
    # All objects loaded by now stay alive: frozen, they cost no collection while requests wait.
    gc.collect()
    gc.freeze()
    with failing(core, mountpoint):
        trio.run(_run, core, serve, stop, ready)


@contextmanager
def failing(core: FileSystem, mountpoint: str) -> Iterator[None]:
    """End the session if the body raises: the core is aborted, and a timer kills the process after `LAST_SECONDS`.

    Raises:
        SessionFailed: the body raised an exception, which is the cause of this one.
    """
    try:
        yield
    except BaseException as error:
        end_by(LAST_SECONDS)
        core.abort(error)
        log.critical(
            "the session failed: no changes are stored from now on, the journal will be replayed; %s stays mounted",
            mountpoint,
            exc_info=error,
        )
        raise SessionFailed(f"the session of {mountpoint} failed: {error!r}") from error


def end_by(seconds: int) -> None:
    """Let the kernel kill this process after some seconds, by SIGALRM.

    A process that has run out of memory may be unable to exit, since exiting needs memory too. A timer needs none. Only
    the fault handler (`logs.start`) handles the signal: it writes a traceback.
    """
    signal.alarm(seconds)


async def _run(
    core: FileSystem,
    serve: Callable[[], Awaitable[None]],
    stop: Callable[[], None],
    ready: Callable[[], None],
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tick, core)
        await nursery.start(_stop_on_signal, stop)
        ready()
        await serve()
        nursery.cancel_scope.cancel()


def tick_seconds(commit_seconds: float) -> float:
    """Return the interval at which to ask the core whether a commit is due: a fifth of ``commit=``, within bounds."""
    return min(LONGEST_TICK_SECONDS, max(SHORTEST_TICK_SECONDS, commit_seconds / 5))


async def _tick(core: FileSystem) -> None:
    """Let the core commit when a commit is due. A refusal is logged: the core turned read-only if it had to."""
    check_at = 0.0
    while True:
        await trio.sleep(tick_seconds(core.options.commit_interval))
        try:
            if trio.current_time() >= check_at:
                check_at = trio.current_time() + LOOK_SECONDS
                core.look_for_owners()
            core.tick()
        except FsError as error:
            logs.unanswered("commit", error)
        except Exception as error:
            unexpected.refusal(core, error, "the periodic commit")
        logs.flush()


async def _stop_on_signal(
    stop: Callable[[], None], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            log.info("%s: unmounting", signal.Signals(number).name)
            stop()
