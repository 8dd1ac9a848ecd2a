"""ioctl(2) through the mount: lsattr and chattr, extended flags, versions, trimming; as the kernel's ext4 answers."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kernel_rig import kernel_mount
from mount_rig import SESSIONS, Mounted, as_user, mounted

from support import HANG_SECONDS, run, tool

pytestmark = pytest.mark.parametrize("session", ["kernel"], indirect=True)

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IOC_GETVERSION = 0x80087601
FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
FS_IOC_FIEMAP, FIGETBSZ, FIBMAP, FIONREAD = 0xC020660B, 2, 1, 0x541B
FITRIM = 0xC0185879
UNKNOWN = 0x80085AFE
FSXATTR = struct.Struct("=IIIII8x")
EXTENTS_FL, IMMUTABLE_FL, APPEND_FL, NODUMP_FL, NOATIME_FL = 0x80000, 0x10, 0x20, 0x40, 0x80
JOURNAL_DATA_BIT = 14
XFLAG_IMMUTABLE, XFLAG_APPEND, XFLAG_NODUMP, XFLAG_NOATIME, XFLAG_DAX = 0x8, 0x10, 0x80, 0x40, 0x8000
MIB = 1 << 20


@pytest.fixture
def sides(mount: Mounted, pool: Callable[..., Path]) -> Iterator[tuple[Path, Path]]:
    """A mount of daxfs and one of the kernel."""
    with kernel_mount(pool("-b", "4096")) as place:
        for root in (mount.place, place):
            root.chmod(0o777)
        yield mount.place, place


def agree(sides: tuple[Path, Path], attempts: Callable[[Path], list[object]]) -> list[object]:
    """Both sides give the same list."""
    ours, theirs = map(attempts, sides)
    assert ours == theirs
    return ours


def outcome(action: Callable[..., object], *arguments: object) -> object:
    """What an attempt returns, or its errno's name; nothing if that is what it returns."""
    try:
        return action(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def ioctl(path: Path, number: int, argument: bytes = bytes(8), flags: int = os.O_RDONLY) -> bytes:
    """Open, ask, close."""
    descriptor = os.open(path, flags)
    try:
        return fcntl.ioctl(descriptor, number, argument)
    finally:
        os.close(descriptor)


def flags_of(path: Path) -> int:
    flags: int = struct.unpack("=I4x", ioctl(path, FS_IOC_GETFLAGS))[0]
    return flags


def set_flags(path: Path, flags: int) -> None:
    ioctl(path, FS_IOC_SETFLAGS, struct.pack("=I4x", flags))


def fsxattr(path: Path) -> tuple[int, ...]:
    return FSXATTR.unpack(ioctl(path, FS_IOC_FSGETXATTR, bytes(FSXATTR.size)))


def set_fsxattr(path: Path, *values: int) -> None:
    ioctl(path, FS_IOC_FSSETXATTR, FSXATTR.pack(*values))


def chattr(path: Path, change: str) -> str:
    """chattr(1); what it complains of."""
    command = [tool("chattr"), change, path.name]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    return done.stderr.splitlines()[-1] if done.returncode else ""


def lsattr(path: Path) -> str:
    """lsattr(1) of one name."""
    return run("lsattr", "-d", path).split()[0]


def make(root: Path) -> tuple[Path, Path]:
    """A file and a directory with something in each."""
    file, directory = root / "f", root / "d"
    file.write_bytes(b"content")
    directory.mkdir()
    (directory / "in").write_bytes(b"inside")
    return file, directory


def uses(file: Path, directory: Path) -> list[object]:
    """What can be done with both, and what is refused."""
    inside = directory / "in"
    return [
        outcome(lambda: os.close(os.open(file, os.O_WRONLY))),
        outcome(lambda: os.close(os.open(file, os.O_WRONLY | os.O_APPEND))),
        outcome(lambda: os.close(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_TRUNC))),
        outcome(lambda: os.close(os.open(file, os.O_RDONLY))),
        outcome(os.truncate, file, 3),
        outcome(os.chmod, file, 0o600),
        outcome(os.chown, file, 1, 1),
        outcome(os.utime, file, None),
        outcome(os.setxattr, file, "user.a", b"v"),
        outcome(os.link, file, file.parent / "link"),
        outcome(os.rename, file, file.parent / "moved"),
        outcome(os.rename, file.parent / "moved", file),
        outcome(os.unlink, file.parent / "link"),
        outcome(inside.write_bytes, b"again"),
        outcome((directory / "new").touch),
        outcome(os.mkdir, directory / "sub"),
        outcome(os.rename, directory / "new", directory / "other"),
        outcome(os.unlink, directory / "other"),
        outcome(os.unlink, inside),
        outcome(os.rmdir, directory / "sub"),
        outcome(os.rename, directory, directory.parent / "e"),
        outcome(os.rename, directory.parent / "e", directory),
        sorted(os.listdir(directory)),
        file.read_bytes(),
    ]


