"""Run tests/devices in a QEMU guest on emulated persistent memory. `--help` lists the options.

Exit codes: 0 all tests passed; 1 a test failed; 69 the guest can't run here; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from guest import image, kernel
from guest.failure import CannotRun
from guest.machine import Machine, Parts
from guest.report import Follower, Report

TESTS = "tests/devices"
CACHE = image.CHECKOUT / "build" / "guest"
ENVIRONMENT = Path(os.path.abspath(sys.prefix))
NVDIMM_BYTES = 2 << 30
BOOT_LIMIT = 300
"""Seconds from the start of QEMU to the first test."""
TEST_LIMIT = 1200
"""Seconds that the whole run may take, unless --limit says otherwise."""


def main() -> int:
    """Parse the command line, run the tests, print one report."""
    parser = argparse.ArgumentParser(prog="make test-pmem", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=int, default=TEST_LIMIT, help="seconds that the run may take")
    parser.add_argument("--kernel", type=Path, help="a directory that a Debian kernel package was unpacked to")
    parser.add_argument("--processors", type=int, default=1, help="of the guest: a second one makes a busy host slower")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest; by default all tests of tests/devices")
    given, more = parser.parse_known_args()
    signal.signal(signal.SIGTERM, _interrupted)
    signal.signal(signal.SIGHUP, _interrupted)
    report = Report()
    try:
        with tempfile.TemporaryDirectory(prefix="daxfs-guest-") as folder:
            parts = prepare(report, Path(folder), given.kernel, given.processors)
            run_tests(report, parts, Path(folder), [*more, *given.pytest], report.started + given.limit)
    except CannotRun as error:
        print(f"test-pmem: {error}", file=sys.stderr)
        return 69
    except KeyboardInterrupt:
        print("test-pmem: interrupted", file=sys.stderr)
        return 130
    return report.close()


def prepare(report: Report, folder: Path, given_kernel: Path | None, processors: int) -> Parts:
    """Install tools, get a kernel, make the images and an empty NVDIMM."""
    kernel.install_tools()
    found = kernel.unpacked(given_kernel) if given_kernel else kernel.find(CACHE)
    report.say(f"kernel {found.release}; making the images")
    CACHE.mkdir(parents=True, exist_ok=True)
    python, places = image.python_image(CACHE, ENVIRONMENT)
    checkout = image.checkout_image(folder)
    nvdimm = folder / "nvdimm"
    with nvdimm.open("wb") as file:
        file.truncate(NVDIMM_BYTES)
    return Parts(found, image.initramfs(found, folder), python, places, checkout, nvdimm, processors)


def run_tests(report: Report, parts: Parts, folder: Path, arguments: list[str], end: float) -> None:
    """Boot the guest, let it run pytest, and print its output as it comes."""
    out = folder / "out"
    out.mkdir()
    paths = [] if any(word.startswith(TESTS) for word in arguments) else [TESTS]
    (out / "task.json").write_text(json.dumps({"pytest": [*paths, *arguments]}))
    report.say("booting the guest")
    machine = Machine(parts, out, ENVIRONMENT / "bin" / "python")
    try:
        wait_for_boot(report, machine, end)
        follow = Follower(out / "log")
        while machine.running() and machine.status() is None:
            if time.monotonic() > end:
                report.fail("the time limit is over: the guest is killed")
                break
            follow()
            time.sleep(0.2)
        follow()
        report.add(out / "results")
        if machine.status() not in (0, 1):
            report.fail(f"pytest did not end well in the guest (exit code {machine.status()}); its last words:")
            print(machine.last_words())
    finally:
        machine.kill()


def wait_for_boot(report: Report, machine: Machine, end: float) -> None:
    """Return when the guest has its devices.

    Raises:
        CannotRun: it does not get there.
    """
    limit = min(end, machine.started + BOOT_LIMIT)
    while not (machine.out / "ready").exists():
        if not machine.running() or machine.status() is not None or time.monotonic() > limit:
            print(machine.last_words())
            raise CannotRun("the guest did not boot; its last words are above")
        time.sleep(0.1)
    report.say(f"the guest is up after {time.monotonic() - machine.started:.0f} s")


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
