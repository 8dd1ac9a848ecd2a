"""Find, make and remove mounts of daxfs in this namespace, with mount(2) and umount(2).

This module knows neither the FUSE protocol nor pyfuse3, so that the command line need not load a session. The daemon
calls mount(2) itself when it may, for two reasons. Errors come as an errno and not as a helper's text. And mount(2)
takes the flag for POSIX ACLs: with it the kernel passes on a mode without applying the umask (fs/fuse/inode.c:
``dont_mask``), so that a default ACL can replace the umask as acl(5) requires.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import stat
import subprocess
import time

from daxfs.errors import UserError
from daxfs.pmem.kinds import Mount, read_mounts
from daxfs.pmem.libc import last_error
from daxfs.protocol import FILESYSTEM_TYPE

DEVICE = "/dev/fuse"
HELPER = "fusermount3"

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_POSIXACL = 1 << 16
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
_HELPER_WORDS = {"ro": MS_RDONLY, "noexec": MS_NOEXEC, "sync": MS_SYNCHRONOUS, "noatime": MS_NOATIME}
"""Flags that the helper takes as words. It sets nosuid and nodev itself, and knows no other flag that daxfs uses."""
MNT_DETACH = 2

BUSY_SECONDS = 0.2
"""How long unmounting waits for processes that use the mount for a moment only."""

USAGE = 1
SYSTEM_ERROR = 2
MOUNT_FAILED = 32
"""Exit codes of mount(8)."""


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def mount_device(source: str, mountpoint: str, flags: int, options: list[str], root_type: int = stat.S_IFDIR) -> int:
    """Open /dev/fuse and mount it; return the descriptor that the session reads requests from.

    ``root_type`` is the file type of the mount's root (S_IFDIR or S_IFREG), and of ``mountpoint`` a directory or not.

    Raises:
        OSError: mount(2) failed; after EPERM the caller uses `mount_by_helper`.
    """
    descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        user = f"user_id={os.getuid()},group_id={os.getgid()}"
        data = ",".join([f"fd={descriptor}", f"rootmode={root_type:o}", user, *options])
        result = _libc().mount(
            os.fsencode(source),
            os.fsencode(mountpoint),
            FILESYSTEM_TYPE.encode(),
            ctypes.c_ulong(flags | MS_POSIXACL),
            data.encode(),
        )
        if result != 0:
            raise last_error(mountpoint)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def mount_by_helper(source: str, mountpoint: str, flags: int, options: list[str]) -> int:
    """Mount by the set-uid helper, which passes /dev/fuse back through the socket that ``_FUSE_COMMFD`` names.

    Raises:
        UserError: the helper is missing or refused; the message has the helper's last line.
    """
    if shutil.which(HELPER) is None:
        raise UserError(f"{HELPER} is not installed; only root mounts without it (apt install fuse3)", SYSTEM_ERROR)
    name = source.replace("\\", "\\\\").replace(",", "\\,")
    asked = [*options, f"fsname={name}", f"subtype={FILESYSTEM_TYPE.removeprefix('fuse.')}"]
    asked += [word for word, flag in _HELPER_WORDS.items() if flags & flag]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        done = subprocess.run(
            [HELPER, "-o", ",".join(asked), "--", mountpoint],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            reason = (done.stderr.strip() or f"{HELPER} gave no reason").splitlines()[-1]
            raise UserError(f"mount on {mountpoint} failed: {reason}", MOUNT_FAILED)
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise UserError(f"mount on {mountpoint} failed: {HELPER} sent no descriptor", MOUNT_FAILED)
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def remount_device(mountpoint: str, flags: int) -> None:
    """Give a mount and its file system exactly these flags, by mount(2) with MS_REMOUNT.

    Raises:
        OSError: EBUSY, files are open for writing or removed files are open; EPERM.
    """
    libc = _libc()
    remount = ctypes.c_ulong(flags | MS_REMOUNT | MS_POSIXACL)
    if libc.mount(b"none", os.fsencode(mountpoint), None, remount, None) != 0:
        raise last_error(mountpoint)


def unmount_device(mountpoint: str, flags: int = 0) -> None:
    """Call umount2(2).

    Raises:
        OSError: umount2(2) failed.
    """
    if _libc().umount2(os.fsencode(mountpoint), flags) != 0:
        raise last_error(mountpoint)


def top_mount(mountpoint: str) -> Mount | None:
    """Return the mount on ``mountpoint`` (a real path), the topmost if there are several; None if there is none."""
    found = None
    for mount in read_mounts():
        if mount.mountpoint == mountpoint:
            found = mount
    return found


def real_mountpoint(mountpoint: str) -> str:
    """Return the real path of a mountpoint, without accessing a mounted last component: its daemon may have ended."""
    parent, name = os.path.split(os.path.abspath(mountpoint))
    place = os.path.join(os.path.realpath(parent), name)
    if top_mount(place) is None and os.path.islink(mountpoint):
        return os.path.realpath(mountpoint)
    return place


def check_mountpoint(mountpoint: str) -> str:
    """Return the real path of a directory that can be mounted on.

    Raises:
        UserError: the path is missing, is not a directory, or is the mountpoint of a daemon that ended.
    """
    try:
        descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # The kernel may answer the open itself (FUSE_NO_OPENDIR_SUPPORT), but statfs always asks the daemon.
            os.fstatvfs(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise UserError(f"mountpoint {mountpoint} does not exist; make it with: mkdir {mountpoint}", USAGE) from None
    except NotADirectoryError:
        raise UserError(f"mountpoint {mountpoint} is not a directory; name a directory", USAGE) from None
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise UserError(
                f"mountpoint {mountpoint} is left from a daemon that ended; first: daxfs umount {mountpoint}",
                MOUNT_FAILED,
            ) from None
        if error.errno != errno.EACCES:  # The kernel decides whether an unreadable directory may be mounted on.
            raise UserError(f"mountpoint {mountpoint}: {error.strerror}", USAGE) from None
    return os.path.realpath(mountpoint)


def check_device() -> None:
    """Check that FUSE is available to this process.

    Raises:
        UserError: /dev/fuse is missing or not accessible.
    """
    if not os.path.exists(DEVICE):
        raise UserError(
            f"{DEVICE} does not exist; load the module (modprobe fuse) or give it to the container (--device {DEVICE})",
            SYSTEM_ERROR,
        )
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise UserError(f"no permission on {DEVICE}; run as root, or: chmod 666 {DEVICE}", SYSTEM_ERROR)


def check_helper() -> None:
    """Check that this process may mount, or has the helper.

    Raises:
        UserError: an ordinary user has no helper.
    """
    if os.geteuid() != 0 and shutil.which(HELPER) is None:
        raise UserError(f"{HELPER} is not installed; only root mounts without it (apt install fuse3)", SYSTEM_ERROR)


def _unmount_patiently(mountpoint: str, flags: int) -> None:
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            unmount_device(mountpoint, flags)
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
        time.sleep(BUSY_SECONDS / 20)


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmount a mount of daxfs: root by umount2(2), other users by the helper.

    A mount is also busy for the moment of a statfs(2) by a program that lists mounts, so EBUSY is retried for
    `BUSY_SECONDS`.

    Raises:
        UserError: the mount is busy, or the caller may not unmount it.
    """
    try:
        _unmount_patiently(mountpoint, MNT_DETACH if lazy else 0)
        return
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise UserError(f"{mountpoint} is busy; see: fuser -vm {mountpoint}", MOUNT_FAILED) from None
        if error.errno != errno.EPERM:
            raise UserError(f"{mountpoint}: {error.strerror}", MOUNT_FAILED) from None
    if shutil.which(HELPER) is None:
        raise UserError(f"{HELPER} is not installed; only root unmounts without it (apt install fuse3)", SYSTEM_ERROR)
    command = [HELPER, "-u", *(["-z"] if lazy else []), "--", mountpoint]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError((done.stderr.strip() or f"{HELPER} failed on {mountpoint}").splitlines()[-1], MOUNT_FAILED)