@pytest.mark.parametrize("letter", ["i", "a", "d", "A", "S", "D", "T", "x", "c", "u", "s", "P", "F", "C", "m"])
def test_chattr(sides: tuple[Path, Path], letter: str) -> None:
    """Each letter on a file and on a directory, and what it means.

    daxfs keeps no data in its journal and no file's map changes its kind: +j and -e are refused, unlike on ext4.
    """

    def attempts(root: Path) -> list[object]:
        file, directory = make(root)
        found: list[object] = []
        for path in (file, directory):
            found += [chattr(path, f"+{letter}"), lsattr(path), flags_of(path), outcome(fsxattr, path)]
        # What is made in a directory takes after it.
        if letter not in "ia":
            (directory / "child").touch()
            (directory / "below").mkdir()
            found += [lsattr(directory / "child"), lsattr(directory / "below")]
        else:
            found += uses(file, directory)
        for path in (file, directory):
            found += [chattr(path, f"-{letter}"), lsattr(path)]
        return found + uses(file, directory)

    found = agree(sides, attempts)
    if letter in "iadASx":
        assert letter in str(found[1]), "the flag was not set"


def test_immutable_and_append_only_files_that_are_open(sides: tuple[Path, Path]) -> None:
    def attempts(root: Path) -> list[object]:
        found: list[object] = []
        for letter in "ia":
            file = root / letter
            file.write_bytes(b"before")
            with open(file, "r+b", buffering=0) as opened:
                number = opened.fileno()
                found += [
                    chattr(file, f"+{letter}"),
                    outcome(os.pwrite, number, b"x", 0),
                    outcome(os.ftruncate, number, 3),
                    outcome(os.posix_fallocate, number, 0, 10_000),
                    outcome(os.fchmod, number, 0o600),
                    outcome(os.fsync, number),
                    chattr(file, f"-{letter}"),
                    outcome(os.pwrite, number, b"y", 0),
                ]
            found.append(file.read_bytes())
        return found

    agree(sides, attempts)


def test_flags_as_numbers(sides: tuple[Path, Path]) -> None:
    """Which flags can be set, which stay, which are refused; and which users may set them."""

    def attempts(root: Path) -> list[object]:
        file, directory = make(root)
        found: list[object] = []
        for bit in set(range(32)) - {JOURNAL_DATA_BIT}:
            for path in (file, directory):
                before = flags_of(path)
                found.append((bit, outcome(set_flags, path, before | 1 << bit), flags_of(path)))
                found.append((bit, outcome(set_flags, path, before), flags_of(path)))
        os.chown(file, 65534, 65534)
        found += [
            as_user(lambda: set_flags(file, EXTENTS_FL | NODUMP_FL)),
            as_user(lambda: set_flags(file, EXTENTS_FL | IMMUTABLE_FL)),
            as_user(lambda: set_flags(file, EXTENTS_FL | APPEND_FL)),
            as_user(lambda: set_flags(directory, EXTENTS_FL | NODUMP_FL)),
            as_user(lambda: set_flags(file, EXTENTS_FL | NOATIME_FL)),
            flags_of(file),
        ]
        return found

    agree(sides, attempts)


def test_extended_flags(sides: tuple[Path, Path]) -> None:
    def attempts(root: Path) -> list[object]:
        file, directory = make(root)
        found: list[object] = []
        for path in (file, directory):
            found.append(fsxattr(path))
            for flags in (
                XFLAG_NODUMP,
                XFLAG_NOATIME,
                XFLAG_DAX,
                XFLAG_APPEND,
                XFLAG_IMMUTABLE,
                0,
                1 << 30,
                0x2,
                0x200,
            ):
                found += [outcome(set_fsxattr, path, flags, 0, 0, 0, 0), fsxattr(path), lsattr(path)]
                if flags == XFLAG_IMMUTABLE:
                    found.append(outcome(os.chmod, path, 0o700))
            found += [outcome(set_fsxattr, path, 0, 0, 0, 5, 0), outcome(set_fsxattr, path, 0, 4096, 0, 0, 0)]
            found += [outcome(set_fsxattr, path, 0x800, 4096, 0, 0, 0), fsxattr(path)]
        os.chown(file, 65534, 65534)
        found += [
            as_user(lambda: set_fsxattr(file, XFLAG_NODUMP, 0, 0, 0, 0)),
            as_user(lambda: set_fsxattr(file, XFLAG_IMMUTABLE, 0, 0, 0, 0)),
            as_user(lambda: set_fsxattr(directory, XFLAG_NODUMP, 0, 0, 0, 0)),
            fsxattr(file),
        ]
        return found

    agree(sides, attempts)


