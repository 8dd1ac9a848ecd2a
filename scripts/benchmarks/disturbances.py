"""What another user does while the section ``fairness`` watches: requests that are long, or that come in great numbers.

Each function below opens what it needs and returns the disturbance itself, a call without arguments. `fairness.py` runs
the function as root and the call as another user. ``prepared.py`` makes the pools that they find.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from daxfs import protocol
from daxfs.direct.requests import random_holder
from daxfs.fuse.kernel.ioctls import FSTRIM_RANGE
from daxfs.fuse.kernel.scheduling import FITRIM

BLOCK = 4096
MIB = 1 << 20
EXTENTS = 100_000
FREE_SINGLES = 105_000
SECONDS = 3.0
"""How long a disturbance lasts that could go on forever."""
OPENS, LINKS, LEASES = 19_000, 20_000, 2_000
SYNCING, WRITING = 16, 4
DEEP_RENAMES = 10
SEEKS = 5
COPIED = 64 * MIB
ROOM = 3_000
"""Blocks that a disturbance leaves free for the blocks that map its own."""
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
XATTR = bytes(64 << 10)

Act = Callable[[], object]
libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Disturbance:
    """A disturbance: what it is, the pool that it needs, the function that prepares it.

    ``most_cpu`` is the most CPU time that the daemon may need for it, in seconds; None: there is no goal.
    ``root`` says that only root may do it.
    """

    name: str
    pool: str
    prepare: Callable[[Path], Act]
    most_cpu: float | None = None
    root: bool = False


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """Call fallocate(2) with a mode."""
    if libc.fallocate(descriptor, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def for_a_while(act: Act) -> Act:
    """Return an act that repeats another one for `SECONDS`."""

    def repeat() -> None:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            act()

    return repeat


def in_threads(acts: Sequence[Act]) -> Act:
    """Return an act that does all of these at once."""

    def together() -> None:
        with ThreadPoolExecutor(len(acts)) as pool:
            for done in [pool.submit(act) for act in acts]:
                done.result()

    return together


def nothing(_place: Path) -> Act:
    """Do nothing for a while, to show what the probe finds undisturbed."""
    return lambda: time.sleep(SECONDS)


def allocate(place: Path) -> Act:
    """Reserve space that consists of free single blocks, in one call."""
    descriptor = os.open(place / "reserved", os.O_CREAT | os.O_RDWR, 0o666)
    blocks = min(FREE_SINGLES, os.statvfs(place).f_bavail - ROOM)
    return lambda: os.posix_fallocate(descriptor, 0, blocks * BLOCK)


def on_extents(mode: int) -> Callable[[Path], Act]:
    """Return a disturbance that applies fallocate(2) to all extents of the fragmented file."""

    def prepare(place: Path) -> Act:
        descriptor = os.open(place / "extents", os.O_RDWR)
        return lambda: fallocate(descriptor, mode, 0, EXTENTS * BLOCK)

    return prepare


def truncate(place: Path) -> Act:
    """Truncate the fragmented file."""
    return lambda: os.truncate(place / "extents", 0)


def last_close(place: Path) -> Act:
    """Close the fragmented file, which has no name any more."""
    descriptor = os.open(place / "extents", os.O_RDWR)
    os.unlink(place / "extents")
    return lambda: os.close(descriptor)


def copy(place: Path) -> Act:
    """Copy fragments, as copy_file_range(2) does: in as many calls as it takes."""
    source = os.open(place / "extents", os.O_RDONLY)
    target = os.open(place / "copied", os.O_CREAT | os.O_RDWR, 0o666)

    def act() -> None:
        left = COPIED
        while left:
            done = os.copy_file_range(source, target, left)
            if not done:
                raise OSError(f"copy_file_range copied nothing, {left:,} bytes are left")
            left -= done

    return act


def seek(place: Path) -> Act:
    """Search for data in a file that has none: 200,000 extents are reserved and not written."""
    descriptor = os.open(place / "reserved only", os.O_RDONLY)

    def act() -> None:
        for _ in range(SEEKS):
            try:
                os.lseek(descriptor, 0, os.SEEK_DATA)
            except OSError:
                continue

    return act


def deep_rename(place: Path) -> Act:
    """Move a directory below one that is 50,000 deep, and back."""
    deepest = top = os.open(place, os.O_RDONLY)
    while True:
        try:
            below = os.open("d", os.O_RDONLY, dir_fd=deepest)
        except FileNotFoundError:
            break
        if deepest != top:
            os.close(deepest)
        deepest = below
    moved = place / "moved"
    moved.mkdir()
    moved.chmod(0o777)

    def act() -> None:
        for _ in range(DEEP_RENAMES):
            os.rename("moved", "here", src_dir_fd=top, dst_dir_fd=deepest)
            os.rename("here", "moved", src_dir_fd=deepest, dst_dir_fd=top)

    return act


def trim(place: Path) -> Act:
    """Give the free memory of the pool back, as fstrim(8) does."""
    descriptor = os.open(place, os.O_RDONLY)
    return lambda: fcntl.ioctl(descriptor, FITRIM, FSTRIM_RANGE.pack(0, (1 << 64) - 1, 0))


def token(descriptor: int) -> bytes:
    """Return the token that a lease request quotes: bytes of the pool, which the pool's reader can have."""
    record = bytearray(protocol.POOL.size)
    fcntl.ioctl(descriptor, protocol.IOC_POOL, record, True)
    pool = protocol.Pool.unpack(record)
    with open(pool.path, "rb") as content:
        content.seek(pool.token)
        return content.read(protocol.TOKEN_SIZE)


