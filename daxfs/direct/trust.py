"""Whose word counts: the mount that names a pool, and what it names.

Only mounts by root or by the user that this process is are believed, and only what they have named is opened
(docs/DIRECT.md, rule 2, has the reason). preload/trust.c is the same in C.
"""

from __future__ import annotations

import os
import stat

from daxfs import protocol
from daxfs.protocol import LEAST_POOL, MAGIC, MAGIC_AT, UUID_AT

MOUNTS = "/proc/self/mountinfo"
TYPE = protocol.FILESYSTEM_TYPE.encode()
CAREFULLY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class Refused(Exception):
    """There is no direct access; the text says why. The file itself can be used as ever."""


def check_mount(descriptor: int) -> None:
    """Look at the mount that an open file is on.

    Raises:
        Refused: it is none of daxfs, or another user's.
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
    """Open what was named.

    To open some devices is to do something, so it is looked at first. Who puts something else there in between finds
    that nothing is followed, waited for or written.

    Raises:
        OSError: the system's.
        Refused: there is something else.
    """
    check_pool(record, os.lstat(record.path))
    descriptor = os.open(record.path, flags | CAREFULLY)
    try:
        check_pool(record, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_pool(record: protocol.Pool, status: os.stat_result) -> None:
    """Compare what is there with what was named.

    Raises:
        Refused: it is another, or nothing that can be a pool.
    """
    same = (status.st_dev, status.st_ino, status.st_rdev) == (record.device, record.inode, record.rdevice)
    if stat.S_ISREG(status.st_mode):
        right = status.st_size >= record.size >= LEAST_POOL
    else:
        right = stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode)
    if not (same and right):
        raise Refused(f"{os.fsdecode(record.path)} is not the pool that is mounted (seen from this process)")


def check_superblock(record: protocol.Pool, memory: memoryview) -> None:
    """Look whether the file system that was named lies in what was mapped.

    Raises:
        Refused: it doesn't.
    """
    magic = memory[MAGIC_AT : MAGIC_AT + len(MAGIC)]
    uuid = memory[UUID_AT : UUID_AT + len(record.uuid)]
    if magic != MAGIC or uuid != record.uuid:
        raise Refused(f"{os.fsdecode(record.path)} does not hold the file system that is mounted")
