"""A program that stores into four files all the time, or when it is told: what `test_snapshot_clients` runs.

    python snapshot_actor.py direct|plain FOLDER

``direct`` uses `daxfs.direct`; ``plain`` uses os.pwrite and mmap, and is started below the preload library. Each file
has `PAGES` pages, each page begins with a number. The numbers of ``fast-*`` files go up all the time. Those of
``slow-*`` files are set to the number in a line of standard input, after which that line comes back.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

PAGES, PAGE = 16, 4096
FAST, SLOW = "fast", "slow"
WAYS = ("mapped", "written")
NUMBER = struct.Struct("<Q")
PAUSE_SECONDS = 0.001

Setter = Callable[[int, int], object]
"""``setter(page, number)``."""


def name(pace: str, way: str) -> str:
    return f"{pace}-{way}"


def setter(kind: str, way: str, path: Path) -> Setter:
    """Open a file, and return what sets the number of one of its pages."""
    if way == "written":
        if kind == "direct":
            from daxfs import direct

            file = direct.open(path, "r+b")
            assert file.direct, file.why
            return lambda page, number: file.pwrite(page * PAGE, NUMBER.pack(number))
        descriptor = os.open(path, os.O_RDWR)
        return lambda page, number: os.pwrite(descriptor, NUMBER.pack(number), page * PAGE)
    if kind == "direct":
        from daxfs import direct

        mapping = direct.map(path, access="rw")
        assert mapping.direct, mapping.why
        words = mapping.view.cast("Q")
    else:
        descriptor = os.open(path, os.O_RDWR)
        words = memoryview(mmap.mmap(descriptor, PAGES * PAGE)).cast("Q")

    def store(page: int, number: int) -> None:
        words[page * PAGE // NUMBER.size] = number

    return store


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    setters = {(pace, way): setter(kind, way, folder / name(pace, way)) for pace in (FAST, SLOW) for way in WAYS}

    def set_all(pace: str, number: int) -> None:
        for page in range(PAGES):
            for way in WAYS:
                setters[pace, way](page, number)

    def count() -> None:
        number = 0
        while True:
            number += 1
            set_all(FAST, number)
            time.sleep(PAUSE_SECONDS)  # the daemon wants a processor too

    threading.Thread(target=count, daemon=True).start()
    for line in sys.stdin:
        set_all(SLOW, int(line))
        print(line, end="", flush=True)


if __name__ == "__main__":
    main()
