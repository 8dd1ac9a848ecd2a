"""Fixtures that all tests share."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import crash_marker
import interpreted
import part_times
import pytest

from daxfs.fuse import unexpected
from support import mke2fs

# A run below nohup(1), or in the background of a script, ignores these, and so would all programs that tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


interpreted.refuse_patches_of_compiled_code()


def pytest_collection_finish() -> None:
    """Spare collections of garbage the million objects of the loaded tests.

    Each daemon is a fork of this process and collects before it serves (`daxfs.fuse.serving.run`). It would visit all
    of those objects, and have a copy of each page that they lie in: most of what a mount costs here.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave the fixtures of a test with the marker interpreted to the process in which it runs."""
    if interpreted.runs_elsewhere(item):
        item.fixturenames.clear()  # type: ignore[attr-defined]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test with the marker interpreted in a process of its own, if the core is compiled."""
    return interpreted.run(pyfuncitem)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how long each part of the run took."""
    reports = (each for found in terminalreporter.stats.values() for each in found if hasattr(each, "duration"))
    told = list(part_times.lines(reports))
    if told:
        terminalreporter.section("time of each part, of all workers together")
        for line in told:
            terminalreporter.write_line(line)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of ours."""
    parser.addoption("--histories", type=int, default=1000, help="random histories with snapshots in the full sweep")
    parser.addoption(
        "--crash-images", type=int, default=crash_marker.IMAGES, help="crash images of a test with the marker crash"
    )


@pytest.fixture(autouse=True)
def _bugs_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions of this process and its forks pass on what they would refuse and log: a bug must fail its test."""

    def passed_on(_core: object, error: Exception, _what: str) -> NoReturn:
        raise error

    monkeypatch.setattr(unexpected, "refusal", passed_on)


@pytest.fixture
def pool(tmp_path: Path) -> Callable[..., Path]:
    """Make a pool: ``pool("-O", "^metadata_csum", size="32M")``."""
    made = 0

    def make(*options: str, size: str = "64M") -> Path:
        nonlocal made
        made += 1
        return mke2fs(tmp_path / f"pool{made}", *options, size=size)

    return make
