"""RLIMIT_FSIZE as in the kernel: a write is shortened at the limit, and refused if it begins there.

The limit also counts for writes below EOF (generic_write_check_limits in fs/read_write.c).
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount_rig import SESSIONS, mounted
from preload_rig import agent

from daxfs import direct

PART = 4096
LIMIT = 5 * PART + 100


@pytest.fixture
def root(pool: Callable[..., Path]) -> Iterator[Path]:
    """The root directory of a mount."""
    with mounted(pool("-b", "4096"), *SESSIONS["kernel"]) as mount:
        yield mount.place


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """Set this process's limit for the duration of the context."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda soft: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


SCENE = """
import resource, signal
signals = []
signal.signal(signal.SIGXFSZ, lambda *_: signals.append(1))
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
fd = os.open({path}, os.O_RDWR)
for _ in range(4):
    os.pread(fd, 40960, 0)
    os.pwrite(fd, b'warm', 0)
def tried(action):
    del signals[:]
    try:
        answer = action()
    except OSError as error:
        answer = -error.errno
    os.getpid()  # a call, after which the interpreter runs handlers
    return answer, len(signals), os.lseek(fd, 0, 1), os.fstat(fd).st_size
def write_at(offset, length):
    os.lseek(fd, offset, 0)
    return os.write(fd, b'w' * length)
"""
STEPS = [
    "tried(lambda: os.pwrite(fd, b'p' * 8192, {limit} - 100))",
    "tried(lambda: os.pwrite(fd, b'p' * 10, {limit}))",
    "tried(lambda: os.pwrite(fd, b'p' * 10, {limit} + 4096))",
    "tried(lambda: os.pwrite(fd, b'p' * 10, {limit} - 10))",
    "tried(lambda: os.pwritev(fd, [b'v' * 50, b'v' * 100], {limit} - 100))",
    "tried(lambda: write_at({limit} - 3, 10))",
    "tried(lambda: write_at({limit}, 10))",
    "tried(lambda: write_at({limit} - 4096, 4096))",
    "tried(lambda: os.write(fd, b'next'))",
    "tried(lambda: os.pwrite(fd, b'p' * 4096, 10 * 4096))",
]


@pytest.mark.parametrize("how", ["setrlimit(", "prlimit(0, "])
def test_overwrites_below_the_library(root: Path, library: Path, how: str) -> None:
    content = os.urandom(10 * PART)
    answers = []
    for number, preloaded in enumerate((None, library)):
        path = root / f"file{number}"
        path.write_bytes(content)
        with agent(preloaded) as worker:
            worker(SCENE, path=str(path))
            worker("resource.{how}resource.RLIMIT_FSIZE, ({limit}, hard))".replace("{how}", how), limit=LIMIT)
            answers.append([worker(step, limit=LIMIT) for step in STEPS])
    assert answers[0] == answers[1]
    assert (root / "file0").read_bytes() == (root / "file1").read_bytes()
    assert answers[0][0] == (100, 0, 0, 10 * PART)
    assert answers[0][1] == (-errno.EFBIG, 1, 0, 10 * PART)


def test_writes_within_the_limit_are_direct_as_ever(root: Path, library: Path) -> None:
    (root / "file").write_bytes(bytes(10 * PART))
    with agent(library) as worker:
        worker(SCENE, path=str(root / "file"))
        worker("resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, hard))", limit=LIMIT)
        assert worker("direct(lambda: os.pwrite(fd, b'p' * 10, {limit} - 10))", limit=LIMIT) == (10, 0)
        assert worker("direct(lambda: os.pwrite(fd, b'p' * 10, {limit} - 9))", limit=LIMIT) == (9, 1)
        worker("resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))")
        assert worker("direct(lambda: os.pwrite(fd, b'p' * 10, {limit}))", limit=LIMIT) == (10, 0)


def test_a_limit_from_before_the_start(root: Path, library: Path, limited: Callable[[int], None]) -> None:
    (root / "file").write_bytes(bytes(10 * PART))
    limited(LIMIT)
    with agent(library) as worker:
        worker(SCENE, path=str(root / "file"))
        assert worker("tried(lambda: os.pwrite(fd, b'p' * 10, {limit}))", limit=LIMIT) == (
            -errno.EFBIG,
            1,
            0,
            10 * PART,
        )


