"""Run a program that alone sees a FUSE mount, over the path of a file or device.

The program runs in a mount namespace of its own (mount_namespaces(7)). So nobody else can use or unmount the mount, the
program's messages name the path that the user gave, and the mount ends with the program, however either side ends.
A process that may not make one (users other than root) makes a user namespace for it too (user_namespaces(7)).
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from daxfs.errors import UserError
from daxfs.fuse import mounts
from daxfs.pmem.libc import last_error

SOURCE = "daxfs-alone"
"""What the program's mount table shows as the device; not the path, which e2fsck would then take for mounted."""
_CLONE_NEWNS = 0x20000
_CLONE_NEWUSER = 0x10000000
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18
_MOST = 1000
"""Bytes of a message between the processes."""


def run(command: Sequence[str], place: str, serve: Callable[[int], None]) -> int:
    """Run a program for which a FUSE mount, whose root is a regular file, covers ``place``.

    An interrupt from the terminal goes to the program alone: it ends in order, and needs the mount for that.

    Args:
        command: the path of the program and its arguments.
        place: an existing path, not a directory.
        serve: answers the requests of the mount on a descriptor of /dev/fuse, and returns when the mount is gone.

    Returns:
        The program's exit code, or minus the number of the signal that ended it.

    Raises:
        UserError: namespaces or mounts are not allowed here, or the program can't be executed.
    """
    mounts.check_device()
    sys.stdout.flush()
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child, descriptor = _start(command, place, interrupt)
        try:
            serve(descriptor)
        finally:
            os.close(descriptor)  # a program that still waits for an answer gets an error now
            status = os.waitpid(child, 0)[1]
    finally:
        signal.signal(signal.SIGINT, interrupt)
    return os.waitstatus_to_exitcode(status)


def _start(command: Sequence[str], place: str, interrupt: Any) -> tuple[int, int]:
    """Return the program's process id, when it runs, and the descriptor of its mount."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        _become(command, place, theirs, interrupt)
    theirs.close()
    with ours:
        failure, descriptors, _, _ = socket.recv_fds(ours, _MOST, 1)
        if descriptors:
            failure = ours.recv(_MOST)  # empty when the program has been executed
        elif not failure:
            failure = b"the process ended"
    if failure:
        for descriptor in descriptors:
            os.close(descriptor)
        os.waitpid(child, 0)
        raise UserError(f"{place} can't be served as a file: {failure.decode(errors='replace')}", mounts.SYSTEM_ERROR)
    os.set_inheritable(descriptors[0], False)
    return child, descriptors[0]


def _become(command: Sequence[str], place: str, parent: socket.socket, interrupt: Any) -> NoReturn:
    """Mount, send the descriptor, and be the program; or send what failed."""
    doing = "a mount namespace needs root, or user namespaces that are allowed"
    try:
        unshare_mounts()
        doing = "mount"
        descriptor = mounts.mount_device(SOURCE, place, mounts.MS_NOSUID | mounts.MS_NODEV, [], stat.S_IFREG)
        socket.send_fds(parent, [b"mounted"], [descriptor])
        doing = command[0]
        signal.signal(signal.SIGINT, interrupt)
        os.execv(command[0], list(command))
    except OSError as error:
        parent.send(f"{doing}: {error.strerror}".encode())
    finally:
        os._exit(1)


def unshare_mounts() -> None:
    """Enter a mount namespace; in a user namespace too, with the same user and group, if that is needed for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWNS) != 0:
        _succeed(libc.unshare(_CLONE_NEWNS | _CLONE_NEWUSER))
        for name, text in (
            ("setgroups", b"deny"),
            ("uid_map", b"%d %d 1" % (user, user)),
            ("gid_map", b"%d %d 1" % (group, group)),
        ):
            with open(f"/proc/self/{name}", "wb", buffering=0) as file:
                file.write(text)
    _succeed(libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))


def _succeed(result: int) -> None:
    if result != 0:
        raise last_error()
