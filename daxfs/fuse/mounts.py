"""Mounts of daxfs in this namespace: finding, making and taking them down with mount(2) and umount(2).

No FUSE protocol here, and no pyfuse3: the command line uses this module without loading a session. The daemon mounts
by itself when it may, for two reasons: errors come as an errno, not as text of a helper, and the mount flag for POSIX
ACLs can be given, which makes the kernel pass on a mode without taking the umask off (fs/fuse/inode.c: ``dont_mask``),
so that a default ACL can replace the umask as acl(5) wants.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import subprocess
import time

from daxfs.errors import UserError
from daxfs.pmem.kinds import Mount, read_mounts
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
"""Flags that the helper is told as words; it sets nosuid and nodev by itself, and knows no others of ours."""
MNT_DETACH = 2

BUSY_SECONDS = 0.2
"""How long unmounting waits for those who use the mount for a moment only."""

USAGE = 1
SYSTEM_ERROR = 2
MOUNT_FAILED = 32
"""Exit codes of mount(8)."""


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def mount_device(source: str, mountpoint: str, flags: int, options: list[str]) -> int:
    """Open /dev/fuse and mount it; returns the descriptor that the session reads requests from.

    Raises:
        OSError: mount(2) said no (EPERM: the caller has to ask `HELPER`).
    """
    descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        data = ",".join(
            [f"fd={descriptor}", "rootmode=40000", f"user_id={os.getuid()}", f"group_id={os.getgid()}", *options]
        )
        result = _libc().mount(
            os.fsencode(source),
            os.fsencode(mountpoint),
            FILESYSTEM_TYPE.encode(),
            ctypes.c_ulong(flags | MS_POSIXACL),
            data.encode(),
        )
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), mountpoint)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def mount_by_helper(source: str, mountpoint: str, flags: int, options: list[str]) -> int:
    """Have the set-uid helper mount; it passes /dev/fuse back through the socket that ``_FUSE_COMMFD`` names.

    Raises:
        UserError: it refused, in its own words.
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
    """mount(2) with MS_REMOUNT: the mount and its file system have exactly these flags from now on.

    Raises:
        OSError: EBUSY, files are open for writing or removed files are open; EPERM.
    """
    libc = _libc()
    remount = ctypes.c_ulong(flags | MS_REMOUNT | MS_POSIXACL)
    if libc.mount(b"none", os.fsencode(mountpoint), None, remount, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), mountpoint)


def unmount_device(mountpoint: str, flags: int = 0) -> None:
    """umount2(2)."""
    if _libc().umount2(os.fsencode(mountpoint), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), mountpoint)


def top_mount(mountpoint: str) -> Mount | None:
    """What is mounted on ``mountpoint`` (a real path); the topmost when there is more than one."""
    found = None
    for mount in read_mounts():
        if mount.mountpoint == mountpoint:
            found = mount
    return found


def real_mountpoint(mountpoint: str) -> str:
    """The real path of a mountpoint. Its last component is not looked at: the daemon behind it may be gone."""
    parent, name = os.path.split(os.path.abspath(mountpoint))
    place = os.path.join(os.path.realpath(parent), name)
    if top_mount(place) is None and os.path.islink(mountpoint):
        return os.path.realpath(mountpoint)
    return place


def check_mountpoint(mountpoint: str) -> str:
    """The real path of a directory that can be mounted on.

    Raises:
        UserError: missing, no directory, or left behind by a daemon that ended.
    """
    try:
        # An open is the cheapest call that the kernel's caches can't answer for a daemon that is gone.
        os.close(os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
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
        if error.errno != errno.EACCES:  # Mounting on what one may not read is the kernel's to judge.
            raise UserError(f"mountpoint {mountpoint}: {error.strerror}", USAGE) from None
    return os.path.realpath(mountpoint)


def check_device() -> None:
    """Refuse early, with one line, where FUSE is not to be had."""
    if not os.path.exists(DEVICE):
        raise UserError(
            f"{DEVICE} does not exist; load the module (modprobe fuse) or give it to the container (--device {DEVICE})",
            SYSTEM_ERROR,
        )
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise UserError(f"no permission on {DEVICE}; run as root, or: chmod 666 {DEVICE}", SYSTEM_ERROR)
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
    """Take a mount of daxfs down, as root by umount(2), else through the helper.

    A mount is also busy while somebody just looks at it (statfs(2) of a table of mounts), so it gets `BUSY_SECONDS`.

    Raises:
        UserError: busy, or not allowed.
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
