"""Identify the memory that a path names: a plain, tmpfs, hugetlbfs or fsdax file, a block device or ``/dev/dax``.

This module determines how large the pool is, how a mapping of it must be aligned, and which file system holds it. It
reads ``stat``, sysfs and mountinfo only. It opens nothing and maps nothing, so it cannot distinguish a file on an fsdax
mount from a plain one: only a mapping with ``MAP_SYNC``, which ``opening.open_pool`` tries, can. ``opening``,
``exclusive`` and mkfs call this module. The roots of sysfs and procfs are parameters, so that a test can supply a tree
of its own.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import stat
from dataclasses import dataclass
from typing import NamedTuple

from daxfs.errors import PoolError

MOUNT_FAILED = 32  # mount(8): "mount failure", its exit code for a missing, busy or unreadable device
SMALLEST = 1024  # smallest ext4 block: a pool's size is a multiple of it, so that no whole block is cut off
HUGE_PAGE = 2 << 20

FILE, TMPFS, FSDAX, BLOCK, DEVDAX, MEMORY = "file", "tmpfs", "fsdax", "block", "devdax", "memory"

_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")


class Mount(NamedTuple):
    """One line of mountinfo: ``device`` is ``MAJOR:MINOR`` of the file system's own device."""

    device: str
    mountpoint: str
    filesystem: str
    source: str


@dataclass(frozen=True, slots=True)
class Target:
    """The result of identifying a path.

    Attributes:
        path: as the user gave it.
        kind: ``file``, ``tmpfs``, ``block`` or ``devdax``; only a mapping shows that a ``file`` is ``fsdax``.
        size: usable bytes: a multiple of 1 KiB, of the huge page or of the device's alignment.
        exact_size: bytes as the file system or sysfs reports them.
        align: the unit of which length and offset of a mapping must be multiples, in bytes.
        device: ``MAJOR:MINOR`` of a block or character device, else "".
        filesystem: type of the file system that holds a regular file ("" if unknown or a device).
        status: the ``stat`` result, which identifies the file.
    """

    path: str
    kind: str
    size: int
    exact_size: int
    align: int
    device: str
    filesystem: str
    status: os.stat_result

    @property
    def only_mapped(self) -> bool:
        """Whether only a mapping can store: write(2) fails on devdax and hugetlbfs, and read(2) on devdax."""
        return self.kind == DEVDAX or self.filesystem == "hugetlbfs"


def pool_error(path: str, error: OSError) -> PoolError:
    """Return the error for a system error on a pool: one line that says what happened and how to repair it."""
    number = error.errno
    if number == errno.ENOENT:
        text = f"{path} does not exist; make it with: daxfs mkfs {path} --size 1G"
    elif number in (errno.EACCES, errno.EPERM):
        text = f"no permission on {path}; run as a user who may read and write it"
    elif number == errno.EROFS:
        text = f"{path} is on a read-only file system; open it read-only (-o ro)"
    elif number in (errno.ENXIO, errno.ENODEV):
        text = f"{path} is a device node without a device; load its driver or name another pool"
    elif number == errno.EBUSY:
        text = f"{path} is in use; unmount it, or end the program that uses it"
    else:
        text = f"{path} can't be opened as a pool: {os.strerror(number) if number else error}"
    return PoolError(text, MOUNT_FAILED)


def read_mounts(mountinfo: str = "/proc/self/mountinfo") -> list[Mount]:
    """Return all mounts of this namespace, in order (proc_pid_mountinfo(5)); none if the table can't be read."""
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as table:
            lines = table.readlines()
    except OSError:
        return []
    mounts = []
    for line in lines:
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if separator and len(fields) >= 5 and len(tail) >= 2:
            mounts.append(Mount(fields[2], _unescape(fields[4]), tail[0], _unescape(tail[1])))
    return mounts


