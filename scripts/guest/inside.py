"""In the guest: load drivers, make the namespaces once, and run pytest on tests/devices.

/out/task.json says what to run (``pytest``: its arguments, or none; ``work``: whether to change pools afterwards until
the power is cut), /out/results has a line for each test. Namespaces live in the NVDIMM's labels, so that
a guest that boots with the same NVDIMM again finds them, and what they hold.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

OUT = Path("/out")
DEVICES = Path("/run/devices.json")
DRIVERS = ("nfit", "nd_pmem", "dax_pmem", "device_dax", "nd_btt", "ext4", "xfs", "fuse", "mce-inject", "loop")

NAMESPACES = {
    "fsdax": ("fsdax", "256M", ()),
    "host": ("fsdax", "512M", ()),
    "devdax-2M": ("devdax", "384M", ("--align", "2M")),
    "devdax-4K": ("devdax", "192M", ("--align", "4K")),
    "sector": ("sector", "128M", ()),
    "poison": ("fsdax", "256M", ()),
    "bad": ("fsdax", "64M", ()),
    "bad-devdax": ("devdax", "64M", ("--align", "4K")),
}
"""Each name's mode, size and options.

A pool on /dev/pmem, a host file system for pool files, two kinds of devdax, BTT, and memory that gets poisoned.
"""


def run(*command: str) -> str:
    """Run a program of the guest and return its output; its errors go to the console."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True).stdout


def made_namespaces() -> dict[str, str]:
    """Return the device of each namespace by its name."""
    listed = json.loads(run("ndctl", "list", "--namespaces") or "[]")
    found = {}
    for namespace in listed if isinstance(listed, list) else [listed]:
        if name := namespace.get("name"):
            found[name] = "/dev/" + (namespace.get("blockdev") or namespace["chardev"])
    return found


def make_namespaces() -> None:
    """Label the NVDIMM and make all namespaces."""
    run("ndctl", "disable-region", "all")
    run("ndctl", "init-labels", "--force", "nmem0")
    run("ndctl", "enable-region", "all")
    for name, (mode, size, options) in NAMESPACES.items():
        run("ndctl", "create-namespace", "--mode", mode, "--size", size, "--name", name, *options)


class Results:
    """A pytest plugin that writes a line to /out/results at the end of each test."""

    def __init__(self) -> None:
        self._file = (OUT / "results").open("a", buffering=1)
        self._failed: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note what became of a phase of a test; the test's line follows its last phase."""
        if report.outcome != "passed":
            self._failed.add(report.nodeid)  # a skipped test too: a test that did not run proves nothing
            reasons = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
            print("", *reasons[:12], sep="\n")  # what pytest itself prints at the end, twenty minutes later
        if report.when == "teardown":
            outcome = "failed" if report.nodeid in self._failed else "passed"
            self._file.write(json.dumps({"test": report.nodeid, "outcome": outcome}) + "\n")

    def pytest_collectreport(self, report: Any) -> None:
        """A file that can't be collected is a failure."""
        if report.failed:
            self._file.write(json.dumps({"test": report.nodeid, "outcome": "failed"}) + "\n")


def main() -> int:
    """Do the task; return pytest's exit code."""
    task = json.loads((OUT / "task.json").read_text())
    for driver in DRIVERS:
        run("modprobe", "-C", "/dev/null", driver)
    run("ip", "link", "set", "lo", "up")
    os.chmod("/dev/fuse", 0o666)  # as udev does it elsewhere
    if not made_namespaces():
        make_namespaces()
    DEVICES.write_text(json.dumps(made_namespaces()))
    (OUT / "ready").write_text(Path("/proc/uptime").read_text().split()[0])
    code = run_pytest(task["pytest"]) if task["pytest"] else 0
    if task["work"]:
        (OUT / "working").touch()
        sys.path[:0] = [f"tests/{folder}" for folder in ("devices", "mounted", "direct")] + ["tests"]
        from power_cut import work

        work({name: Path(device) for name, device in made_namespaces().items()}, OUT / "acknowledged")
    return code


def run_pytest(given: list[str]) -> int:
    """Run pytest with its output in /out/log; return its exit code."""
    import pytest

    arguments = [
        *("-o", "norecursedirs=", "-o", "addopts=", "-o", "faulthandler_timeout=240"),
        *("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:hypothesispytest"),
        *("--strict-markers", "--import-mode=importlib", "--timeout=600"),
        *("--durations=15", "--durations-min=1", "--color=no", "-v", "-rN"),
    ]
    with (OUT / "log").open("w", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        sys.stdout = log
        return int(pytest.main([*arguments, *given], plugins=[Results()]))


if __name__ == "__main__":
    sys.exit(main())
