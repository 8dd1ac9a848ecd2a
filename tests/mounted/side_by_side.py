"""The same system calls on two mounts at once: what one answers and keeps, the other must answer and keep.

A `Side` is one mounted directory. An operation is a tuple ``(name, actor, umask, *arguments)``; its outcome is a plain
value that does not depend on where or when it ran: an errno's name, or what the call returned. After each operation
the two sides are compared in what they answered, in every inode the operation named, and in which of its times moved.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import multiprocessing
import os
import random
import stat
import struct
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2

ACTORS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "root": (0, 0, ()),
    "owner": (1001, 1001, ()),
    "member": (1002, 1002, (1001, 1003)),
    "other": (1003, 1004, ()),
}
"""The identity that makes the calls: user, group, supplementary groups."""

Operation = tuple[Any, ...]
Outcome = Any

libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def acting(actor: str, umask: int) -> Iterator[None]:
    """Be somebody else for a while. The effective ids are those a file system sees."""
    user, group, groups = ACTORS[actor]
    os.umask(umask)
    os.setgroups(groups)
    os.setegid(group)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(())
        os.umask(0)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An ACL as system calls carry it: (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NO_ID = 0xFFFFFFFF
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
ACLS = (
    acl((USER_OBJ, 7, NO_ID), (GROUP_OBJ, 5, NO_ID), (OTHER, 0, NO_ID)),
    acl((USER_OBJ, 6, NO_ID), (USER, 4, 1002), (GROUP_OBJ, 7, NO_ID), (MASK, 5, NO_ID), (OTHER, 4, NO_ID)),
    acl((USER_OBJ, 7, NO_ID), (GROUP_OBJ, 4, NO_ID), (GROUP, 6, 1003), (MASK, 6, NO_ID), (OTHER, 1, NO_ID)),
    acl(
        (USER_OBJ, 7, NO_ID),
        (USER, 7, 1002),
        (USER, 0, 1003),
        (GROUP_OBJ, 7, NO_ID),
        (GROUP, 7, 1001),
        (MASK, 7, NO_ID),
        (OTHER, 7, NO_ID),
    ),
    acl((USER_OBJ, 7, NO_ID), (USER, 4, 1002), (GROUP_OBJ, 7, NO_ID), (OTHER, 4, NO_ID)),
    acl((GROUP_OBJ, 7, NO_ID), (OTHER, 4, NO_ID)),
    acl(),
    b"",
    b"\2\0\0",
    struct.pack("<I", 1),
    acl((USER_OBJ, 9, NO_ID), (GROUP_OBJ, 5, NO_ID), (OTHER, 0, NO_ID)),
    acl((OTHER, 0, NO_ID), (USER_OBJ, 7, NO_ID), (GROUP_OBJ, 5, NO_ID)),
    acl((USER_OBJ, 7, NO_ID), (USER, 4, NO_ID), (GROUP_OBJ, 7, NO_ID), (MASK, 7, NO_ID), (OTHER, 4, NO_ID)),
)
"""Good and bad ones."""


class Calls:
    """The calls of one side, made by a process whose root directory is the mount."""

    def __init__(self) -> None:
        self.open: dict[int, int] = {}
        self.openers: dict[int, str] = {}

    def step(self, operation: Operation, pause: float) -> tuple[Outcome, ...]:
        """Make the call. Its outcome, what the inodes involved keep, which of their times moved, what is held open."""
        names = involved(operation)
        before = [times(name) for name in names]
        time.sleep(pause)
        outcome = self.do(operation)
        after = [times(name) for name in names]
        changed = [moved(old, new) for old, new in zip(before, after, strict=True)] if pause else []
        held = {slot: described(os.fstat(descriptor)) for slot, descriptor in self.open.items()}
        return outcome, list(zip(names, map(kept, names), strict=True)), changed, held

    def do(self, operation: Operation) -> Outcome:
        """Make the call; its outcome."""
        name, actor, umask, *arguments = operation
        call: Callable[..., Outcome] = getattr(self, name)
        if name == "held":
            # A session that does not learn which user writes takes the one that opened the file.
            actor = self.openers.get(arguments[0], actor)
        with acting(actor, umask):
            try:
                outcome = call(*arguments)
            except OSError as error:
                return errno.errorcode[error.errno or 0]
        if name == "hold":
            self.openers[arguments[0]] = actor
        return outcome

    # What can be asked. Every method returns what must be the same on both sides.

    def make(self, name: str, flags: int, mode: int) -> None:
        os.close(os.open(name, flags, mode))

    def put(self, name: str, offset: int, content: bytes, flags: int = 0) -> int:
        descriptor = os.open(name, os.O_WRONLY | os.O_NONBLOCK | flags)
        try:
            return os.pwrite(descriptor, content, offset)
        finally:
            os.close(descriptor)

    def get(self, name: str, offset: int, size: int) -> bytes:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def hold(self, slot: int, name: str, flags: int, mode: int) -> None:
        descriptor = os.open(name, flags | os.O_NONBLOCK, mode)
        if slot in self.open:
            os.close(self.open[slot])
        self.open[slot] = descriptor

    def held(self, slot: int, what: str, *arguments: Any) -> Outcome:
        descriptor = self.open.get(slot)
        if descriptor is None:
            return None
        if what == "close":
            os.close(self.open.pop(slot))
            return None
        if what == "fstat":
            return described(os.fstat(descriptor))
        return getattr(os, what)(descriptor, *arguments)

    def mkdir(self, name: str, mode: int) -> None:
        os.mkdir(name, mode)

    def mknod(self, name: str, mode: int, device: int) -> None:
        os.mknod(name, mode, device)

    def symlink(self, target: str, name: str) -> None:
        os.symlink(target, name)

    def readlink(self, name: str) -> str:
        return os.readlink(name)

    def link(self, old: str, new: str) -> None:
        os.link(old, new, follow_symlinks=False)

    def unlink(self, name: str) -> None:
        os.unlink(name)

    def rmdir(self, name: str) -> None:
        os.rmdir(name)

    def rename(self, old: str, new: str, flags: int) -> None:
        source, target = os.fsencode(old), os.fsencode(new)
        checked(libc.renameat2(AT_FDCWD, source, AT_FDCWD, target, flags))

    def chmod(self, name: str, mode: int) -> None:
        os.chmod(name, mode)

    def chown(self, name: str, user: int, group: int, follow: bool) -> None:
        os.chown(name, user, group, follow_symlinks=follow)

    def truncate(self, name: str, size: int) -> None:
        os.truncate(name, size)

    def utimens(self, name: str, times: tuple[int, int, int, int] | None) -> None:
        buffer = None if times is None else struct.pack("<4q", *times)
        checked(libc.utimensat(AT_FDCWD, os.fsencode(name), buffer, AT_SYMLINK_NOFOLLOW))

    def setxattr(self, name: str, attribute: str, value: bytes, flags: int) -> None:
        os.setxattr(name, attribute, value, flags, follow_symlinks=False)

    def getxattr(self, name: str, attribute: str) -> bytes:
        return os.getxattr(name, attribute, follow_symlinks=False)

    def removexattr(self, name: str, attribute: str) -> None:
        os.removexattr(name, attribute, follow_symlinks=False)

    def listxattr(self, name: str) -> list[str]:
        return sorted(os.listxattr(name, follow_symlinks=False))

    def access(self, name: str, mask: int) -> bool:
        return os.access(name, mask, effective_ids=True)

    def fresh(self) -> None:
        """Take everything away."""
        for place, directories, files in os.walk("/", topdown=False):
            for name in (*directories, *files):
                path = os.path.join(place, name)
                if path != "/lost+found":
                    (os.rmdir if stat.S_ISDIR(os.lstat(path).st_mode) else os.unlink)(path)

    def listdir(self, name: str) -> list[str]:
        return sorted(os.listdir(name))


def checked(result: int) -> None:
    """A libc call's -1 as the exception it stands for."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def described(found: os.stat_result) -> tuple[int, ...]:
    """What of a stat must be equal. A block more or less of attributes or directory is nobody's business."""
    directory = stat.S_ISDIR(found.st_mode)
    return (
        found.st_mode,
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        found.st_rdev,
        found.st_size if not directory else -1,
    )


