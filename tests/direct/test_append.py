"""Appends below the preload library: in memory where they can be, and always what plain appends would have made."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount_rig import SESSIONS, Mounted, mounted, mountpoint
from preload_rig import PROGRAMS, Agent, agent, below

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import ROOT_INO
from support import HANG_SECONDS, fsck

BLOCK = 4096
PAIRS = 8
"""Appends that are synchronised at once, until the next one is made durable by itself."""


@pytest.fixture
def root(pool: Callable[..., Path]) -> Iterator[Path]:
    """The root directory of a mount."""
    with mounted(pool("-b", str(BLOCK), size="128M"), *SESSIONS["kernel"]) as mount:
        yield mount.place


@pytest.fixture
def worker(library: Path) -> Iterator[Agent]:
    """An agent below the library."""
    with agent(library) as made:
        yield made


def record(who: str, number: int, length: int) -> bytes:
    """Return a record as programs/append.py writes it."""
    return (f"{who}:{number:07d}|".encode() * (length // 10 + 1))[:length]


def start(library: Path | None, *arguments: str | Path | int) -> subprocess.Popen[bytes]:
    """Start an appending program."""
    command = [sys.executable, PROGRAMS / "append.py", *arguments]
    return subprocess.Popen([str(word) for word in command], env=below(library))


def done(*programs: subprocess.Popen[bytes]) -> None:
    """Wait for programs, which must succeed."""
    for program in programs:
        assert program.wait(60) == 0


def records(content: bytes, length: int) -> dict[str, list[int]]:
    """Check that each record is whole, and return the writers and numbers in order."""
    assert len(content) % length == 0
    found: dict[str, list[int]] = {}
    for at in range(0, len(content), length):
        who, number = chr(content[at]), int(content[at + 2 : at + 9])
        assert content[at : at + length] == record(who, number, length), f"record at {at}"
        found.setdefault(who, []).append(number)
    return found


def appending(worker: Agent, path: Path, sync: str = "fsync") -> int:
    """Have the agent open the file as `fd` and synchronise each append; return the number of blocks."""
    worker("fd = os.open({path}, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)", path=str(path))
    for number in range(PAIRS):
        worker("os.write(fd, bytes([{number}]) * 4096)", number=number)
        worker("os.{sync}(fd)".replace("{sync}", sync))
    return PAIRS


COUNTED = """
def counted(action):
    first, before = calls(), calls()
    result = action()
    return result, calls() - before - (before - first)
