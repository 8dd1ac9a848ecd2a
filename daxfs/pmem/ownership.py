"""Refuse pools that an untrusted user can change: as owner, by the file's mode, or by replacing the file.

A user who can store into a pool between mounts, or replace it by another pool, decides what the mount shows: for
instance a set-uid program that belongs to root. So mounting and mkfs accept a pool only if every user who can change it
is trusted: root, and the user of this process. `refuse` judges an open descriptor and the path that led to it. It opens
only the directories of the path, changes nothing and knows no options. A library, a tool that only reads a pool and
e2fsck present set-id bits to nobody, so they accept any pool.

These are trusted too:

- The groups ``root`` and ``disk``: a user who may write to every disk of the machine is as powerful as root. Debian's
  ``/dev/pmem0`` is ``root:disk 0660``.
- A user's own group: it has the user's name and no other member, as ``useradd`` makes it.
- In a user namespace, the owner of directories and devices who has no number in the namespace. They belong to the
  machine, and the set-id bits of the mount count only inside the namespace.

Where a file has a POSIX ACL, the group bits of its mode are the ACL's mask. They can stand for any user or group
(acl(5)), so none of these is trusted.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from daxfs.errors import PoolError
from daxfs.pmem import kinds

ROOT = 0
MOST_LINKS = 40
"""The most symbolic links in one path, as in the kernel (MAXSYMLINKS)."""
EVERY_ID = 0xFFFFFFFF
"""The length of the id map of a namespace that hides no user (user_namespaces(7))."""
ACCESS_ACL = "system.posix_acl_access"
NAMED = "somebody whom an ACL names"
_STOP_AT = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Step(NamedTuple):
    """One component of a path.

    Attributes:
        directory: the path of the directory that holds the name.
        holder: the status of that directory.
        holder_named: an ACL of the directory may let a user or group that it names write.
        place: the path up to and including the name.
        found: the status of what the name refers to.
        found_named: as ``holder_named``, for what the name refers to.
    """

    directory: str
    holder: os.stat_result
    holder_named: bool
    place: str
    found: os.stat_result
    found_named: bool


def refuse(path: str, opened: os.stat_result, mend: str) -> None:
    """Refuse the pool if a user who is not trusted can change it.

    Args:
        path: the absolute path that named the pool; symbolic links are followed and judged.
        opened: fstat(2) of the descriptor that the caller will use.
        mend: how to accept the pool nevertheless; the message ends with it.

    Raises:
        PoolError: names the user who can change the pool, and how.
    """
    why = _writer_of_pool(path, opened) or _writer_of_path(path, opened)
    if why:
        raise PoolError(f"{why}, or {mend}", kinds.MOUNT_FAILED)


def _writer_of_pool(path: str, opened: os.stat_result) -> str:
    device = stat.S_ISBLK(opened.st_mode) or stat.S_ISCHR(opened.st_mode)
    if not _trusted(opened.st_uid, hidden=device):
        return f"{path} belongs to {_user(opened.st_uid)}, who can change it unseen; chown it"
    if writers := _writers(opened, hidden=device):
        return f"{writers} may write to {path} unseen; chmod go-w {path}"
    return ""


def _writer_of_path(path: str, opened: os.stat_result) -> str:
    last = None
    try:
        for step in _steps(path):
            if why := _writer_of_step(step):
                return f"{path} can be replaced: {why}; move the pool to a directory of your own"
            last = step
    except OSError as error:
        raise kinds.pool_error(path, error) from None
    if last is None or not os.path.samestat(last.found, opened):
        raise PoolError(f"{path} was just replaced by another file; try again", kinds.MOUNT_FAILED)
    if last.found_named:
        return f"{NAMED} may write to {path} unseen; setfacl -b {path}"
    return ""


def _writer_of_step(step: Step) -> str:
    """Return who can replace the file of this name, and how; "" if nobody untrusted can."""
    directory, holder, holder_named, place, found, _ = step
    if not _trusted(holder.st_uid, hidden=True):
        return f"{directory} belongs to {_user(holder.st_uid)}"
    writers = NAMED if holder_named else _writers(holder, hidden=False)
    if not writers:
        return ""
    if not holder.st_mode & stat.S_ISVTX:
        return f"{writers} may write to {directory}"
    # In a sticky directory (/tmp, /dev/shm) only the owners of a file and of the directory can replace the file.
    if not _trusted(found.st_uid, hidden=stat.S_ISDIR(found.st_mode)):
        return f"{place} belongs to {_user(found.st_uid)}"
    return ""


def _steps(path: str) -> Iterator[Step]:
    """Yield the components of a path, each opened relative to its directory, so that nothing changes in between."""
    names = deque(path.split("/"))
    at, directory, links = os.open("/", _STOP_AT), "/", 0
    try:
        while names:
            name = names.popleft()
            if name in ("", "."):
                continue
            entry = os.open(name, _STOP_AT, dir_fd=at)
            try:
                place = os.path.join(directory, name)
                holder, found = os.fstat(at), os.fstat(entry)
                yield Step(directory, holder, _lets_named(at, holder), place, found, _lets_named(entry, found))
                if not stat.S_ISLNK(found.st_mode):
                    at, entry, directory = entry, at, place
                    continue
                target = os.readlink("", dir_fd=entry)
            finally:
                os.close(entry)
            links += 1
            if links > MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            names.extendleft(reversed(target.split("/")))
            if target.startswith("/"):
                os.close(at)
                at, directory = os.open("/", _STOP_AT), "/"
    finally:
        os.close(at)


def _lets_named(descriptor: int, status: os.stat_result) -> bool:
    """Return whether an ACL may let a user or group that it names write to the O_PATH descriptor's file.

    It may if there is an ACL and its mask allows writing.
    """
    if stat.S_ISLNK(status.st_mode) or not status.st_mode & stat.S_IWGRP:
        return False
    try:
        os.getxattr(f"/proc/self/fd/{descriptor}", ACCESS_ACL)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise
    return True


def _writers(status: os.stat_result, *, hidden: bool) -> str:
    """Return who besides the owner may write; "" if only trusted users may."""
    if status.st_mode & stat.S_IWOTH:
        return "everybody"
    if status.st_mode & stat.S_IWGRP and not _trusted_group(status.st_gid, status.st_uid):
        if hidden and _hides("gid", status.st_gid):
            return ""
        return f"group {_group_name(status.st_gid) or status.st_gid}"
    return ""


def _trusted(uid: int, *, hidden: bool) -> bool:
    return uid in (ROOT, os.geteuid()) or (hidden and _hides("uid", uid))


def _trusted_group(gid: int, owner: int) -> bool:
    if gid == 0:
        return True
    name = _group_name(gid)
    return bool(name) and (name == "disk" or _is_private(gid, name, owner))


def _is_private(gid: int, name: str, owner: int) -> bool:
    """Return whether the group belongs to ``owner`` alone, by the convention of useradd(8)."""
    import grp
    import pwd

    try:
        user = pwd.getpwuid(owner)
        members = grp.getgrgid(gid).gr_mem
    except KeyError:
        return False
    return user.pw_name == name and user.pw_gid == gid and set(members) <= {name}


def _group_name(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def _user(uid: int) -> str:
    import pwd

    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


@cache
def _hides(which: str, number: int) -> bool:
    """Return whether ``number`` stands for owners who have no number in this user namespace."""
    if kinds.read_text(f"/proc/sys/kernel/overflow{which}") != str(number):
        return False
    lengths = [int(line.split()[2]) for line in kinds.read_text(f"/proc/self/{which}_map").splitlines()]
    return bool(lengths) and EVERY_ID not in lengths
