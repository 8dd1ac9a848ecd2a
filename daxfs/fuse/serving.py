"""What every session does besides answering requests: the mount, commits in time, an end on signals or failure.

A session ends in one of three ways: the file system is unmounted from outside; SIGTERM, SIGINT or SIGHUP ask for a
clean end, which unmounts; or an exception that interrupted a change aborts the journal and leaves the mountpoint in
place, so that nobody takes an empty directory for the files (`SessionFailed`).
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
"""The shortest time between two looks for other owners of the pool: with ticks of a second, every second one looks."""
LAST_SECONDS = 30
"""How long a process may take to end after its session failed."""


class SessionFailed(Exception):
    """The session met an exception that nobody expected; the journal is aborted, the mountpoint left in place."""


class Attachment:
    """A mount that a session has made: by mount(2) where it may, else through the helper.

    Attributes:
        descriptor: of /dev/fuse; the session's to close.

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
        """Take it away, if it is still there. Its connection is closed already: nothing is lost if that fails."""
        if self._mounted is None or mounts.top_mount(self._mountpoint) != self._mounted:
            return
        try:
            if self._by_helper:
                mounts.unmount(self._mountpoint, lazy=True)
            else:
                mounts.unmount_device(self._mountpoint, mounts.MNT_DETACH)
        except (UserError, OSError) as error:
            log.warning("%s stays behind: %s", self._mountpoint, error)


def run(
    core: FileSystem,
    mountpoint: str,
    serve: Callable[[], Awaitable[None]],
    stop: Callable[[], None],
    ready: Callable[[], None],
) -> None:
    """Serve until the end.

    Args:
        core: the open file system.
        mountpoint: for messages.
        serve: answers requests until the mount is gone or ``stop`` was called.
        stop: makes ``serve`` return soon.
        ready: called before the first request is answered.

    Raises:
        SessionFailed: see above.
    """
    # What is loaded by now stays: the collector need not look through it again while requests wait.
    gc.collect()
    gc.freeze()
    with failing(core, mountpoint):
        trio.run(_run, core, serve, stop, ready)


@contextmanager
def failing(core: FileSystem, mountpoint: str) -> Iterator[None]:
    """Whatever comes out of the body ends the session: nothing is changed from then on, and the process ends soon.

    Raises:
        SessionFailed: something came out.
    """
    try:
        yield
    except BaseException as error:
        end_by(LAST_SECONDS)
        core.abort(error)
        log.critical(
            "the session failed: nothing is stored any more, the journal will be replayed; %s stays mounted",
            mountpoint,
            exc_info=error,
        )
        raise SessionFailed(f"the session of {mountpoint} failed: {error!r}") from error


def end_by(seconds: int) -> None:
    """Have the kernel end this process after some seconds.

    A process without memory may not even come to its end: what it does for that needs memory too. A timer needs none.
    Nobody handles its signal but the fault handler (`logs.start`), which leaves a traceback.
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
    """How often to ask the core whether a commit is due: often enough to keep the promise within a fifth."""
    return min(LONGEST_TICK_SECONDS, max(SHORTEST_TICK_SECONDS, commit_seconds / 5))


async def _tick(core: FileSystem) -> None:
    """Let the core commit when it is time. A refusal is logged: the core has turned read-only if it had to."""
    look_at = 0.0
    while True:
        await trio.sleep(tick_seconds(core.options.commit_interval))
        try:
            if trio.current_time() >= look_at:
                look_at = trio.current_time() + LOOK_SECONDS
                core.look_for_owners()
            core.tick()
        except FsError as error:
            logs.unanswered("commit", error)
        except Exception as error:
            unexpected.refusal(core, error, "looking whether a commit is due")
        logs.flush()


async def _stop_on_signal(
    stop: Callable[[], None], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            log.info("%s: unmounting", signal.Signals(number).name)
            stop()