def kept(path: str) -> Outcome:
    """All that an inode keeps, times and content excepted; None if there is none."""
    try:
        found = os.lstat(path)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    attributes = {}
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        attributes[name] = os.getxattr(path, name, follow_symlinks=False)
    return described(found), attributes


def times(path: str) -> tuple[int, ...]:
    """The inode and its three times; empty if there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns


def moved(before: tuple[int, ...], after: tuple[int, ...]) -> str:
    """Which times differ, as letters; nothing is said of inodes that came, went or changed places."""
    if not before or not after or before[0] != after[0]:
        return ""
    return "".join(letter for letter, old, new in zip("amc", before[1:], after[1:], strict=True) if old != new)


def involved(operation: Operation) -> list[str]:
    """The names an operation gives, and the directories they are in."""
    names = [text for text in operation[3:] if isinstance(text, str) and len(text) < 200 and text.startswith("t")]
    return sorted({*names, *(os.path.dirname(name) for name in names)})


def picture() -> dict[str, Outcome]:
    """Everything below the root, with contents."""
    found: dict[str, Outcome] = {}
    for place, directories, files in os.walk("/"):
        for name in (*directories, *files):
            path = os.path.join(place, name)
            content: Outcome = None
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read(1 << 20)
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            found[path] = (kept(path), content)
    found.pop("/lost+found", None)
    return found


class Side:
    """One of the two mounts, with a process of its own that can't leave it: links to ``/`` stay harmless."""

    def __init__(self, root: Path) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._pipe.close()
                os.chroot(root)
                os.chdir("/")
                serve(theirs)
            finally:
                os._exit(0)
        theirs.close()

    def step(self, operation: Operation, pause: float = 0.0) -> tuple[Outcome, ...]:
        """See `Calls.step`."""
        answer: tuple[Outcome, ...] = self._ask(("step", operation, pause))
        return answer

    def do(self, *operation: Any) -> Outcome:
        """Only the outcome."""
        return self._ask(("do", operation))

    def picture(self) -> dict[str, Outcome]:
        """See `picture`."""
        found: dict[str, Outcome] = self._ask(("picture",))
        return found

    def _ask(self, question: tuple[Any, ...]) -> Outcome:
        self._pipe.send(question)
        answer = self._pipe.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        """End the process, which closes what operations left open."""
        self._pipe.send(("end",))
        self._pipe.close()
        os.waitpid(self._pid, 0)


