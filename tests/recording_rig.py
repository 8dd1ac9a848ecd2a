"""What a real kernel says to a real mount: recorded once, answered again by every test run.

    python tests/recording_rig.py tests/fuse/recorded

mounts a small pool for each of `MODES`, runs `workload` on it and writes down every message, as root on the machine
whose kernel is to be remembered. A recording is text: ``#`` a remark, ``>`` a request, ``<`` its answer, ``!`` a
notification, ``?`` an answer that the kernel did not want, ``.`` so many forgets are processed, which decides when an
inode is given out again; all in hexadecimal.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import random
import stat
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mount_rig import as_user, mounted

from daxfs.fuse.kernel import session
from daxfs.fuse.kernel.connection import MOST_FORGETS, Connection
from daxfs.fuse.kernel.device import Device
from daxfs.structures import inode_allocation, inode_placement
from support import mke2fs, run

LAYOUT = (
    "-b", "4096", "-N", "1024", "-U", "00000000-0000-4000-8000-000000000001",
    "-E", "hash_seed=00000000-0000-4000-8000-000000000002",
)  # fmt: skip
"""The pool of every recording: the same inodes are given out again."""
SIZE = "16M"
MODES: dict[str, tuple[str, ...]] = {"direct": (), "cached": ("dax=never",), "strict": ("dax=never", "strictatime")}
"""Mount options by the name of the recording."""
LONG_AGO = 1_000_000_000
"""Times that the workload sets are no later than this, so that a replay distinguishes them from those of the clock."""
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, NODUMP = 0x80086601, 0x40086602, 0x40
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400
NOBODY_NAMED = 0xFFFFFFFF
"""The id in an entry of an ACL that names nobody."""

libc = ctypes.CDLL(None, use_errno=True)


def pool_of_recordings(place: Path) -> Path:
    """A pool such as every recording began with."""
    return mke2fs(place, *LAYOUT, size=SIZE)


def repeat_generations(patches: pytest.MonkeyPatch) -> None:
    """New inodes get the same generations in each run: they are a part of the node ids in messages."""
    getrandbits = random.Random(14).getrandbits
    patches.setattr(inode_allocation, "getrandbits", getrandbits)
    patches.setattr(inode_placement, "getrandbits", getrandbits)


class Recorder:
    """Writes down what goes through the session of the daemon, which is a fork of this process."""

    def __init__(self, target: Path) -> None:
        self._file = target.open("wb", buffering=0)
        self._patches = pytest.MonkeyPatch()

    def say(self, kind: str, *parts: Any) -> None:
        self._file.write(f"{kind} {b''.join(bytes(part) for part in parts).hex()}\n".encode())

    def __enter__(self) -> Recorder:
        readv, writev, notify = session.readv, session.writev, Device.notify
        process_forgets = Connection.process_forgets

        def reading(descriptor: int, buffers: Any) -> int:
            length = readv(descriptor, buffers)
            self.say(">", buffers[0][:length])
            return length

        def writing(descriptor: int, parts: Any) -> int:
            try:
                length = writev(descriptor, parts)
            except OSError:
                self.say("?", *parts)
                raise
            self.say("<", *parts)
            return length

        def notifying(device: Device, code: int, body: bytes) -> None:
            self.say("!", struct.pack("=i", code), body)
            notify(device, code, body)

        def forgetting(connection: Connection, most: int = MOST_FORGETS) -> None:
            self.say(".", struct.pack("=I", most))
            process_forgets(connection, most)

        repeat_generations(self._patches)
        self._patches.setattr(session, "readv", reading)
        self._patches.setattr(session, "writev", writing)
        self._patches.setattr(Device, "notify", notifying)
        self._patches.setattr(Connection, "process_forgets", forgetting)
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.undo()
        self._file.close()


def called(result: int) -> int:
    """The result of a C function that returns -1 with an errno."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def refused(action: Callable[[], object]) -> None:
    """Do what the kernel or the file system refuses."""
    try:
        action()
    except OSError:
        return
    raise AssertionError("that should have been refused")


