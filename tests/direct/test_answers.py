"""Answers of a daemon that is broken or hostile: each field wrong in turn, and both clients go through the kernel."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from direct_rig import DATA, FakeDaemon
from mount_rig import SESSIONS, Mounted, mounted
from preload_rig import Agent, agent

from daxfs import direct, protocol
from daxfs.protocol import EXTENT

TOP = (1 << 64) - 1
SIGN = 1 << 63
PAGE = 4096
SIZE = 16 * PAGE

HEAD = {"offset": 8, "length": 16, "flags": 24, "count": 28, "next": 32, "size": 40, "slot": 48, "epoch": 56}
"""Where in ``struct daxfs_lease`` its fields lie."""
FIRST = {"offset": 0, "pool_offset": 8, "length": 16, "kind": 24}
"""Where in its first extent."""
WRONG: list[tuple[str, int]] = [
    *((field, value) for field in ("offset", "length", "next", "slot") for value in (TOP, SIGN, (1 << 62) + 1, 12345)),
    *(("size", value) for value in (TOP, SIGN)),
    ("flags", 1 << 31),
    *(("count", value) for value in (0, 5, 125, 1 << 31, (1 << 32) - 1)),
    *(("first offset", value) for value in (TOP, SIGN, PAGE, 1, (-PAGE) & TOP)),
    *(("first length", value) for value in (TOP, SIGN, 0, 1, (-PAGE) & TOP, 1 << 62)),
    *(("first pool_offset", value) for value in (TOP, SIGN, 1 << 62, (-PAGE) & TOP)),
    *(("first kind", value) for value in (3, (1 << 32) - 1)),
]
NAMES = [f"{field.replace(' ', '-')}-{value:#x}" for field, value in WRONG]
WRONG_POOLS: list[tuple[str, int]] = [
    *(("persistence", value) for value in (3, (1 << 32) - 1)),
    *(("size", value) for value in (0, 1, TOP, SIGN, 1 << 62)),
    *(("block_size", value) for value in (0, 1, 3 << 10, 1 << 31)),
    *(("token", value) for value in (TOP, SIGN)),
    *(("version", value) for value in (0, 99)),
]
POOL_FIELDS = {"version": "=I0", "persistence": "=I4", "size": "=Q32", "block_size": "=I40", "token": "=Q1016"}


def spoil(record: bytearray, field: str, value: int) -> None:
    """Put a wrong number into an answer."""
    if field.startswith("first "):
        place = protocol.LEASE.size + FIRST[field[6:]]
        form = "=I" if field == "first kind" else "=Q"
    else:
        place, form = HEAD[field], "=I" if field in {"flags", "count"} else "=Q"
    struct.pack_into(form, record, place, value)


@contextlib.contextmanager
def spoiled(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, field: str, value: int) -> Iterator[None]:
    """Yield a daemon whose answers to lease requests have one wrong field."""

    def ioctl(descriptor: int, request: int, record: bytearray | bytes = b"", mutate: bool = True) -> int:
        done = daemon.ioctl(descriptor, request, record, mutate)
        if request == protocol.IOC_LEASE and isinstance(record, bytearray):
            spoil(record, field, value)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "ioctl", ioctl)
        yield


def kernel_serves(file: direct.DirectFile) -> None:
    """Check that reads and writes reach the file itself, whose content is not the pool's."""
    assert file.pread(0, 4) == b"kkkk"
    assert file.pwrite(2, b"xy") == 2
    assert file.pread(0, 8) == b"kkxykkkk"
    assert file.size == 16 << 10
    file.flush()


@pytest.mark.parametrize(("field", "value"), WRONG, ids=NAMES)
def test_python_does_not_believe_a_lease(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, field: str, value: int
) -> None:
    with spoiled(daemon, monkeypatch, field, value):
        with direct.open(daemon.file, "r+b") as file:
            kernel_serves(file)
        with direct.map(daemon.file, access="rw") as mapping:
            assert not mapping.direct
            assert mapping.view[:2] == b"kk"


@pytest.mark.parametrize(("field", "value"), WRONG, ids=NAMES)
def test_python_does_not_believe_a_later_lease(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, field: str, value: int
) -> None:
    with direct.open(daemon.file, "r+b") as file:
        assert file.pread(0, 4) == b"mmmm"
        daemon.move(DATA, b"m" * daemon.size)
        with spoiled(daemon, monkeypatch, field, value):
            kernel_serves(file)


@pytest.mark.parametrize("size", [TOP, SIGN, (1 << 62) + 1])
def test_python_asks_the_kernel_for_an_impossible_size(daemon: FakeDaemon, size: int) -> None:
    with direct.open(daemon.file, "r+b") as file:
        file.pread(0, 1)
        daemon.size = size
        daemon.post()
        assert file.size == 16 << 10
        assert file.seek(0, os.SEEK_END) == 16 << 10
        file.seek(0)
        assert len(file.read()) == 16 << 10


@pytest.mark.parametrize(("field", "value"), WRONG_POOLS)
def test_python_does_not_believe_a_pool(daemon: FakeDaemon, field: str, value: int) -> None:
    daemon.record = daemon.record._replace(**{field: value})
    with direct.open(daemon.file, "r+b") as file:
        assert not file.direct
        kernel_serves(file)
    with direct.map(daemon.file) as mapping:
        assert not mapping.direct