def read_text(path: str) -> str:
    """Return a sysfs attribute without its newline; "" if there is no such attribute."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as attribute:
            return attribute.read().strip()
    except OSError:
        return ""


def lasting_path(path: str) -> str:
    """Return an absolute path that is valid in a process with another working directory and other descriptors.

    The names that the user gave are kept. Only ``/dev/fd/9`` and ``/proc/self/fd/9``, which mean nothing to another
    process, are replaced by the path of the open file.
    """
    place = os.path.join(os.getcwd(), path)
    ours = os.path.realpath(os.path.dirname(place)) == f"/proc/{os.getpid()}/fd"
    return os.path.realpath(place) if ours else place


def identify(path: str, *, sysfs: str = "/sys", mountinfo: str = "/proc/self/mountinfo") -> Target:
    """Find out what kind of pool ``path`` is.

    Args:
        path: a regular file, a block device or a devdax character device; symbolic links are followed.
        sysfs: where sysfs is mounted.
        mountinfo: the mount table to look file systems up in.

    Raises:
        PoolError: missing, no permission, a directory or other thing that can't be a pool, empty, too small.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise pool_error(path, error) from None
    if stat.S_ISREG(status.st_mode):
        return _regular(path, status, mountinfo)
    if stat.S_ISBLK(status.st_mode):
        return _block(path, status, sysfs)
    if stat.S_ISCHR(status.st_mode):
        return _devdax(path, status, sysfs)
    what = "a directory" if stat.S_ISDIR(status.st_mode) else "neither a file nor a device"
    raise PoolError(f"{path} is {what}; a pool is a file, a block device or a /dev/dax device", MOUNT_FAILED)


def _regular(path: str, status: os.stat_result, mountinfo: str) -> Target:
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    filesystem = next((mount.filesystem for mount in read_mounts(mountinfo) if mount.device == device), "")
    kind = TMPFS if filesystem in _IN_MEMORY else FILE
    # A hugetlbfs file reports its huge page as block size, and only maps whole ones.
    align = max(status.st_blksize, mmap.PAGESIZE) if filesystem == "hugetlbfs" else mmap.PAGESIZE
    unit = align if filesystem == "hugetlbfs" else SMALLEST
    if status.st_size == 0:
        raise PoolError(f"{path} is empty; make a pool of it with: daxfs mkfs {path} --size 1G", MOUNT_FAILED)
    size = _usable(path, status.st_size, unit)
    return Target(path, kind, size, status.st_size, align, "", filesystem, status)


def _block(path: str, status: os.stat_result, sysfs: str) -> Target:
    device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    exact = _number(read_text(f"{sysfs}/dev/block/{device}/size")) * 512
    size = _usable(path, exact, SMALLEST)
    return Target(path, BLOCK, size, exact, mmap.PAGESIZE, device, "", status)


def _devdax(path: str, status: os.stat_result, sysfs: str) -> Target:
    device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    folder = f"{sysfs}/dev/char/{device}"
    if os.path.basename(os.path.realpath(f"{folder}/subsystem")) != "dax":
        text = f"{path} is a character device, but no /dev/dax device; see: ndctl list -X, daxctl list"
        raise PoolError(text, MOUNT_FAILED)
    exact = _number(read_text(f"{folder}/size"))
    # Kernels before 5.10 have no align attribute; 2 MiB is their default for namespaces.
    align = _number(read_text(f"{folder}/align")) or HUGE_PAGE
    if align % mmap.PAGESIZE or align & (align - 1):
        raise PoolError(f"{path} says its alignment is {align} bytes; expected a power of two of pages", MOUNT_FAILED)
    # A mapping past the device's end succeeds, and touching it raises SIGBUS. So the size is never rounded up.
    return Target(path, DEVDAX, _usable(path, exact, align), exact, align, device, "", status)


def _usable(path: str, exact: int, unit: int) -> int:
    size = exact - exact % unit
    if size < max(unit, mmap.PAGESIZE):
        raise PoolError(f"{path} has {exact} bytes, too few for a pool; give it 1 MiB or more", MOUNT_FAILED)
    return size


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,19}", text) else 0


def _unescape(text: str) -> str:
    """Decode the escapes of mountinfo: blank, tab, newline and backslash are written as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