def test_a_childs_limit_is_its_own(root: Path, library: Path) -> None:
    """The child is one of vfork(2), which runs in its parent's memory."""
    (root / "file").write_bytes(bytes(10 * PART))
    with agent(library) as worker:
        worker(SCENE, path=str(root / "file"))
        worker(
            "libc = ctypes.CDLL(None); soft = (ctypes.c_uint64 * 2)(4096, 4096)\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    libc.setrlimit(1, soft)\n"
            "    good = os.pwrite(fd, b'p' * 8192, 0) == 4096\n"
            "    os._exit(0 if good else 1)\n"
            "status = os.waitpid(child, 0)[1]"
        )
        assert worker("status") == 0
        assert worker("direct(lambda: os.pwrite(fd, b'p' * 8192, 0))") == (8192, 0)


@pytest.mark.parametrize("flags", [0, os.O_APPEND])
def test_appends_below_the_library(root: Path, library: Path, flags: int) -> None:
    answers = []
    for number, preloaded in enumerate((None, library)):
        path = root / f"log{number}"
        path.write_bytes(b"")
        with agent(preloaded) as worker:
            worker(SCENE, path=str(path))
            worker("os.close(fd); fd = os.open({path}, {flags})", path=str(path), flags=os.O_RDWR | flags)
            worker("resource.setrlimit(resource.RLIMIT_FSIZE, (5 * 4096 + 100, hard))")
            answers.append([worker("tried(lambda: os.write(fd, b'a' * 4096))") for _ in range(8)])
    assert answers[0] == answers[1]
    assert 0 < answers[0][5][0] < PART
    assert (root / "log0").stat().st_size == (root / "log1").stat().st_size == LIMIT


@pytest.mark.parametrize("length", [250, 4096, 8192])
@pytest.mark.parametrize("flags", [0, os.O_APPEND])
def test_appends_of_a_program_that_does_nothing_else(root: Path, library: Path, flags: int, length: int) -> None:
    """The write at the limit is left to the kernel, which must know the size that the appends before have made."""
    path = root / "log"
    path.write_bytes(b"")
    with agent(library) as worker:
        worker(SCENE, path=str(path))
        worker("os.close(fd); fd = os.open({path}, {flags})", path=str(path), flags=os.O_RDWR | flags)
        worker("os.ftruncate(fd, 0)")
        worker("resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))")
        worker(
            "def append(length):\n"
            "    written = 0\n"
            "    try:\n"
            "        while True:\n"
            "            written += os.write(fd, b'a' * length)\n"
            "    except OSError as error:\n"
            "        return written, error.errno"
        )
        assert worker("append({length})", length=length) == (100_000, errno.EFBIG)
    assert path.stat().st_size == 100_000


def test_the_limit_in_python(root: Path, limited: Callable[[int], None]) -> None:
    path = root / "file"
    path.write_bytes(bytes(10 * PART))
    with direct.open(path, "r+b") as file:
        assert file.direct
        assert file.pwrite(LIMIT, b"before") == 6
        limited(LIMIT)
        assert file.pwrite(LIMIT - 100, b"p" * 8192) == 100
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            file.pwrite(LIMIT, b"x")
        file.seek(LIMIT - 4)
        assert file.write(b"12345678") == 4
        assert file.tell() == LIMIT
        assert file.pwrite(LIMIT - 10, b"y" * 10) == 10
        limited(LIMIT + 1)
        assert file.pwrite(LIMIT, b"zz") == 1
        assert file.direct
    assert path.read_bytes()[LIMIT - 100 : LIMIT + 6] == b"p" * 90 + b"y" * 10 + b"z" + b"efore"


def test_the_limit_of_a_growing_file_in_python(root: Path, limited: Callable[[int], None]) -> None:
    limited(LIMIT)
    with direct.open(root / "file", "w+b") as file:
        done = 0
        while done < LIMIT:
            done += file.write(b"g" * 1000)
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            file.write(b"g")
    assert (root / "file").read_bytes() == b"g" * LIMIT


def test_a_file_opened_under_a_limit_in_python(root: Path, limited: Callable[[int], None]) -> None:
    (root / "file").write_bytes(bytes(10 * PART))
    limited(LIMIT)
    with direct.open(root / "file", "r+b") as file:
        assert file.pwrite(0, b"a" * 8 * PART) == LIMIT
        resource.prlimit(0, resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE))
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            file.pwrite(7 * PART, b"a")
