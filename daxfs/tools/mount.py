"""Mount and unmount from the command line: checks with one clear line each, the start of the daemon, and its end.

``daxfs mount`` checks what it can before it forks. The daemon opens the pool, mounts and reports through a pipe; the
parent returns only when the mount answers. ``daxfs umount`` returns only when the daemon has closed the pool, so that
e2fsck may follow. Exit codes are those of mount(8).
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from daxfs import protocol
from daxfs.errors import FsError, UserError
from daxfs.ext4.features import Incompat
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET, Superblock
from daxfs.fuse import logs, mounts, options
from daxfs.fuse.mountoptions import MountOptions
from daxfs.pmem import kinds, ownership
from daxfs.tools.status import status

if TYPE_CHECKING:
    from daxfs.fs.filesystem import FileSystem

DONE = b"ok\n"
_MOST_ANSWER = 1 << 16
RELEASE_SECONDS = 60.0
FIRST_PAUSE_SECONDS = 0.001
LONGEST_PAUSE_SECONDS = 0.05

_TRUST = "mount it nosuid,nodev with --trust-owner (-o trust_owner)"

log = logging.getLogger("daxfs")


def mount(pool: str, mountpoint: str, given: Sequence[str] = (), *, foreground: bool = False) -> None:
    """Mount ``pool`` on ``mountpoint``; in the foreground, return when it is unmounted.

    Args:
        pool: path of the pool.
        mountpoint: a directory.
        given: mount options, comma-separated lists.
        foreground: serve in this process.

    Raises:
        UserError: with a message of one line and mount(8)'s exit code.
    """
    if options.REMOUNT in options.split(given):
        from daxfs.tools.remount import remount

        remount(mountpoint or pool, given)
        return
    if not mountpoint:
        raise UserError(f"no mountpoint for {pool}; usage: daxfs mount POOL MOUNTPOINT", mounts.USAGE)
    wanted = options.parse(given)
    directory = mounts.check_mountpoint(mountpoint)
    if not os.path.exists(pool):
        raise UserError(f"{pool} does not exist; make it with: daxfs mkfs {pool} --size 1G", mounts.MOUNT_FAILED)
    check_path(pool)
    if wanted.log and os.path.exists(wanted.log) and os.path.samefile(wanted.log, pool):
        raise UserError(f"bad mount option: log={wanted.log}; that is the pool", mounts.USAGE)
    place = kinds.lasting_path(pool)
    mounts.check_device()
    mounts.check_helper()
    if foreground:
        logs.start(wanted.log, foreground=True)
        serve(place, directory, wanted, lambda: None)
    else:
        start_daemon(place, directory, wanted, partial(serve, place, directory, wanted))
        if sys.stderr.isatty():
            _warn(directory)


def _warn(mountpoint: str) -> None:
    """Print the warning about sync(2) that the log has too, for the user at the terminal."""
    line = status(mountpoint).get("warning")
    if line:
        print(f"daxfs: {mountpoint}: {line}", file=sys.stderr)


def check_path(pool: str) -> None:
    """Check that the pool's real path fits into the daemon's answer to clients of direct access (`protocol.Pool`).

    Raises:
        UserError: the path is too long.
    """
    length = len(os.fsencode(os.path.realpath(pool)))
    if length >= protocol.PATH_SIZE:
        raise UserError(
            f"the real path of {pool} has {length} bytes, more than the {protocol.PATH_SIZE - 1}"
            " that fit into the protocol; move the pool, or bind-mount a directory of its path to a shorter one",
            mounts.MOUNT_FAILED,
        )


def serve(pool: str, mountpoint: str, wanted: MountOptions, ready: Callable[[], None]) -> None:
    """Open the pool, serve it until it is unmounted, close it. ``pool`` is an absolute path."""
    load_session(wanted.session)
    if wanted.debug:
        log.setLevel(logging.DEBUG)
    for note in wanted.notes:
        log.info("%s", note)
    source = os.path.realpath(pool)
    serve_core(open_core(pool, source, mountpoint, wanted), source, mountpoint, wanted, ready)


def serve_core(core: FileSystem, source: str, mountpoint: str, wanted: MountOptions, ready: Callable[[], None]) -> None:
    """Serve an open file system until it is unmounted, and close it; ``source`` is what the mount table shows."""
    from daxfs.fuse import groups
    from daxfs.fuse.serving import SessionFailed

    try:
        session_of = load_session(wanted.session)
        core.find_groups_by(groups.groups_of)
        session_of(core, source, mountpoint, wanted, ready)
    except SessionFailed as error:
        raise UserError(
            f"{error}; the pool is closed as it is, its journal will be replayed", mounts.SYSTEM_ERROR
        ) from error
    finally:
        core.close()


def open_core(pool: str, source: str, mountpoint: str, wanted: MountOptions) -> FileSystem:
    """Open the file system in ``source``, the real path of ``pool``, if all users who can change the pool are trusted.

    The check holds for the pool that is opened afterwards: only the users that it found trusted could replace the file.
    """
    from daxfs.fs.filesystem import FileSystem

    if not wanted.trust_owner:
        ownership.refuse(pool, os.stat(source), _TRUST)
    core = FileSystem.open(source, wanted.of_volume(mountpoint))
    try:
        for storage in core.storages:
            _check_storage(storage, wanted)
    except BaseException:
        core.close()
        raise
    return core


def _check_storage(path: str, wanted: MountOptions) -> None:
    """Refuse a session that would wait for storage, and storage that others can change."""
    if wanted.session != "kernel":
        text = f"the pool has storage ({path}), which session={wanted.session} would wait for; use session=kernel"
        raise UserError(text, mounts.USAGE)
    if not wanted.trust_owner:
        ownership.refuse(path, os.stat(path), _TRUST)


def load_session(name: str) -> Callable[[FileSystem, str, str, MountOptions, Callable[[], None]], None]:
    """Return the function ``serve`` of the session with this name."""
    if name == "kernel":
        from daxfs.fuse.kernel.session import serve as serve_kernel

        return serve_kernel
    try:
        from daxfs.fuse.libfuse.session import serve as serve_libfuse
    except ImportError as error:
        raise UserError(
            f"session=pyfuse3 needs pyfuse3 ({error}); pip install 'daxfs[fuse]'", mounts.SYSTEM_ERROR
        ) from error
    return serve_libfuse


def start_daemon(pool: str, mountpoint: str, wanted: MountOptions, run: Callable[[Callable[[], None]], None]) -> None:
    """Fork the daemon and wait until it serves.

    Args:
        pool: for messages.
        mountpoint: what answers when the daemon serves.
        wanted: the options of the mount.
        run: what the daemon does; it calls its argument when it serves, and returns when the mount is gone.

    Raises:
        UserError: the daemon failed, with its own message and exit code, or the mount does not answer.
    """
    reader, writer = os.pipe()
    if os.fork() == 0:
        code = 1
        try:
            os.close(reader)
            code = _daemon(pool, wanted, run, writer)
        finally:
            os._exit(code)
    os.close(writer)
    outcome = os.read(reader, _MOST_ANSWER)  # not to its end: what the daemon starts may keep it open
    os.close(reader)
    if outcome != DONE:
        number, _, message = outcome.decode(errors="replace").partition(" ")
        if not message:
            raise UserError("the daemon ended without a message; run with -f to see why", mounts.SYSTEM_ERROR)
        raise UserError(message.strip(), int(number))
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        raise UserError(f"{mountpoint} does not answer: {error.strerror}", mounts.MOUNT_FAILED) from None


def _daemon(pool: str, wanted: MountOptions, run: Callable[[Callable[[], None]], None], writer: int) -> int:
    """Run the daemon in the child; return its exit code."""
    os.setsid()
    os.chdir("/")
    os.umask(0o022)
    _detach(keep=writer)
    reported = False

    def report(what: bytes) -> None:
        nonlocal reported
        if not reported:
            reported = True
            os.write(writer, what)
            os.close(writer)

    try:
        logs.start(wanted.log)
        run(lambda: report(DONE))
    except UserError as error:
        if not reported:  # else the session has logged it
            log.error("%s", error)
        report(f"{error.code} {error}".encode())
        return error.code
    except FsError as error:
        text = error.strerror or str(error)
        if not text.startswith(f"{pool}: "):
            text = f"{pool}: {text}"
        log.error("%s", text)
        report(f"{mounts.MOUNT_FAILED} {text}".encode())
        return mounts.MOUNT_FAILED
    except BaseException as error:
        log.critical("the daemon of %s ends", pool, exc_info=True)
        report(f"{mounts.SYSTEM_ERROR} internal error: {error!r}".encode())
        return mounts.SYSTEM_ERROR
    finally:
        logs.stop()
    return 0


def _detach(keep: int) -> None:
    """Open the standard streams on /dev/null, and close all other descriptors except ``keep``."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))


