"""e2fsck on a pool that only a mapping can read: it sees one file, and nobody else does."""

from __future__ import annotations

import ctypes
import os
import re
import stat
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_rig import daxfs
from fake_devdax import disguise
from mount_rig import NOBODY, mountpoint
from poison_rig import Poison

from daxfs.errors import UserError
from daxfs.fs import opening
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import Options
from daxfs.fuse import alone, mounts
from daxfs.fuse.kernel import poolfile
from daxfs.pmem import kinds
from daxfs.pmem.opening import open_pool
from daxfs.pmem.pool import Pool
from daxfs.tools import check, mappedcheck
from support import fsck, mke2fs, run

PR_SET_DUMPABLE = 4


def shell(pool: Pool, script: str) -> tuple[int, int]:
    """Run a script that finds the served pool at ``$1``; return its exit code and the accesses without memory."""
    missing = -1

    def serve(descriptor: int) -> None:
        nonlocal missing
        missing = poolfile.serve(pool, descriptor)

    return alone.run(["/bin/sh", "-ec", script, "sh", pool.path], pool.path, serve), missing


def test_bad_memory_is_not_touched(served: Path) -> None:
    with open_pool(served) as pool:
        pool.bad.add(8192, 8193)
        assert shell(pool, 'dd if="$1" of=/dev/null bs=4096 skip=2 count=1 iflag=direct') == (1, 1)
        assert shell(pool, 'dd if="$1" of=/dev/null bs=4096 skip=3 count=1 iflag=direct') == (0, 0)


def answer_nothing(_descriptor: int) -> None:
    """End as a server that has failed."""


@pytest.fixture
def served(tmp_path: Path) -> Path:
    path = tmp_path / "pool"
    path.write_bytes(os.urandom(4 << 20))
    return path


def test_a_program_reads_and_writes_the_pool(served: Path, tmp_path: Path) -> None:
    before = served.read_bytes()
    with open_pool(served) as pool:
        script = f"""
            test "$(stat -c '%F %s %a' "$1")" = 'regular file 4194304 600'
            cp "$1" {tmp_path}/copy
            dd if=/dev/zero of="$1" bs=5000 count=300 seek=7 conv=notrunc,fsync
            dd if="$1" of={tmp_path}/direct bs=1M iflag=direct
        """
        assert shell(pool, script) == (0, 0)
        expected = before[:35000] + bytes(1_500_000) + before[1_535_000:]
        assert pool.memory == expected
    assert (tmp_path / "copy").read_bytes() == before
    assert (tmp_path / "direct").read_bytes() == expected
    assert all(mount.source != alone.SOURCE for mount in kinds.read_mounts())


def test_what_a_program_may_not_do(served: Path) -> None:
    before = served.read_bytes()
    with open_pool(served) as pool:
        for forbidden in ('truncate -s 1M "$1"', 'dd if=/dev/zero of="$1" bs=1M seek=4 conv=notrunc count=1'):
            assert shell(pool, forbidden) == (1, 0)
    with open_pool(served, read_only=True) as pool:
        assert shell(pool, 'dd if=/dev/zero of="$1" conv=notrunc,fsync count=1') == (1, 0)
        assert shell(pool, 'cat "$1" > /dev/null') == (0, 0)
    assert served.read_bytes() == before


def test_a_server_that_ends_is_an_error_of_the_program(served: Path) -> None:
    assert alone.run(["/bin/sh", "-c", 'cat "$1" >/dev/null', "sh", str(served)], str(served), answer_nothing) == 1


