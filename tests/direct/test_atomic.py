"""pwritev2(2) with RWF_ATOMIC below the library, and the sizes of such writes in statx(2).

A daemon that is killed shows which writes were atomic: the pool has an ordinary write at once, and an atomic one with
its commit.
"""

from __future__ import annotations

import errno
import fcntl
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from mount_rig import SESSIONS, Mounted, mounted, mountpoint
from preload_rig import Agent, agent

from daxfs import protocol
from daxfs.fs.filesystem import FileSystem
from daxfs.fuse import mounts
from daxfs.fuse.kernel import announced
from support import HANG_SECONDS, fsck, run

ATOMIC, APPEND, DSYNC = 0x40, 0x10, 0x02
WRITE_ATOMIC, ATTR_WRITE_ATOMIC = 0x10000, 0x400000
LEAST, MIB = 512, 1 << 20
SIZE = 4 * MIB
NUMBERS = {"x86_64": (328, 332), "aarch64": (287, 291)}.get(platform.machine(), (0, 0))
CALLS = ["by function", pytest.param("by number", marks=pytest.mark.skipif(not NUMBERS[0], reason="unknown numbers"))]

ANNOUNCE, WITHDRAW = protocol.Announcement
START = 0xF501

PREPARE = """
import mmap
libc = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result
def write(fd, parts, offset, more=0, number=0):
    if not number:
        return os.pwritev(fd, parts, offset, 0x40 | more)
    buffers = [ctypes.create_string_buffer(bytes(part), len(part)) for part in parts]
    words = [word for part in buffers for word in (ctypes.addressof(part), len(part))]
    vector = (ctypes.c_uint64 * len(words))(*words)
    long = ctypes.c_long
    libc.syscall.restype = long
    words = [long(word) for word in (len(parts), offset, 0, 0x40 | more)]
    return checked(libc.syscall(long(number), long(fd), vector, *words))
def sizes(directory, path=b"", flags=0x1000, mask=0x107ff, number=0):
    answer = ctypes.create_string_buffer(256)
    call = (lambda *given: libc.syscall(number, *given)) if number else libc.statx
    checked(call(directory, path, flags, mask, answer))
    (got,), attributes, known = struct.unpack_from("=I", answer), *struct.unpack_from("=Q40xQ", answer, 8)
    bits = bool(got & 0x10000), bool(attributes & 0x400000), bool(known & 0x400000)
    return *bits, *struct.unpack_from("=III", answer, 0xa8), struct.unpack_from("=Q", answer, 0x28)[0]
"""


@pytest.fixture
def worker(library: Path) -> Iterator[Agent]:
    """An agent below the library."""
    with agent(library) as made:
        made(PREPARE)
        yield made


@pytest.fixture
def file(mount: Mounted, worker: Agent) -> Path:
    """A file that the agent has open as `fd`."""
    path = mount.place / "file"
    path.write_bytes(b"o" * SIZE)
    worker("fd = os.open({path}, os.O_RDWR)", path=str(path))
    return path


