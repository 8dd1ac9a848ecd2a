"""daxfs beside the kernel's own ext4: the same calls on both, and the same answers, attributes, ACLs and times.

What differs by design of FUSE or of a session is not asked here (docs/POSIX.md lists it). The scripts name rules that
once were broken; the random walks look for others. Then what several processes do to one mount at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import struct
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from in_memory import tmp_path
from kernel_rig import kernel_mount
from mount_rig import SESSIONS, Mounted, mounted
from side_by_side import ACLS, UTIME_NOW, UTIME_OMIT, Operation, Side, random_operation

from support import tool

__all__ = ["tmp_path"]

READ, WRITE, CREATE = os.O_RDONLY, os.O_RDWR, os.O_CREAT | os.O_RDWR
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
PAUSE = 0.011
"""Longer than a tick of the clock that times are taken from, so that each operation shows in them."""


@pytest.fixture
def sides(mount: Mounted, pool: Callable[..., Path]) -> Iterator[tuple[Side, Side]]:
    """A mount of daxfs and one of the kernel, each with a directory ``t`` for everybody."""
    with kernel_mount(pool("-b", "4096")) as place:
        both = Side(mount.place), Side(place)
        try:
            for side in both:
                side.do("chmod", "root", 0, "/", 0o755)
                side.do("mkdir", "root", 0, "t", 0o1777)
            yield both
        finally:
            for side in both:
                side.close()


def agree(sides: tuple[Side, Side], operation: Operation, pause: float = 0.0) -> None:
    """Both sides answer alike, and are alike afterwards."""
    ours, theirs = (side.step(operation, pause) for side in sides)
    assert ours == theirs, operation


# Modes, owners and groups

MEMBERSHIP: list[Operation] = [
    # S_ISGID without the group's execute bit stays for members only.
    ("make", "root", 0, "t/f", os.O_CREAT, 0o644),
    ("chown", "root", 0, "t/f", 1001, 1003, True),
    *(
        operation
        for actor in ("root", "owner", "member", "other")
        for change in (("put", actor, 0, "t/f", 0, b"w"), ("truncate", actor, 0, "t/f", 1))
        for operation in (("chmod", "root", 0, "t/f", 0o2666), change, ("chmod", "root", 0, "t/f", 0o6777), change)
    ),
    *(
        operation
        for actor in ("root", "owner")
        for mode in (0o6777, 0o2666, 0o4666)
        for operation in (
            ("chmod", "root", 0, "t/f", mode),
            ("chown", actor, 0, "t/f", -1, 1001, True),
            ("chown", "root", 0, "t/f", 1001, 1003, True),
        )
    ),
    ("chmod", "owner", 0, "t/f", 0o2777),
    ("make", "root", 0, "t/f", os.O_RDWR | os.O_TRUNC, 0),
    ("chmod", "root", 0, "t/f", 0o2666),
    ("make", "member", 0, "t/f", os.O_RDWR | os.O_TRUNC, 0),
    ("make", "owner", 0, "t/f", os.O_RDWR | os.O_TRUNC, 0),
    # Sticky and set-group-id directories.
    ("mkdir", "owner", 0o022, "t/d", 0o777),
    ("chown", "root", 0, "t/d", 1001, 1003, True),
    ("chmod", "root", 0, "t/d", 0o3777),
    ("make", "member", 0o077, "t/d/m", os.O_CREAT, 0o6777),
    ("make", "other", 0, "t/d/o", os.O_CREAT, 0o2770),
    ("mkdir", "other", 0, "t/d/e", 0o755),
    ("mknod", "other", 0, "t/d/p", 0o12777, 0),
    ("unlink", "other", 0, "t/d/m"),
    ("rename", "other", 0, "t/d/m", "t/d/x", 0),
    ("rename", "other", 0, "t/d/o", "t/d/m", 0),
    ("rename", "owner", 0, "t/d/o", "t/d/m", 0),
    ("rmdir", "member", 0, "t/d/e"),
]

LISTS: list[Operation] = [
    # An ACL that is set by a user outside the group clears S_ISGID, on directories too.
    *(
        operation
        for name, make in (
            ("t/f", ("make", "owner", 0, "t/f", os.O_CREAT, 0)),
            ("t/d", ("mkdir", "owner", 0, "t/d", 0)),
        )
        for operation in (
            make,
            ("chown", "root", 0, name, 1001, 1003, True),
            ("chmod", "root", 0, name, 0o2775),
            ("setxattr", "owner", 0, name, ACCESS, ACLS[2], 0),
            ("chmod", "root", 0, name, 0o2775),
            ("setxattr", "root", 0, name, ACCESS, ACLS[2], 0),
            ("chmod", "owner", 0, name, 0o640),
            ("access", "member", 0, name, 4),
            *(("setxattr", "owner", 0, name, kind, value, 0) for kind in (ACCESS, DEFAULT) for value in ACLS),
            # An ACL that is not there may be removed, and nothing moves.
            *(("removexattr", "owner", 0, name, kind) for kind in (ACCESS, ACCESS, DEFAULT, DEFAULT)),
            ("setxattr", "owner", 0, name, ACCESS, ACLS[6], 0),
        )
    ),
    ("chmod", "root", 0, "t/d", 0o2777),
    ("setxattr", "owner", 0, "t/d", DEFAULT, ACLS[3], 0),
    *(
        operation
        for number, umask in enumerate((0, 0o022, 0o077, 0o777))
        for operation in (
            ("make", "member", umask, f"t/d/f{number}", os.O_CREAT, 0o666),
            ("mkdir", "other", umask, f"t/d/d{number}", 0o751),
            ("mknod", "other", umask, f"t/d/p{number}", 0o10644, 0),
            ("symlink", "other", "x", f"t/d/l{number}"),
            ("chmod", "root", 0, f"t/d/f{number}", 0o4707),
            ("get", "member", 0, f"t/d/f{number}", 0, 1),
        )
        if operation[0] != "symlink"
    ),
    # Only the superuser sees trusted attributes.
    ("setxattr", "root", 0, "t/f", "trusted.a", b"1", 0),
    ("setxattr", "root", 0, "t/f", "user.a", b"1", 0),
    *(("listxattr", actor, 0, "t/f") for actor in ("root", "owner", "other")),
    *(("getxattr", actor, 0, "t/f", "trusted.a") for actor in ("root", "owner")),
    *(("setxattr", "root", 0, "t/f", "user.b", b"v" * size, 0) for size in (0, 3000, 4000, 4096, 65536, 65537)),
]

TIMES: list[Operation] = [
    ("make", "root", 0, "t/f", os.O_CREAT, 0o644),
    ("put", "root", 0, "t/f", 0, b"content"),
    *(
        operation
        for arguments in ((0, 3), (7, 1), (5000, 9))
        for operation in (("utimens", "root", 0, "t/f", (1, 0, 2, 0)), ("get", "root", 0, "t/f", *arguments))
    ),
    ("utimens", "root", 0, "t/f", (9, UTIME_NOW, 9, UTIME_OMIT)),
    ("utimens", "root", 0, "t/f", (1 << 40, 0, -(1 << 40), 5)),
    ("get", "root", 0, "t/f", 0, 1),
    ("symlink", "root", 0, "f", "t/l"),
    ("utimens", "root", 0, "t/l", (1, 0, 2, 0)),
    ("readlink", "root", 0, "t/l"),
    ("readlink", "root", 0, "t/l"),
    ("removexattr", "root", 0, "t/f", ACCESS),
    *([("setxattr", "root", 0, "t/f", "user.a", b"same", 0)] * 2),
    *([("setxattr", "root", 0, "t/f", ACCESS, ACLS[1], 0)] * 2),
    *([("setxattr", "root", 0, "t/f", ACCESS, ACLS[0], 0)] * 2),
    ("truncate", "root", 0, "t/f", 7),
    ("truncate", "root", 0, "t/f", 3),
    ("put", "root", 0, "t/f", 0, b""),
    ("link", "root", 0, "t/f", "t/g"),
    ("rename", "root", 0, "t/f", "t/g", 0),
    ("rename", "root", 0, "t/f", "t/h", 0),
    ("mkdir", "root", 0, "t/d", 0o755),
    ("utimens", "root", 0, "t/d", (1, 0, 2, 0)),
    ("listdir", "root", 0, "t/d"),
    ("rename", "root", 0, "t/d", "t/h", 2),
    ("rmdir", "root", 0, "t/h"),
    ("unlink", "root", 0, "t/g"),
]


@pytest.mark.parametrize("script", [MEMBERSHIP, LISTS, TIMES], ids=["membership", "lists", "times"])
def test_rules(sides: tuple[Side, Side], script: list[Operation]) -> None:
    for operation in script:
        agree(sides, operation, PAUSE if script is TIMES else 0.0)


def walk(sides: tuple[Side, Side], seed: int, steps: int, pause: float = 0.0) -> None:
    """Random operations by random users; now and then everybody gets access again."""
    chance = random.Random(seed)
    for step in range(steps):
        again = ("chmod", "root", 0, "t", 0o1777 if step % 80 else 0o2777)
        agree(sides, random_operation(chance) if step % 40 else again, pause)
    assert sides[0].picture() == sides[1].picture()


@pytest.mark.parametrize("seed", [1, 2])
def test_random_operations(sides: tuple[Side, Side], seed: int) -> None:
    walk(sides, seed, 1000)


def test_times_of_random_operations(sides: tuple[Side, Side]) -> None:
    walk(sides, 3, 150, PAUSE)


# Directories


class Stream:
    """A directory stream of the C library: positions are what FUSE calls cookies."""

    def __init__(self, path: Path) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.opendir.restype = self.libc.readdir.restype = ctypes.c_void_p
        self.libc.telldir.restype = ctypes.c_long
        self.stream = ctypes.c_void_p(self.libc.opendir(os.fsencode(path)))

    def read(self) -> tuple[bytes, int] | None:
        """The next name and its inode."""
        entry = self.libc.readdir(self.stream)
        return (ctypes.string_at(entry + 19), ctypes.c_uint64.from_address(entry).value) if entry else None

    def tell(self) -> int:
        position: int = self.libc.telldir(self.stream)
        return position

    def seek(self, position: int) -> None:
        self.libc.seekdir(self.stream, ctypes.c_long(position))

    def rewind(self) -> None:
        self.libc.rewinddir(self.stream)

    def close(self) -> None:
        self.libc.closedir(self.stream)


def test_directory_positions(root: Path) -> None:
    for number in range(1200):
        os.close(os.open(root / f"name{number}", os.O_CREAT | os.O_WRONLY))
    with contextlib.closing(Stream(root)) as stream:
        positions, entries = [stream.tell()], []
        while (entry := stream.read()) is not None:
            entries.append(entry)
            positions.append(stream.tell())
        assert len({name for name, _ in entries}) == len(entries) == 1203
        chance = random.Random(1)
        for at in chance.choices(range(len(entries)), k=100):
            stream.seek(positions[at])
            assert stream.read() == entries[at]
        stream.seek(positions[-1])
        assert stream.read() is None
        (root / "new").touch()
        (root / "name7").unlink()
        stream.rewind()
        names = {entry[0] for entry in iter(stream.read, None)}
        assert b"new" in names
        assert b"name7" not in names
        stream.seek(positions[600])
        for name, _ in entries[:600]:
            with contextlib.suppress(OSError):
                os.unlink(os.fsencode(root) + b"/" + name)
        assert stream.read() == entries[600]


def test_a_deep_tree(root: Path) -> None:
    """Deeper than any path may be long."""
    place = os.open(root, os.O_RDONLY)
    for _ in range(600):
        os.mkdir("d" * 200, dir_fd=place)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    for _ in range(600):
        above = os.open("..", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = above
    assert os.fstat(place).st_ino == root.stat().st_ino
    os.close(place)
    subprocess.run([tool("rm"), "-rf", root / ("d" * 200)], check=True, timeout=60)
    assert os.listdir(root) == ["lost+found"]


# Several processes


def together(action: Callable[[int], object], count: int = 3) -> None:
    """Run ``action(0)``, ``action(1)``, ... each in a process of its own; all must succeed."""
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                action(number)
                code = 0
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * count


def test_appended_records_stay_whole_and_in_order(root: Path) -> None:
    def append(who: int) -> None:
        log = os.open(root / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for number in range(500):
            assert os.write(log, struct.pack("<II", who, number) * 13) == 104

    together(append)
    records = list(struct.iter_unpack("<26I", (root / "log").read_bytes()))
    assert all(record == record[:2] * 13 for record in records)
    for who in range(3):
        assert [number for owner, number, *_ in records if owner == who] == list(range(500))


def test_a_rename_storm(root: Path) -> None:
    """e2fsck says afterwards (in the fixture) that no link count and no parent went wrong."""
    for name in "ab":
        (root / name).mkdir()
    names = [root / above / str(number) for above in "ab" for number in range(5)]
    fine = {errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EPERM}

    def storm(who: int) -> None:
        chance = random.Random(who)
        end = time.monotonic() + 1.5
        one = chance.choice
        changes: list[Callable[[], object]] = [
            *([lambda: os.rename(one(names), one(names))] * 4),
            lambda: os.mkdir(one(names)),
            lambda: one(names).write_bytes(b"x"),
            lambda: os.rename(one(names), one(names) / "in"),
            lambda: os.link(one(names), one(names)),
            lambda: os.rmdir(one(names)),
            lambda: os.unlink(one(names)),
            lambda: os.listdir(one(names)),
        ]
        while time.monotonic() < end:
            try:
                one(changes)()
            except OSError as error:
                assert error.errno in fine, error

    together(storm)


@pytest.mark.parametrize(
    "options", [("-b", "1024", "-m", "0"), ("-b", "4096", "-O", "^has_journal")], ids=["1k", "plain"]
)
def test_a_full_pool_and_several_writers(session: str, pool: Callable[..., Path], options: tuple[str, ...]) -> None:
    """Files hold what was written, and in the end all space is back."""
    with mounted(pool(*options, size="12M"), *SESSIONS[session]) as mount:
        before = os.statvfs(mount.place)
        for who in range(3):
            (mount.place / str(who)).mkdir()  # before the others have filled the pool

        def fill(who: int) -> None:
            chance = random.Random(who)
            place = mount.place / str(who)
            held: dict[str, bytes] = {}
            refused = 0
            end = time.monotonic() + 20
            while refused < 60 and time.monotonic() < end:
                name = f"f{chance.randrange(60)}"
                if name in held and chance.random() < 0.4:
                    assert (place / name).read_bytes() == held[name]
                    (place / name).unlink()
                    del held[name]
                    continue
                content = chance.randbytes(chance.choice((10, 1500, 70_000, 900_000)))
                try:
                    with open(place / name, "wb", buffering=0) as file:
                        held[name] = b""
                        while len(held[name]) < len(content):
                            done = file.write(content[len(held[name]) :])
                            held[name] = content[: len(held[name]) + done]
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    refused += 1
            for name, content in held.items():
                assert (place / name).read_bytes() == content
                (place / name).unlink()
            place.rmdir()
            assert refused

        together(fill)
        after = os.statvfs(mount.place)
        assert (after.f_bfree, after.f_ffree) == (before.f_bfree, before.f_ffree)
