"""The life of the daemon: mount returns when it serves, umount ends it, a failure leaves the mountpoint in place."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_rig import daxfs
from mount_rig import SESSIONS, Mounted, mounted, mountpoint

from daxfs import protocol
from daxfs.errors import Corrupt, CorruptKind
from daxfs.fs import names
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fuse import mounts
from daxfs.tools import info
from support import HANG_SECONDS, fsck, run

Pool = Callable[..., Path]

BROKEN_SESSION = """
import sys
from fake_core import FakeCore
from daxfs.fuse import options
from daxfs.fuse.serving import SessionFailed
from daxfs.tools.mount import load_session

core = FakeCore()
core.refuse = {"mkdir": KeyError("a bug")}
core.interrupted = len(sys.argv) > 3
try:
    load_session(sys.argv[2])(core, "/fake/pool", sys.argv[1], options.parse([]), lambda: print("ready", flush=True))
except SessionFailed:
    assert isinstance(core.aborted, BaseException)
    sys.exit(7)
"""


def in_use(pool: Path) -> bool:
    """Return whether a process has the pool's lock."""
    return subprocess.run(["flock", "-n", "-x", pool, "true"], check=False).returncode != 0


def test_mount_returns_when_it_answers_and_umount_when_the_pool_is_closed(pool: Pool) -> None:
    path = pool()
    with mountpoint() as place:
        for number in range(3):
            daxfs("mount", path, place)
            found = mounts.top_mount(str(place))
            assert found is not None
            assert (found.filesystem, found.source) == (protocol.FILESYSTEM_TYPE, str(path))
            (place / f"file{number}").write_bytes(b"data")
            daxfs("umount", place)
            assert not in_use(path)
            fsck(path)
        assert os.listdir(place) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts(pool: Pool, number: signal.Signals) -> None:
    path = pool()
    with mountpoint() as place:
        mount = Mounted(path, place)
        try:
            with open(place / "file", "wb", buffering=0) as file:
                file.write(b"data")
                (place / "unlinked").write_bytes(b"x")
                held = os.open(place / "unlinked", os.O_RDONLY)
                (place / "unlinked").unlink()
                mount.daemon.send_signal(number)
                assert mount.daemon.wait(HANG_SECONDS) == 0, mount.said()
                os.close(held)
            assert mounts.top_mount(str(place)) is None
        finally:
            mount.down()
    fsck(path)
    assert "data" in run("debugfs", "-R", "cat file", path)


