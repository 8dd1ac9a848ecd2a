"""Batches through the mount: the calls of SQLite with SQLITE_ENABLE_BATCH_ATOMIC_WRITE, in its order.

SQLite asks F2FS_IOC_GET_FEATURES once for each open database. A commit is START, a pwrite64 of each changed page in
the order of the pages, COMMIT, and fsync; after an error ABORT, and SQLite commits once more with a rollback journal
(sqlite3PagerCommitPhaseOne in src/pager.c).
"""

from __future__ import annotations

import errno
import fcntl
import io
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cli_rig import daxfs
from mount_rig import SESSIONS, Mounted, as_user, mounted, mountpoint

from daxfs import direct
from daxfs.fs.filesystem import FileSystem
from support import HANG_SECONDS, fsck, mke2fs

pytestmark = pytest.mark.parametrize("session", ["kernel"], indirect=True)

START, COMMIT, START_VOLATILE, ABORT, GET_FEATURES = 0xF501, 0xF502, 0xF503, 0xF505, 0x8004F50C
ATOMIC_WRITE = 4
PAGE = 4096
PAGES = 200
MIB = 1 << 20


def refused(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.RaisesExc(OSError, check=lambda error: error.errno == number)


def features(descriptor: int) -> int:
    found: int = struct.unpack("=I", fcntl.ioctl(descriptor, GET_FEATURES, bytes(4)))[0]
    return found


def page(number: int, version: int) -> bytes:
    """A page that says which it is and in which version, all over."""
    return struct.pack("=II", number, version) * (PAGE // 8)


def commit(descriptor: int, pages: list[int], version: int) -> None:
    """Change some pages and page 0, which counts the changes, as SQLite does."""
    fcntl.ioctl(descriptor, START)
    for number in sorted({0, *pages}):
        assert os.pwrite(descriptor, page(number, version), number * PAGE) == PAGE
    fcntl.ioctl(descriptor, COMMIT)
    os.fsync(descriptor)


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_the_calls_of_sqlite(mount: Mounted) -> None:
    """Others see the file as before until COMMIT; then all of it is there."""
    path = mount.place / "db"
    with opened(path) as mine, opened(path) as other:
        assert features(mine) & ATOMIC_WRITE
        commit(mine, list(range(PAGES)), 1)
        whole = os.pread(other, PAGES * PAGE, 0)
        fcntl.ioctl(mine, START)
        for number in (0, 3, 4, PAGES + 5):
            os.pwrite(mine, page(number, 2), number * PAGE)
        assert os.pread(other, (PAGES + 10) * PAGE, 0) == whole
        assert os.stat(path).st_size == len(whole)
        assert os.pread(mine, PAGE, 3 * PAGE) == page(3, 2), "its writer reads what it wrote"
        assert os.pread(mine, PAGE, (PAGES + 5) * PAGE) == page(PAGES + 5, 2)
        fcntl.ioctl(mine, COMMIT)
        assert os.fstat(other).st_size == (PAGES + 6) * PAGE
        found = os.pread(other, (PAGES + 6) * PAGE, 0)
    after = bytearray(whole) + bytes(6 * PAGE)
    for number in (0, 3, 4, PAGES + 5):
        after[number * PAGE : (number + 1) * PAGE] = page(number, 2)
    assert found == after


def test_abort_and_close(mount: Mounted) -> None:
    path = mount.place / "db"
    path.write_bytes(b"old")
    for end in (lambda descriptor: fcntl.ioctl(descriptor, ABORT), lambda _: None):
        with opened(path) as mine:
            fcntl.ioctl(mine, START)
            os.pwrite(mine, b"new", 0)
            os.pwrite(mine, b"new", 10_000)
            end(mine)
        assert path.read_bytes() == b"old"
        with opened(path) as mine:
            fcntl.ioctl(mine, START)
            fcntl.ioctl(mine, COMMIT)
        assert path.stat().st_size == 3


def test_what_is_refused(mount: Mounted) -> None:
    path = mount.place / "db"
    path.write_bytes(b"old" * 10_000)
    with opened(path) as mine, opened(path) as other, opened(path, os.O_RDONLY) as reader:
        with refused(errno.EBADF):
            fcntl.ioctl(reader, START)
        with refused(errno.EINVAL):
            fcntl.ioctl(mine, COMMIT)
        fcntl.ioctl(mine, ABORT)
        fcntl.ioctl(mine, START)
        for descriptor in (mine, other):
            with refused(errno.EBUSY):
                fcntl.ioctl(descriptor, START)
        with refused(errno.EINVAL):
            fcntl.ioctl(other, COMMIT)
        with refused(errno.ENOTTY):
            fcntl.ioctl(mine, START_VOLATILE)
        for attempt in (
            lambda: os.ftruncate(mine, 100),
            lambda: os.posix_fallocate(mine, 0, 100_000),
            lambda: os.copy_file_range(reader, mine, 100, 0, 200),
        ):
            with refused(errno.EBUSY):
                attempt()
        block = bytes(MIB)
        for number in range(16):
            os.pwrite(mine, block, number * MIB)
        with refused(errno.EFBIG):
            os.pwrite(mine, b"x", 16 * MIB)
        fcntl.ioctl(mine, ABORT)
        os.ftruncate(mine, 100)
        with opened(mount.place, os.O_RDONLY) as directory:
            assert features(directory) == 0
            with refused(errno.EBADF):
                fcntl.ioctl(directory, START)
    assert path.read_bytes() == (b"old" * 34)[:100]


def test_a_file_that_the_kernel_caches(session: str, pool: Callable[..., Path]) -> None:
    """Others would see staged pages in the cache, so such a file says that it can't."""
    with mounted(pool("-b", "4096"), *SESSIONS[session], "dax=inode") as mount, opened(mount.place / "db") as mine:
        assert features(mine) == 0
        with refused(errno.EOPNOTSUPP):
            fcntl.ioctl(mine, START)


def test_more_than_there_is_room_for(mount: Mounted) -> None:
    """COMMIT is refused, nothing has changed, and the batch has ended."""
    path, filler = mount.place / "db", mount.place / "filler"
    path.write_bytes(b"o" * 8 * MIB)
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"x" * MIB) == MIB:
            pass
    with opened(path) as mine:
        fcntl.ioctl(mine, START)
        for number in range(8):
            os.pwrite(mine, b"n" * MIB, number * MIB)
        with refused(errno.ENOSPC):
            fcntl.ioctl(mine, COMMIT)
        with refused(errno.EINVAL):
            fcntl.ioctl(mine, COMMIT)
        assert path.read_bytes() == b"o" * 8 * MIB
        filler.unlink()
        commit(mine, [5], 1)
        assert os.pread(mine, PAGE, 5 * PAGE) == page(5, 1)


def test_other_processes_and_threads(mount: Mounted) -> None:
    """A child that shares the descriptor may not end the batch; another thread may."""
    path = mount.place / "db"
    path.write_bytes(b"old")
    with opened(path) as mine:
        fcntl.ioctl(mine, START)
        os.pwrite(mine, b"new", 0)
        for command in (COMMIT, ABORT):
            assert as_user(lambda command=command: fcntl.ioctl(mine, command), 0, 0) == errno.EPERM
        assert path.read_bytes() == b"old"
        thread = threading.Thread(target=fcntl.ioctl, args=(mine, COMMIT))
        thread.start()
        thread.join()
        assert path.read_bytes() == b"new"


@pytest.mark.parametrize("child", [False, True])
def test_a_killed_owner(mount: Mounted, child: bool) -> None:
    """Its batch never happened, even if a child of it still has the file open."""
    path = mount.place / "db"
    path.write_bytes(b"old" * 5000)
    program = (
        "import fcntl, os, sys, time\n"
        "file = os.open(sys.argv[1], os.O_RDWR)\n"
        "fcntl.ioctl(file, 0xF501)\n"
        "os.pwrite(file, b'new' * 5000, 0)\n"
        f"child = os.fork() if {child} else 0\n"
        f"if child or not {child}:\n"
        "    os.write(1, b'%d\\n' % child)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        owner.kill()
    assert path.read_bytes() == b"old" * 5000
    try:
        with opened(path) as mine:  # at once, although the child has not closed the file
            commit(mine, [1], 7)
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
    assert path.read_bytes()[PAGE : 2 * PAGE] == page(1, 7)


def test_mappings_see_all_or_nothing(mount: Mounted) -> None:
    """A mapping has the new content after COMMIT. If it has read staged pages meanwhile, COMMIT is refused."""
    path = mount.place / "db"
    path.write_bytes(b"o" * PAGES * PAGE)
    with opened(path) as mine, opened(path) as other, mmap.mmap(other, PAGES * PAGE) as mapping:
        for descriptor in (mine, other):
            with mmap.mmap(descriptor, PAGES * PAGE) as early:
                assert early[0] == early[50 * PAGE] == ord("o")
        assert mapping[0] == ord("o")
        fcntl.ioctl(mine, START)
        os.pwrite(mine, b"n" * PAGE, 0)
        fcntl.ioctl(mine, COMMIT)
        assert mapping[0] == ord("n")
        fcntl.ioctl(mine, START)
        os.pwrite(mine, b"m" * PAGE, 0)
        assert mapping[0] == ord("n"), "a mapping sees nothing that is staged"
        with mmap.mmap(mine, PAGE) as own:
            assert own[0] == ord("n"), "the writer's mapping neither"
        with refused(errno.EBUSY):
            fcntl.ioctl(mine, COMMIT)
        assert mapping[0] == ord("n")
        assert os.pread(mine, 1, 0) == b"n"
        commit(mine, [0], 3)
        assert mapping[:PAGE] == page(0, 3)


def test_a_mapping_that_stores(mount: Mounted) -> None:
    """What it stores goes to the file and not into the batch, also if the kernel writes it through its file."""
    path = mount.place / "db"
    path.write_bytes(b"o" * 10 * PAGE)
    with opened(path) as mine, mmap.mmap(mine, 10 * PAGE) as mapping:
        fcntl.ioctl(mine, START)
        os.pwrite(mine, page(2, 1), 2 * PAGE)
        mapping[5 * PAGE : 6 * PAGE] = b"m" * PAGE
        mapping.flush()
        with opened(path) as other:
            assert os.pread(other, PAGE, 5 * PAGE) == b"m" * PAGE
        fcntl.ioctl(mine, ABORT)
        assert os.pread(mine, PAGE, 5 * PAGE) == b"m" * PAGE
        assert os.pread(mine, PAGE, 2 * PAGE) == b"o" * PAGE


def test_appends(mount: Mounted) -> None:
    """The writer's appends follow each other; one by somebody else goes to the end as it is without them."""
    path = mount.place / "log"
    path.write_bytes(b"old")
    with (
        opened(path, os.O_RDWR | os.O_APPEND) as mine,
        opened(path, os.O_RDWR | os.O_APPEND) as other,
    ):
        fcntl.ioctl(mine, START)
        os.write(mine, b" and")
        assert os.stat(path).st_size == 3
        os.write(mine, b" new")
        fcntl.ioctl(mine, COMMIT)
        assert path.read_bytes() == b"old and new"
        fcntl.ioctl(mine, START)
        os.write(mine, b" lost")
        os.write(other, b"!")
        fcntl.ioctl(mine, ABORT)
        os.write(other, b"?")
    assert path.read_bytes() == b"old and new!?"


def test_the_memory_of_a_user_is_bounded(mount: Mounted) -> None:
    root = mount.place
    root.chmod(0o777)

    def stage() -> None:
        block = bytes(MIB)
        for number in range(4):
            descriptor = os.open(root / f"f{number}", os.O_RDWR | os.O_CREAT)
            fcntl.ioctl(descriptor, START)
            for at in range(16):
                os.pwrite(descriptor, block, at * MIB)
        descriptor = os.open(root / "more", os.O_RDWR | os.O_CREAT)
        fcntl.ioctl(descriptor, START)
        with opened(root / "plain") as plain:
            os.pwrite(plain, b"x", 0)
        os.pwrite(descriptor, b"x", 0)

    def commit_one() -> None:
        with opened(root / "later") as mine:
            commit(mine, [3], 1)

    assert as_user(stage) == errno.ENOMEM
    assert as_user(commit_one) == 0, "what the first process had staged was given back"


def test_python_clients_write_atomically(mount: Mounted) -> None:
    """Other clients that read directly see it at once, in the old bytes and past EOF; a refusal changes nothing."""
    path = mount.place / "db"
    path.write_bytes(b"o" * 100_000)
    with direct.open(path, "r+b") as file, direct.open(path, "rb") as reader:
        assert file.pwrite(99_990, b"w" * 20) == 20
        assert reader.pread(0, 5) == b"ooooo"
        assert file.write_atomic(100, b"n" * 50_000) == 50_000
        for each in (file, reader):
            assert each.pread(99, 50_002) == b"o" + b"n" * 50_000 + b"o"
            assert each.direct
        assert file.write_atomic(200_000, b"end") == 3
        assert reader.size == 200_003
        assert reader.pread(99_990, 30) == b"w" * 20 + bytes(10)
        with refused(errno.EFBIG):
            file.write_atomic(0, bytes(16 * MIB + 1))
        with opened(path) as other:
            fcntl.ioctl(other, START)
            with refused(errno.EBUSY):
                file.write_atomic(0, b"x")
        assert reader.pread(0, 1) == b"o"
        with pytest.raises(io.UnsupportedOperation):
            reader.write_atomic(0, b"x")
        with pytest.raises(ValueError, match="offset"):
            file.write_atomic(-1, b"x")
        file.pwrite(0, b"later")
        assert reader.pread(0, 5) == b"later"


@pytest.mark.usefixtures("session")
def test_python_clients_of_another_file_system(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(b"old")
    with direct.open(path, "r+b") as file, pytest.raises(OSError, match=r"ioctl|not supported"):
        file.write_atomic(0, b"new")
    assert path.read_bytes() == b"old"


def versions(path: Path) -> tuple[int, bytearray]:
    """The version that page 0 says, and the content."""
    content = bytearray(path.read_bytes())
    return struct.unpack_from("=II", content)[1], content


@pytest.mark.parametrize("seed", range(3))
def test_the_daemon_is_killed_amid_batches(session: str, tmp_path: Path, seed: int) -> None:
    """The pool then holds all of the last batches, or nothing of the one that was not reported as done."""
    path = tmp_path / "pool"
    mke2fs(path, "-b", "4096", size="64M")
    chance = random.Random(seed)
    model = bytearray(b"".join(page(number, 0) for number in range(PAGES)))
    for _ in range(3):
        with mountpoint() as place:
            mount = Mounted(path, place, SESSIONS[session])
            db = mount.place / "db"
            if not db.exists():
                with opened(db) as mine:
                    os.pwrite(mine, model, 0)
                    os.fsync(mine)
            version = versions(db)[0]
            killer = threading.Timer(chance.uniform(0.05, 0.3), mount.daemon.kill)
            killer.start()
            changed = model
            with suppress(OSError), opened(db, os.O_RDWR) as mine:
                while True:
                    version += 1
                    numbers = chance.sample(range(PAGES), chance.choice((1, 2, 30)))
                    changed = bytearray(model)
                    for number in {0, *numbers}:
                        changed[number * PAGE : (number + 1) * PAGE] = page(number, version)
                    commit(mine, numbers, version)
                    model = changed
            killer.join()
            mount.daemon.wait(HANG_SECONDS)
            mount.down()
        with FileSystem.open(path) as fs:
            found = bytearray(fs.tree.read_bytes("/db"))
        fsck(path)
        assert found in (model, changed), "neither the last batch that was done nor the next one"
        model = found


def test_below_daxfs_exec(mount: Mounted) -> None:
    """A program whose reads and writes go past the kernel stages as others do."""
    path = mount.place / "db"
    path.write_bytes(b"o" * PAGES * PAGE)
    program = (
        "import fcntl, os, sys\n"
        "file = os.open(sys.argv[1], os.O_RDWR)\n"
        "other = os.open(sys.argv[1], os.O_RDWR)\n"
        "os.pwrite(file, b'w' * 100, 0)\n"
        "assert os.pread(file, 100, 0) == b'w' * 100\n"
        "fcntl.ioctl(file, 0xF501)\n"
        "os.pwrite(file, b'n' * 5000, 50)\n"
        "assert os.pread(other, 100, 0) == b'w' * 100\n"
        "fcntl.ioctl(file, 0xF502)\n"
        "assert os.pread(other, 100, 0) == b'w' * 50 + b'n' * 50\n"
        "fcntl.ioctl(file, 0xF501)\n"
        "os.pwrite(file, b'x' * 5000, 0)\n"
    )
    daxfs("exec", "--", sys.executable, "-c", program, path)
    assert path.read_bytes() == b"w" * 50 + b"n" * 5000 + b"o" * (PAGES * PAGE - 5050)
