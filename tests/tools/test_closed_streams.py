"""Commands started with closed standard streams: no pool becomes one of the streams, and exit codes stay the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import chain, combinations
from pathlib import Path

import pytest
from mount_rig import mountpoint

from daxfs.fuse import mounts
from support import HANG_SECONDS, fsck

SOME = [(1,), (0, 1, 2)]
CLOSED = [
    closed if closed in SOME else pytest.param(closed, marks=pytest.mark.full)
    for closed in chain.from_iterable(combinations((0, 1, 2), count) for count in range(4))
]
"""All eight combinations; a command takes a second, so the default run has only the two worst ones."""
ENTRY = "import sys; sys.path.insert(0, {root!r}); from daxfs.tools import cli; cli.{main}()"
ROOT = str(Path(__file__).parents[2])

Pool = Callable[..., Path]


def command(main: str, *arguments: object) -> list[str]:
    """Return a command line of one of the entry points."""
    return [sys.executable, "-c", ENTRY.format(root=ROOT, main=main), *map(str, arguments)]


def run(closed: tuple[int, ...], line: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run a command with these descriptors closed and the others open."""

    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    return subprocess.run(
        line,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=HANG_SECONDS,
        preexec_fn=close,
        check=False,
    )


def check(done: subprocess.CompletedProcess[bytes], code: int = 0) -> None:
    """Check the exit code, and that there is no traceback."""
    assert done.returncode == code, done.stdout + done.stderr
    assert b"Traceback" not in done.stdout + done.stderr


def daemons(pool: Path) -> Iterator[tuple[int, set[int]]]:
    """Return the processes that have the pool open, with their descriptors."""
    for process in Path("/proc").glob("[0-9]*"):
        found = set()
        for link in process.glob("fd/*"):
            try:
                if os.path.samefile(link, pool):
                    found.add(int(link.name))
            except OSError:
                continue
        if found:
            yield int(process.name), found


@pytest.mark.parametrize("closed", CLOSED, ids=str)
def test_mount_info_and_umount(pool: Pool, closed: tuple[int, ...]) -> None:
    made = pool("-b", "4096", size="16M")
    before = made.read_bytes()[:1024]
    with mountpoint() as place:
        check(run(closed, command("main", "mount", made, place)))
        try:
            assert mounts.top_mount(str(place)) is not None
            found = list(daemons(made))
            assert found
            assert all(min(descriptors) > 2 for _, descriptors in found), found
            (place / "f").write_bytes(b"x")
            done = run(closed, command("main", "info", place))
            check(done)
            assert 1 in closed or b"features" in done.stdout
        finally:
            check(run(closed, command("main", "umount", place)))
    assert made.read_bytes()[:1024] == before, "nothing was printed over the boot block"
    fsck(made)


@pytest.mark.parametrize("closed", CLOSED, ids=str)
def test_commands_without_a_mount(pool: Pool, tmp_path: Path, closed: tuple[int, ...]) -> None:
    made = pool("-b", "4096", size="16M")
    check(run(closed, command("main", "check", "-n", made)))
    check(run(closed, command("fsck_main", "-n", made)))
    check(run(closed, command("main", "dump", made, "superblock")))
    check(run(closed, command("mkfs_main", tmp_path / "new", "16M")))
    check(run(closed, command("main", "info", tmp_path / "missing")), 32)
    check(run(closed, command("mount_main", made)), 1)
    fsck(made)


def test_an_export_to_a_closed_standard_output_is_refused(pool: Pool) -> None:
    made = pool("-b", "4096", size="16M")
    done = run((1,), command("main", "export", made, "-"))
    check(done, 64)
    assert done.stderr == b"daxfs: standard output is closed; give a file, or redirect standard output\n"


LIBRARY = """
import os, sys
sys.path.insert(0, {root!r})
from daxfs import FileSystem
for descriptor in (0, 1, 2):
    os.close(descriptor)
with FileSystem.open({pool!r}) as fs:
    standard = [os.path.realpath(f"/proc/self/fd/{{d}}") for d in (0, 1, 2) if os.path.exists(f"/proc/self/fd/{{d}}")]
    os._exit(3 if {pool!r} in standard else 0)
"""


def test_the_library_keeps_the_pool_off_standard_streams(pool: Pool) -> None:
    made = pool("-b", "4096", size="16M")
    script = LIBRARY.format(root=ROOT, pool=os.path.realpath(made))
    assert subprocess.run([sys.executable, "-c", script], timeout=HANG_SECONDS, check=False).returncode == 0
