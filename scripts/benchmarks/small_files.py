"""Open, map, read and close the files 0, 1, ... of a directory; prints microseconds a file, of a second pass.

Usage: small_files.py DIRECTORY COUNT. It knows nothing of daxfs: `direct.py` runs it with and without `daxfs exec`.
"""

from __future__ import annotations

import mmap
import os
import sys
import time


def read_all(directory: str, count: int) -> float:
    """One pass; microseconds a file."""
    begin = time.perf_counter()
    for number in range(count):
        descriptor = os.open(f"{directory}/{number}", os.O_RDONLY)
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:1] == mapped[-1:] == b"s"
        os.close(descriptor)
    return (time.perf_counter() - begin) / count * 1e6


def main() -> None:
    """See above."""
    directory, count = sys.argv[1], int(sys.argv[2])
    read_all(directory, count)
    print(read_all(directory, count))


if __name__ == "__main__":
    main()