def serve(pipe: Connection) -> None:
    """The process of one side: answer until nobody asks."""
    calls = Calls()
    answers: dict[str, Callable[..., Outcome]] = {"step": calls.step, "do": calls.do, "picture": picture}
    with contextlib.suppress(EOFError):
        while (question := pipe.recv())[0] != "end":
            try:
                answer = answers[question[0]](*question[1:])
            except Exception as error:
                answer = error
            pipe.send(answer)


# Random operations

NAMES = ["t", *(f"t/{a}" for a in "abcd"), *(f"t/{a}/{b}" for a in "abc" for b in "abx"), "t/a/b/y", "t/b/a/y"]
ODD_NAMES = ["t/" + "n" * 255, "t/" + "n" * 256, "t/.", "t/a/..", "t/a/", "t/nothing/x", "t/b/\udcff\udcfe", "t/.."]
MODES = (0o000, 0o644, 0o777, 0o755, 0o700, 0o4755, 0o2755, 0o2644, 0o6777, 0o1777, 0o2777, 0o3777, 0o666, 0o060)
TYPES = (0, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFREG, stat.S_IFDIR)
ATTRIBUTES = [
    *("user.a", "user.b", "user.c", "trusted.a", "security.a"),
    *("system.posix_acl_access", "system.posix_acl_default") * 3,
    *("user.", "bogus.a", "nodot", "system.data", "user." + "n" * 250, "user." + "n" * 251, "trusted.", "security."),
]
SIZES = (0, 1, 20, 100, 300, 1000, 2000, 3900, 4200, 65536, 65537)
IDS = (-1, 0, 1001, 1002, 1003)


