"""Make calls on a file in an order that a seed decides; print each result, so that two runs can be compared."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass

PUNCH = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
FLAGS = (os.O_RDWR, os.O_RDWR, os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_DSYNC)
REACH = 600_000

libc = ctypes.CDLL(None, use_errno=True)


def punch(fd: int, offset: int, length: int) -> int:
    """Punch a hole by fallocate(2)."""
    if libc.fallocate(fd, PUNCH, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")
    return 0


def show(value: object) -> object:
    """Return a short text that differs for different values."""
    if isinstance(value, bytes | bytearray):
        return len(value), hashlib.sha256(value).hexdigest()[:12]
    return value


def buffers(random_: random.Random, length: int) -> list[bytearray]:
    """Return buffers of several sizes."""
    first = random_.randrange(length + 1)
    return [bytearray(first), bytearray(0), bytearray(length - first)]


def readv(fd: int, room: list[bytearray], offset: int | None) -> bytes:
    """Return the bytes that preadv or readv read."""
    got = os.readv(fd, room) if offset is None else os.preadv(fd, room, offset)
    return b"".join(room)[:got]


@dataclass
class Step:
    """The arguments of one call."""

    random: random.Random
    path: str
    files: list[int]
    fd: int
    other: int
    offset: int
    length: int
    data: bytes


def usual(s: Step) -> dict[str, Callable[[], object]]:
    """Return calls that mostly leave the file's blocks where they are."""
    parts = [s.data[: s.length // 3], s.data[s.length // 3 :]]
    room = buffers(s.random, s.length)
    return {
        "pread": lambda: os.pread(s.fd, s.length, s.offset),
        "pwrite": lambda: os.pwrite(s.fd, s.data, s.offset),
        "inside": lambda: os.pwrite(s.fd, s.data[:4096], s.offset % 65536),
        "read": lambda: os.read(s.fd, s.length),
        "write": lambda: os.write(s.fd, s.data),
        "readv": lambda: readv(s.fd, room, None),
        "preadv": lambda: readv(s.fd, room, s.offset),
        "writev": lambda: os.writev(s.fd, parts),
        "pwritev": lambda: os.pwritev(s.fd, parts, s.offset),
        "pwritev2": lambda: os.pwritev(s.fd, parts, s.offset, os.RWF_DSYNC),
        "lseek": lambda: os.lseek(s.fd, s.offset, 0),
        "position": lambda: os.lseek(s.fd, 0, 1),
        "size": lambda: os.fstat(s.fd).st_size,
        "negative": lambda: os.pread(s.fd, s.length, -5),
        "fsync": lambda: os.fsync(s.fd),
        "fdatasync": lambda: os.fdatasync(s.fd),
        "append": lambda: fcntl.fcntl(s.fd, fcntl.F_SETFL, fcntl.fcntl(s.fd, fcntl.F_GETFL) ^ os.O_APPEND),
        "sendfile": lambda: os.sendfile(s.other, s.fd, s.offset, s.length),
        "copy": lambda: os.copy_file_range(s.fd, s.other, s.length, s.offset, 0),
    }


def rare(s: Step) -> dict[str, Callable[[], object]]:
    """Return calls that change the descriptors or the file's blocks."""
    return {
        "open": lambda: s.files.append(os.open(s.path, s.random.choice(FLAGS))),
        "dup": lambda: s.files.append(os.dup(s.fd)),
        "dup2": lambda: os.dup2(s.fd, s.random.choice(s.files)),
        "F_DUPFD": lambda: s.files.append(fcntl.fcntl(s.fd, fcntl.F_DUPFD_CLOEXEC, 20)),
        "close": lambda: os.close(s.files.pop()) if len(s.files) > 2 else None,
        "truncate": lambda: os.ftruncate(s.fd, s.offset),
        "punch": lambda: punch(s.fd, s.offset & ~4095, 8192),
        "allocate": lambda: os.posix_fallocate(s.fd, s.offset, max(s.length, 1)),
        "replace": lambda: os.close(os.open(s.path, os.O_WRONLY | os.O_TRUNC)),
    }


def main(path: str, scratch: str, seed: int, steps: int) -> None:
    """Make so many calls."""
    r = random.Random(seed)
    files = [os.open(path, os.O_RDWR | os.O_CREAT, 0o640)]
    other = os.open(scratch, os.O_RDWR | os.O_CREAT, 0o640)
    os.pwrite(files[0], r.randbytes(REACH // 2), 0)
    for _ in range(steps):
        fd = r.choice(files)
        offset = r.choice((r.randrange(REACH), r.randrange(REACH) & ~4095, 0))
        length = r.choice((r.randrange(1, 200), 4096, r.randrange(150_000), 0, 1))
        step = Step(r, path, files, fd, other, offset, length, r.randbytes(length))
        actions = rare(step) if r.random() < 0.08 else usual(step)
        name = r.choice(list(actions))
        try:
            said = show(actions[name]())
        except OSError as error:
            said = error.errno
        print(name, files.index(fd) if fd in files else -1, offset, length, said)
        while len(files) > 6:
            os.close(files.pop(0))
    print(os.fstat(files[0]).st_size, show(os.pread(other, 1 << 24, 0)))
    with open(path, "rb") as file:
        print(show(file.read()))


main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
