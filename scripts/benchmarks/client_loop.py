"""The Python client on two files: prints JSON with microseconds a read and a write of 4 KiB, milliseconds of a map.

Usage: client_loop.py FILE LARGE. ``direct`` says whether it was memory. `direct.py` runs it in its own process: the
map is the first of this process, so that the pool is found and mapped on the way.
"""

from __future__ import annotations

import json
import random
import sys
import time

from daxfs import direct

BLOCK = 4096
COUNT = 50_000


def main() -> None:
    """See above."""
    file, large = sys.argv[1:]
    begin = time.perf_counter()
    mapping = direct.map(large, access="rw")
    mapped = time.perf_counter() - begin
    assert mapping.view[0] == mapping.view[len(mapping) - 1] == ord("m")
    results = {"direct": mapping.direct, "map": mapped * 1e3}
    mapping.close()
    with direct.open(file, "r+b") as opened:
        blocks = opened.size // BLOCK
        places = [BLOCK * random.randrange(blocks) for _ in range(COUNT)]
        data = random.randbytes(BLOCK)
        for place in range(0, blocks * BLOCK, BLOCK):  # the first touch of each page
            opened.pwrite(place, opened.pread(place, BLOCK))
        begin = time.perf_counter()
        for place in places:
            opened.pread(place, BLOCK)
        results["read"] = (time.perf_counter() - begin) / COUNT * 1e6
        begin = time.perf_counter()
        for place in places:
            opened.pwrite(place, data)
        results["write"] = (time.perf_counter() - begin) / COUNT * 1e6
        results["direct"] = results["direct"] and opened.direct
    print(json.dumps(results))


if __name__ == "__main__":
    main()