def refused(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.RaisesExc(OSError, check=lambda error: error.errno == number)


def ask(file: BinaryIO, offset: int = 0, length: int = 0, flags: int = 0) -> protocol.Atomic:
    """Make the request itself, as a client does."""
    request = protocol.Atomic(offset, length, flags).pack()
    return protocol.Atomic.unpack(fcntl.ioctl(file, protocol.IOC_ATOMIC, request))


def number_of(how: str, call: int) -> int:
    return NUMBERS[call] if how == "by number" else 0


def most() -> int:
    """What one request carries, as `daxfs info` shows it, rounded down to a power of two."""
    limit = Path("/proc/sys/fs/fuse/max_pages_limit")
    pages = min(int(limit.read_text()) if limit.exists() else 256, 4096)
    return 1 << ((pages - 1) * 4096).bit_length() - 1


@pytest.mark.parametrize("how", CALLS)
def test_a_write_is_where_it_belongs(file: Path, worker: Agent, how: str) -> None:
    expected = bytearray(file.read_bytes())
    longest = most()
    number = number_of(how, 0)
    writes = ((0, 512), (4096, 4096), (8192 + 512, 512), (64 << 10, 64 << 10), (longest, longest), (SIZE, 8192))
    for offset, length in writes:
        call = "write(fd, [b'n' * {length}], {offset}, 0, {number})"
        wrote = worker(call, length=length, offset=offset, number=number)
        assert wrote == length
        expected[offset : offset + length] = b"n" * length
        assert file.read_bytes() == expected


@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize(
    ("lengths", "offset", "flags"),
    [
        pytest.param([4096], 512, 0, id="not a multiple of the length"),
        pytest.param([12288], 0, 0, id="no power of two"),
        pytest.param([256], 0, 0, id="too short"),
        pytest.param([4096, 4096], 0, 0, id="two parts"),
        pytest.param([4096], 4096, APPEND, id="appending"),
        pytest.param([4096], -2, 0, id="before the file"),
        pytest.param([0], 0, 0, id="too long"),
    ],
)
def test_rules(file: Path, worker: Agent, how: str, lengths: list[int], offset: int, flags: int) -> None:
    lengths = [length or 2 * most() for length in lengths]
    with refused(errno.EINVAL):
        worker(
            "write(fd, [bytes(length) for length in {lengths}], {offset}, {flags}, {number})",
            lengths=lengths,
            offset=offset,
            flags=flags,
            number=number_of(how, 0),
        )
    assert file.read_bytes() == b"o" * SIZE


def test_an_appending_file_has_none(file: Path, worker: Agent) -> None:
    worker("end = os.open({path}, os.O_WRONLY | os.O_APPEND)", path=str(file))
    with refused(errno.EINVAL):
        worker("write(end, [bytes(4096)], 0)")
    assert file.stat().st_size == SIZE


def test_the_position_moves(file: Path, worker: Agent) -> None:
    assert worker("(os.lseek(fd, 8192, 0), write(fd, [b'n' * 8192], -1), os.lseek(fd, 0, 1))") == (8192, 8192, 16384)
    worker("os.lseek(fd, 4096, 0)")
    with refused(errno.EINVAL):
        worker("write(fd, [b'n' * 8192], -1)")
    assert worker("os.lseek(fd, 0, 1)") == 4096
    assert file.read_bytes() == b"o" * 8192 + b"n" * 8192 + b"o" * (SIZE - 16384)


def test_nothing_is_written_without_bytes(file: Path, worker: Agent) -> None:
    assert worker("write(fd, [b''], 0)") == 0
    assert file.read_bytes() == b"o" * SIZE


def test_a_file_open_for_reading(file: Path, worker: Agent) -> None:
    worker("reading = os.open({path}, os.O_RDONLY)", path=str(file))
    with refused(errno.EBADF):
        worker("write(reading, [bytes(4096)], 0)")
    assert worker("sizes(reading)[:3]") == (True, True, True)


def test_the_limit_of_file_sizes(file: Path, worker: Agent) -> None:
    worker("import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)")
    worker("resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))")
    for offset, length in ((8192, 4096), (0, 16384)):
        with refused(errno.EFBIG):
            worker("write(fd, [bytes({length})], {offset})", length=length, offset=offset)
    assert file.read_bytes() == b"o" * SIZE


def test_memory_and_mappings_follow(file: Path, worker: Agent) -> None:
    """The write may move the blocks: the writer's own memory, its mapping and a second open file show the new ones."""
    worker("view = mmap.mmap(fd, 1 << 20); other = os.open({path}, os.O_RDWR)", path=str(file))
    for length in (4096, 256 << 10):
        assert worker("direct(lambda: os.pread(other, {length}, 0))", length=length)[1] == 0  # type: ignore[index]
        for byte in b"ab":
            worker("write(fd, [bytes([{byte}]) * {length}], 0)", byte=byte, length=length)
            expected = bytes([byte]) * length
            assert worker("view[:{length}] == os.pread(other, {length}, 0)", length=length)
            assert worker("view[:{length}]", length=length) == expected
            assert file.read_bytes()[:length] == expected
    worker("view[0] = 33")
    assert file.read_bytes()[:1] == b"!"
    worker("os.pwrite(fd, b'?', 1)")
    assert worker("view[1]") == ord("?")


@pytest.mark.parametrize("how", CALLS)
def test_statx_reports_the_sizes(mount: Mounted, file: Path, worker: Agent, how: str) -> None:
    number = number_of(how, 1)
    expected = (True, True, True, LEAST, most(), 1, SIZE)
    assert worker("sizes(fd, number={number})", number=number) == expected
    for directory, path in ((-100, str(file)), ("root", "file")):
        if directory == "root":
            worker("root = os.open({path}, os.O_PATH)", path=str(mount.place))
        where = "root" if directory == "root" else str(directory)
        call = f"sizes({where}, {{path}}, 0, number={{number}})"
        assert worker(call, path=path.encode(), number=number) == expected
    (mount.place / "link").symlink_to("file")
    link = str(mount.place / "link").encode()
    assert worker("sizes(-100, {path}, 0)", path=link) == expected
    assert worker("sizes(-100, {path}, 0x100)[:3]", path=link) == (False, False, False)
    assert worker("sizes(-100, {path}, 0)[:3]", path=str(mount.place).encode()) == (False, False, False)
    assert worker("sizes(fd, mask=0x7ff)[:6]") == (False, False, False, 0, 0, 0)


def test_statx_opens_nothing_for_good(file: Path, worker: Agent) -> None:
    before = worker("sorted(os.listdir('/proc/self/fd'))")
    for _ in range(3):
        worker("sizes(-100, {path}, 0)", path=str(file).encode())
    assert worker("sorted(os.listdir('/proc/self/fd'))") == before


def test_other_file_systems_are_the_kernels(library: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8192))
    found = []
    for preloaded in (None, library):
        with agent(preloaded) as each:
            each(PREPARE)
            each("fd = os.open({path}, os.O_RDWR)", path=str(path))
            statx = each("(sizes(fd), sizes(-100, {path}, 0))", path=str(path).encode())
            try:
                wrote = each("write(fd, [bytes(4096)], 0)")
            except OSError as error:
                wrote = error.errno
            found.append((statx, wrote))
    assert found[0] == found[1]
    assert found[0][1] == errno.EOPNOTSUPP


