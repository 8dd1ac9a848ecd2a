"""When reads move times of access, for each mount option and each ``dax=``: the steps of xfstests' generic/003."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from mount_rig import mounted

TICK_SECONDS = 0.02
"""Two points in time that differ on the file system's clock."""
MODES = ["always", "inode", "never"]


class Times(NamedTuple):
    """Access, modification, change; in nanoseconds."""

    access: int
    modify: int
    change: int


def times(path: Path) -> Times:
    """As stat(2) has them."""
    status = path.stat()
    return Times(status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)


@contextmanager
def moved(path: Path, expected: str) -> Iterator[None]:
    """What happens within moves just these times of ``path``: ``YNN`` is the access time alone."""
    before = times(path)
    time.sleep(TICK_SECONDS)
    yield
    after = times(path)
    found = "".join("N" if old == new else "Y" for old, new in zip(before, after, strict=True))
    assert found == expected, f"{path.name}: {found}"


def make(path: Path) -> None:
    """A file that nobody has read since it was written."""
    path.write_text("content\n")


@pytest.mark.parametrize("dax", MODES)
def test_generic_003(pool: Callable[..., Path], dax: str) -> None:
    place = pool("-b", "4096")
    with mounted(place, f"dax={dax},relatime") as mount:
        one = mount.place / "one"
        one.mkdir()
        make(one / "1")
        with moved(one / "1", "YNN"):
            (one / "1").read_bytes()
        with moved(one / "1", "NNN"):
            (one / "1").read_bytes()
        second = times(one / "1")
    with mounted(place, f"dax={dax},nodiratime") as mount:
        one, two = mount.place / "one", mount.place / "two"
        assert times(one / "1") == second
        two.mkdir()
        with moved(two, "NYY"):
            make(two / "2")
        with moved(two, "NNN"), moved(two / "2", "YNN"):
            (two / "2").read_bytes()
    with mounted(place, f"dax={dax},noatime") as mount:
        one, two = mount.place / "one", mount.place / "two"
        make(two / "3")
        with moved(two / "3", "NNN"):
            (two / "3").read_bytes()
        with moved(one / "1", "NYY"):
            make(one / "1")
        before = times(one / "1")
        time.sleep(TICK_SECONDS)
        os.rename(one / "1", one / "renamed")
        after = times(one / "renamed")
        assert before[:2] == after[:2]
        assert before.change != after.change
    with mounted(place, f"dax={dax},strictatime") as mount:
        two = mount.place / "two"
        for _ in range(3):
            with moved(two / "3", "YNN"):
                (two / "3").read_bytes()
    with mounted(place, f"dax={dax},ro,strictatime") as mount:
        two = mount.place / "two"
        with moved(two, "NNN"), moved(two / "3", "NNN"):
            os.listdir(two)
            (two / "3").read_bytes()


@pytest.mark.parametrize("dax", MODES)
def test_every_read_of_an_open_file_moves_its_time(pool: Callable[..., Path], dax: str) -> None:
    """strictatime: also the reads after the first, which a page cache would answer by itself."""
    with mounted(pool("-b", "4096"), f"dax={dax},strictatime") as mount:
        path = mount.place / "file"
        make(path)
        with path.open("rb", buffering=0) as file:
            for _ in range(3):
                with moved(path, "YNN"):
                    assert os.pread(file.fileno(), 3, 0) == b"con"