"""
HOW = {
    "write": "os.write(fd, {data})",
    "pwrite": "os.pwrite(fd, {data}, os.fstat(fd).st_size)",
    "writev": "os.writev(fd, [{data}[:100], {data}[100:]])",
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("flags", [0, os.O_APPEND])
def test_appends_of_blocks_are_done_in_memory(root: Path, worker: Agent, how: str, flags: int) -> None:
    worker("fd = os.open({path}, {flags}, 0o644)", path=str(root / "file"), flags=os.O_RDWR | os.O_CREAT | flags)
    worker(COUNTED)
    expected = b""
    for _ in range(40):
        data = os.urandom(random.choice([1, 2, 5]) * BLOCK)
        written, calls = worker(f"counted(lambda: {HOW[how]})", data=data)  # type: ignore[misc]
        assert written == len(data)
        expected += data
        assert (root / "file").read_bytes() == expected
        if how != "pwrite":
            assert worker("os.lseek(fd, 0, 1)") == len(expected)
    assert calls == 0, "the last one took a system call"
    assert worker("os.pread(fd, 1 << 20, 0)") == expected
    worker("os.close(fd)")
    assert (root / "file").stat().st_blocks * 512 == len(expected), "what was granted past EOF was given back"


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("length", [1, 250, 4095, 5000])
def test_appends_of_any_length_are_done_in_memory(root: Path, worker: Agent, how: str, length: int) -> None:
    """Small records make a log whose size is what was written; zeros follow when the file is extended."""
    path = root / "file"
    worker("fd = os.open({path}, os.O_RDWR | os.O_CREAT, 0o644)", path=str(path))
    worker(COUNTED)
    expected, direct = b"", 0
    for _ in range(60):
        data = os.urandom(length) if length > 1 or how != "writev" else b"x" * 101
        written, calls = worker(f"counted(lambda: {HOW[how]})", data=data)  # type: ignore[misc]
        assert written == len(data)
        direct += calls == 0
        expected += data
        assert path.stat().st_size == len(expected)
    assert direct > 50, "the first few look whether it is worth it"
    assert path.read_bytes() == expected
    assert worker("os.pread(fd, 1 << 20, 0)") == expected
    os.truncate(path, len(expected) + 10_000)
    assert path.read_bytes() == expected + bytes(10_000)
    worker("os.close(fd)")
    assert path.stat().st_blocks * 512 <= len(expected) + BLOCK, "what was granted past EOF was given back"


@pytest.mark.parametrize("seed", range(4))
def test_appends_among_everything_else(root: Path, library: Path, seed: int) -> None:
    """Two programs below the library and one without append in turn; a model has the content."""
    chance = random.Random(seed)
    path, content = root / "file", bytearray()
    path.touch()
    plain = os.open(path, os.O_RDWR)
    with agent(library) as first, agent(library) as second:
        for worker, flags in ((first, os.O_RDWR), (second, os.O_RDWR | os.O_APPEND)):
            worker("fd = os.open({path}, {flags})", path=str(path), flags=flags)
        for _ in range(150):
            many = chance.choice([1, 1, 1, 6])
            choice = chance.randrange(12)
            for _ in range(many):
                data = chance.randbytes(chance.choice([BLOCK, BLOCK, 3 * BLOCK, 100, 100, 5000]))
                if choice < 4:
                    first("os.pwrite(fd, {data}, {at})", data=data, at=len(content))
                    content += data
                elif choice < 7:
                    second("os.write(fd, {data})", data=data)
                    content += data
                elif choice < 8:
                    os.pwrite(plain, data, len(content))
                    content += data
            if choice == 8:
                size = chance.choice([0, len(content) // 2, -(-len(content) // BLOCK) * BLOCK, len(content) + 10_000])
                os.ftruncate(plain, size)
                content = content[:size] + bytes(max(size - len(content), 0))
            elif choice == 9:
                chance.choice([first, second])(f"os.{chance.choice(['fsync', 'fdatasync'])}(fd)")
            elif choice == 10 and content:
                for _ in range(many):
                    at, data = chance.randrange(max(len(content) - 200, 0), len(content)), chance.randbytes(300)
                    first("os.pwrite(fd, {data}, {at})", data=data, at=at)
                    content[at : at + len(data)] = data
            elif choice == 11:
                size = -(-len(content) // BLOCK) * BLOCK
                second("os.ftruncate(fd, {size})", size=size)
                content += bytes(size - len(content))
            assert os.fstat(plain).st_size == len(content)
            assert os.pread(plain, len(content) + 1, 0) == content
            assert chance.choice([first, second])("os.pread(fd, 1 << 24, 0)") == content
    os.close(plain)
    assert path.stat().st_blocks * 512 <= len(content) + 2 * BLOCK, "the last block, and one of the extent tree"


@pytest.mark.parametrize("length", [BLOCK, 2 * BLOCK, 1000])
def test_records_of_several_programs_are_whole(root: Path, library: Path, length: int) -> None:
    path = root / "file"
    done(
        start(library, path, "A", 1500, length, "plain"),
        start(library, path, "B", 1500, length, "fsync"),
        start(None, path, "C", 1500, length, "plain"),
    )
    assert records(path.read_bytes(), length) == {who: list(range(1500)) for who in "ABC"}


def test_records_of_a_fork_are_whole(root: Path, library: Path) -> None:
    path = root / "file"
    done(start(library, path, "A", 1000, BLOCK, "fork"))
    assert records(path.read_bytes(), BLOCK) == {"A": list(range(1000)), "a": list(range(1000))}


@pytest.mark.parametrize("how", ["plain", "fsync"])
def test_a_killed_program_leaves_whole_records(root: Path, library: Path, how: str) -> None:
    path = root / "file"
    for turn in range(4):
        program = start(library, path, "ABCD"[turn], 1_000_000, BLOCK, how)
        grown = path.stat().st_size + 300 * BLOCK if path.exists() else 300 * BLOCK
        while not path.exists() or path.stat().st_size < grown:
            assert program.poll() is None
            records(path.read_bytes() if path.exists() else b"", BLOCK)
        program.kill()
        program.wait()
        found = records(path.read_bytes(), BLOCK)
        assert all(numbers == list(range(len(numbers))) for numbers in found.values())
        status = path.stat()
        past = status.st_blocks * 512 - status.st_size
        assert past in {0, BLOCK}, "what was granted past EOF was given back; many extents need a block too"


@pytest.mark.parametrize("how", ["fsync", "fdatasync"])
def test_what_was_synchronised_survives_the_daemon(
    pool: Callable[..., Path], library: Path, tmp_path: Path, how: str
) -> None:
    image, log = pool("-b", str(BLOCK), size="128M"), tmp_path / "log"
    log.touch()
    with mountpoint() as place:
        mount = Mounted(image, place, SESSIONS["kernel"])
        try:
            program = start(library, place / "file", "A", 1_000_000, BLOCK, how, log)
            while log.stat().st_size < 800:
                assert program.poll() is None
                time.sleep(0.001)
            mount.daemon.kill()
            mount.daemon.wait(HANG_SECONDS)
            assert program.wait(30) != 0
        finally:
            mount.down()
    promised = log.stat().st_size
    with FileSystem.open(image) as fs:
        file = fs.open_file(fs.lookup(ROOT_INO, b"file").ino, os.O_RDONLY)
        content = bytes(fs.read(file, 0, 1 << 30))
        fs.release(file)
    fsck(image)
    numbers = records(content, BLOCK)["A"]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= promised


@pytest.fixture
def memory(pool: Callable[..., Path]) -> Iterator[Path]:
    """Yield the root of a mount whose stores need no msync(2): there appends are durable before the request."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(shutil.copy(pool("-b", str(BLOCK), size="128M"), folder))