def test_what_prevents_the_mount_is_one_line(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="/nonexistent/program: No such file"):
        alone.run(["/nonexistent/program"], str(served), answer_nothing)
    monkeypatch.setattr(alone, "_CLONE_NEWNS", -1)
    with pytest.raises(UserError, match="namespace needs root, or user namespaces that are allowed: Invalid argument"):
        alone.run(["/bin/true"], str(served), answer_nothing)
    monkeypatch.undo()
    monkeypatch.setattr(mounts, "DEVICE", "/nonexistent/fuse")
    with pytest.raises(UserError, match="modprobe fuse"):
        alone.run(["/bin/true"], str(served), answer_nothing)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = mke2fs(tmp_path / "dax", size="16M")
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("/file", b"content" * 1000)
    with path.open("ab") as file:
        file.truncate((16 << 20) + 4096)  # what is no whole unit of the alignment can't be mapped
    return disguise(monkeypatch, path)


def test_check_ends_as_e2fsck(device: Path) -> None:
    assert f"{device}: clean" in daxfs("check", "-p", device)
    run("debugfs", "-w", "-R", "set_inode_field <2> links_count 77", device)
    daxfs("check", "-fn", device, code=4)
    daxfs("check", "-fy", device, code=1)
    daxfs("check", "-fn", device)
    fsck(device)


def test_check_replays_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = mke2fs(tmp_path / "source", size="16M")
    path = tmp_path / "dax"
    with FileSystem.open(source, Options(commit_interval=1e9)) as fs:
        fs.tree.write_bytes("/file", b"content" * 1000)
        fs.sync()
        path.write_bytes(source.read_bytes())
    disguise(monkeypatch, path)
    assert "recovering journal" in daxfs("check", "-p", path)
    fsck(path)
    assert "content" in run("debugfs", "-R", "cat /file", path)


def test_a_device_in_use_is_refused(device: Path) -> None:
    with open_pool(device) as pool:
        before = bytes(pool.memory)
        for flag in ("-n", "-y"):
            said = daxfs("check", flag, device, code=8)
            assert "in use" in said
            assert said.count("\n") == 1
        assert pool.memory == before


def test_missing_memory_is_said(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found = re.search(r"at block ([0-9]+)", run("debugfs", "-R", "imap <2>", device))
    assert found

    @contextmanager
    def poisoned(path: str, *, read_only: bool) -> Iterator[Pool]:
        with open_pool(path, read_only=read_only) as pool:
            poison = Poison(pool)
            poison.add(int(found[1]) * 1024)
            yield pool
            poison.close()

    monkeypatch.setattr(opening, "open_pool", poisoned)
    code = check.check(str(device), ["-f", "-n"])
    assert code & 8
    assert "memory of the pool is missing" in capfd.readouterr().err
    fsck(device)
    program = tmp_path / "e2fsck"
    program.write_text('#!/bin/sh\nfor last; do :; done; cat "$last" >/dev/null; exit 0\n')
    program.chmod(0o755)
    assert mappedcheck.run(str(program), ["-n"], str(device)) == 8, "a program that finds nothing wrong"


def test_an_interrupt_leaves_the_end_to_e2fsck(device: Path, tmp_path: Path) -> None:
    program = tmp_path / "e2fsck"
    program.write_text('#!/bin/sh\nkill -INT $PPID; for last; do :; done; cat "$last" >/dev/null && exit 32\n')
    program.chmod(0o755)
    try:
        assert mappedcheck.run(str(program), [], str(device)) == 32
    except KeyboardInterrupt:
        pytest.fail("the interrupt ended the server")


def test_an_ordinary_user_checks_a_pool_of_theirs(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mountpoint() as place:  # a directory that every user may reach
        fuse, pool = place / "fuse", place / "dax"
        os.mknod(fuse, stat.S_IFCHR, os.stat(mounts.DEVICE).st_rdev)
        fuse.chmod(0o666)
        os.chown(device.rename(pool), NOBODY, NOBODY)
        monkeypatch.setattr(mounts, "DEVICE", str(fuse))
        child = os.fork()
        if not child:
            code = 99
            try:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)  # as after execve(2): /proc/self belongs to the user
                code = check.check(str(pool), ["-f", "-y"])
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
