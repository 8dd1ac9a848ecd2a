"""Ranges of files, files without names, handles and locks, asked through the mount and of the kernel's ext4."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from actor_rig import (
    COLLAPSE_RANGE,
    INSERT_RANGE,
    KEEP_SIZE,
    PAGE,
    PUNCH_HOLE,
    UNSHARE_RANGE,
    ZERO_RANGE,
    Stage,
    Step,
    checked,
    libc,
    play,
    stages,
)
from in_memory import tmp_path
from kernel_rig import kernel_mount
from mount_rig import SESSIONS, Mounted, as_user, mounted

from support import HANG_SECONDS

__all__ = ["tmp_path"]

whole = pytest.mark.parametrize("session", ["kernel"], indirect=True)
"""What only daxfs's own session offers."""

RDWR, CREATE = os.O_RDWR, os.O_RDWR | os.O_CREAT
DATA, HOLE = os.SEEK_DATA, os.SEEK_HOLE
AT_FDCWD, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = -100, 0x400, 0x1000
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
MIB = 1 << 20


@pytest.fixture
def sides(mount: Mounted, pool: Callable[..., Path]) -> Iterator[tuple[Stage, ...]]:
    """A mount of daxfs and one of the kernel."""
    with kernel_mount(pool("-b", "4096")) as place, stages(mount.place, place) as both:
        yield both


def wait_until_free(root: Path, before: os.statvfs_result) -> None:
    """What was removed is free again: the kernel reports closed and forgotten files a moment later."""
    deadline = time.monotonic() + HANG_SECONDS
    while (now := os.statvfs(root)).f_bfree != before.f_bfree or now.f_ffree != before.f_ffree:
        assert time.monotonic() < deadline, f"{now}, expected {before}"
        os.sync()


# fallocate(2)

GOOD_MODES = (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE)
MODES = (*GOOD_MODES, PUNCH_HOLE, PUNCH_HOLE | ZERO_RANGE | KEEP_SIZE, 0x04, 0x100)

ALLOCATION: list[Step] = [
    ("a", "open", 0, "f", CREATE),
    ("a", "pwrite", 0, b"x" * 10_000, 0),
    *(
        ("a", call, *arguments)
        for mode in MODES
        for offset, length in ((5000, 3000), (8192, 8192), (100_000, 20_000), (0, 1))
        for call, *arguments in (
            ("fallocate", 0, mode, offset, length),
            ("size", "f"),
            ("content", "f"),
            ("pwrite", 0, b"again", 9000),
        )
    ),
    # What is refused, and why.
    *(
        ("a", "fallocate", 0, mode, offset, length)
        for mode in GOOD_MODES
        for offset, length in (
            (-1, 10),
            (0, 0),
            (0, -1),
            (10, 1 << 62),
            ((1 << 63) - 1, 10),
            (1 << 45, 10),
            ((1 << 44) - 8192, 8192),
        )
    ),
    ("a", "open", 1, "f", os.O_RDONLY),
    ("a", "open", 2, ".", os.O_RDONLY),
    ("a", "open", 3, "f", os.O_WRONLY | os.O_APPEND),
    ("a", "open", 4, "f", os.O_PATH),
    *(("a", "fallocate", slot, mode, 0, 4096) for slot in (1, 2, 3, 4) for mode in MODES),
    ("a", "fallocate", 0, 0, 0, 1 << 40),
    ("a", "truncate", "f", 0),
    ("a", "blocks", 0),
    ("a", "fallocate", 0, KEEP_SIZE, 0, MIB),
    ("a", "size", "f"),
    ("a", "blocks", 0),
    ("a", "truncate", "f", 5000),
    ("a", "blocks", 0),
    ("a", "content", "f"),
]