def workload(root: Path) -> None:
    """A bit of everything that reaches a FUSE file system; few bytes, so that a recording stays small."""
    names(root)
    files(root)
    attributes(root)
    listings(root)
    others(root)


def names(root: Path) -> None:
    """Making, linking, renaming, removing."""
    os.mkdir(root / "d", 0o755)
    os.mkdir(root / "d/sub", 0o700)
    (root / "d/f").write_bytes(b"content")
    refused((root / "missing").read_bytes)
    refused(lambda: os.mkdir(root / "d"))
    os.symlink("d/f", root / "short")
    os.symlink("t" * 200, root / "long")
    assert (root / "short").read_bytes() == b"content"
    assert os.readlink(root / "long") == "t" * 200
    os.link(root / "d/f", root / "d/g")
    os.mknod(root / "fifo", stat.S_IFIFO | 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert (root / "null").read_bytes() == b""
    os.rename(root / "d/g", root / "moved")
    os.rename(root / "moved", root / "d/f")  # two names of one file: nothing happens
    (root / "victim").write_bytes(b"x")
    os.rename(root / "victim", root / "d/target")
    for flags, code in ((RENAME_EXCHANGE, 0), (RENAME_NOREPLACE, -1), (RENAME_WHITEOUT, 0)):
        old, new = os.fsencode(root / "d/f"), os.fsencode(root / "d/target")
        assert libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, flags) == code
    os.unlink(root / "d/f")
    refused(lambda: os.rmdir(root / "d"))
    os.rmdir(root / "d/sub")
    refused(lambda: os.mkdir(root / ("n" * 256)))


def files(root: Path) -> None:
    """Reading, writing, sizes, ranges."""
    path = root / "data"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    os.pwrite(descriptor, b"begin", 0)
    os.pwrite(descriptor, b"end", 20_000)
    assert os.pread(descriptor, 10, 0) == b"begin" + bytes(5)
    assert os.pread(descriptor, 100, 19_998) == b"\0\0end"
    assert os.lseek(descriptor, 5000, os.SEEK_DATA) == 16_384
    assert os.lseek(descriptor, 0, os.SEEK_HOLE) == 4096
    os.fsync(descriptor)
    os.fdatasync(descriptor)
    os.ftruncate(descriptor, 20_001)
    os.posix_fallocate(descriptor, 30_000, 1000)
    called(libc.fallocate(descriptor, 3, ctypes.c_long(16_384), ctypes.c_long(4096)))
    with open(root / "copy", "w+b", buffering=0) as copy:
        assert os.copy_file_range(descriptor, copy.fileno(), 5000, 0, 10) == 5000
        assert os.fstat(copy.fileno()).st_size == 5010
    os.close(descriptor)
    with open(path, "ab", buffering=0) as appending:
        appending.write(b"appended")
    with open(path, "wb", buffering=0) as cut:
        cut.write(b"anew")
    os.truncate(path, 2)
    assert path.read_bytes() == b"an"
    refused(lambda: os.truncate(path, 1 << 62))
    descriptor = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(descriptor, b"nameless")
    there = f"/proc/self/fd/{descriptor}".encode()
    called(libc.linkat(AT_FDCWD, there, AT_FDCWD, os.fsencode(root / "named"), AT_SYMLINK_FOLLOW))
    os.close(descriptor)
    os.close(os.open(root, os.O_TMPFILE | os.O_WRONLY, 0o600))
    with open(root / "open", "w+b", buffering=0) as unlinked:
        os.unlink(root / "open")
        unlinked.write(b"still here")
        assert os.pread(unlinked.fileno(), 20, 0) == b"still here"


