"""Measure the Python client on two files: microseconds of a 4 KiB read and write, milliseconds of a map, as JSON.

Usage: client_loop.py FILE LARGE. The value ``direct`` is whether memory served them. `direct.py` runs this script in
its own process: the map is the first one of the process, so its time includes finding and mapping the pool.
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
    """Measure, and print the JSON."""
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
        for place in range(0, blocks * BLOCK, BLOCK):  # touch each page before the measurement
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
