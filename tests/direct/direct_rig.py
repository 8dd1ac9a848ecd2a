"""A daemon's side of direct access without a daemon: ``fcntl.ioctl`` is answered in this process.

The "mounted" file is an ordinary file whose content differs from the pool's, so that a test sees which one was used.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import random
from pathlib import Path
from typing import Any

import pytest

from daxfs import direct, protocol
from daxfs.direct import trust
from daxfs.pmem import persist
from daxfs.protocol import Flag, GrantedExtent, Kind, Lease, Stored

KIB, MIB = 1 << 10, 1 << 20
POOL_SIZE = MIB
ENTRY = 512
DATA = 64 << 10  # where the file's first byte lies in the pool


class FakeDaemon:
    """One file in one pool.

    Attributes:
        file: the path that clients open.
        pool: the pool's file.
        record: the answer to DAXFS_IOC_POOL.
        size: the file size in bytes.
        epoch: the running epoch.
        extents: where the file lies.
        refuse: name of an ioctl ("pool", "lease", ...) -> the error number to answer with.
        leases, stored, appended: the requests received.
    """

    def __init__(self, folder: Path, size: int = 16 << 10, persistence: int = protocol.Persistence.VOLATILE) -> None:
        self.pool = folder / "pool"
        with self.pool.open("wb") as pool:
            pool.truncate(POOL_SIZE)
            pool.seek(protocol.MAGIC_AT)
            pool.write(protocol.MAGIC)
            pool.seek(DATA)
            pool.write(b"m" * size)
        self.file = folder / "file"
        self.file.write_bytes(b"k" * size)
        status = self.pool.stat()
        identity = (status.st_dev, status.st_ino, status.st_rdev)
        path = os.fsencode(self.pool)
        self.record = protocol.Pool(persistence, *identity, POOL_SIZE, 4096, 7, bytes(16), path)
        self.size = size
        self.epoch = 1
        self.extents = [GrantedExtent(0, DATA, size, Kind.MEMORY)]
        self.refuse: dict[str, int] = {}
        self.leases: list[Lease] = []
        self.stored: list[Stored] = []
        self.appended: list[protocol.Appended] = []
        self.post()

    def serve(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answer this process, and make it believe the mount."""
        monkeypatch.setattr(fcntl, "ioctl", self.ioctl)
        monkeypatch.setattr(trust, "check_mount", lambda _: None)

    def post(self) -> None:
        """Store epoch and size into the status entry."""
        with self.pool.open("r+b") as pool:
            pool.seek(ENTRY)
            pool.write(protocol.StatusEntry(self.epoch, self.size, 12).pack())

    def move(self, place: int, content: bytes) -> None:
        """Move the file to another place of the pool."""
        with self.pool.open("r+b") as pool:
            pool.seek(place)
            pool.write(content)
        self.extents = [GrantedExtent(0, place, self.size, Kind.MEMORY)]
        self.epoch += 1
        self.post()

    def ioctl(self, descriptor: int, request: int, record: bytearray | bytes = b"", mutate: bool = True) -> int:
        """Stand in for ``fcntl.ioctl``."""
        assert os.fstat(descriptor).st_ino == self.file.stat().st_ino
        assert mutate
        names = {protocol.IOC_POOL: "pool", protocol.IOC_STORED: "stored", protocol.IOC_APPENDED: "appended"}
        name = names.get(request, "lease")
        if name == "pool":
            assert isinstance(record, bytearray)
            record[:] = self.record.pack()
        elif name == "stored":
            self.stored.append(Stored.unpack(record))
        elif name == "appended":
            self.appended.append(protocol.Appended.unpack(record))
            if self.appended[-1].base != self.size:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            self.size = self.appended[-1].size
            self.post()
        else:
            assert isinstance(record, bytearray)
            asked = Lease.unpack(record)
            self.leases.append(asked)
        if name in self.refuse:
            raise OSError(self.refuse[name], os.strerror(self.refuse[name]))
        if name == "lease" and asked.length:
            extents = tuple(extent for extent in self.extents if extent.offset + extent.length > asked.offset)
            asked._replace(
                next=extents[-1].offset + extents[-1].length if extents else asked.offset,
                size=self.size,
                entry=ENTRY,
                epoch=self.epoch,
                device=self.record.device,
                inode=self.record.inode,
                extents=extents,
            ).pack_into(record)
        return 0

    @property
    def renewals(self) -> list[bool]:
        """For each lease request: whether it renewed."""
        return [bool(lease.flags & Flag.RENEW) for lease in self.leases]


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    """Return a fake daemon that answers this process."""
    fake = FakeDaemon(tmp_path)
    fake.serve(monkeypatch)
    return fake


def pool_bytes(daemon: FakeDaemon, start: int, length: int) -> bytes:
    """Return the bytes of the pool from ``start`` on."""
    return daemon.pool.read_bytes()[start : start + length]


def through_kernel(file: direct.DirectFile) -> None:
    """Check that each operation of the file works by system calls on the file itself."""
    assert not file.direct
    assert file.pread(0, 4) == b"kkkk"
    assert file.pwrite(2, b"xy") == 2
    assert file.read(5) == b"kkxyk"
    buffer = bytearray(2)
    assert file.readinto(buffer) == 2
    assert file.size == 16 << 10
    file.flush()
    assert file.truncate(3) == 3
    assert file.pread(0, 9) == b"kkx"


class WriteBacks:
    """Stands in for libpmem and msync(2).

    Attributes:
        calls: the calls made, in order.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def library(self) -> persist.Library:
        """Return a libpmem that copies and records each call."""

        def copy(target: int, source: Any, length: int, _flags: int) -> None:
            self.calls.append(("copy", target, length))
            ctypes.memmove(target, source, length)

        def flush(address: int, length: int) -> None:
            self.calls.append(("flush", address, length))

        return persist.Library(flush, lambda: self.calls.append(("drain",)), copy, lambda *_: None)

    def msync(self, address: int, length: int, flags: int) -> int:
        """Record a call of msync(2)."""
        assert flags == 4
        assert address % 4096 == 0
        self.calls.append(("msync", address, length))
        return 0


def noise(size: int, seed: int = 0) -> bytes:
    """Return random bytes, the same for one seed."""
    return random.Random(seed).randbytes(size)


REFUSALS = [errno.ENOTTY, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM, errno.EROFS, errno.ENOSYS]
