"""On a tmpfs with ``huge=advise`` the daemon and both clients map a large file with 2 MiB pages: smaps says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import daxfs
from mount_rig import mounted

from support import tmpfs

SIZE = 32 << 20

PYTHON_CLIENT = """
from daxfs import direct
with direct.map(sys.argv[1], access="rw") as mapped:
    assert mapped.direct, mapped.why
    assert mapped.view[::4096] == b"z" * (len(mapped.view) // 4096)
    print(by_huge_pages())
"""

PRELOADED = """
import mmap, os
with mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 0) as mapped:
    assert mapped[::4096] == b"z" * (len(mapped) // 4096)
    print(by_huge_pages())
"""

COUNT = """
import sys
def by_huge_pages(place="self"):
    found, ours = 0, False
    for line in open(f"/proc/{place}/smaps"):
        words = line.split()
        if not words[0].endswith(":"):
            ours = words[-1] == sys.argv[2]
        elif ours and words[0] == "ShmemPmdMapped:":
            found = max(found, int(words[1]) << 10)
    return found
"""


@pytest.fixture
def huge_tmpfs(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "huge"
    place.mkdir()
    with tmpfs(place, "huge=advise,size=256m"):
        yield place


def test_large_files_are_mapped_with_huge_pages(huge_tmpfs: Path) -> None:
    pool = huge_tmpfs / "pool"
    daxfs("mkfs", pool, "--size", "128M")
    with mounted(pool) as mount:
        file = mount.place / "large"
        with file.open("wb") as content:
            for _ in range(SIZE >> 20):
                content.write(b"z" * (1 << 20))
        assert "32 MiB (100 %) can be mapped with 2 MiB pages" in daxfs("map", file)
        script = [sys.executable, "-c"]
        below = [sys.executable, "-m", "daxfs.tools", "exec", "--", *script]
        for command, program in ((script, PYTHON_CLIENT), (below, PRELOADED)):
            done = subprocess.run(
                [*command, COUNT + program, file, pool], capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, done.stderr
            assert int(done.stdout) == SIZE
        daemon = [*script, COUNT + "print(by_huge_pages(sys.argv[3]))", "-", pool, str(mount.daemon.pid)]
        assert int(subprocess.run(daemon, capture_output=True, text=True, timeout=60, check=True).stdout) >= SIZE