def test_who_only_looks_does_not_keep_a_mount(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process's statfs(2), as from a program that lists mounts, does not make umount fail."""
    monkeypatch.setattr(mounts, "BUSY_SECONDS", HANG_SECONDS)
    with mounted(pool()) as mount:
        seen = os.open(mount.place, os.O_RDONLY)
        threading.Timer(0.05, os.close, [seen]).start()
        mounts.unmount(str(mount.place))
        assert mounts.top_mount(str(mount.place)) is None
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(seen)


def test_a_busy_mount_stays(pool: Pool) -> None:
    with mounted(pool()) as mount, open(mount.place / "file", "wb"):
        assert "busy" in daxfs("umount", mount.place, code=32)
        assert mount.daemon.poll() is None


def test_a_killed_daemon_leaves_the_mountpoint(pool: Pool) -> None:
    path = pool()
    with mountpoint() as place:
        mount = Mounted(path, place)
        try:
            (place / "file").write_bytes(b"data")
            with open(place / "file", "rb") as file:
                os.fsync(file.fileno())
            mount.daemon.kill()
            mount.daemon.wait(HANG_SECONDS)
        finally:
            mount.down()
        with pytest.raises(OSError, match="not connected"):
            os.listdir(place)
        assert "daxfs umount" in daxfs("mount", path, place, code=32)
        daxfs("umount", place)
        with mounted(path) as again:
            assert (again.place / "file").read_bytes() == b"data"


def broken_session(*arguments: object) -> subprocess.Popen[str]:
    """Start a process whose session has a core that raises an exception."""
    return subprocess.Popen(
        [sys.executable, "-c", BROKEN_SESSION, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )


@pytest.mark.parametrize("session", SESSIONS)
def test_an_unknown_exception_is_one_requests_error(session: str) -> None:
    with mountpoint() as place:
        daemon = broken_session(place, session)
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline() == "ready\n"
            for _ in range(3):
                with pytest.raises(OSError, match="Input/output") as caught:
                    os.mkdir(place / "d")
                assert caught.value.errno == errno.EIO
            (place / "file").write_bytes(b"data")
            assert (place / "file").read_bytes() == b"data"
            daemon.send_signal(signal.SIGTERM)
            _, said = daemon.communicate(timeout=HANG_SECONDS)
            assert daemon.returncode == 0
            assert "a bug" in said
        finally:
            daemon.kill()
            daemon.wait(HANG_SECONDS)
        assert mounts.top_mount(str(place)) is None


@pytest.mark.parametrize("session", SESSIONS)
def test_an_interrupted_change_aborts_and_leaves_the_mountpoint(session: str) -> None:
    with mountpoint() as place:
        daemon = broken_session(place, session, "interrupted")
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline() == "ready\n"
            assert os.path.exists(place)
            with pytest.raises(OSError, match=r"not connected|abort") as caught:
                os.mkdir(place / "d")
            assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
            _, said = daemon.communicate(timeout=HANG_SECONDS)
            assert daemon.returncode == 7
            assert "a bug" in said
        finally:
            daemon.kill()
            daemon.wait(HANG_SECONDS)
        assert mounts.top_mount(str(place)) is not None


def test_a_second_daemon_is_refused(pool: Pool) -> None:
    path = pool()
    with mounted(path) as mount, mountpoint() as other:
        for arguments in (("mount", path, other), ("mount", "-f", path, other)):
            said = daxfs(*arguments, code=32)
            assert "in use" in said
            assert str(mount.place) in said
        assert "in use" in daxfs("check", path, code=8)
        assert "in use" in daxfs("mkfs", "-F", path, code=32)


def test_a_path_that_clients_cannot_be_told_is_refused(pool: Pool, tmp_path: Path) -> None:
    made = pool()
    folder = tmp_path
    while len(str(folder)) < protocol.PATH_SIZE - 250:
        folder /= "f" * 200
    folder.mkdir(parents=True)
    longest = folder / ("p" * (protocol.PATH_SIZE - 2 - len(str(folder))))
    assert len(str(longest)) == protocol.PATH_SIZE - 1
    made.rename(longest)
    with mounted(longest):
        pass
    link = tmp_path / "link"
    longer = longest.rename(longest.with_name(longest.name + "p"))
    link.symlink_to(longer)
    with mountpoint() as place:
        for path in (longer, link):
            said = daxfs("mount", path, place, code=32)
            assert f"{protocol.PATH_SIZE} bytes, more than the {protocol.PATH_SIZE - 1}" in said
            assert said.count("\n") == 1


def test_damage_is_refused_by_name(pool: Pool) -> None:
    path = pool("-O", "metadata_csum")
    with open(path, "r+b") as image:
        image.seek(1024 + 0x78)
        image.write(b"damage")
    before = path.read_bytes()
    with mountpoint() as place:
        said = daxfs("mount", path, place, code=32)
    assert "checksum" in said
    assert said.count("\n") == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize(("offset", "reason"), [(1024, "not an ext4 pool"), (1024 + 0x78, "checksum")])
def test_a_refusal_names_the_pool_once(pool: Pool, offset: int, reason: str) -> None:
    path = pool("-O", "metadata_csum")
    with open(path, "r+b") as image:
        image.seek(offset)
        image.write(bytes(1024) if offset == 1024 else b"damage")
    with mountpoint() as place:
        said = daxfs("mount", path, place, code=32)
    assert reason in said
    assert said.count(str(path)) == 1


def test_the_helper_of_mount8(pool: Pool) -> None:
    path = pool()
    command = [sys.executable, "-c", "from daxfs.tools.cli import mount_main; mount_main()"]
    with mountpoint() as place:
        fake = subprocess.run([*command, path, place, "-f", "-o", "ro"], capture_output=True, check=False)
        assert fake.returncode == 0
        assert mounts.top_mount(str(place)) is None
        options = "rw,nosuid,noauto,x-systemd.requires=x,_netdev"
        subprocess.run([*command, path, place, "-n", "-o", options], check=True, timeout=30)
        flags = Path("/proc/self/mounts").read_text().split(str(place))[1].split()[1].split(",")
        assert {"rw", "nosuid", "default_permissions", "allow_other"} <= set(flags)
        assert "nodev" not in flags
        daxfs("umount", place)
        for wrong in ([], [path], [path, place, "-Q"], [path, place, "-o", "bogus"]):
            done = subprocess.run([*command, *wrong], capture_output=True, text=True, check=False)
            assert done.returncode == 1
            assert done.stderr.count("\n") == 1


def wake_ups(pid: int) -> int:
    """Return how often a process has gone to sleep voluntarily."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def test_an_idle_mount_costs_nothing(pool: Pool) -> None:
    with mounted(pool()) as mount:
        (mount.place / "file").write_bytes(b"x" * 10_000)
        assert (mount.place / "file").read_bytes() == b"x" * 10_000
        # The daemon ticks once a second. Programs that look at all mounts, such as another test's df, wake it too.
        for _ in range(30):
            before = wake_ups(mount.daemon.pid), processor_seconds(mount.daemon.pid)
            time.sleep(1)
            woken = wake_ups(mount.daemon.pid) - before[0]
            spent = processor_seconds(mount.daemon.pid) - before[1]
            if woken <= 4 and spent <= 0.1:
                return
        pytest.fail(f"woken {woken} times in a second, for {spent:.2f} s")


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_commit_interval_makes_durable(pool: Pool) -> None:
    path = pool()
    with mounted(path, "commit=1") as mount:
        (mount.place / "name").touch()
        end = time.monotonic() + 5
        while "name" not in daxfs("dump", path, "dir", "/"):
            assert time.monotonic() < end
            time.sleep(0.1)


def test_info_of_a_pool_and_of_a_mount(pool: Pool) -> None:
    path = pool("-L", "mylabel")
    facts = json.loads(daxfs("info", path, "--json"))
    assert (facts["state"], facts["label"], facts["size"], facts["mountpoint"]) == ("clean", "mylabel", 64 << 20, "")
    assert facts["persistence"] in ("libpmem", "msync", "volatile")
    assert "has_journal" in facts["features"]
    shown = daxfs("info", path)
    assert "mylabel" in shown
    assert "clean" in shown
    assert facts["mount"] == {}
    with mounted(path, "commit=7,noatime") as mount:
        facts = json.loads(daxfs("info", mount.place, "--json"))
        assert (facts["pool"], facts["mountpoint"], facts["state"]) == (str(path), str(mount.place), "mounted")
        assert {"rw", "commit=7", "noatime", "dax=always"} <= {*facts["mount"]["options"]}
        assert json.loads(daxfs("info", path, "--json"))["mount"] == facts["mount"]
        assert "commit=7," in daxfs("info", mount.place)
    with mounted(path, "session=pyfuse3") as mount:
        assert json.loads(daxfs("info", mount.place, "--json"))["mount"] == {}


def test_dump_shows_what_debugfs_shows(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "tree" / "d").mkdir(parents=True)
    (tmp_path / "tree" / "d" / "file").write_bytes(b"x" * 100_000)
    path = pool("-d", str(tmp_path / "tree"))
    assert "s_blocks_count_lo" in daxfs("dump", path, "superblock")
    assert "bg_free_blocks_count_lo" in daxfs("dump", path, "group", "0")
    assert "lost+found" in daxfs("dump", path, "dir", "/")
    inode = daxfs("dump", path, "inode", "/d/file")
    assert "i_links_count" in inode
    number = inode.split()[1].rstrip(":")
    assert daxfs("dump", path, "extents", number) == daxfs("dump", path, "extents", "/d/file")
    block = daxfs("dump", path, "extents", number).splitlines()[1].split()[3]
    assert run("debugfs", "-R", "bmap /d/file 0", path).splitlines()[0] == block
    assert "empty" in daxfs("dump", path, "journal")
    usage = (("inode", "x"), ("group", "999"), ("dir", "/d/file"), ("inode",))
    for code, *wrong in ((66, "inode", "/nothing"), *((64, *words) for words in usage)):
        assert daxfs("dump", path, *wrong, code=code).count("\n") == 1


def test_map_of_a_mounted_file_and_of_a_path_in_a_pool(pool: Pool) -> None:
    path = pool("-b", "4096", size="128M")
    with mounted(path) as mount:
        file = mount.place / "file"
        file.write_bytes(b"x" * (8 << 20))
        facts = json.loads(daxfs("map", file, "--json"))
        assert facts["ino"] == file.stat().st_ino
        assert facts["allocated"] == 8 << 20
        assert sum(run["length"] for run in facts["runs"]) == 8 << 20
        content = path.read_bytes()
        for piece in facts["runs"]:
            assert content[piece["pool_offset"] : piece["pool_offset"] + 100] == b"x" * 100
        assert "can be mapped with 2 MiB pages" in daxfs("map", file)
    assert json.loads(daxfs("map", f"{path}:/file", "--json")) == facts
    assert json.loads(daxfs("map", "/file", "--pool", path, "--json")) == facts
    (path.parent / "folder").mkdir()
    assert "not on a mount" in daxfs("map", path.parent / "folder", code=66)


@pytest.mark.parametrize("session", SESSIONS.values(), ids=list(SESSIONS))
def test_info_tells_what_is_free_now(pool: Pool, session: tuple[str, ...]) -> None:
    path = pool("-b", "4096")
    with mounted(path, *session) as mount:
        (mount.place / "file").write_bytes(b"x" * (20 << 20))
        os.sync()
        for place in (path, mount.place):
            facts = json.loads(daxfs("info", place, "--json"))
            space = os.statvfs(mount.place)
            assert (facts["free_blocks"], facts["free_inodes"]) == (space.f_bfree, space.f_ffree)


def test_a_daemon_that_is_stopped_does_not_stop_info(pool: Pool) -> None:
    path = pool("-b", "4096")
    with mounted(path) as mount:
        with (mount.place / "file").open("wb") as file:
            file.write(b"x" * (20 << 20))
            os.fsync(file.fileno())
        free = os.statvfs(mount.place).f_bfree
        mount.daemon.send_signal(signal.SIGSTOP)
        try:
            for place in (path, mount.place):
                facts = json.loads(daxfs("info", place, "--json", limit=30))
                assert facts["state"] == "mounted, but its daemon does not answer"
                assert facts["free_blocks"] == free, "as of the last commit"
        finally:
            mount.daemon.send_signal(signal.SIGCONT)


@pytest.mark.interpreted
def test_looks_beside_a_user_see_the_last_commit(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that uses the pool can't be asked, so the newest superblock is read from the log."""

    def damage(*_: object) -> None:
        raise Corrupt(CorruptKind.EXTENT_INDEX, "for a test")

    path = pool("-b", "4096", "-e", "remount-ro")
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("/file", b"x" * (20 << 20))
        fs.sync()
        space = fs.statfs()
        facts = info.examine(str(path))
        assert (facts.free_blocks, facts.free_inodes) == (space.free, space.files_free)
        monkeypatch.setattr(names, "make", damage)
        with pytest.raises(Corrupt):
            fs.mkdir(ROOT_INO, b"new", 0o755)
        facts = info.examine(str(path))
        assert (facts.state, facts.errors) == ("with errors: run daxfs check", 1)
    run("e2fsck", "-fy", path)