def after_a_crash(image: Path, worker: Agent, place: Path, change: Callable[[Path], None] | None) -> FileSystem:
    """Append durably, perhaps change something, synchronise, kill the daemon; return the recovered pool."""
    mount = Mounted(image, place, (*SESSIONS["kernel"], "commit=300"))
    try:
        number = appending(worker, place / "file")
        worker("os.write(fd, bytes([{number}]) * 4096)", number=number)
        if change:
            change(place / "file")
            worker("os.fsync(fd)")
            mount.daemon.kill()
        else:
            mount.daemon.kill()
            mount.daemon.wait(HANG_SECONDS)
            worker("os.fsync(fd)")  # it would fail if it needed the daemon
        mount.daemon.wait(HANG_SECONDS)
        with contextlib.suppress(OSError):
            worker("os.close(fd)")
    finally:
        mount.down()
    return FileSystem.open(image)


def test_an_expected_fsync_asks_nobody(memory: Path, worker: Agent) -> None:
    with mountpoint() as place, after_a_crash(memory, worker, place, None) as fs:
        assert fs.lookup(ROOT_INO, b"file").size == (PAIRS + 1) * BLOCK
    fsck(memory)


def test_armed_appends_ask_nobody(memory: Path, worker: Agent) -> None:
    """They are in the file without the daemon, and recovery finds them; then the appends fail, and leave no part."""
    appended = 2
    with mountpoint() as place:
        mount = Mounted(memory, place, (*SESSIONS["kernel"], "commit=300"))
        try:
            number = appending(worker, place / "file")
            assert worker("os.pread(fd, 1 << 20, 0)") == blocks(number)  # where it lies; that ends what is armed
            for last in range(number, number + 4):
                worker("os.write(fd, bytes([{last}]) * 4096)", last=last)
                worker("os.fsync(fd)")
            mount.daemon.kill()
            mount.daemon.wait(HANG_SECONDS)
            for more in range(last + 1, last + 1 + appended):
                assert worker("os.write(fd, bytes([{more}]) * 4096)", more=more) == BLOCK
                worker("os.fsync(fd)")
                assert worker("os.pread(fd, 1 << 20, 0)") == blocks(more + 1)
            with contextlib.suppress(OSError):
                worker("os.close(fd)")
        finally:
            mount.down()
    with FileSystem.open(memory) as fs:
        assert fs.tree.read_bytes("/file") == blocks(last + 1 + appended)
    fsck(memory)


