"""Remounting a live mount: read-only is clean on the pool, and the way back works; what can't be had is refused."""

from __future__ import annotations

import errno
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_rig import daxfs
from mount_rig import COMMAND, Mounted, as_user, mounted, mountpoint

from daxfs import direct
from daxfs.tools.remount import remount
from support import HANG_SECONDS, fsck, run

Pool = Callable[..., Path]
READER = """
import sys
from daxfs import direct

with direct.map(sys.argv[1], access="r") as mapping:
    print(chr(mapping.view[0]), flush=True)
    sys.stdin.read()
"""
HELPER = (sys.executable, "-c", "from daxfs.tools.cli import mount_main; mount_main()")


def in_force(place: Path) -> list[str]:
    """Return the options that the daemon reports."""
    found: list[str] = json.loads(daxfs("info", place, "--json"))["mount"]["options"]
    return found


def kernel_flags(place: Path) -> set[str]:
    """The options that the kernel shows."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return set(next(fields[3] for fields in lines if fields[1] == str(place)).split(","))


def is_read_only(place: Path) -> bool:
    """Whether nothing can be made there."""
    try:
        (place / "probe").touch()
    except OSError as error:
        assert error.errno == errno.EROFS
        return True
    (place / "probe").unlink()
    return False


@pytest.mark.parametrize("options", [(), ("-O", "^has_journal"), ("-O", "orphan_file"), ("-b", "1024")])
def test_read_only_and_back(pool: Pool, options: tuple[str, ...]) -> None:
    path = pool(*options)
    with mounted(path) as mount:
        place = mount.place
        for turn in range(2):
            (place / f"file{turn}").write_bytes(b"data" * 5000)
            (place / "gone").write_bytes(b"x" * 100_000)
            (place / "gone").unlink()
            daxfs("mount", "-o", "remount,ro", place)
            fsck(path)
            assert "needs_recovery" not in run("dumpe2fs", "-h", path)
            assert is_read_only(place)
            assert "ro" in kernel_flags(place)
            assert in_force(place)[0] == "ro"
            content = path.read_bytes()
            assert (place / f"file{turn}").read_bytes() == b"data" * 5000

            assert path.read_bytes() == content
            daxfs("mount", path, place, "-o", "remount,rw")
            assert not is_read_only(place)
            assert "rw" in kernel_flags(place)
        (place / "last").write_bytes(b"last")
    assert run("debugfs", "-R", "cat last", path).startswith("last")


def test_a_mount_that_is_read_only_is_not_recovered(pool: Pool) -> None:
    """A daemon killed while its mount is read-only leaves a clean pool."""
    path = pool()
    with mounted(path) as mount:
        (mount.place / "file").write_bytes(b"data")
        daxfs("mount", "-o", "remount,ro", mount.place)
        mount.daemon.kill()
        mount.daemon.wait(HANG_SECONDS)
    assert json.loads(daxfs("info", path, "--json"))["state"] == "clean"
    assert run("debugfs", "-R", "cat file", path).startswith("data")


def test_a_crash_after_the_way_back_is_recovered(pool: Pool) -> None:
    path = pool()
    with mountpoint() as place:
        mount = Mounted(path, place)
        for mode in ("ro", "rw"):
            daxfs("mount", "-o", f"remount,{mode}", mount.place)
        (mount.place / "file").write_bytes(b"data")
        held = os.open(mount.place / "held", os.O_CREAT | os.O_WRONLY)
        os.unlink(mount.place / "held")
        with open(mount.place / "file", "rb") as file:
            os.fsync(file.fileno())
        mount.daemon.kill()
        mount.daemon.wait(HANG_SECONDS)
        os.close(held)
        mount.down()
        assert "needs_recovery" in run("dumpe2fs", "-h", path)
    with mounted(path) as again:
        assert (again.place / "file").read_bytes() == b"data"


def test_who_writes_or_holds_a_removed_file_is_in_the_way(pool: Pool) -> None:
    with mounted(pool()) as mount:
        place = mount.place
        with open(place / "file", "wb") as file:
            assert "fuser" in daxfs("mount", "-o", "remount,ro", place, code=32)
            file.write(b"still writable")
            file.flush()
        with open(place / "file", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
            file.close()
            assert "fuser" in daxfs("mount", "-o", "remount,ro", place, code=32)
            mapping[:5] = b"STILL"
        with open(place / "file", "rb") as file:
            os.unlink(place / "file")
            assert "fuser" in daxfs("mount", "-o", "remount,ro", place, code=32)
            assert file.read() == b"STILL writable"
        assert "rw" in kernel_flags(place)
        assert not is_read_only(place)
        daxfs("mount", "-o", "remount,ro", place)


def test_clients_with_leases_are_in_the_way(pool: Pool) -> None:
    with mounted(pool()) as mount:
        place = mount.place
        (place / "file").write_bytes(b"x" * 8192)
        for access in ("r", "rw"):
            with direct.map(str(place / "file"), access=access) as mapping:
                said = daxfs("mount", "-o", "remount,ro", place, code=32)
                assert "map files" in said
                assert mapping.view[0] == ord("x")
            assert not is_read_only(place)
        daxfs("mount", "-o", "remount,ro", place)
        # In a process of its own: a client keeps the pool mapped until it ends.
        reader = subprocess.Popen([sys.executable, "-c", READER, place / "file"], stdin=-1, stdout=-1, text=True)
        with reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "x\n"
            assert "map files" in daxfs("mount", "-o", "remount,rw", place, code=32)
            assert is_read_only(place)
            reader.communicate("", timeout=HANG_SECONDS)
        daxfs("mount", "-o", "remount,rw", place)
        with direct.map(str(place / "file"), access="rw") as mapping:
            mapping.view[:1] = b"y"
        assert (place / "file").read_bytes()[:2] == b"yx"


def test_open_files_go_on(pool: Pool) -> None:
    with mounted(pool(), "dax=inode") as mount:
        place = mount.place
        (place / "d").mkdir()
        (place / "d" / "file").write_bytes(b"before")
        with open(place / "d" / "file", "rb") as file:
            directory = os.open(place / "d", os.O_RDONLY)
            daxfs("mount", "-o", "remount,ro", place)
            assert os.listdir(directory) == ["file"]
            assert file.read(3) == b"bef"
            daxfs("mount", "-o", "remount,rw", place)
            assert file.read() == b"ore"
            (place / "d" / "file").write_bytes(b"after")
            assert os.pread(file.fileno(), 10, 0) == b"after"
            os.close(directory)


def test_what_mount8_gives_its_helper(pool: Pool) -> None:
    """mount(8) merges what it finds in fstab and in /proc/self/mountinfo into a remount."""
    path = pool()
    with mounted(path, "nosuid,noatime,commit=9") as mount:
        merged = "rw,nosuid,noatime,user_id=0,group_id=0,default_permissions,allow_other,ro,remount"
        subprocess.run([*HELPER, path, mount.place, "-o", merged], check=True, timeout=30)
        fsck(path)
        assert {"ro", "nosuid", "noatime"} <= kernel_flags(mount.place)
        assert {"ro", "nosuid", "noatime", "commit=9"} <= {*in_force(mount.place)}


def test_other_options(pool: Pool) -> None:
    with mounted(pool(), "commit=3600") as mount:
        place = mount.place
        daxfs("mount", "-o", "remount,noatime,nosuid,nodev,commit=1,sync", place)
        assert {"noatime", "nosuid", "nodev", "sync"} <= kernel_flags(place)
        assert {"noatime", "nosuid", "nodev", "sync", "commit=1"} <= {*in_force(place)}
        (place / "file").write_bytes(b"x")
        assert run("debugfs", "-R", "ls /", mount.pool).count("file") == 1
        os.utime(place / "file", (1, 1))
        (place / "file").read_bytes()
        assert (place / "file").stat().st_atime == 1
        daxfs("mount", "-o", "remount,relatime,suid,async", place)
        assert "nosuid" not in kernel_flags(place)
        (place / "file").write_bytes(b"y")
        os.utime(place / "file", (1, 2))
        (place / "file").read_bytes()
        assert (place / "file").stat().st_atime > 1
        (place / "late").touch()
        end = time.monotonic() + HANG_SECONDS
        while "late" not in run("debugfs", "-R", "ls /", mount.pool):
            assert time.monotonic() < end
            time.sleep(0.1)
        for text, word in (("dax=never", "unmount first"), ("strictatime", "unmount first"), ("usrquota", "quota")):
            assert word in daxfs("mount", "-o", f"remount,{text}", place, code=1)


def test_only_root_and_only_mounts(pool: Pool, tmp_path: Path) -> None:
    with mounted(pool()) as mount:
        assert as_user(lambda: refused(mount.place)) == 0
        assert in_force(mount.place)[0] == "rw"
    assert "no daxfs is mounted" in daxfs("mount", "-o", "remount,ro", tmp_path, code=32)
    done = subprocess.run([*COMMAND, "mount", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    with mounted(pool(), "session=pyfuse3") as mount:
        assert "its session can't be remounted" in daxfs("mount", "-o", "remount,ro", mount.place, code=32)


def refused(place: Path) -> None:
    """What an ordinary user gets."""
    try:
        remount(str(place), ["ro"])
    except Exception as error:
        if "only root remounts" in str(error):
            return
        raise OSError(errno.EIO, str(error)) from error
    raise OSError(errno.EEXIST, "remounted")