def test_without_the_library_it_is_refused(mount: Mounted) -> None:
    """Guards the other tests, which would say nothing on a kernel that passes RWF_ATOMIC to FUSE daemons."""
    (mount.place / "file").write_bytes(bytes(8192))
    with agent(None) as each:
        each(PREPARE)
        each("fd = os.open({path}, os.O_RDWR)", path=str(mount.place / "file"))
        assert each("sizes(fd)[:3]") == (False, False, False)
        with refused(errno.EOPNOTSUPP):
            each("write(fd, [bytes(4096)], 0)")


@pytest.mark.parametrize(
    ("features", "options"),
    [
        pytest.param(("-O", "^has_journal"), (), id="no journal"),
        pytest.param((), ("dax=never",), id="the kernel caches files"),
    ],
)
def test_files_without_atomic_writes(
    pool: Callable[..., Path], worker: Agent, features: tuple[str, ...], options: tuple[str, ...]
) -> None:
    with mounted(pool("-b", "4096", *features), *SESSIONS["kernel"], *options) as mount:
        (mount.place / "file").write_bytes(bytes(8192))
        worker("fd = os.open({path}, os.O_RDWR)", path=str(mount.place / "file"))
        assert worker("sizes(fd)[:3]") == (False, False, False)
        with refused(errno.EOPNOTSUPP):
            worker("write(fd, [b'n' * 4096], 0)")
        assert (mount.place / "file").read_bytes() == bytes(8192)
        worker("os.close(fd)")


def test_the_request(file: Path) -> None:
    with file.open("rb") as reading, file.open("r+b") as writing:
        assert ask(reading) == (0, 0, 0, LEAST, most())
        assert ask(writing, 4096, 4096, ANNOUNCE) == (4096, 4096, ANNOUNCE, LEAST, most())
        with refused(errno.EBADF):
            ask(reading, 4096, 4096, ANNOUNCE)
        for wrong in ((0, 4096, 3), (0, 4096, 4), (0, 0, ANNOUNCE), (2048, 4096, ANNOUNCE), (0, 3 << 10, ANNOUNCE)):
            with refused(errno.EINVAL):
                ask(writing, *wrong)


def test_announced_writes_have_a_bound(file: Path) -> None:
    with file.open("r+b") as writing, file.open("r+b") as other:
        for number in range(announced.MOST_AHEAD):
            ask(writing, number * 512, 512, ANNOUNCE)
        with refused(errno.EBUSY):
            ask(writing, 0, 512, ANNOUNCE)
        with refused(errno.EBUSY):
            ask(other, 0, 512, ANNOUNCE)
        ask(writing, 512, 512, WITHDRAW)
        ask(other, 0, 512, ANNOUNCE)


def test_a_batch_has_none(file: Path) -> None:
    with file.open("r+b") as writing:
        fcntl.ioctl(writing, START)
        with refused(errno.EBUSY):
            ask(writing, 0, 4096, ANNOUNCE)


BAD = """
vector = (ctypes.c_uint64 * 2)(4096, {length})
assert libc.pwritev2(fd, vector, 1, ctypes.c_long({length}), 0x40) == -1 and ctypes.get_errno() == 14
"""
WRITE = "write(fd, [b'n' * {length}], {length})"
ORDINARY = "os.pwrite(fd, b'n' * {length}, {length})"


@pytest.mark.parametrize("length", [512, 4096, 64 << 10])
@pytest.mark.parametrize(
    ("calls", "there"),
    [
        pytest.param([WRITE], False, id="not durable by itself"),
        pytest.param([WRITE, "os.fsync(fd)"], True, id="fsync"),
        pytest.param([f"{WRITE[:-1]}, {DSYNC})"], True, id="RWF_DSYNC"),
        pytest.param([ORDINARY], True, id="an ordinary write"),
        pytest.param([BAD, ORDINARY], True, id="an ordinary write after one that failed"),
    ],
)
def test_a_killed_daemon_leaves_all_or_nothing(
    pool: Callable[..., Path], library: Path, length: int, calls: list[str], there: bool
) -> None:
    made = pool("-b", "4096")
    with mountpoint() as place:
        mount = Mounted(made, place, (*SESSIONS["kernel"], "commit=1000"))
        try:
            with agent(library) as each:
                each(PREPARE)
                each("fd = os.open({path}, os.O_RDWR | os.O_CREAT)", path=str(place / "file"))
                each("os.write(fd, b'o' * (1 << 20)); os.fsync(fd)")
                for call in calls:
                    each(call, length=length)
                mount.daemon.kill()
                mount.daemon.wait(HANG_SECONDS)
        finally:
            mount.down()
            if mounts.top_mount(str(place)) is not None:
                run("umount", "-l", place)
    FileSystem.open(made).close()
    fsck(made)
    with FileSystem.open(made) as fs:
        byte = b"n" if there else b"o"
        assert fs.tree.read_bytes("/file") == b"o" * length + byte * length + b"o" * (MIB - 2 * length)
