"""Run the fuzzer: ``python -m fuzz [FORMAT] [--seeds FIRST COUNT]``; each finding is printed with its seed."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

from fuzz.images import ALL, FOCUS, TIERS, image, tiered
from fuzz.mutations import Places
from fuzz.trial import Finding, trial
from fuzz.watchdog import watched


def main() -> int:
    """Run trials; 1: something was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("format", nargs="?", choices=ALL, help="by default all")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=10_000, help="trials of each format")
    parser.add_argument("--check", type=int, default=10, help="e2fsck judges each trial whose seed is a multiple")
    parser.add_argument("--nice", type=int, default=0, help="so much nicer than others")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    os.nice(options.nice)
    found = 0
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        for each in [options.format] if options.format else ALL:
            content, stage = tiered(folder) if each == TIERS else (image(folder, each), None)
            places = Places(content, FOCUS.get(each, ""), stage)

            def run(seed: int, content: bytes = content, places: Places = places) -> Finding | None:
                return trial(seed, content, places, None if seed % options.check else folder)

            for finding in watched(run, range(options.first, options.first + options.count)):
                found += 1
                print(f"{each}, seed {finding.seed}, {', '.join(finding.kinds)}:\n{finding.what}", flush=True)
            print(f"{each}: {options.count} trials", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
