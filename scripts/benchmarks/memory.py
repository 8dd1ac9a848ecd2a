"""What the daemon keeps in DRAM for each inode that the kernel remembers, and what of it is a constant.

The first files of a mount make the daemon's memory grow by what does not depend on their number: the copies of one
transaction's blocks, the buffer that its commit writes to the log, and caches with a limit. So the cost of an inode is
what the second half of the files adds. Memory of inodes that the kernel has forgotten is used again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import systems
from benchmarks.alone import daemon
from benchmarks.report import Report

MOST_BYTES = 40.0
"""What an inode may take. Its entry is 12 bytes, in a table whose parts are at least half full."""
FOLDERS = 100
MIB = 1 << 20


def memory(base: Path, report: Report) -> None:
    """Measure the daemon's own memory while files are created, looked up, removed, and created again."""
    count = report.scale.listed
    system = systems.make(base, "daxfs", "4G")
    rows: list[tuple[str, ...]] = []
    with system.mounted() as point:
        for number in range(FOLDERS):
            (point / f"{number}").mkdir()
        grown = Growth(point, report, rows)
        paths = [str(point / f"{number % FOLDERS}" / f"{number}") for number in range(count)]
        first, second = paths[: count // 2], paths[count // 2 :]
        grown.by("created, the first half", first, create)
        grown.by("created, the second half", second, create, most=MOST_BYTES)
        grown.by("removed", paths, os.unlink)
        grown.by("created again", paths, create, most=MOST_BYTES)
    with system.mounted() as point:
        grown = Growth(point, report, rows)
        grown.by("looked up, the first half", first, os.stat)
        grown.by("looked up, the second half", second, os.stat, most=MOST_BYTES)
        grown.by("looked up and removed", paths, os.unlink)
    columns = ("files of a mount", "number", "daemon's memory MiB", "bytes each")
    report.table("memory for inodes that the kernel remembers", columns, rows)
    report.say(system.check())


def create(path: str) -> None:
    """Create an empty file."""
    os.mknod(path)


def own_memory(process: Path) -> int:
    """Return the bytes of a process's own memory: neither the pool's nor those of program files."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", (process / "status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{process}/status has no RssAnon")
    return int(found[1]) << 10


class Growth:
    """The growth of a daemon's memory, written into rows of a table."""

    def __init__(self, point: Path, report: Report, rows: list[tuple[str, ...]]) -> None:
        self._process = daemon(point)
        self._report = report
        self._rows = rows
        self._before = own_memory(self._process)

    def by(
        self, what: str, paths: Iterable[str], action: Callable[[str], object], *, most: float | None = None
    ) -> None:
        """Do something to each path, and add a row; ``most`` bounds the bytes for each."""
        count = 0
        for path in paths:
            action(path)
            count += 1
        after = own_memory(self._process)
        each = (after - self._before) / count
        self._before = after
        shown = f"{each:.1f}" if most is None else self._report.bound(f"{what}, bytes each", each, most=most)
        self._rows.append((what, f"{count:,}", f"{after / MIB:.1f}", shown))