def lease(descriptor: int, length: int, flags: int, quoted: bytes) -> None:
    """Request a lease of the file's first bytes."""
    request = protocol.Lease(random_holder(), 0, length, flags, token=quoted)
    fcntl.ioctl(descriptor, protocol.IOC_LEASE, bytearray(request.pack(protocol.LEASE_SIZE)), True)


def lease_filling(place: Path) -> Act:
    """Request a lease that fills a hole of 64 MiB with blocks of zeros."""
    descriptor = os.open(place / "hole", os.O_CREAT | os.O_RDWR, 0o666)
    os.ftruncate(descriptor, protocol.MOST_FILLED)
    quoted = token(descriptor)
    return lambda: lease(descriptor, protocol.MOST_FILLED, protocol.Flag.WRITE | protocol.Flag.FILL, quoted)


def leases(place: Path) -> Act:
    """Request a lease of each of many files."""
    descriptors = []
    for number in range(LEASES):
        descriptors.append(os.open(place / f"leased{number}", os.O_CREAT | os.O_RDWR, 0o666))
        os.write(descriptors[-1], bytes(BLOCK))
    quoted = token(descriptors[0])

    def act() -> None:
        for descriptor in descriptors:
            lease(descriptor, BLOCK, 0, quoted)

    return act


def opens(place: Path) -> Act:
    """Hold as many open files as one process may."""
    path = place / "opened"
    path.write_bytes(b"")
    path.chmod(0o666)

    def act() -> None:
        for _ in range(OPENS):
            os.open(path, os.O_RDWR)

    return act


def links(place: Path) -> Act:
    """Give one file many names."""
    path, folder = place / "opened", place / "names"
    path.write_bytes(b"")
    path.chmod(0o666)
    folder.mkdir()
    folder.chmod(0o777)

    def act() -> None:
        for number in range(LINKS):
            os.link(path, folder / str(number))

    return act


def syncs(place: Path) -> Act:
    """Write and make it durable, in many threads."""

    def one(number: int) -> Act:
        descriptor = os.open(place / f"synced{number}", os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o666)

        def act() -> None:
            os.write(descriptor, XATTR[:BLOCK])
            os.fsync(descriptor)

        return for_a_while(act)

    return in_threads([one(number) for number in range(SYNCING)])


def xattrs(place: Path) -> Act:
    """Set extended attributes of the largest size that the kernel passes on; ext4 may have no room for one."""
    path = place / "attributes"
    path.write_bytes(b"")
    path.chmod(0o666)

    def act() -> None:
        try:
            os.setxattr(path, "user.large", XATTR)
        except OSError:
            os.setxattr(path, "user.large", XATTR[:3500])
        os.getxattr(path, "user.large")

    return for_a_while(act)


def listing(place: Path) -> Act:
    """List a large directory that nobody has listed since the mount."""
    return lambda: sum(1 for _ in os.scandir(place / "large"))


def writers(place: Path) -> Act:
    """Write 1 MiB at a time, in several threads."""

    def one(number: int) -> Act:
        descriptor = os.open(place / f"written{number}", os.O_CREAT | os.O_RDWR, 0o666)
        content = bytes(MIB)
        offsets = iter(range(0, 1 << 50, MIB))
        return for_a_while(lambda: os.pwrite(descriptor, content, next(offsets) % (64 * MIB)))

    return in_threads([one(number) for number in range(WRITING)])


def as_user(user: int) -> None:
    """Make this process another user's, if it is root's, with as many open files as the system allows."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if user and not os.getuid():
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)


DISTURBANCES = (
    Disturbance("nothing", "plain", nothing),
    Disturbance("fallocate, 105,000 free single blocks", "fragments", allocate, most_cpu=1.0),
    Disturbance("ZERO_RANGE, 100,000 extents", "extents", on_extents(ZERO_RANGE), most_cpu=2.0),
    Disturbance("punch, 100,000 extents", "extents", on_extents(KEEP_SIZE | PUNCH_HOLE), most_cpu=0.6),
    Disturbance("copy_file_range, 64 MiB of fragments", "extents", copy),
    Disturbance("truncate, 100,000 extents", "extents", truncate),
    Disturbance("last close, 100,000 extents", "extents", last_close),
    Disturbance("20 renames into depth 50,000", "deep", deep_rename),
    Disturbance("5 SEEK_DATA, 200,000 extents", "fragments", seek),
    Disturbance("lease with FILL, 64 MiB", "plain", lease_filling),
    Disturbance("FITRIM, 1 GiB, by root", "full", trim, root=True),
    Disturbance("19,000 opens", "plain", opens),
    Disturbance("20,000 links", "plain", links),
    Disturbance("2,000 leases", "plain", leases),
    Disturbance("fsync, 16 threads", "plain", syncs),
    Disturbance("xattrs of 64 KiB", "plain", xattrs),
    Disturbance("listing of a large directory", "large", listing),
    Disturbance("4 writers of 1 MiB", "plain", writers),
)