def test_flags_survive_the_mount(session: str, pool: Callable[..., Path]) -> None:
    """Read back after a remount, and by the kernel's ext4."""
    image = pool("-b", "4096")
    with mounted(image, *SESSIONS[session]) as mount:
        for letter in "iaAdx":
            (mount.place / letter).touch()
            assert chattr(mount.place / letter, f"+{letter}") == ""
        said = {letter: lsattr(mount.place / letter) for letter in "iaAdx"}
    with mounted(image, *SESSIONS[session]) as mount:
        assert {letter: lsattr(mount.place / letter) for letter in said} == said
        assert outcome(os.unlink, mount.place / "i") == "EPERM"
    with kernel_mount(image) as place:
        assert {letter: lsattr(place / letter) for letter in said} == said


def test_other_commands(sides: tuple[Path, Path]) -> None:
    def attempts(root: Path) -> list[object]:
        file, directory = make(root)
        with open(file, "rb") as opened:
            opened.read(3)
        return [
            outcome(ioctl, file, FIGETBSZ),
            outcome(ioctl, file, FIONREAD),
            outcome(ioctl, file, UNKNOWN),
            outcome(ioctl, directory, UNKNOWN),
            outcome(ioctl, file, FS_IOC_SETFLAGS, struct.pack("=I4x", EXTENTS_FL), os.O_WRONLY),
            outcome(ioctl, file, FS_IOC_GETFLAGS, bytes(8), os.O_PATH),
            as_user(lambda: ioctl(directory, FITRIM, struct.pack("=QQQ", 0, 1 << 40, 0))),
        ]

    agree(sides, attempts)


def test_versions_are_generations(session: str, pool: Callable[..., Path]) -> None:
    """For servers that make file handles of their own."""
    image = pool("-b", "4096")
    found = {}
    with mounted(image, *SESSIONS[session]) as mount:
        for name in ("f", "g"):
            (mount.place / name).touch()
        (mount.place / "d").mkdir()
        for name in ("f", "g", "d"):
            found[name] = struct.unpack("=I4x", ioctl(mount.place / name, FS_IOC_GETVERSION))[0]
    for name, version in found.items():
        assert f"Generation: {version} " in run("debugfs", "-R", f"stat {name}", image)
    assert len(set(found.values())) == 3


def test_extents_are_not_told(root: Path) -> None:
    """The kernel answers FIEMAP itself for FUSE; filefrag(8) falls back or says so, and nothing breaks."""
    (root / "f").write_bytes(bytes(MIB))
    assert outcome(ioctl, root / "f", FS_IOC_FIEMAP, bytes(32)) == errno.errorcode[errno.EOPNOTSUPP]
    subprocess.run([tool("filefrag"), "-v", root / "f"], capture_output=True, timeout=HANG_SECONDS, check=False)
    assert (root / "f").stat().st_size == MIB


def test_trimming_gives_memory_back(mount: Mounted) -> None:
    """fstrim(8): the pool's file has holes where nothing is kept; what is kept stays."""
    (mount.place / "kept").write_bytes(b"k" * MIB)
    (mount.place / "filler").write_bytes(b"f" * 40 * MIB)
    os.sync()
    full = mount.pool.stat().st_blocks * 512
    (mount.place / "filler").unlink()
    os.sync()
    said = run("fstrim", "-v", mount.place)
    trimmed = int(said.split("(")[1].split()[0])
    assert trimmed >= 40 * MIB
    assert mount.pool.stat().st_blocks * 512 <= full - 30 * MIB
    assert (mount.place / "kept").read_bytes() == b"k" * MIB
    (mount.place / "new").write_bytes(b"n" * 20 * MIB)
    assert (mount.place / "new").read_bytes() == b"n" * 20 * MIB


def test_which_ranges_are_trimmed(sides: tuple[Path, Path]) -> None:
    def attempts(root: Path) -> list[object]:
        found = []
        for start, length, least in (
            (1 << 50, 1, 0),
            (0, 0, 0),
            (0, 100, 0),
            (0, 1 << 62, 1 << 50),
            (0, 4096, 1 << 40),
        ):
            found.append(outcome(ioctl, root, FITRIM, struct.pack("=QQQ", start, length, least)))
        return found

    ours, theirs = map(attempts, sides)
    assert [answer for answer in ours if isinstance(answer, str)] == [text for text in theirs if isinstance(text, str)]


def test_the_label_as_the_kernels_ext4(sides: tuple[Path, Path]) -> None:
    get, put = 0x81009431, 0x41009432

    def attempts(root: Path) -> list[object]:
        descriptor = os.open(root, os.O_RDONLY)

        def call(number: int, given: bytes) -> bytes:
            return fcntl.ioctl(descriptor, number, given.ljust(256, b"\0"))

        try:
            found = [outcome(call, put, label) for label in (b"one", b"sixteen bytes it", b"seventeen bytes it")]
            return [type(answer) if isinstance(answer, bytes) else answer for answer in found] + [
                outcome(call, get, b"")
            ]
        finally:
            os.close(descriptor)

    assert agree(sides, attempts)[-1] == b"sixteen bytes it".ljust(256, b"\0")
