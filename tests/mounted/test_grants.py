"""What a mount grants to whom: nothing without the pool, no more than a share to one user, only zeroed memory.

The attackers are processes of an ordinary user that speak the raw protocol.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from actor_rig import KEEP_SIZE, checked, libc
from cli_rig import daxfs
from in_memory import tmp_path
from lease_actor import TO_STORE, ask, becomes, clients, free_blocks, holders, identity, token
from mount_rig import NOBODY, SESSIONS, Mounted, as_user, mounted

from daxfs import protocol
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.grants.waiting import SHARE
from daxfs.pmem.opening import open_pool
from daxfs.protocol import Flag
from daxfs.structures import blocks

__all__ = ["tmp_path"]

MIB = 1 << 20
NO_TOKEN = bytes(protocol.TOKEN_SIZE)
MARKER = b"\xa5"
MODES = (0, 0x01, 0x03, 0x08, 0x10, 0x11, 0x20)
LENGTHS = (1, 1024, 4096, 5000, 65_536, 300_000)

Pool = Callable[..., Path]


@pytest.fixture
def mount(pool: Pool) -> Iterator[Mounted]:
    """Everybody may use it; the pool is root's."""
    path = pool("-b", "4096", "-m", "0")
    path.chmod(0o600)
    with mounted(path, *SESSIONS["kernel"], "allow_other") as mount:
        mount.place.chmod(0o777)
        yield mount


def rewrite(path: Path, size: int = 2 * MIB) -> None:
    path.write_bytes(os.urandom(size))


def fill(path: Path) -> None:
    """Until there is no room."""
    with path.open("wb", buffering=0) as file:
        while file.write(bytes(MIB)):
            continue


def shared_file(mount: Mounted) -> Path:
    """Root's, which everybody may read."""
    path = mount.place / "shared"
    rewrite(path)
    path.chmod(0o644)
    return path


def test_a_reader_without_the_pool_holds_nothing_of_it(mount: Mounted) -> None:
    """Read leases on somebody's file by one holder that never renews, while the owner rewrites it again and again."""
    path = shared_file(mount)
    before = free_blocks(mount.place)

    def attack() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        assert identity(descriptor).token
        while True:
            ask(descriptor, protocol.Lease(7, 0, 1 << 40, 0, token=NO_TOKEN))
            os.close(os.open(mount.place / "asked", os.O_WRONLY | os.O_CREAT))

    for _ in range(20):
        assert as_user(attack) == errno.EOPNOTSUPP
        rewrite(path)
    assert not (mount.place / "asked").exists()
    assert free_blocks(mount.place) >= before - 2, "the page of leases is all that was taken"
    assert holders(mount.place) == 0


def test_a_client_of_the_old_protocol_goes_through_the_kernel(mount: Mounted) -> None:
    """Its record has zeros where the token is."""
    descriptor = os.open(shared_file(mount), os.O_RDONLY)
    assert identity(descriptor).version == 2
    with pytest.raises(OSError, match="not supported") as error:
        ask(descriptor, protocol.Lease(7, 0, 4096, 0, token=NO_TOKEN))
    assert error.value.errno == errno.EOPNOTSUPP
    os.close(descriptor)


def test_the_token_is_read_in_the_pool_and_nowhere_else(mount: Mounted) -> None:
    descriptor = os.open(shared_file(mount), os.O_RDONLY)
    place = identity(descriptor).token
    secret = mount.pool.read_bytes()[place : place + protocol.TOKEN_SIZE]
    buffer = bytearray(protocol.Lease(7, 0, 4096, 0, token=secret).pack(protocol.LEASE_SIZE))
    fcntl.ioctl(descriptor, protocol.IOC_LEASE, buffer)
    assert protocol.Lease.unpack(buffer).entry // 4096 == place // 4096
    assert secret not in buffer, "an answer does not repeat it"
    assert secret.hex() not in mount.said()
    os.close(descriptor)
    mount.unmount()
    assert secret not in mount.pool.read_bytes()


