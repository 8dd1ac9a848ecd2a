"""Mount verification: the checks that decide whether this process believes a mount and opens the pool that it names.

Only a mount by root or by the user of this process is believed. Only the file or device that such a mount names is
opened, and only if its identity is the one that the mount gives. docs/DIRECT.md, rule 2, has the reason.
preload/trust.c does the checks in C.
"""

from __future__ import annotations

import os
import stat

from daxfs import protocol
from daxfs.protocol import LEAST_POOL, MAGIC, MAGIC_AT, UUID_AT

MOUNTS = "/proc/self/mountinfo"
TYPE = protocol.FILESYSTEM_TYPE.encode()
OPEN_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class Refused(Exception):
    """There is no direct access, for the reason in the message. The file can be used through the kernel."""


def check_mount(descriptor: int) -> None:
    """Check the mount that an open file is on.

    Raises:
        Refused: the mount is no daxfs, or another user's, or can't be seen.
    """
    device = os.fstat(descriptor).st_dev
    name = f"{os.major(device)}:{os.minor(device)}".encode()
    try:
        with open(MOUNTS, "rb") as table:
            lines = table.read().splitlines()
    except OSError as error:
        raise Refused(f"{MOUNTS}, which says whose mount it is, can't be read: {error.strerror}") from None
    for line in lines:
        left, _, right = line.partition(b" - ")
        if left.split()[2] != name:
            continue
        kind, *_, options = right.split()
        users = {int(word[8:]) for word in options.split(b",") if word.startswith(b"user_id=")}
        if kind != TYPE or not users:
            raise Refused(f"the mount is none of daxfs, but {os.fsdecode(kind)}")
        # Root could do anything to this process anyway, and so could its own user.
        if users != {0} and any(users != {own} for own in os.getresuid()):
            raise Refused(f"the mount is user {max(users)}'s, not root's or this process's")
        return
    raise Refused("the mount can't be seen from this process")


def open_pool(record: protocol.Pool, flags: int) -> int:
    """Open the pool that a mount has named, and return the descriptor.

    The path is checked before open(2), because opening a device can have effects, and again after it. If the path is
    replaced in between, open(2) follows no symbolic link, waits for nothing and changes nothing.

    Raises:
        OSError: the system's.
        Refused: the path holds something else.
    """
    check_pool(record, os.lstat(record.path))
    descriptor = os.open(record.path, flags | OPEN_FLAGS)
    try:
        check_pool(record, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_pool(record: protocol.Pool, status: os.stat_result) -> None:
    """Compare the status of a file or device with the pool that a mount has named.

    Raises:
        Refused: it is another file or device, or cannot be a pool.
    """
    same = (status.st_dev, status.st_ino, status.st_rdev) == (record.device, record.inode, record.rdevice)
    if stat.S_ISREG(status.st_mode):
        right = status.st_size >= record.size >= LEAST_POOL
    else:
        right = stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode)
    if not (same and right):
        raise Refused(f"{os.fsdecode(record.path)} is not the pool that is mounted (seen from this process)")


def check_superblock(record: protocol.Pool, memory: memoryview) -> None:
    """Check that mapped memory holds the file system that a mount has named, by magic number and UUID.

    Raises:
        Refused: it holds another one, or none.
    """
    magic = memory[MAGIC_AT : MAGIC_AT + len(MAGIC)]
    uuid = memory[UUID_AT : UUID_AT + len(record.uuid)]
    if magic != MAGIC or uuid != record.uuid:
        raise Refused(f"{os.fsdecode(record.path)} does not hold the file system that is mounted")
