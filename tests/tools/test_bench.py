"""scripts/bench.py: figures of recorded results, and what an ended run leaves behind: nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import asdict
from pathlib import Path

import pytest

from support import HANG_SECONDS

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from benchmarks.report import PERCENTILE, Series  # noqa: E402

SERIES = {
    "curves": [
        Series("latency of a 4 KiB random read", PERCENTILE, "us", {"daxfs": [(50, 10), (99.9, 80), (100, 900)]}, "y"),
        Series("random read by block size", "KiB", "MB/s", {"daxfs, 1 job": [(4, 100), (16, 300)]}, log="xy"),
        Series("cost by age, as a library", "files made or removed", "us of CPU", {"create": [(0, 30), (2000, 31)]}),
    ],
    "fairness": [
        Series(
            "the longest call by time",
            "seconds",
            "ms",
            {f"disturbance {n}": [(at / 1000, 3 + n + at % 2) for at in range(1000)] for n in range(4)},
            log="y",
            apart=True,
        )
    ],
}
FILES = {
    "curves-latency-of-a-4-kib-random-read.svg": ("daxfs", "99.9", "us"),
    "curves-random-read-by-block-size.svg": ("daxfs, 1 job", "4", "16", "KiB", "MB/s"),
    "curves-cost-by-age-as-a-library.svg": ("create", "2000", "files made or removed"),
    "fairness-the-longest-call-by-time.svg": tuple(f"disturbance {n}" for n in range(4)),
}


def bench(*arguments: str | Path, code: int = 0) -> str:
    """Run the script, expect its exit code, return what it prints."""
    done = subprocess.run(
        [sys.executable, SCRIPTS / "bench.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_recorded_results_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    sections = {name: {"tables": [], "series": [asdict(each) for each in found]} for name, found in SERIES.items()}
    recorded = tmp_path / "run.json"
    recorded.write_text(json.dumps({"sections": {**sections, "mount": {"tables": []}}}))
    said = bench("--from", recorded, "--plots", tmp_path / "plots")
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(FILES)
    for name, wanted in FILES.items():
        assert f"drawn: {tmp_path / 'plots' / name}\n" in said
        assert (tmp_path / "plots" / name).stat().st_size < 150_000, "small enough for the repository"
        figure = ET.parse(tmp_path / "plots" / name)
        shown = ["".join(text.itertext()).strip() for text in figure.iter("{http://www.w3.org/2000/svg}text")]
        for word in wanted:
            assert word in shown, f"{name}: {word}"


def test_a_wrong_use_is_one_line() -> None:
    for arguments in (("--from", "run.json"), ("--from", "run.json", "--plots", "x", "mount"), ("nonsense",)):
        assert re.search(r"(?m)^bench.py: error: ", bench(*arguments, code=2))


RUN = """
import sys, time
sys.path.insert(0, sys.argv[1])
import rig
with rig.workplace(sys.argv[2]) as base:
    (base / "mnt").mkdir()
    rig.run(rig.tool("daxfs"), "mkfs", base / "pool", "--size", "16M")
    with rig.daxfs(base / "pool", base / "mnt"):
        print(base / "mnt", flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_run_that_is_ended_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    started = subprocess.Popen(
        [sys.executable, "-c", RUN, SCRIPTS, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert started.stdout
    try:
        point = started.stdout.readline().strip()
        assert os.path.ismount(point)
        started.send_signal(number)
        ended = started.wait(HANG_SECONDS)
    finally:
        started.kill()
        started.wait()
        started.stdout.close()
    assert ended == (-number if number == signal.SIGINT else 128 + number)
    assert point not in Path("/proc/mounts").read_text()
    assert list(tmp_path.iterdir()) == []
