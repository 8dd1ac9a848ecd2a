"""The command line: every error that a user can cause is one line with the right exit code, and changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_rig import daxfs
from mount_rig import COMMAND, mountpoint

from daxfs import compiled
from daxfs.errors import UserError
from daxfs.fuse import mounts
from daxfs.tools import cli
from support import run

Pool = Callable[..., Path]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nonsense"], 64),
        (["info"], 64),
        (["info", "--nonsense", "x"], 64),
        (["mount"], 1),
        (["mount", "--nonsense", "a", "b"], 1),
        (["umount"], 1),
        (["check"], 16),
        (["dump", "pool"], 64),
        (["mkfs"], 1),
        (["mkfs", "pool", "--size", "12Q"], 64),
        (["info", "/nonexistent/pool"], 32),
        (["check", "/nonexistent/pool"], 8),
        (["map", "/nonexistent/file"], 66),
        (["mount", "/nonexistent/pool", "/"], 32),
        (["mount", "/dev/null", "/nonexistent"], 1),
        (["mount", "/dev/null", "/dev/null"], 1),
        (["mount", "/dev/null", "/", "-o", "bogus"], 1),
        (["umount", "/nonexistent"], 32),
        (["umount", "/proc"], 32),
        (["resize", "/nonexistent"], 32),
        (["resize", "/nonexistent/a\x1b[31m\nb", "1G"], 32),
        (["resize", "/dev/null", "-1G"], 64),
        (["resize", "/dev/null", "1G", "--minimum"], 64),
    ],
)
def test_an_error_is_one_line_and_a_code(arguments: list[str], code: int) -> None:
    said = daxfs(*arguments, code=code)
    assert said.startswith("daxfs: ")
    assert said.count("\n") == 1
    assert said.strip("\n").isprintable()


def test_version() -> None:
    assert daxfs("--version") == daxfs("-V") == f"daxfs {importlib.metadata.version('daxfs')}, {compiled.state()}\n"


def test_help_and_nothing() -> None:
    assert "mount" in daxfs("--help")
    assert "Usage" in daxfs(code=64)
    assert "commit=SECONDS" in daxfs("mount", "--help")


def test_the_command_line_starts_at_once() -> None:
    """A module that only some commands need is imported by these commands."""
    code = "import sys, daxfs.tools.cli; print(*{'numpy', 'trio', 'pyfuse3', 'rich', 'crc32c'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_what_is_not_ext4_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    path.write_bytes(os.urandom(1 << 20))
    before = path.read_bytes()
    with mountpoint() as place:
        for arguments, code in (
            (["info", path], 65),
            (["dump", path, "superblock"], 65),
            (["mount", path, place], 32),
            (["mount", "-f", path, place], 32),
        ):
            said = daxfs(*arguments, code=code)
            assert said.startswith("daxfs: ")
            assert "ext4" in said
            assert said.count("\n") == 1
    assert path.read_bytes() == before


def test_a_pool_that_lost_its_end_is_refused(pool: Pool) -> None:
    path = pool()
    os.truncate(path, 60 << 20)
    before = path.read_bytes()
    with mountpoint() as place:
        said = daxfs("mount", path, place, code=32)
    assert said.startswith("daxfs: ")
    assert said.count("\n") == 1
    assert path.read_bytes() == before


def test_mkfs_passes_options_through(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    said = daxfs("mkfs", "-L", "label", path, "--size", "64M", "-O", "^metadata_csum", "-N", "128")
    assert "64 MiB ext4" in said
    shown = run("dumpe2fs", "-h", path)
    assert "label" in shown
    assert "metadata_csum" not in shown
    assert daxfs("mkfs", path, code=1).count("\n") == 1
    daxfs("mkfs", "-F", "-q", path)
    command = [sys.executable, "-c", "from daxfs.tools.cli import mkfs_main; mkfs_main()"]
    subprocess.run([*command, "-t", "daxfs", "-F", path, "32M"], check=True, capture_output=True)
    assert path.stat().st_size == 32 << 20


def test_check_ends_as_e2fsck(pool: Pool) -> None:
    path = pool()
    assert "clean" in daxfs("check", "-p", path)
    run("debugfs", "-w", "-R", "set_inode_field <2> links_count 77", path)
    daxfs("check", "-fn", path, code=4)
    daxfs("check", "-fy", path, code=1)
    daxfs("check", "-fn", path)
    command = [sys.executable, "-c", "from daxfs.tools.cli import fsck_main; fsck_main()"]
    assert subprocess.run([*command, "-a", path], capture_output=True, check=False).returncode == 0
    assert subprocess.run([*command, "--bad", path], capture_output=True, check=False).returncode == 16


def test_no_fuse_no_helper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mounts, "DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(UserError, match="modprobe fuse") as caught:
        mounts.check_device()
    assert caught.value.code == mounts.SYSTEM_ERROR
    (tmp_path / "fuse").touch()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda _name: None)
    with pytest.raises(UserError, match="fusermount3 is not installed"):
        mounts.check_helper()


def test_a_bug_is_not_hidden() -> None:
    def broken() -> int:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        cli._guarded(broken, 1, 2)
    assert cli._guarded(lambda: None, 1, 2) == 0

    def interrupted() -> int:
        raise KeyboardInterrupt

    assert cli._guarded(interrupted, 1, 2) == cli.INTERRUPTED


def test_a_reader_that_leaves_is_no_error(pool: Pool) -> None:
    path = pool()
    command = f"{sys.executable} -m daxfs.tools dump {path} superblock | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["/proc/self/fd/{}", "/dev/fd/{}"])
def test_a_pool_named_by_a_descriptor(pool: Pool, name: str) -> None:
    """The descriptor is the command line's: the daemon and e2fsck do not inherit it."""
    path = pool()
    with path.open("rb") as file, mountpoint() as place:
        named = name.format(file.fileno())
        command = [*COMMAND, "mount", named, place]
        subprocess.run(command, pass_fds=[file.fileno()], check=True, timeout=60, stdin=subprocess.DEVNULL)
        assert mounts.top_mount(str(place)).source == str(path)  # type: ignore[union-attr]
        daxfs("umount", place)
        subprocess.run([*COMMAND, "check", "-n", named], pass_fds=[file.fileno()], check=True, timeout=60)


def test_the_log_is_not_the_pool(pool: Pool) -> None:
    path = pool()
    content = path.read_bytes()
    with mountpoint() as place:
        said = daxfs("mount", "-o", f"log={path}", path, place, code=1)
        assert said == f"daxfs: bad mount option: log={path}; that is the pool\n"
        assert not os.path.ismount(place)
    assert path.read_bytes() == content
