"""Mounts for tests: always taken down, never waited for without a limit, and checked by e2fsck afterwards.

A request that a broken daemon never answers blocks its caller for good, so each mount has a watchdog that kills the
daemon (by its own process id): the kernel then answers for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from daxfs.fs import filesystem as _loaded_before_the_fork  # noqa: F401
from daxfs.fuse import mounts
from daxfs.fuse.kernel import session as _also_loaded  # noqa: F401
from daxfs.tools import cli
from daxfs.tools.mount import mount, umount
from support import HANG_SECONDS, fsck, tool

LIMIT = 90.0
"""Seconds that one mount may live."""

NOBODY = 65534
COMMAND = (sys.executable, "-m", "daxfs.tools")

SESSIONS: dict[str, tuple[str, ...]] = {"kernel": ("session=kernel",), "pyfuse3": ("session=pyfuse3",)}
"""The kinds of session that must pass the same checks, with the mount options that choose them."""


def daxfs(*arguments: str | Path, code: int = 0, limit: float = 60) -> str:
    """Run the command line, expect its exit code, return its standard error, or its output if that is empty."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    assert done.returncode == code, f"daxfs {arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stderr or done.stdout


@contextlib.contextmanager
def mountpoint() -> Iterator[Path]:
    """A directory that every user may reach; whatever is mounted there in the end is taken away."""
    place = Path(tempfile.mkdtemp(prefix="daxfs-test-"))
    place.chmod(0o755)
    try:
        yield place
    finally:
        while mounts.top_mount(str(place)) is not None:
            subprocess.run([tool("umount"), "-l", place], timeout=HANG_SECONDS, check=True)
        shutil.rmtree(place)


class Daemon:
    """``daxfs mount -f`` in a fork of this process, which has loaded everything already."""

    def __init__(self, pool: Path, place: Path, options: tuple[str, ...], output: int) -> None:
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 255
            try:
                os.setsid()
                os.dup2(output, 1)
                os.dup2(output, 2)
                sys.stdout = sys.stderr = os.fdopen(os.dup(output), "w", buffering=1)
                logging.getLogger().handlers.clear()
                code = cli._guarded(lambda: mount(str(pool), str(place), options, foreground=True), 1, 32)
            finally:
                os._exit(code)

    def cpu_seconds(self) -> float:
        """How long it has run on a processor (proc(5), schedstat)."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e9

    def poll(self) -> int | None:
        """The exit code (minus the signal's number), None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, limit: float) -> int:
        """The exit code, within ``limit`` seconds."""
        end = time.monotonic() + limit
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"process {self.pid} is still there")
            time.sleep(0.002)
        return code

    def send_signal(self, number: int) -> None:
        """Signal it, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it without its knowledge."""
        self.send_signal(signal.SIGKILL)


class Mounted:
    """A mounted pool and its daemon."""

    def __init__(self, pool: Path, place: Path, options: tuple[str, ...] = ()) -> None:
        self.pool = pool
        self.place = place
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by down)
        self.daemon = Daemon(pool, place, options, self._said.fileno())
        self._watchdog = threading.Timer(LIMIT, self.daemon.kill)
        self._watchdog.daemon = True
        self._watchdog.start()
        try:
            self._wait_mounted()
        except BaseException:
            self.down()
            raise

    def _wait_mounted(self) -> None:
        end = time.monotonic() + HANG_SECONDS
        while mounts.top_mount(str(self.place)) is None:
            assert self.daemon.poll() is None, self.said()
            assert time.monotonic() < end, "the mount did not come"
            time.sleep(0.002)
        os.statvfs(self.place)

    def said(self) -> str:
        """What the daemon has printed."""
        self._said.seek(0)
        return self._said.read()

    def unmount(self) -> None:
        """A clean end; the daemon must end well too."""
        umount(str(self.place))
        assert self.daemon.wait(HANG_SECONDS) == 0, self.said()

    def down(self) -> None:
        """Whatever happened, no daemon is left."""
        self._watchdog.cancel()
        if self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGTERM)
            try:
                self.daemon.wait(HANG_SECONDS)
            except TimeoutError:
                self.daemon.kill()
                self.daemon.wait(HANG_SECONDS)
        self._said.close()


@contextlib.contextmanager
def served(pool: Path, *options: str) -> Iterator[Mounted]:
    """Mount a pool; at the end no daemon is left, whatever the body has done with it."""
    with mountpoint() as place:
        mount = Mounted(pool, place, options)
        try:
            yield mount
        finally:
            mount.down()


@contextlib.contextmanager
def mounted_unchecked(pool: Path, *options: str) -> Iterator[Mounted]:
    """Mount a pool and unmount it at the end; nothing checks it afterwards."""
    with served(pool, *options) as mount:
        yield mount
        mount.unmount()


@contextlib.contextmanager
def mounted(pool: Path, *options: str) -> Iterator[Mounted]:
    """Mount a pool; at the end it is unmounted cleanly and e2fsck finds nothing."""
    with served(pool, *options) as mount:
        yield mount
        if mount.daemon.poll() is None and mounts.top_mount(str(mount.place)) is not None:
            mount.unmount()
    fsck(pool)


def as_user(action: Callable[[], object], uid: int = NOBODY, gid: int = NOBODY, groups: tuple[int, ...] = ()) -> int:
    """Run ``action`` in a child process as an ordinary user; returns its errno, 0 if it went well."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            os.setgroups(list(groups))
            os.setgid(gid)
            os.setuid(uid)
            action()
            code = 0
        except OSError as error:
            code = error.errno or 254
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert 0 <= code < 254, f"the child failed: {code}"
    return code


def in_child(action: Callable[[], object]) -> None:
    """Run ``action`` in a child process, which must end well; what fails there shows on standard error."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@contextlib.contextmanager
def mounted_by_root(pool: Path) -> Iterator[Mounted]:
    """Mount a copy of a pool that root alone may open, by a path that everybody may walk, for everybody."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        os.chmod(folder, 0o755)
        made = Path(shutil.copy(pool, folder))
        made.chmod(0o600)
        with mounted(made, *SESSIONS["kernel"], "allow_other") as mount:
            yield mount