def umount(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmount, and wait until the daemon has closed the pool (not if ``lazy``: the mount may still be in use).

    Raises:
        UserError: it is not a mount of daxfs, it is busy, unmounting is not allowed, or the daemon does not end.
    """
    place = mounts.real_mountpoint(mountpoint)
    found = mounts.top_mount(place)
    if found is None:
        raise UserError(f"{mountpoint} is not mounted", mounts.MOUNT_FAILED)
    if found.filesystem != protocol.FILESYSTEM_TYPE:
        raise UserError(f"{mountpoint} is a mount of {found.filesystem}; use: umount {mountpoint}", mounts.MOUNT_FAILED)
    daemon = None if lazy or os.path.exists(found.source) else _daemon_of(place)
    try:
        mounts.unmount(place, lazy=lazy)
        if daemon is not None:
            select.select([daemon], [], [], RELEASE_SECONDS)
        elif not lazy:
            wait_released(found.source)
            _tell_unclean(found.source)
    finally:
        if daemon is not None:
            os.close(daemon)


def _daemon_of(mountpoint: str) -> int | None:
    """Return a pidfd of the daemon of a mount that has no pool of its own (`snapshotmount`), to wait for its end."""
    try:
        return os.pidfd_open(status(mountpoint).get("process", 0))
    except (OSError, ValueError):
        return None


def _tell_unclean(pool: str) -> None:
    """Say that the mount could not leave its pool clean; the unmount itself has succeeded, so that is no error."""
    try:
        with open(pool, "rb", buffering=0) as file:
            sb = Superblock(memoryview(bytearray(os.pread(file.fileno(), Superblock.SIZE, SUPERBLOCK_OFFSET))))
    except OSError:
        return  # A user who may not open the pool can't see its state, and a character device can only be mapped.
    if sb.s_feature_incompat & Incompat.needs_recovery:
        print(f"{pool} was not left clean: the daemon's log says why, and the next mount recovers it", file=sys.stderr)


def wait_released(pool: str, limit: float = RELEASE_SECONDS) -> None:
    """Wait until no process has the lock that a daemon keeps on its pool (`daxfs.pmem.exclusive`).

    Raises:
        UserError: the pool is still locked after ``limit`` seconds.
    """
    try:
        descriptor = os.open(pool, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # A user who may not open the pool can't see its lock.
    try:
        pause, end = FIRST_PAUSE_SECONDS, time.monotonic() + limit
        while time.monotonic() < end:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                return
    finally:
        os.close(descriptor)
    raise UserError(f"unmounted, but {pool} is still in use after {limit:.0f} s", mounts.MOUNT_FAILED)


def mount_arguments(arguments: Sequence[str]) -> None:
    """Run ``mount.fuse.daxfs POOL MOUNTPOINT [-sfnv] [-o OPTIONS]``, as mount(8) calls its helpers.

    ``-f`` is mount(8)'s "fake": all checks, and no mount.
    """
    import getopt

    try:
        pairs, places = getopt.gnu_getopt(list(arguments), "sfnvrwt:o:N:h")
    except getopt.GetoptError as error:
        raise UserError(f"mount.fuse.daxfs: {error}; usage: {_USAGE}", mounts.USAGE) from None
    flags = {name for name, _ in pairs}
    if "-h" in flags or len(places) != 2:
        raise UserError(f"usage: {_USAGE}", mounts.USAGE)
    given = [value for name, value in pairs if name == "-o"]
    given += [{"-r": "ro", "-w": "rw"}[name] for name, _ in pairs if name in ("-r", "-w")]
    if "-f" in flags:
        options.parse(given)
        mounts.check_mountpoint(places[1])
        return
    if "-v" in flags:
        print(f"daxfs: mounting {places[0]} on {places[1]}", file=sys.stderr)
    mount(places[0], places[1], given)


_USAGE = "mount.fuse.daxfs POOL MOUNTPOINT [-sfnv] [-o OPTIONS]"
