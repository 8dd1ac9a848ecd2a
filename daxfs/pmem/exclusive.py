"""Make sure that a pool has one user: refuse a second daxfs, a kernel mount and a loop device, and name the other user.

Two owners of one ext4 destroy it without a message. `claim` takes an advisory lock (flock), which other daxfs processes
and mkfs honour. It opens block devices with O_EXCL, which the kernel's own mounts honour. It searches the loop devices,
which honour neither. It changes nothing in the pool. ``opening.open_pool`` and mkfs call it.

Clients of a mount map the pool too, and may keep it mapped after the daemon has ended. `mapped_by_clients` reports
whether any client does. A mount tolerates such clients (``daxfs.fs.leasing``); mkfs and e2fsck refuse them with
`refuse_clients`.

The claim belongs to a file descriptor of its own, not to the descriptor of the mapping: a memoryview that is still
referenced keeps the mapping open, and must not keep the pool locked.
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

_PATIENCE = 0.5  # seconds: udev locks a device while it probes it; a loop device outlives its unmount for a moment
_PAUSE = 0.02
_FLOCK = struct.Struct("@hhqqi4x")  # struct flock of 64-bit machines


def claim(target: kinds.Target, *, read_only: bool = False, sysfs: str = "/sys", proc: str = "/proc") -> int:
    """Claim the pool for this process; readers share the claim with other readers.

    Returns:
        A file descriptor that holds the claim; closing it releases the pool.

    Raises:
        PoolError: the pool is in use (the message names the user) or can't be opened.
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
    """Return whether a client still maps this open pool: a client of the mounts with lock numbers [first, end)."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, LOCKS + first, end - first, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK


def lock_as_client(descriptor: int, lock: int) -> None:
    """Take the lock ``lock`` as a client of the mount that assigned it.

    The lock lasts as long as the open file or a mapping of it.

    Raises:
        OSError: the system call failed; EINVAL: the device has no locks, so the daemon can't see any either.
    """
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, LOCKS + lock, 1, 0))


def refuse_clients(descriptor: int, path: str) -> None:
    """Refuse a pool that clients of an earlier mount still map: they could store into blocks that change owner.

    Raises:
        PoolError: clients of an earlier mount map the pool.
    """
    if mapped_by_clients(descriptor):
        raise _busy(path, f"programs still map it from an earlier mount; end them; see: fuser -v {path}")


def _lock(guard: int, target: kinds.Target, mode: int, proc: str) -> None:
    """Lock ``guard`` with flock(2); retry for a moment on a device, because udev locks it shortly after each close."""
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
    """Return a message about the loop device that the pool backs, and whether the device is about to detach.

    A loop device is about to detach if it has autoclear set and is not mounted. None: the pool backs no loop device.
    """
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
    """Return whether a backing path is the pool: compare device and inode, or the names if stat(2) fails."""
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
    """Describe the holder of the flock, from /proc/locks (proc_locks(5)).

    The process that the table names may have passed the lock on to a child (fork).
    """
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