SEEKING: list[Step] = [
    ("a", "open", 0, "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT),
    ("a", "truncate", "f", 40 * PAGE + 100),
    ("a", "write_aligned", 0, b"1" * PAGE, 2 * PAGE),
    ("a", "write_aligned", 0, b"2" * 3 * PAGE, 10 * PAGE),
    ("a", "fallocate", 0, 0, 20 * PAGE, 4 * PAGE),
    ("a", "write_aligned", 0, b"3" * PAGE, 22 * PAGE),
    *(
        ("a", "seek", 0, page * PAGE + more, whence)
        for page in (*range(41), 41, 1 << 20)
        for more in (0, 5)
        for whence in (DATA, HOLE)
    ),
    ("a", "seek", 0, -1, DATA),
    ("a", "seek", 0, -1, HOLE),
    ("a", "seek", 0, 0, os.SEEK_END),
    ("a", "seek", 0, 0, os.SEEK_CUR),
    ("a", "seek", 0, 0, 9),
    ("a", "open", 1, "empty", CREATE),
    ("a", "seek", 1, 0, DATA),
    ("a", "seek", 1, 0, HOLE),
]

COPIES: list[Step] = [
    ("a", "open", 0, "f", CREATE),
    ("a", "pwrite", 0, bytes(range(256)) * 64, 3 * PAGE + 5),
    ("a", "truncate", "f", 20 * PAGE + 7),
    ("a", "open", 1, "g", CREATE),
    ("a", "pwrite", 1, b"g" * 5 * PAGE, 0),
    ("a", "fsync", 0),
    *(
        step
        for arguments in (
            (0, 0, 1, 0, 10 * PAGE),
            (0, 3 * PAGE, 1, 100, 5000),
            (0, 4 * PAGE + 1, 1, 30 * PAGE, 9000),
            (0, 20 * PAGE, 1, 0, 1 << 30),
            (0, 21 * PAGE, 1, 0, 10),
            (0, 0, 1, 0, 0),
            (0, 0, 0, 30 * PAGE, 6 * PAGE),
            (0, 3 * PAGE, 0, 4 * PAGE, PAGE),
            (0, 3 * PAGE, 0, 4 * PAGE, PAGE + 1),
            (0, 3 * PAGE, 0, 3 * PAGE, 10),
            (1, 0, 0, 1 << 41, 5000),
            (1, 0, 0, (1 << 44) - 4096 - 10, 5000),
            (1, 0, 0, 1 << 50, 10),
            (1, -1, 0, 0, 10),
            (1, 0, 0, -1, 10),
            (1, 0, 0, 0, 10, 1),
        )
        for step in (
            ("a", "copy", *arguments),
            ("a", "size", "f"),
            ("a", "size", "g"),
            ("a", "pread", 0, 40 * PAGE, 0),
            ("a", "pread", 1, 40 * PAGE, 0),
        )
    ),
    ("a", "open", 2, "g", os.O_RDONLY),
    ("a", "open", 3, "g", os.O_WRONLY | os.O_APPEND),
    ("a", "open", 4, ".", os.O_RDONLY),
    ("a", "copy", 0, 0, 2, 0, 10),
    ("a", "copy", 0, 0, 3, 0, 10),
    ("a", "copy", 3, 0, 0, 0, 10),
    ("a", "copy", 0, 0, 4, 0, 10),
    ("a", "copy", 4, 0, 0, 0, 10),
]


@whole
@pytest.mark.parametrize("script", [ALLOCATION, SEEKING, COPIES], ids=["allocation", "seeking", "copies"])
def test_rules(sides: tuple[Stage, ...], script: list[Step]) -> None:
    play(sides, script)


@whole
def test_ranges_that_fuse_does_not_move(root: Path) -> None:
    """FUSE in the kernel refuses these modes itself; the file is as it was."""
    (root / "f").write_bytes(b"x" * 10 * PAGE)
    with stages(root) as (stage,):
        stage["a"].do("open", 0, "f", RDWR)
        for mode in (COLLAPSE_RANGE, INSERT_RANGE, UNSHARE_RANGE):
            assert stage["a"].do("fallocate", 0, mode, PAGE, PAGE) == errno.errorcode[errno.EOPNOTSUPP]
    assert (root / "f").read_bytes() == b"x" * 10 * PAGE


def random_step(chance: random.Random) -> Step:
    """Something that changes where a file has blocks, or asks for it."""
    one = chance.choice
    at = chance.randrange(100 * PAGE)
    size = one((1, 100, PAGE, 5 * PAGE, 30 * PAGE)) + one((0, 0, chance.randrange(PAGE)))
    page, pages = at // PAGE * PAGE, one((1, 2, 10)) * PAGE
    slot = one((0, 1))
    letter = bytes([chance.randrange(65, 91)])
    steps: list[tuple[int, Step]] = [
        (5, ("write_aligned", slot, letter * pages, page)),
        (3, ("fallocate", slot, one(GOOD_MODES), at, size)),
        (3, ("fallocate", slot, PUNCH_HOLE | KEEP_SIZE, at, size)),
        (2, ("truncate", "fg"[slot], at)),
        (2, ("copy", slot + 2, at, 3 - slot, one((at, chance.randrange(100 * PAGE))), size)),
        (1, ("copy", slot + 2, at, slot + 2, chance.randrange(100 * PAGE), size)),
        (2, ("read_aligned", slot, pages, page)),
        (1, ("size", "fg"[slot])),
    ]
    (step,) = chance.choices([step for _, step in steps], [weight for weight, _ in steps])
    return ("a", *step)


def walk(sides: tuple[Stage, ...], seed: int, steps: int) -> None:
    """Random steps on two files; then they are the same."""
    chance = random.Random(seed)
    for flags, slots in ((CREATE | os.O_DIRECT, "01"), (RDWR, "23")):
        play(sides, [("a", "open", int(slot), name, flags) for slot, name in zip(slots, "fg", strict=True)])
    play(sides, (random_step(chance) for _ in range(steps)))
    play(sides, [("a", "content", "f"), ("a", "content", "g")])


@whole
@pytest.mark.parametrize("seed", [1, 2])
def test_random_ranges(sides: tuple[Stage, ...], seed: int) -> None:
    walk(sides, seed, 400)


@whole
@pytest.mark.full
@pytest.mark.parametrize("seed", range(10, 25))
def test_many_random_ranges(sides: tuple[Stage, ...], seed: int) -> None:
    walk(sides, seed, 2000)


@whole
def test_a_gigabyte_is_allocated_at_once(session: str, pool: Callable[..., Path]) -> None:
    with mounted(pool("-b", "4096", size="2G"), *SESSIONS[session]) as mount:
        best = 1.0
        before = os.statvfs(mount.place)
        for attempt in range(3):
            with open(mount.place / f"f{attempt}", "wb") as file:
                begin = mount.daemon.cpu_seconds()
                os.posix_fallocate(file.fileno(), 0, 1 << 30)
                best = min(best, mount.daemon.cpu_seconds() - begin)
                found = os.fstat(file.fileno())
                assert found.st_size == 1 << 30
                assert 1 << 30 <= found.st_blocks * 512 < (1 << 30) + MIB
            (mount.place / f"f{attempt}").unlink()
            wait_until_free(mount.place, before)
        assert best < 0.02


@whole
def test_a_full_pool(session: str, pool: Callable[..., Path]) -> None:
    """ENOSPC for what does not fit; what was reserved before can be written."""
    with mounted(pool("-b", "4096", "-m", "0", size="32M"), *SESSIONS[session]) as mount:
        before = os.statvfs(mount.place)
        with open(mount.place / "f", "wb", buffering=0) as file, open(mount.place / "g", "wb", buffering=0) as other:
            os.posix_fallocate(file.fileno(), 0, MIB)
            with pytest.raises(OSError, match="No space") as refused:
                os.posix_fallocate(other.fileno(), 0, 64 * MIB)
            assert refused.value.errno == errno.ENOSPC
            with contextlib.suppress(OSError):
                while other.write(bytes(1 << 16)):
                    pass
            assert os.statvfs(mount.place).f_bavail == 0
            assert file.write(b"r" * MIB) == MIB
            with open(mount.place / "f", "rb") as source, pytest.raises(OSError, match="No space"):
                os.copy_file_range(source.fileno(), file.fileno(), MIB, 0, MIB)
        assert (mount.place / "f").read_bytes() == b"r" * MIB
        (mount.place / "f").unlink()
        (mount.place / "g").unlink()
        wait_until_free(mount.place, before)


# Files without names, names without files


def link_by_descriptor(descriptor: int, name: Path, how: int = AT_EMPTY_PATH) -> None:
    """Give an open file a name."""
    if how == AT_EMPTY_PATH:
        checked(libc.linkat(descriptor, b"", AT_FDCWD, os.fsencode(name), AT_EMPTY_PATH))
    else:
        source = b"/proc/self/fd/%d" % descriptor
        checked(libc.linkat(AT_FDCWD, source, AT_FDCWD, os.fsencode(name), AT_SYMLINK_FOLLOW))


def outcome(action: Callable[..., object], *arguments: object) -> str:
    """What an attempt ends in: an errno's name, or "" if it goes well."""
    try:
        action(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


@whole
def test_files_without_names(sides: tuple[Stage, ...]) -> None:
    def attempts(root: Path) -> list[object]:
        found: list[object] = []
        place = root / "d"
        place.mkdir()
        place.chmod(0o2777)
        os.chown(place, 0, 1001)
        for how in (AT_EMPTY_PATH, AT_SYMLINK_FOLLOW):
            descriptor = os.open(place, os.O_TMPFILE | os.O_RDWR, 0o4660)
            status = os.fstat(descriptor)
            found += [status.st_nlink, oct(status.st_mode), status.st_gid, os.listdir(place)]
            found.append(os.pwrite(descriptor, b"nameless", 0))
            found.append(outcome(link_by_descriptor, descriptor, place / "named", how))
            found += [os.fstat(descriptor).st_nlink, os.listdir(place), (place / "named").read_bytes()]
            found.append(outcome(link_by_descriptor, descriptor, place / "named", how))
            found.append(outcome(link_by_descriptor, descriptor, place / "again", how))
            for name in ("named", "again"):
                (place / name).unlink()
            found.append(outcome(link_by_descriptor, descriptor, place / "too late", how))
            os.close(descriptor)
        descriptor = os.open(place, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
        found.append(outcome(link_by_descriptor, descriptor, place / "never"))
        os.close(descriptor)
        found += [
            outcome(os.open, place, os.O_TMPFILE | os.O_RDONLY),
            outcome(os.open, place / "nothing", os.O_TMPFILE | os.O_RDWR),
            as_user(lambda: os.open(place, os.O_TMPFILE | os.O_RDWR, 0o600)),
        ]
        place.chmod(0o755)
        found.append(as_user(lambda: os.open(place, os.O_TMPFILE | os.O_RDWR, 0o600)))
        return found

    ours, theirs = (attempts(stage.root) for stage in sides)
    assert ours == theirs


@whole
def test_a_file_without_a_name_leaves_nothing(root: Path) -> None:
    before = os.statvfs(root)
    for _ in range(20):
        descriptor = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o600)
        os.pwrite(descriptor, bytes(MIB), 0)
        os.close(descriptor)
    wait_until_free(root, before)


def renameat2(old: Path, new: Path, flags: int) -> None:
    checked(libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


@whole
def test_whiteouts(sides: tuple[Stage, ...]) -> None:
    def attempts(root: Path) -> list[object]:
        found: list[object] = []
        for kind in ("file", "directory", "link"):
            old, new = root / f"old {kind}", root / f"new {kind}"
            if kind == "link":
                old.symlink_to("x")
            else:
                {"file": old.touch, "directory": old.mkdir}[kind]()
            inode = old.lstat().st_ino
            for flags in (WHITEOUT | EXCHANGE, WHITEOUT | NOREPLACE, WHITEOUT, WHITEOUT | NOREPLACE):
                found.append(outcome(renameat2, old, new, flags))
                if new.is_symlink() or new.exists():
                    status = old.lstat()
                    found += [oct(status.st_mode), status.st_rdev, status.st_uid, new.lstat().st_ino == inode]
                    found += [status.st_nlink, status.st_size]
                    old.unlink()
                    new.rename(old)
        # Over something that is there, onto itself, by a user that may not make devices.
        (root / "a").write_bytes(b"a")
        (root / "b").write_bytes(b"b")
        found.append(outcome(renameat2, root / "a", root / "b", WHITEOUT))
        found += [(root / "b").read_bytes(), oct((root / "a").lstat().st_mode)]
        found.append(outcome(renameat2, root / "b", root / "b", WHITEOUT))
        found.append(oct((root / "b").lstat().st_mode))
        (root / "d").mkdir()
        os.chown(root / "d", 65534, 65534)
        found.append(as_user((root / "d/a").touch))
        found.append(as_user(lambda: renameat2(root / "d/a", root / "d/b", WHITEOUT)))
        found.append(sorted(os.listdir(root / "d")))
        found.append([oct((root / "d" / name).lstat().st_mode) for name in sorted(os.listdir(root / "d"))])
        return found

    ours, theirs = (attempts(stage.root) for stage in sides)
    assert ours == theirs


# Handles


class Handle(ctypes.Structure):
    """struct file_handle."""

    _fields_ = [("size", ctypes.c_uint), ("kind", ctypes.c_int), ("content", ctypes.c_ubyte * 128)]


def handle_of(path: Path, flags: int = 0) -> Handle:
    """name_to_handle_at(2)"""
    found = Handle(size=128)
    number = ctypes.c_int()
    checked(libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), ctypes.byref(found), ctypes.byref(number), flags))
    return found


def open_handle(root: Path, handle: Handle, flags: int = os.O_RDONLY) -> int:
    """open_by_handle_at(2)"""
    place = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return checked(libc.open_by_handle_at(place, ctypes.byref(handle), flags))
    finally:
        os.close(place)


def forget_everything() -> None:
    """The kernel drops the inodes and names that nobody uses."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


@whole
def test_handles_outlive_the_kernels_memory(root: Path) -> None:
    (root / "d/e").mkdir(parents=True)
    names = [root / "d/e" / f"f{number}" for number in range(20)]
    for name in names:
        name.write_text(name.name)
    handles = {path: handle_of(path) for path in (*names, root / "d/e", root)}
    for _ in range(2):
        for path, handle in handles.items():
            descriptor = open_handle(root, handle)
            assert os.fstat(descriptor).st_ino == path.stat().st_ino
            if path in names:
                assert os.read(descriptor, 100) == path.name.encode()
            else:
                assert sorted(os.listdir(descriptor)) == sorted(os.listdir(path))
            os.close(descriptor)
        forget_everything()
    # A renamed file keeps its handle, a removed one loses it, and a new one in its inode does not get it.
    names[0].rename(root / "moved")
    os.close(open_handle(root, handles[names[0]], os.O_RDWR))
    for name in names[1:]:
        name.unlink()
    forget_everything()
    for number in range(19):
        (root / f"new{number}").touch()
    for name in names[1:]:
        assert outcome(open_handle, root, handles[name]) == "ESTALE"


@whole
def test_handles_outlive_the_mount(session: str, pool: Callable[..., Path]) -> None:
    image = pool("-b", "4096")
    with mounted(image, *SESSIONS[session]) as mount:
        (mount.place / "d").mkdir()
        (mount.place / "d/f").write_bytes(b"content")
        (mount.place / "gone").touch()
        file, directory, gone = (handle_of(mount.place / name) for name in ("d/f", "d", "gone"))
        (mount.place / "gone").unlink()
    with mounted(image, *SESSIONS[session]) as mount:
        descriptor = open_handle(mount.place, file)
        assert os.read(descriptor, 100) == b"content"
        os.close(descriptor)
        descriptor = open_handle(mount.place, directory)
        assert os.listdir(descriptor) == ["f"]
        os.close(descriptor)
        assert outcome(open_handle, mount.place, gone) == "ESTALE"


class Statx(ctypes.Structure):
    """As far as the time of birth (struct statx)."""

    _fields_ = [
        ("mask", ctypes.c_uint32),
        ("blksize", ctypes.c_uint32),
        ("attributes", ctypes.c_uint64),
        ("before", ctypes.c_ubyte * 40),
        ("attributes_mask", ctypes.c_uint64),
        ("atime", ctypes.c_int64 * 2),
        ("btime", ctypes.c_int64 * 2),
        ("rest", ctypes.c_ubyte * 256),
    ]


STATX_BTIME = 0x800


@whole
def test_the_time_of_birth(root: Path) -> None:
    """Where the kernel's FUSE asks for it (FUSE_STATX); it never moves."""
    begin = time.time() - 1
    (root / "f").touch()
    births = []
    for _ in range(2):
        found = Statx()
        checked(libc.statx(AT_FDCWD, os.fsencode(root / "f"), 0, STATX_BTIME, ctypes.byref(found)))
        assert found.mask & STATX_BTIME
        births.append(found.btime[0] + found.btime[1] / 1e9)
        os.utime(root / "f", (1, 1))
        (root / "f").write_bytes(b"x")
    assert begin < births[0] == births[1] < time.time() + 1


# Locks

LOCKS: list[Step] = [
    *((who, "open", slot, "f", CREATE) for who in "ab" for slot in (0, 1)),
    ("a", "flock", 0, fcntl.LOCK_EX | fcntl.LOCK_NB),
    ("b", "flock", 0, fcntl.LOCK_EX | fcntl.LOCK_NB),
    ("b", "flock", 0, fcntl.LOCK_SH | fcntl.LOCK_NB),
    ("a", "flock", 1, fcntl.LOCK_SH | fcntl.LOCK_NB),
    ("a", "flock", 0, fcntl.LOCK_SH | fcntl.LOCK_NB),
    ("b", "flock", 0, fcntl.LOCK_SH | fcntl.LOCK_NB),
    ("b", "flock", 0, fcntl.LOCK_EX | fcntl.LOCK_NB),
    ("a", "close", 0),
    ("b", "flock", 0, fcntl.LOCK_EX | fcntl.LOCK_NB),
    ("a", "lockf", 1, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, 50),
    ("b", "lockf", 0, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 149),
    ("b", "lockf", 0, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 150),
    ("b", "blocking_lock", 0, fcntl.F_WRLCK, 0, 0),
    ("b", "blocking_lock", 0, fcntl.F_RDLCK, 160, 0),
    ("a", "lockf", 1, fcntl.LOCK_UN, 20, 100),
    ("b", "blocking_lock", 0, fcntl.F_WRLCK, 90, 0),
    ("b", "lockf", 0, fcntl.LOCK_SH | fcntl.LOCK_NB, 10, 105),
    ("b", "lockf", 0, fcntl.LOCK_EX | fcntl.LOCK_NB, 30, 105),
    ("a", "open_file_lock", 1, fcntl.F_WRLCK, 1000, 10),
    ("b", "open_file_lock", 0, fcntl.F_WRLCK, 1009, 10),
    ("b", "lockf", 0, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 1005),
    # Any close of the file by its process ends that process's locks.
    ("a", "open", 2, "f", RDWR),
    ("a", "close", 2),
    ("b", "lockf", 0, fcntl.LOCK_EX | fcntl.LOCK_NB, 50, 50),
    ("b", "blocking_lock", 0, fcntl.F_WRLCK, 1000, 0),
    ("a", "end"),
    ("b", "lockf", 0, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 0),
]


def test_locks_between_processes(sides: tuple[Stage, ...]) -> None:
    play(sides, LOCKS)


@pytest.mark.parametrize("how", ["flock", "lockf"])
def test_a_process_waits_for_a_lock(root: Path, how: str) -> None:
    with stages(root) as (stage,):
        for who in "ab":
            stage[who].do("open", 0, "f", CREATE)
        rest = (100, 0) if how == "lockf" else ()
        stage["a"].do(how, 0, fcntl.LOCK_EX, *rest)
        stage["b"].ask(how, 0, fcntl.LOCK_EX, *rest)
        assert stage["b"].busy()
        # Meanwhile the file can be used, by the third.
        assert stage["c"].do("size", "f") == 0
        stage["a"].do(how, 0, fcntl.LOCK_UN, *rest)
        assert stage["b"].answer(10) is None
        stage["a"].ask(how, 0, fcntl.LOCK_SH, *rest)
        assert stage["a"].busy()
        stage.end("b")
        assert stage["a"].answer(10) is None
