"""Run tests/devices in a QEMU guest on emulated persistent memory. `--help` lists the options.

Exit codes: 0 all tests passed; 1 a test failed; 69 the guest can't run here; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from guest import image, kernel
from guest.failure import CannotRun
from guest.machine import Machine, Parts
from guest.report import Follower, Report

TESTS = "tests/devices"
AFTER_A_CUT = "tests/devices/test_power_cut.py"
CUTS = 2
CHANGES = (20, 60)
"""Acknowledged changes before the power is cut, at least and at most."""
CACHE = image.CHECKOUT / "build" / "guest"
ENVIRONMENT = Path(os.path.abspath(sys.prefix))
NVDIMM_BYTES = 2 << 30
BOOT_LIMIT = 300
"""Seconds from the start of QEMU to the first test."""
TEST_LIMIT = 2400
"""Seconds that the whole run may take, unless --limit says otherwise: twice 20 minutes, for a busy machine."""


def main() -> int:
    """Parse the command line, run the tests, print one report."""
    parser = argparse.ArgumentParser(
        prog="make test-pmem",
        description=(__doc__ or "").splitlines()[0],
        epilog="Other arguments are pytest's: -k, a file of tests/devices, ...",
        allow_abbrev=False,
    )
    parser.add_argument("--limit", type=int, default=TEST_LIMIT, help="seconds that the run may take")
    parser.add_argument("--kernel", type=Path, help="a directory that a Debian kernel package was unpacked to")
    parser.add_argument("--processors", type=int, default=1, help="of the guest: a second one makes a busy host slower")
    parser.add_argument("--cuts", type=int, help=f"power cuts; by default {CUTS}, none if pytest gets arguments")
    given, arguments = parser.parse_known_args()
    signal.signal(signal.SIGTERM, _interrupted)
    signal.signal(signal.SIGHUP, _interrupted)
    report = Report()
    try:
        with tempfile.TemporaryDirectory(prefix="daxfs-guest-") as folder:
            parts = prepare(report, Path(folder), given.kernel, given.processors)
            run = Run(report, parts, Path(folder), report.started + given.limit)
            run.tests(arguments)
            run.power_cuts(given.cuts if given.cuts is not None else 0 if arguments else CUTS)
    except CannotRun as error:
        if not report.began:
            print(f"test-pmem: {error}", file=sys.stderr)
            return 69
        report.fail(str(error))
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


class Run:
    """Boots of one guest with one NVDIMM."""

    def __init__(self, report: Report, parts: Parts, folder: Path, end: float) -> None:
        self._report = report
        self._parts = parts
        self._out = folder / "out"
        self._end = end
        self._chance = random.Random(13)
        (self._out / "acknowledged").mkdir(parents=True)

    def tests(self, arguments: list[str]) -> None:
        """Boot the guest and let it run pytest on all tests but those of power cuts."""
        paths = [] if any(TESTS in word for word in arguments) else [TESTS]
        with self._booted([f"--ignore={AFTER_A_CUT}", *paths, *arguments]) as machine:
            self._follow(machine, lambda: machine.status() is not None)
        if machine.status() not in (0, 1):
            self._report.fail(f"pytest did not end well in the guest (exit code {machine.status()}); its last words:")
            print(machine.last_words())

    def power_cuts(self, count: int) -> None:
        """Let the guest change pools and cut its power, ``count`` times; after each boot it checks what it has."""
        for boot in range(count + 1) if count else ():
            last = boot == count
            self._report.say("boot after the last power cut" if last else f"power cut {boot + 1} of {count}")
            with self._booted([AFTER_A_CUT] if boot else [], work=not last) as machine:
                self._follow(machine, lambda: machine.status() is not None or (self._out / "working").exists())
                if not last and not self._cut(machine):
                    break
            if last and machine.status() not in (0, 1):
                self._report.fail(f"the guest did not check the changes (exit code {machine.status()}); last words:")
                print(machine.last_words())

    def _cut(self, machine: Machine) -> bool:
        """Cut the power after a random number of acknowledged changes; return whether the guest made as many."""
        before = self._acknowledged()
        wanted = before + self._chance.randint(*CHANGES)
        self._follow(machine, lambda: self._acknowledged() >= wanted)
        time.sleep(self._chance.random())
        machine.kill()
        made = self._acknowledged() - before
        if made < CHANGES[0]:
            self._report.fail(f"the guest has made {made} changes only; its last words:")
            print(machine.last_words())
            return False
        self._report.say(f"the power is cut after {made} acknowledged changes")
        return True

    @contextlib.contextmanager
    def _booted(self, arguments: list[str], *, work: bool = False) -> Iterator[Machine]:
        """Boot the guest; at the end cut its power, and count the results of its tests.

        Raises:
            CannotRun: it does not boot.
        """
        for name in ("ready", "working", "results", "log", "console", "status"):
            (self._out / name).unlink(missing_ok=True)
        (self._out / "task.json").write_text(json.dumps({"pytest": arguments, "work": work}))
        self._report.say("booting the guest")
        machine = Machine(self._parts, self._out, ENVIRONMENT / "bin" / "python")
        try:
            self._wait_until_ready(machine)
            yield machine
        finally:
            machine.kill()
        self._report.add(self._out / "results")

    def _wait_until_ready(self, machine: Machine) -> None:
        """Return when the guest has its devices."""
        limit = min(self._end, machine.started + BOOT_LIMIT)
        while not (self._out / "ready").exists():
            if not machine.running() or machine.status() is not None or time.monotonic() > limit:
                print(machine.last_words())
                raise CannotRun("the guest did not boot; its last words are above")
            time.sleep(0.1)
        self._report.say(f"the guest is up after {time.monotonic() - machine.started:.0f} s")

    def _follow(self, machine: Machine, ended: Callable[[], bool]) -> None:
        """Print the output of pytest in the guest until ``ended``, the end of the guest, or the time limit."""
        follow = Follower(self._out / "log")
        while machine.running() and not ended():
            if time.monotonic() > self._end:
                self._report.fail("the time limit is over: the guest is killed")
                break
            follow()
            time.sleep(0.2)
        follow()

    def _acknowledged(self) -> int:
        """Return how many changes are acknowledged in all pools."""
        logs = (self._out / "acknowledged").iterdir()
        return sum(line.startswith("done") for log in logs for line in log.read_text().splitlines())


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
