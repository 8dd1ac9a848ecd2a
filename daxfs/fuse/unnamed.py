"""A FUSE mount of one regular file that lies nowhere in the tree of files: who has its descriptor can open it.

The mount is made in a mount namespace of its own, which then ends (mount_namespaces(7)). It lasts as long as the
descriptor, or a file or mapping that was opened through it.
"""

from __future__ import annotations

import os
import socket
import stat

from daxfs.errors import UserError
from daxfs.fuse import alone, mounts

_MOST = 1000
"""Bytes of a message between the processes."""


def mount(place: str) -> tuple[int, int]:
    """Make the mount.

    Args:
        place: an existing path, not a directory. The mount covers it for a process of its own only.

    Returns:
        The descriptor of /dev/fuse to answer requests on, and one of the file that only names it (O_PATH): open it as
        ``/proc/self/fd/N``, while another process answers.

    Raises:
        UserError: namespaces or mounts are not allowed here.
    """
    mounts.check_device()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        _send(place, theirs)
    theirs.close()
    with ours:
        failure, descriptors, _, _ = socket.recv_fds(ours, _MOST, 2)
    os.waitpid(child, 0)
    if len(descriptors) != 2:
        why = failure.decode(errors="replace") or "the process ended"
        raise UserError(f"{place} can't be served as a file: {why}", mounts.SYSTEM_ERROR)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return descriptors[0], descriptors[1]


def _send(place: str, parent: socket.socket) -> None:
    """Mount, send both descriptors, and end; or send what failed."""
    try:
        alone.unshare_mounts()
        device = mounts.mount_device(alone.SOURCE, place, mounts.MS_NOSUID | mounts.MS_NODEV, [], stat.S_IFREG)
        named = os.open(place, os.O_PATH | os.O_CLOEXEC)
        socket.send_fds(parent, [b"mounted"], [device, named])
    except OSError as error:
        parent.send((error.strerror or str(error)).encode())
    finally:
        os._exit(0)
