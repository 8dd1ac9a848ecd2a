"""A mount becomes larger, by resize2fs or daxfs resize, or smaller, beside programs that use it; what is refused."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_rig import daxfs
from kernel_rig import kernel_mount
from mount_rig import COMMAND, as_user, mounted

from daxfs import direct
from daxfs.errors import UserError
from daxfs.fuse.kernel.resizing import EXT4_IOC_RESIZE_FS, LEAST, LEFT
from daxfs.tools import info, mountpoints, resize, snapshots
from support import HANG_SECONDS, fsck, run

Pool = Callable[..., Path]
MIB, GIB = 1 << 20, 1 << 30
LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def busy(place: Path) -> Iterator[None]:
    """Programs that make, read and remove files until the block ends."""
    ended, failed = threading.Event(), list[BaseException]()

    def work(number: int) -> None:
        path, turn = place / f"of {number}", 0
        try:
            while not ended.is_set():
                content = bytes([turn % 251]) * (100_000 + turn)
                path.write_bytes(content)
                assert path.read_bytes() == content
                path.unlink()
                turn += 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not failed, failed


def test_resize2fs(pool: Pool) -> None:
    """The stock tool finds the mount, makes the file longer and asks the daemon; the kernel mounts the result."""
    path = pool("-b", "4096", size="256M")
    with mounted(path) as mount:
        (mount.place / "first").write_bytes(b"1" * MIB)
        before = os.statvfs(mount.place).f_blocks
        with busy(mount.place):
            said = run("resize2fs", path, "20G")
        assert "is now 5242880 (4k) blocks long" in said
        assert os.statvfs(mount.place).f_blocks > before * 70
        assert path.stat().st_size == 20 * GIB
        assert "Nothing to do" in run("resize2fs", path)
        assert "shrinking not supported" in run("resize2fs", path, "10G", code=1)
        (mount.place / "second").write_bytes(b"2" * (300 * MIB))
    with kernel_mount(path) as place:
        assert (place / "first").read_bytes() == b"1" * MIB
        assert (place / "second").stat().st_size == 300 * MIB
        (place / "second").unlink()
    fsck(path)


def test_daxfs_resize(pool: Pool, capsys: pytest.CaptureFixture[str]) -> None:
    """By mountpoint and by pool; without a size all of the file; and the same of a pool that is not mounted."""

    def said(place: Path, size: str | None = None) -> str:
        resize.run(str(place), size)
        return capsys.readouterr().out

    path = pool("-b", "4096", size="64M")
    with mounted(path) as mount:
        assert "has 128 MiB (32768 blocks) now" in said(mount.place, "128M")
        assert "has 300 MiB (76800 blocks) now" in said(path, "300M")
        os.truncate(path, 400 * MIB)
        info.show(str(mount.place))
        assert "100 MiB after the file system" in capsys.readouterr().out
        assert "has 400 MiB (102400 blocks) now" in said(mount.place)
        assert "already" in said(mount.place)
    assert "has 500 MiB (128000 blocks) now" in said(path, "500M")
    fsck(path)


def resize_fs(place: Path, blocks: int) -> None:
    """Send what resize2fs sends."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, EXT4_IOC_RESIZE_FS, struct.pack("=Q", blocks))
    finally:
        os.close(descriptor)


def minimum_for(place: Path) -> None:
    """Ask how small the file system may be made."""
    with mountpoints.root(str(place)) as descriptor:
        try:
            resize.ask(descriptor, str(place), LEAST)
        except UserError as error:
            assert "only root" in str(error), error
            raise PermissionError(errno.EPERM, "refused") from None


def refused(place: Path, size: str) -> str:
    with pytest.raises(UserError) as caught:
        resize.run(str(place), size)
    return str(caught.value)


def test_what_is_refused(pool: Pool) -> None:
    """In one line, with an exit code, and nothing has changed."""
    path = pool("-b", "4096", size="64M")
    with mounted(path) as mount:
        (mount.place / "data").write_bytes(bytes(20 * MIB))
        before = os.statvfs(mount.place).f_blocks
        said = daxfs("resize", mount.place, "10M", code=1)
        assert "that are needed for what is in use" in said
        assert said.count("\n") == 1
        assert "is not a size" in refused(mount.place, "a lot")
        assert "is not a size" in refused(mount.place, "")
        assert "2^48 blocks" in refused(mount.place, "7E")
        assert "is not a whole number of bytes" in refused(mount.place, "0")
        mount.place.chmod(0o755)
        assert as_user(lambda: resize_fs(mount.place, 32768)) == 1  # EPERM
        assert as_user(lambda: resize_fs(mount.place, 1)) == 1
        assert as_user(lambda: minimum_for(mount.place)) == 1
        with pytest.raises(OSError, match="Invalid argument"):
            resize_fs(mount.place, 100)
        snapshots.create(str(mount.place), "monday")
        assert "monday" in refused(mount.place, "128M")
        for number in range(6):
            snapshots.create(str(mount.place), f"{number}{'n' * 200}")
        assert refused(mount.place, "128M").endswith("nnn..."), "as many names as the answer has room for"
        assert os.statvfs(mount.place).f_blocks == before
    with mounted(path, "ro") as mount:
        assert "Read-only" in refused(mount.place, "128M")
    with mounted(path, "session=pyfuse3") as mount:
        assert "its session" in refused(mount.place, "128M")
    assert path.stat().st_size == 64 * MIB