def attributes(root: Path) -> None:
    """Modes, owners, times, extended attributes, ACLs, inode flags."""
    path = root / "attributes"
    path.write_bytes(b"x")
    os.chmod(path, 0o6755)
    os.chown(path, 1000, 100)
    os.utime(path, ns=(LONG_AGO * 10**9 + 1, 5 * 10**9 + 2))
    os.utime(path, ns=(-(10**9) + 3, LONG_AGO * 10**9))
    os.utime(path)
    os.setxattr(path, "user.name", b"value")
    os.setxattr(path, "user.empty", b"")
    assert os.getxattr(path, "user.name") == b"value"
    assert sorted(os.listxattr(path)) == ["user.empty", "user.name"]
    refused(lambda: os.setxattr(path, "user.name", b"other", os.XATTR_CREATE))
    os.removexattr(path, "user.empty")
    refused(lambda: os.getxattr(path, "user.empty"))
    entries = ((1, 6, NOBODY_NAMED), (2, 4, 1234), (4, 4, NOBODY_NAMED), (16, 4, NOBODY_NAMED), (32, 0, NOBODY_NAMED))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *item) for item in entries)
    os.setxattr(path, "system.posix_acl_access", acl)
    assert os.getxattr(path, "system.posix_acl_access") == acl
    with open(path, "rb") as file:
        flags = bytearray(8)
        fcntl.ioctl(file, FS_IOC_GETFLAGS, flags)
        wanted = struct.unpack_from("=I", flags)[0] | NODUMP
        fcntl.ioctl(file, FS_IOC_SETFLAGS, struct.pack("=Q", wanted))
    run("stat", "-c", "%w", path)
    os.mkdir(root / "shared", 0o777)
    os.chown(root / "shared", 0, 77)
    os.chmod(root / "shared", 0o2777)
    umask = os.umask(0o027)
    try:
        assert as_user(lambda: make_as_member(root), uid=1000, gid=100, groups=(77, 88)) == 0
    finally:
        os.umask(umask)


def make_as_member(root: Path) -> None:
    """The calls of a user who is in the group of the directory."""
    (root / "shared/f").write_bytes(b"mine")
    os.mkdir(root / "shared/d")
    os.chmod(root / "shared/f", 0o2764)
    refused((root / "d/missing").read_bytes)
    with open(root / "shared/f", "r+b", buffering=0) as file:
        file.write(b"again")


def listings(root: Path) -> None:
    """A directory, listed twice."""
    os.mkdir(root / "many")
    for number in range(12):
        os.close(os.open(root / f"many/{'name' * (number % 5)}{number}", os.O_CREAT | os.O_WRONLY, 0o600))
    assert len(os.listdir(root / "many")) == 12
    for found in os.scandir(root / "many"):
        found.stat()
    descriptor = os.open(root / "many", os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    for number in range(0, 12, 3):
        os.unlink(root / f"many/{'name' * (number % 5)}{number}")
    assert len(os.listdir(root / "many")) == 8


def others(root: Path) -> None:
    """About the file system as a whole."""
    assert os.statvfs(root).f_namemax == 255
    descriptor = os.open(root, os.O_RDONLY)
    called(libc.syncfs(descriptor))
    os.close(descriptor)
    assert os.access(root / "d", os.R_OK | os.W_OK)


def record(target: Path, options: tuple[str, ...]) -> None:
    """One recording."""
    with tempfile.TemporaryDirectory() as name:
        pool = pool_of_recordings(Path(name) / "pool")
        with Recorder(target) as recorder:
            release = ".".join(platform.release().split(".")[:2])
            recorder._file.write(f"# Linux {release}, mount options: {','.join(options) or 'none'}\n".encode())
            umask = os.umask(0o022)
            try:
                with mounted(pool, *options) as mount:
                    workload(mount.place)
            finally:
                os.umask(umask)


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    release = ".".join(platform.release().split(".")[:2])
    for mode, options in MODES.items():
        record(folder / f"linux-{release}-{mode}.txt", options)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
