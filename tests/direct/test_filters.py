"""Programs with a seccomp filter of their own: below the library they live, and make no call that is not their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount_rig import SESSIONS, mounted
from preload_rig import LIMIT, below, compile_program, said


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the program that installs a filter."""
    return compile_program("filter", tmp_path_factory.mktemp("filter") / "filter")


@pytest.fixture(params=["a file", "memory"])
def root(pool: Callable[..., Path], request: pytest.FixtureRequest) -> Iterator[Path]:
    """The root directory of a mount, of a pool that needs msync(2) and of one that doesn't."""
    made = pool("-b", "4096")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        image = made if request.param == "a file" else Path(shutil.copy(made, folder))
        with mounted(image, *SESSIONS["kernel"]) as mount:
            yield mount.place


@pytest.mark.parametrize("how", ["prctl", "syscall", "strict"])
def test_a_program_with_a_filter_lives(root: Path, library: Path, program: Path, how: str) -> None:
    assert said(None, program, how, root / "file") == "good\n"
    expected = (root / "file").read_bytes()
    (root / "file").unlink()
    assert said(library, program, how, root / "file") == "good\n"
    assert (root / "file").read_bytes() == expected


def test_memory_that_is_known_is_still_read(root: Path, library: Path, program: Path) -> None:
    done = subprocess.run(
        [program, "prctl", root / "file"],
        env=below(library, DAXFS_DIRECT_STATS="1"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    found = re.search(r"direct: (\d+) reads, (\d+) writes, 1 maps", done.stderr.splitlines()[-1])
    assert found, done.stderr
    assert int(found[1]) >= 16 + 10, "of 16 with pread(2) after the filter, and those before"


def test_times_of_stores_from_before_the_filter_move(root: Path, library: Path, program: Path) -> None:
    said(library, program, "strict", root / "file")
    assert os.stat(root / "file").st_mtime > 1e9