def random_operation(chance: random.Random) -> Operation:
    """One of everything a file system can be asked."""
    one = chance.choice

    def name() -> str:
        return one(NAMES) if chance.random() < 0.95 else one(ODD_NAMES)

    flags = one((0, os.O_EXCL, os.O_TRUNC, os.O_DIRECTORY, os.O_NOFOLLOW, os.O_APPEND)) | one((0, 1, 2))
    makers: list[tuple[int, Callable[[], Operation]]] = [
        (8, lambda: ("make", name(), os.O_CREAT | flags | os.O_NONBLOCK, one(MODES))),
        (3, lambda: ("make", name(), flags | os.O_NONBLOCK, 0)),
        (8, lambda: ("mkdir", name(), one(MODES))),
        (
            3,
            lambda: (
                "mknod",
                name(),
                one((0, 0o10000, 0o20000, 0o60000, 0o140000, 0o100000, 0o40000)) | one(MODES),
                259,
            ),
        ),
        (4, lambda: ("symlink", one(("x", "../a", "", "s" * 59, "s" * 60, "s" * 255, "s" * 4095, "a/b", "/")), name())),
        (1, lambda: ("readlink", name())),
        (5, lambda: ("link", name(), name())),
        (5, lambda: ("unlink", name())),
        (4, lambda: ("rmdir", name())),
        (9, lambda: ("rename", name(), name(), one((0, 0, 0, 1, 2, 3, 8)))),
        (8, lambda: ("chmod", name(), one(MODES))),
        (7, lambda: ("chown", name(), one(IDS), one((0, 1001, 1002, 1003, 1004)), one((True, False)))),
        (5, lambda: ("put", name(), one((0, 10, 5000, 100_000)), b"w" * one((0, 1, 50, 5000)), one((0, os.O_APPEND)))),
        (3, lambda: ("get", name(), one((0, 10, 5000)), 100)),
        (5, lambda: ("truncate", name(), one((0, 1, 4096, 5000, 100_001, -1, 1 << 60)))),
        (4, lambda: ("utimens", name(), random_times(chance))),
        (9, lambda: ("setxattr", name(), *random_attribute(chance), one((0, 0, 1, 2)))),
        (2, lambda: ("getxattr", name(), one(ATTRIBUTES))),
        (5, lambda: ("removexattr", name(), one(ATTRIBUTES))),
        (1, lambda: ("listxattr", name())),
        (3, lambda: ("access", name(), one(range(8)))),
        (1, lambda: ("listdir", name())),
        (5, lambda: ("hold", one(range(4)), name(), flags | one((0, os.O_CREAT)), one(MODES))),
        (8, lambda: ("held", one(range(4)), *random_use(chance))),
    ]
    (made,) = chance.choices([maker for _, maker in makers], [weight for weight, _ in makers])
    call, *arguments = made()
    actor = one(("root", "root", "owner", "owner", "member", "other"))
    return (call, actor, one((0, 0o022, 0o077, 0o027)), *arguments)


def random_times(chance: random.Random) -> tuple[int, int, int, int] | None:
    """What utimensat(2) takes: seconds and nanoseconds twice, or nothing for now."""
    one = chance.choice
    if chance.random() < 0.3:
        return None
    nanoseconds = (0, 1, 999_999_999, UTIME_NOW, UTIME_OMIT, 1_000_000_000)
    return one((0, 1, -5, 1 << 31, 1 << 33)), one(nanoseconds), one((0, 1, 10**9)), one(nanoseconds)


def random_attribute(chance: random.Random) -> tuple[str, bytes]:
    """A name and a value that may stand together, or not."""
    name = chance.choice(ATTRIBUTES)
    if name.startswith("system.posix_acl") and chance.random() < 0.95:
        return name, chance.choice(ACLS if chance.random() < 0.4 else ACLS[:4])
    return name, b"v" * chance.choice(SIZES)


def random_use(chance: random.Random) -> tuple[Any, ...]:
    """What may be done with an open file."""
    one = chance.choice
    return one(
        (
            ("close",),
            ("fstat",),
            ("pread", 100, one((0, 10, 5000))),
            ("pwrite", b"p" * one((1, 50, 5000)), one((0, 10, 5000))),
            ("write", b"w" * one((1, 50))),
            ("ftruncate", one((0, 1, 5000))),
            ("fchmod", one(MODES)),
            ("fchown", one(IDS), one(IDS)),
            ("fsync",),
            ("lseek", one((0, 10, 10_000)), one((0, 1))),
        )
    )
