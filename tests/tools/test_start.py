"""An interrupt while the command line is being loaded."""

from __future__ import annotations

import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from daxfs.tools import start
from support import HANG_SECONDS

STALLED = """
import sys, time

class Stall:
    def find_spec(self, name, *_):
        if name == "typer":
            print("loading", flush=True)
            time.sleep(600)

sys.meta_path.insert(0, Stall())
from daxfs.tools import start
start.main()
"""


def test_an_interrupt_is_one_line() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STALLED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout
        assert started.stdout.readline() == "loading\n"
        started.send_signal(signal.SIGINT)
        _, said = started.communicate(timeout=HANG_SECONDS)
    assert (started.returncode, said) == (start.INTERRUPTED, "daxfs: interrupted\n")


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_the_handler_is_as_before(handler: object) -> None:
    before = signal.signal(signal.SIGINT, handler)  # type: ignore[arg-type]
    try:
        start.load()
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_all_programs_begin_here() -> None:
    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        programs = tomllib.load(file)["project"]["scripts"]
    for target in programs.values():
        module, _, name = target.partition(":")
        assert module == "daxfs.tools.start"
        assert callable(getattr(start, name))