def test_a_reader_with_the_pool_is_bounded_and_named(mount: Mounted) -> None:
    """It gets a share of the pool, `daxfs stats` shows it, and a full pool names it in the log."""
    path = shared_file(mount)
    most = mount.pool.stat().st_size // SHARE
    before = free_blocks(mount.place)
    with clients(mount.place) as make:
        reader = make()
        reader.must("open", 1, "shared", os.O_RDONLY)
        reader.must("read_token", 1)
        reader.must("attach", 1)
        reader.must("close", 1)
        reader.must("become", NOBODY)
        reader.must("open", 1, "shared", os.O_RDONLY)
        answers = []
        for _ in range(20):
            answers.append(reader.do("lease", 1, 0, 1 << 40, 0) == "EAGAIN")
            rewrite(path)
        assert answers == [number >= most // (2 * MIB) for number in range(20)]
        found = json.loads(daxfs("stats", mount.place, "--total", "--json"))
        assert found["files"]["deferred"] == most
        assert found["holding"] == [{"ino": path.stat().st_ino, "uid": NOBODY, "pid": reader.pid, "size": most}]
        assert f"process {reader.pid} of user {NOBODY} holds 8 MiB of" in daxfs("stats", mount.place, "--total")
        assert before - free_blocks(mount.place) <= most // 4096 + 8
        with pytest.raises(OSError, match="No space"):
            fill(mount.place / "eater")
        assert f"wait to be freed: {most} for process {reader.pid} of user {NOBODY}" in mount.said()
        (mount.place / "eater").unlink()
    assert becomes(lambda: free_blocks(mount.place) >= before - 2)


def mark_free_blocks(path: Path) -> None:
    """Fill every free block of the pool with the marker."""
    found: list[tuple[int, int]] = []
    with FileSystem.open(path) as fs:
        view, bits = fs.volume.view, fs.volume.block_bits
        for group in range(fs.volume.geometry.groups_count):
            found += [(start << bits, count << bits) for start, count in blocks.free_runs(view, group, 1)]
    pool = open_pool(str(path), persistence="volatile")
    for start, length in found:
        pool.write(start, MARKER * length)
    pool.close()


@pytest.mark.parametrize("size", ["1024", "4096"])
def test_a_dishonest_client_reads_nothing_that_was_deleted(pool: Pool, size: str) -> None:
    """Anything in any order through one mount's ioctls and system calls; tests/fs has the long walk."""
    path = pool("-b", size, size="16M")
    mark_free_blocks(path)
    with mounted(path, *SESSIONS["kernel"], "allow_other") as mount:
        mount.place.chmod(0o777)
        (mount.place / "seen").write_bytes(b"x")
        descriptor = os.open(mount.place / "seen", os.O_RDONLY)
        secret = token(descriptor)
        os.close(descriptor)
        assert as_user(lambda: be_dishonest(mount.place / "mine", secret, random.Random(int(size)))) == 0


def be_dishonest(path: Path, secret: bytes, choice: random.Random) -> None:
    """What the attacker does, in a process of its own."""
    files = [os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(2)]
    done = 0
    for _ in range(600):
        file = choice.choice(files)
        try:
            choice.choice(ACTS)(file, os.fstat(file).st_size, secret, choice)
            done += 1
        except OSError as error:
            assert error.errno in {errno.EAGAIN, errno.EINVAL, errno.ENOSPC, errno.EOPNOTSUPP}, error
        assert MARKER not in os.pread(file, 1 << 22, 0)
    assert done > 200


def somewhere(end: int, choice: random.Random) -> int:
    return choice.choice((0, end, end & -1024, choice.randrange(200_000)))


def lease(file: int, end: int, secret: bytes, choice: random.Random) -> None:
    flags = choice.choice((TO_STORE | Flag.EXTEND, TO_STORE, Flag.WRITE, 0)) | choice.choice((0, 0, Flag.RENEW))
    offset = somewhere(end, choice)
    ask(file, protocol.Lease(choice.randrange(2), offset, choice.choice(LENGTHS), flags, token=secret))


def grow(file: int, end: int, secret: bytes, choice: random.Random) -> None:
    ask(file, protocol.Lease(0, end & -1024, choice.choice(LENGTHS), TO_STORE | Flag.EXTEND, token=secret))


def store(file: int, end: int, _: bytes, choice: random.Random) -> None:
    size = choice.choice((end + choice.choice(LENGTHS), choice.randrange(1 << 22)))
    fcntl.ioctl(file, protocol.IOC_STORED, protocol.Stored(size).pack())


def append(file: int, end: int, _: bytes, choice: random.Random) -> None:
    fcntl.ioctl(file, protocol.IOC_APPENDED, protocol.Appended(end, end + choice.choice(LENGTHS), 0).pack())


def allocate(file: int, end: int, _: bytes, choice: random.Random) -> None:
    offset, length = somewhere(end, choice) & -4096, choice.choice(LENGTHS)
    checked(libc.fallocate(file, choice.choice(MODES), offset, (length & -4096) + 4096))


def reserve(file: int, end: int, _: bytes, choice: random.Random) -> None:
    checked(libc.fallocate(file, KEEP_SIZE, somewhere(end, choice), choice.choice(LENGTHS)))


def write(file: int, end: int, _: bytes, choice: random.Random) -> None:
    os.pwrite(file, b"x" * min(choice.choice(LENGTHS), 9000), somewhere(end, choice))


def cut(file: int, end: int, _: bytes, choice: random.Random) -> None:
    os.ftruncate(file, choice.choice((0, end, somewhere(end, choice))))


ACTS = (lease, grow, grow, store, append, allocate, reserve, write, cut)
