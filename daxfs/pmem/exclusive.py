"""One user per pool: a second daxfs, a kernel mount and a loop device are refused, each by name.

Two owners of one ext4 destroy it, silently. ``claim`` takes an advisory lock (flock) that other daxfs
processes and mkfs honour, opens block devices with O_EXCL, which the kernel's own mounts honour, and looks
through the loop devices, which honour neither. It changes nothing on the pool. ``pool.open_pool`` and mkfs
call it.

Clients of a mount map the pool too, and may do so longer than its daemon lives. `mapped_by_clients` tells whether any
does; a mount works with that (``daxfs.fs.leasing``), mkfs and e2fsck do not: `refuse_clients`.

The claim lives in a file descriptor of its own, not in the mapping's: a view that somebody still holds keeps
a mapping open, and must not keep the pool locked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
import time

from daxfs.errors import PoolError
from daxfs.pmem import kinds
from daxfs.protocol import LOCK_NUMBERS, LOCKS

_PATIENCE = 0.5  # seconds: udev locks a device while it probes it; a loop device outlives its unmount a bit
_PAUSE = 0.02
_FLOCK = struct.Struct("@hhqqi4x")  # struct flock of 64-bit machines


def claim(target: kinds.Target, *, read_only: bool = False, sysfs: str = "/sys", proc: str = "/proc") -> int:
    """Take the pool for this process (for readers: together with other readers).

    Returns:
        A file descriptor that holds the claim; closing it gives the pool free.

    Raises:
        PoolError: the pool is in use (the message says by whom) or can't be opened.
    """
    block = target.kind == kinds.BLOCK
    access = os.O_RDONLY if read_only else os.O_RDWR
    try:
        guard = os.open(target.path, access | os.O_CLOEXEC | (os.O_EXCL if block else 0))
    except OSError as error:
        if error.errno == errno.EBUSY and block:
            raise _busy(target.path, _block_user(target, sysfs, proc)) from None
        raise kinds.pool_error(target.path, error) from None
    try:
        _lock(guard, target, fcntl.LOCK_SH if read_only else fcntl.LOCK_EX, proc)
        _refuse_loop(target, sysfs, proc)
    except BaseException:
        os.close(guard)
        raise
    return guard


def mapped_by_clients(descriptor: int, first: int = 0, end: int = LOCK_NUMBERS) -> bool:
    """Whether a client of the mounts whose locks are [first, end) still maps the pool that is open here."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, LOCKS + first, end - first, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK


def lock_as_client(descriptor: int, lock: int) -> None:
    """Take a client's lock of the mount that gave it ``lock``; it lasts as long as the open file or a mapping of it.

    Raises:
        OSError: the system's; EINVAL, the device has no locks, and the daemon none to look at either.
    """
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, LOCKS + lock, 1, 0))


def refuse_clients(descriptor: int, path: str) -> None:
    """Stop where memory that programs still store into would be given to others.

    Raises:
        PoolError: clients of an earlier mount map the pool.
    """
    if mapped_by_clients(descriptor):
        raise _busy(path, f"programs still map it from an earlier mount; end them; see: fuser -v {path}")


def _lock(guard: int, target: kinds.Target, mode: int, proc: str) -> None:
    """Flock ``guard``; a device gets a moment of patience, because udev locks it shortly after each close."""
    deadline = time.monotonic() + (_PATIENCE if target.kind == kinds.BLOCK else 0)
    while True:
        try:
            fcntl.flock(guard, mode | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise _busy(target.path, _lock_holder(target, proc)) from None
            time.sleep(_PAUSE)
        except OSError as error:
            raise kinds.pool_error(target.path, error) from None


def _refuse_loop(target: kinds.Target, sysfs: str, proc: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while (user := _loop_user(target, sysfs, proc)) is not None:
        text, leaving = user
        if not leaving or time.monotonic() >= deadline:
            raise _busy(target.path, text)
        time.sleep(_PAUSE)


def _loop_user(target: kinds.Target, sysfs: str, proc: str) -> tuple[str, bool] | None:
    """The loop device backed by the pool, and whether it is on its way out (autoclear, not mounted)."""
    try:
        names = [name for name in os.listdir(f"{sysfs}/block") if name.startswith("loop")]
    except OSError:
        return None
    for name in names:
        backing = kinds.read_text(f"{sysfs}/block/{name}/loop/backing_file")
        if not backing or not is_pool(backing, target):
            continue
        device = kinds.read_text(f"{sysfs}/block/{name}/dev")
        mountpoint = _mountpoint(device, proc)
        if mountpoint:
            return f"it is mounted on {mountpoint} through /dev/{name}; umount {mountpoint}", False
        leaving = kinds.read_text(f"{sysfs}/block/{name}/loop/autoclear") == "1"
        return f"it is attached to /dev/{name}; losetup -d /dev/{name}", leaving
    return None


def is_pool(backing: str, target: kinds.Target) -> bool:
    """Whether a backing path is the pool: by device and inode, by name if it can't be looked up."""
    try:
        status = os.stat(backing)
    except OSError:
        return backing == os.path.realpath(target.path)
    if stat.S_ISBLK(status.st_mode):
        return target.kind == kinds.BLOCK and status.st_rdev == target.status.st_rdev
    return os.path.samestat(status, target.status)


def _block_user(target: kinds.Target, sysfs: str, proc: str) -> str:
    mountpoint = _mountpoint(target.device, proc)
    if mountpoint:
        return f"it is mounted on {mountpoint}; umount {mountpoint}"
    try:
        holders = sorted(os.listdir(f"{sysfs}/dev/block/{target.device}/holders"))
    except OSError:
        holders = []
    if holders:
        return f"/dev/{holders[0]} is built on it; take that down"
    return "the kernel or another program holds it; see: lsblk, swapon, fuser -v " + target.path


def _lock_holder(target: kinds.Target, proc: str) -> str:
    """Who holds the flock, from /proc/locks (proc_locks(5)); the process may have handed it on by fork."""
    status = target.status
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    user = "another process"
    for line in kinds.read_text(f"{proc}/locks").splitlines():
        match = re.search(r"FLOCK +ADVISORY +(?:READ|WRITE) +([0-9]+) +(\S+) ", line)
        if match and match[2] == place:
            name = kinds.read_text(f"{proc}/{match[1]}/comm")
            user = f"process {match[1]} ({name})" if name else user
            break
    mountpoint = next(
        (
            mount.mountpoint
            for mount in kinds.read_mounts(f"{proc}/self/mountinfo")
            if mount.filesystem.startswith("fuse") and mount.source == os.path.realpath(target.path)
        ),
        "",
    )
    if mountpoint:
        return f"daxfs, {user}, has it mounted on {mountpoint}; daxfs umount {mountpoint}"
    return f"daxfs, {user}, has it open; unmount it or end that process"


def _mountpoint(device: str, proc: str) -> str:
    mounts = kinds.read_mounts(f"{proc}/self/mountinfo")
    return next((mount.mountpoint for mount in mounts if mount.device == device), "")


def _busy(path: str, user: str) -> PoolError:
    return PoolError(f"{path} is in use: {user}", kinds.MOUNT_FAILED)