def blocks(count: int) -> bytes:
    """What `appending` and further such appends have written."""
    return b"".join(bytes([number]) * BLOCK for number in range(count))


def test_appends_through_the_kernel_follow_armed_ones(memory: Path, worker: Agent) -> None:
    """The kernel's size is older than they are, and it puts an append at the end that it knows."""
    with mounted(memory, *SESSIONS["kernel"]) as mount:
        path = mount.place / "file"
        number = appending(worker, path)
        plain = os.open(path, os.O_WRONLY | os.O_APPEND)
        worker("os.write(fd, bytes([{number}]) * 4096)", number=number)
        worker("os.fsync(fd)")
        for more in (number + 1, number + 2):
            worker("os.write(fd, bytes([{more}]) * 4096)", more=more)
            worker("os.fsync(fd)")
        os.write(plain, b"plain")
        assert path.read_bytes() == blocks(number + 3) + b"plain"
        os.close(plain)
        worker("os.close(fd)")
    fsck(memory)


CHANGES: dict[str, tuple[Callable[[Path], object], Callable[[FileSystem, int], bool]]] = {
    "mode": (lambda path: path.chmod(0o600), lambda fs, ino: fs.getattr(ino).mode & 0o777 == 0o600),
    "times": (lambda path: os.utime(path, (7, 7)), lambda fs, ino: fs.getattr(ino).mtime_ns == 7 * 10**9),
    "attribute": (lambda path: os.setxattr(path, "user.a", b"b"), lambda fs, ino: fs.getxattr(ino, b"user.a") == b"b"),
    "link": (lambda path: os.link(path, f"{path}2"), lambda fs, ino: fs.lookup(ROOT_INO, b"file2").ino == ino),
    "size": (lambda path: os.truncate(path, 5000), lambda fs, ino: fs.getattr(ino).size == 5000),
}


@pytest.mark.parametrize("what", CHANGES)
def test_changes_by_others_are_made_durable_too(memory: Path, worker: Agent, what: str) -> None:
    change, found = CHANGES[what]
    with mountpoint() as place, after_a_crash(memory, worker, place, lambda path: change(path) and None) as fs:
        assert found(fs, fs.lookup(ROOT_INO, b"file").ino)
    fsck(memory)


def test_a_stopped_appender_holds_up_nobody(root: Path, library: Path) -> None:
    path = root / "file"
    program = start(library, path, "A", 1_000_000, BLOCK, "plain")
    try:
        while not path.exists() or path.stat().st_size < 100 * BLOCK:
            assert program.poll() is None
        program.send_signal(signal.SIGSTOP)
        with path.open("ab", buffering=0) as plain:
            for number in range(50):
                plain.write(record("B", number, BLOCK))
        program.send_signal(signal.SIGCONT)
        size = path.stat().st_size + 100 * BLOCK
        while path.stat().st_size < size:
            assert program.poll() is None
    finally:
        program.kill()
        program.wait()
    found = Counter({who: len(numbers) for who, numbers in records(path.read_bytes(), BLOCK).items()})
    assert found["B"] == 50