@pytest.mark.parametrize("path", [b"", b"relative", b"x" * (protocol.PATH_SIZE - 1)])
def test_python_does_not_follow_a_path_that_is_none(daemon: FakeDaemon, path: bytes) -> None:
    daemon.record = daemon.record._replace(path=path)
    with direct.open(daemon.file, "r+b") as file:
        assert not file.direct
        kernel_serves(file)


def test_a_path_without_end_is_refused(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def ioctl(descriptor: int, request: int, record: bytearray | bytes = b"", mutate: bool = True) -> int:
        done = daemon.ioctl(descriptor, request, record, mutate)
        if request == protocol.IOC_POOL and isinstance(record, bytearray):
            record[64 : 64 + protocol.PATH_SIZE] = b"/" * protocol.PATH_SIZE
        return done

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    with direct.open(daemon.file, "r+b") as file:
        assert not file.direct
        assert "path" in file.why


# The same below the preload library: the daemon is a real one, whose answers are spoiled before they leave.


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    """Return the list that says what the daemon answers wrongly: a field and a value, or nothing."""
    made = tmp_path / "orders"
    made.write_text("")
    return made


@pytest.fixture
def mount(pool: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, orders: Path) -> Iterator[Mounted]:
    """Yield a mount whose daemon, a fork of this process, follows ``orders``."""
    honest_lease, honest_pool = protocol.Lease.pack, protocol.Pool.pack

    def lease(self: protocol.Lease, size: int | None = None) -> bytes:
        record = bytearray(honest_lease(self, size))
        record += bytes(max(protocol.LEASE.size + EXTENT.size - len(record), 0))
        words = orders.read_text().split("=")
        if len(words) == 2 and not words[0].startswith("pool "):
            spoil(record, words[0], int(words[1]))
        return bytes(record)

    def told(self: protocol.Pool) -> bytes:
        record = bytearray(honest_pool(self))
        words = orders.read_text().split("=")
        if len(words) == 2 and words[0].startswith("pool "):
            form = POOL_FIELDS[words[0][5:]]
            struct.pack_into(form[:2], record, int(form[2:]), int(words[1]))
        return bytes(record)

    with monkeypatch.context() as patch:
        patch.setattr(protocol.Lease, "pack", lease)
        patch.setattr(protocol.Pool, "pack", told)
        made = mounted(pool("-b", "4096"), *SESSIONS["kernel"])
        served = made.__enter__()
    try:
        yield served
    finally:
        made.__exit__(None, None, None)


USED = """
import mmap
fd = os.open({path}, os.O_RDWR)
good = True
for turn in range(6):
    good = good and os.pread(fd, 65536, 0) == {content}
    good = good and os.pwrite(fd, {content}[4096:8192], 4096) == 4096
    good = good and os.pread(fd, 100, 16 * 4096 - 50) == {content}[-50:]
for protection in (1, 3):
    place = mmap.mmap(fd, 65536, mmap.MAP_SHARED, protection)
    good = good and place[:] == {content}
    if protection == 3:
        place[8192:12288] = {content}[8192:12288]
        place.flush()
    place.close()
    place = mmap.mmap(fd, 8192, mmap.MAP_PRIVATE, protection, offset=8192)
    good = good and place[:] == {content}[8192:16384]
    place.close()
for turn in range(6):
    good = good and os.pwrite(fd, {content}[:4096], 65536 + 4096 * turn) == 4096
    os.fsync(fd)
good = good and os.pread(fd, 1 << 20, 65536) == {content}[:4096] * 6
os.close(fd)
"""


def use(worker: Agent, path: Path) -> None:
    """Read, write, map and append; check the content, whoever served it."""
    content = os.urandom(SIZE)
    path.write_bytes(content)
    worker("content = {content}", content=content)
    worker(USED.replace("{content}", "content"), path=str(path))
    assert worker("good") is True
    assert path.read_bytes() == content + content[:PAGE] * 6


def test_a_program_does_not_believe_leases(mount: Mounted, library: Path, orders: Path) -> None:
    with agent(library) as worker:
        use(worker, mount.place / "honest")
        for number, (field, value) in enumerate(WRONG):
            orders.write_text(f"{field}={value}")
            use(worker, mount.place / f"file{number}")
        orders.write_text("")
        use(worker, mount.place / "again")


def test_a_program_does_not_believe_later_leases(mount: Mounted, library: Path, orders: Path) -> None:
    path = mount.place / "file"
    with agent(library) as worker:
        for field, value in WRONG:
            content = os.urandom(SIZE)
            path.write_bytes(content)
            worker("fd = os.open({path}, os.O_RDWR)", path=str(path))
            got, calls = worker("direct(lambda: os.pread(fd, 65536, 0))")  # type: ignore[misc]
            assert (got, calls) == (content, 0)
            orders.write_text(f"{field}={value}")
            os.truncate(path, 8 * PAGE)
            for _ in range(4):
                assert worker("os.pread(fd, 65536, 0)") == content[: 8 * PAGE], (field, value)
                assert worker("os.pwrite(fd, b'abc', 4096)") == 3
                content = content[:PAGE] + b"abc" + content[PAGE + 3 :]
            worker("os.close(fd)")
            assert path.read_bytes() == content[: 8 * PAGE]
            orders.write_text("")


@pytest.mark.parametrize(("field", "value"), WRONG_POOLS)
def test_a_program_does_not_believe_a_pool(mount: Mounted, library: Path, orders: Path, field: str, value: int) -> None:
    orders.write_text(f"pool {field}={value}")
    with agent(library) as worker:
        use(worker, mount.place / "file")
        assert worker("{pool} in open('/proc/self/maps').read()", pool=str(mount.pool)) is False