def test_clients(pool: Pool) -> None:
    """A mapping made before stays valid; a client that opens a file later maps all of the pool."""
    path = pool("-b", "4096", size="64M")
    with mounted(path) as mount:
        first, second = mount.place / "first", mount.place / "second"
        first.write_bytes(b"1" * MIB)
        with direct.map(first, access="rw") as old:
            assert old.direct, old.why
            daxfs("resize", mount.place, "1G")
            second.write_bytes(b"2" * (200 * MIB))
            old.view[:5] = b"still"
            with direct.open(second) as early:
                assert early.pread(150 * MIB, 3) == b"222"
            with direct.map(second) as new:
                assert new.direct, new.why
                assert bytes(new.view[-3:]) == b"222"
        with direct.map(second) as new:
            assert new.direct, new.why
        assert first.read_bytes()[:6] == b"still1"


def grown(pool: Pool) -> Path:
    """A pool of 1 GiB whose journal and metadata are those of a small one."""
    path = pool("-b", "4096", size="64M")
    run("truncate", "-s", GIB, path)
    run("resize2fs", "-f", path)
    return path


def test_shrinking(pool: Pool, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside programs, which see the new size; the pool's file is cut, and the kernel mounts the result."""
    path = grown(pool)
    with mounted(path) as mount:
        first, last = mount.place / "first", mount.place / "last"
        first.write_bytes(bytes(700 * MIB))
        last.write_bytes(os.urandom(20 * MIB))
        content = last.read_bytes()
        os.truncate(first, 0)  # which has freed all of it when it returns
        resize.show_minimum(str(mount.place))
        least = int(capsys.readouterr().out)
        assert least < 200 * MIB
        assert str(least // 4096) in refused(mount.place, str(least - MIB))
        with busy(mount.place):
            resize.run(str(mount.place), "256M")
        assert "has 256 MiB (65536 blocks) now" in capsys.readouterr().out
        assert path.stat().st_size == 256 * MIB
        assert os.statvfs(mount.place).f_blocks < 65536
        assert last.read_bytes() == content
        last.unlink()
        (mount.place / "second").write_bytes(b"2" * (150 * MIB))
    with kernel_mount(path) as place:
        assert (place / "second").stat().st_size == 150 * MIB
    resize.show_minimum(str(path))
    resize.run(str(path), capsys.readouterr().out.strip())
    assert path.stat().st_size < 200 * MIB
    fsck(path)


WORKER = """
import os, sys
os.chdir(sys.argv[1])
file = os.open("sub/file", os.O_RDWR)
temporary = os.open(".", os.O_TMPFILE | os.O_RDWR)
os.write(temporary, b"nameless")
before = os.stat("."), os.fstat(file), os.fstat(temporary)
print(*(each.st_ino for each in before), flush=True)
sys.stdin.readline()
assert [each.st_ino for each in before] == [os.stat(".").st_ino, os.fstat(file).st_ino, os.fstat(temporary).st_ino]
assert os.stat("sub/file").st_ino == before[1].st_ino == os.stat("link").st_ino
assert {each.name: each.inode() for each in os.scandir(".")}["link"] == before[1].st_ino
assert os.pread(temporary, 8, 0) == b"nameless" and os.pread(file, 4, 0) == b"file"
os.pwrite(file, b"more", 0)
os.mkdir("new")
open("new/file", "w").write("new")
os.rename("sub", "new/sub")
os.stat("new/sub/../sub/file")
print(os.getcwd(), flush=True)
"""


def handle_of(path: Path) -> bytes:
    """The file handle of a file (name_to_handle_at(2))."""
    room = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + bytes(128))
    mount = ctypes.c_int()
    assert LIBC.name_to_handle_at(-100, os.fsencode(path), room, ctypes.byref(mount), 0) == 0, ctypes.get_errno()
    return room.raw


def opened_by(place: Path, handle: bytes) -> int:
    """Open a file by its handle; return 0 or the errno."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        file = LIBC.open_by_handle_at(descriptor, ctypes.create_string_buffer(handle), os.O_RDONLY)
        if file < 0:
            return ctypes.get_errno()
        os.close(file)
        return 0
    finally:
        os.close(descriptor)


def test_programs_and_other_numbers(pool: Pool) -> None:
    """Who has a renumbered directory as its own, and open files in it, notices nothing; then old handles are stale."""
    path = grown(pool)
    with mounted(path) as mount:
        last = 0
        while last < 7 << 13:  # a directory in a group that goes
            folder = mount.place / f"{last}"
            folder.mkdir()
            last = folder.stat().st_ino
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_bytes(b"file")
        os.link(folder / "sub" / "file", folder / "link")
        handle = handle_of(folder / "link")
        number = (folder / "link").stat().st_ino
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline()
            resize.run(str(mount.place), "256M")
            assert path.stat().st_size == 256 * MIB
            assert opened_by(mount.place, handle) == 0
            said, _ = worker.communicate("go on\n", timeout=HANG_SECONDS)
        finally:
            worker.kill()
        assert worker.returncode == 0
        assert said.strip() == str(folder)
        Path("/proc/sys/vm/drop_caches").write_text("2")
        assert (folder / "link").stat().st_ino != number
        assert opened_by(mount.place, handle) == errno.ESTALE
        assert opened_by(mount.place, handle_of(folder / "link")) == 0
    with kernel_mount(path) as place:
        assert (place / folder.name / "new" / "sub" / "file").read_bytes() == b"more"
        assert (place / folder.name / "link").samefile(place / folder.name / "new" / "sub" / "file")
    fsck(path)


def test_a_shrink_that_is_interrupted(pool: Pool) -> None:
    """Ctrl-C ends it; the mount is as large as before, and uses all of that again."""
    path = grown(pool)
    with mounted(path) as mount:
        (mount.place / "first").write_bytes(bytes(500 * MIB))
        (mount.place / "last").write_bytes(bytes(400 * MIB))
        (mount.place / "first").unlink()
        before = os.statvfs(mount.place).f_blocks
        program = subprocess.Popen([*COMMAND, "resize", mount.place, "512M"], stderr=subprocess.PIPE)
        with mountpoints.root(str(mount.place)) as descriptor:
            while program.poll() is None and not resize.ask(descriptor, "", LEFT)["left"]:
                pass
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=HANG_SECONDS)
        assert os.statvfs(mount.place).f_blocks == before or program.returncode == 0
        (mount.place / "more").write_bytes(bytes(50 * MIB))
    fsck(path)


def test_clients_and_shrinking(pool: Pool) -> None:
    """What a program maps stays, and is named; when it has ended, the rest moves, and clients learn the new size."""
    path = grown(pool)
    with mounted(path) as mount:
        first, last = mount.place / "first", mount.place / "last"
        first.write_bytes(bytes(700 * MIB))
        last.write_bytes(b"l" * (20 * MIB))
        first.unlink()
        with direct.map(last, access="rw") as old:
            assert old.direct, old.why
            assert str(os.getpid()) in refused(mount.place, "256M")
            old.view[:5] = b"still"
            assert path.stat().st_size == GIB
        resize.run(str(mount.place), "256M")
        assert path.stat().st_size == 256 * MIB
        with direct.map(last, access="rw") as new:
            assert new.direct, new.why
            assert bytes(new.view[:6]) == b"stilll"
            new.view[-1:] = b"e"
        assert last.read_bytes()[-2:] == b"le"
    fsck(path)


PRELOADED = """
import ctypes, os, signal, sys
first = os.open(sys.argv[1], os.O_RDWR)
assert os.pread(first, 1, 0) == b"1"
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
past = libc.mmap(None, 1 << 20, 1, 1, first, 0)
print("ready", flush=True)
sys.stdin.readline()
second = os.open(sys.argv[2], os.O_RDWR)
for place in range(0, 150 << 20, 1 << 20):
    assert os.pread(second, 1, place) == b"2"
    assert os.pwrite(second, b"3", place) == 1
child = os.fork()
if not child:
    ctypes.string_at(past + (1 << 19), 1)
    os._exit(0)
assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGBUS
"""


def test_a_program_below_daxfs_exec(pool: Pool) -> None:
    """It has mapped the pool before growth; it has direct access to what is new, and past EOF is still SIGBUS."""
    path = pool("-b", "4096", size="64M")
    with mounted(path) as mount:
        first, second = mount.place / "first", mount.place / "second"
        first.write_bytes(b"1" * 5000)
        command = [*COMMAND, "exec", "--verbose", sys.executable, "-c", PRELOADED, first, second]
        program = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            resize.run(str(mount.place), "1G")
            second.write_bytes(b"2" * (150 * MIB))
            _, said = program.communicate("go on\n", timeout=HANG_SECONDS)
        finally:
            program.kill()
        assert program.returncode == 0, said
        reads, writes = re.search(r"direct: (\d+) reads, (\d+) writes", said).groups()  # type: ignore[union-attr]
        assert int(reads) > 140, said
        assert int(writes) > 140, said
        assert second.read_bytes()[:2] == b"32"
