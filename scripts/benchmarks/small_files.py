"""Open, map, read and close the files 0, 1, ... of a directory twice; print microseconds per file of the second pass.

Usage: small_files.py DIRECTORY COUNT. It does not use daxfs itself: `direct.py` runs it with and without `daxfs exec`.
"""

from __future__ import annotations

import mmap
import os
import sys
import time


def read_all(directory: str, count: int) -> float:
    """Read all files once; return microseconds per file."""
    begin = time.perf_counter()
    for number in range(count):
        descriptor = os.open(f"{directory}/{number}", os.O_RDONLY)
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:1] == mapped[-1:] == b"s"
        os.close(descriptor)
    return (time.perf_counter() - begin) / count * 1e6


def main() -> None:
    """Read all files twice and print the time of the second pass."""
    directory, count = sys.argv[1], int(sys.argv[2])
    read_all(directory, count)
    print(read_all(directory, count))


if __name__ == "__main__":
    main()
