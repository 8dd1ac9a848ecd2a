"""sync(2) and syncfs(2) below the library: the daemon is killed right after, and the next mount has everything."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount_rig import SESSIONS, Mounted, mountpoint
from preload_rig import Agent, agent

from daxfs.fs.filesystem import FileSystem
from daxfs.fuse import mounts
from daxfs.tools.sync import sync as make_durable
from support import HANG_SECONDS, fsck, run

SIZE = 64 << 10
OLD = 10**9
PREPARE = "import mmap; libc = ctypes.CDLL(None, use_errno=True)"
SYNCS = {
    "sync": "os.sync()",
    "sync by number": "libc.syscall(162)",
    "syncfs": "assert libc.syncfs(near) == 0",
    "syncfs by number": "assert libc.syscall(306, near) == 0",
}
CREATE = """
fd = os.open({place} + '/file', os.O_RDWR | os.O_CREAT)
for start in range(0, {size}, 4096):
    os.write(fd, b'x' * 4096)
for _ in range(20):
    os.pread(fd, 4096, 0)
os.pwrite(fd, b'written', 4096)
os.mkdir({place} + '/late')
"""


@pytest.fixture
def worker(library: Path) -> Iterator[Agent]:
    """An agent below the library."""
    with agent(library) as made:
        made(PREPARE)
        yield made


class Killed:
    """A mount whose daemon is killed, and the file system that the next mount finds."""

    def __init__(self, pool: Path, place: Path, session: str) -> None:
        self.mount = Mounted(pool, place, (*SESSIONS[session], "commit=1000", "allow_other"))
        place.chmod(0o755)
        self.place = str(place)

    def die(self) -> None:
        """Kill the daemon."""
        self.mount.daemon.kill()
        self.mount.daemon.wait(HANG_SECONDS)
        self.mount.down()
        run("umount", "-l", self.place)

    def recovered(self, worker: Agent) -> FileSystem:
        """Return the file system after recovery, once no process maps the pool; e2fsck finds nothing."""
        self.die()
        worker.end()
        FileSystem.open(self.mount.pool).close()
        fsck(self.mount.pool)
        return FileSystem.open(self.mount.pool)


@pytest.fixture(params=["kernel"])
def doomed(pool: Callable[..., Path], request: pytest.FixtureRequest) -> Iterator[Killed]:
    """A mount of one of the sessions."""
    made = pool("-b", "4096")
    with mountpoint() as place:
        mount = Killed(made, place, request.param)
        try:
            yield mount
        finally:
            mount.mount.down()
            if mounts.top_mount(str(place)) is not None:
                run("umount", "-l", place)


def content(fs: FileSystem, name: str = "/file") -> bytes:
    """Return the content of the file; empty if there is none."""
    try:
        return fs.tree.read_bytes(name)
    except OSError as error:
        assert error.errno == errno.ENOENT
        return b""


@pytest.mark.parametrize("how", SYNCS)
@pytest.mark.parametrize("doomed", SESSIONS, indirect=True)
def test_what_was_done_before_is_there(doomed: Killed, worker: Agent, how: str) -> None:
    worker(CREATE, place=doomed.place, size=SIZE)
    worker("near = fd; " + SYNCS[how])
    with doomed.recovered(worker) as fs:
        assert content(fs) == b"x" * 4096 + b"written" + b"x" * (SIZE - 4096 - 7)
        assert fs.tree.stat("/late")


def test_without_it_nothing_is(doomed: Killed, worker: Agent) -> None:
    """Guards the test above, which would pass if something else committed; a lease does, before the last change."""
    worker(CREATE, place=doomed.place, size=SIZE)
    with doomed.recovered(worker) as fs:
        assert content(fs, "/late") == b""


@pytest.mark.parametrize("how", ["sync", "syncfs"])
def test_what_others_did_is_there(doomed: Killed, worker: Agent, how: str) -> None:
    """The process has opened no file of the mount, or only a directory, as sync(1) does."""
    Path(doomed.place, "file").write_bytes(b"others'")
    if how == "syncfs":
        worker("near = os.open({place}, os.O_RDONLY)", place=doomed.place)
    worker(SYNCS[how])
    with doomed.recovered(worker) as fs:
        assert content(fs) == b"others'"


@pytest.mark.parametrize("how", ["sync", "syncfs"])
def test_times_are_among_everything(doomed: Killed, worker: Agent, how: str) -> None:
    """The times of another file, which was only overwritten, wait outside the journal."""
    worker(CREATE, place=doomed.place, size=SIZE)
    os.utime(Path(doomed.place, "file"), (OLD, OLD))
    Path(doomed.place, "other").touch()
    make_durable(doomed.place)
    worker("os.pwrite(fd, b'late', 0)")
    worker("near = os.open({place} + '/other', os.O_RDONLY); " + SYNCS[how], place=doomed.place)
    with doomed.recovered(worker) as fs:
        assert content(fs)[:4] == b"late"
        assert fs.tree.stat("/file").mtime_ns > OLD * 10**9


def test_stores_through_a_mapping_that_outlived_its_descriptor(doomed: Killed, worker: Agent) -> None:
    worker(CREATE, place=doomed.place, size=SIZE)
    worker("place = mmap.mmap(fd, {size}); os.close(fd); place[:6] = b'stored'", size=SIZE)
    worker("os.mkdir({place} + '/later'); os.sync()", place=doomed.place)
    with doomed.recovered(worker) as fs:
        assert content(fs)[:6] == b"stored"
        assert fs.tree.stat("/later")


def test_a_root_out_of_reach_is_synced_by_an_open_file(doomed: Killed, worker: Agent) -> None:
    worker(CREATE, place=doomed.place, size=SIZE)
    os.chmod(doomed.place, 0o700)
    worker("os.setuid(65534); os.sync()")
    with doomed.recovered(worker) as fs:
        assert fs.tree.stat("/late")


def test_a_mountpoint_with_a_blank(pool: Callable[..., Path], worker: Agent) -> None:
    """The mount table escapes the blank."""
    made = pool("-b", "4096")
    with mountpoint() as outer:
        place = outer / "a b\\c"
        place.mkdir()
        doomed = Killed(made, place, "kernel")
        try:
            Path(doomed.place, "file").write_bytes(b"others'")
            worker("os.sync()")
            with doomed.recovered(worker) as fs:
                assert content(fs) == b"others'"
        finally:
            doomed.mount.down()
            if mounts.top_mount(str(place)) is not None:
                run("umount", "-l", place)


def test_a_fifo_names_its_mount_too(doomed: Killed, worker: Agent) -> None:
    """A FIFO passes no ioctl to the daemon."""
    os.mkfifo(Path(doomed.place, "fifo"))
    worker("near = os.open({place} + '/fifo', os.O_RDWR); " + SYNCS["syncfs"], place=doomed.place)
    with doomed.recovered(worker) as fs:
        assert fs.tree.stat("/fifo")


@pytest.mark.parametrize("call", ["libc.syncfs(-1)", "libc.syscall(306, -1)"])
def test_errors_are_the_kernels(worker: Agent, call: str) -> None:
    assert worker(f"({call}, ctypes.get_errno())") == (-1, errno.EBADF)


def test_other_file_systems_are_synced_as_ever(worker: Agent, tmp_path: Path) -> None:
    worker("near = os.open({path}, os.O_RDONLY); ctypes.set_errno(7)", path=str(tmp_path))
    assert worker("(libc.syncfs(near), ctypes.get_errno())") == (0, 7)


def test_a_daemon_that_is_gone_is_an_error_of_syncfs(doomed: Killed, worker: Agent) -> None:
    worker(CREATE, place=doomed.place, size=SIZE)
    doomed.die()
    assert worker("libc.syncfs(fd)") == -1
    worker("os.sync()")


def test_stores_of_others_are_written_back_where_msync_does_it(
    pool: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fence of a sync covers the whole pool, with unreported stores of other clients."""
    with FileSystem.open(pool("-b", "4096")) as fs:
        flushed: list[tuple[int, int]] = []
        monkeypatch.setattr(fs.volume.pool, "flush", lambda offset, length: flushed.append((offset, length)))
        fs.sync()
        assert flushed == ([(0, fs.volume.pool.size)] if fs.volume.pool.persistence == "msync" else [])
