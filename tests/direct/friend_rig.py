"""Programs that know nothing of daxfs and run on a mount: by themselves, or below `daxfs exec`."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from support import run, tool

WAYS = ("fuse", "exec")
"""How a program gets at its files: through the kernel alone, or through the preload library where that can."""

PROGRAMS = Path(__file__).parent / "friends"
LIMIT = 40.0
"""Seconds that one program may take."""


def command(way: str, *words: str | Path) -> list[str]:
    """The command line of a program, whose name is looked up among the tools unless it is a path."""
    name, *rest = map(str, words)
    begin = [sys.executable, "-m", "daxfs.tools", "exec", "--"] if way == "exec" else []
    return [*begin, name if "/" in name else tool(name), *rest]


def script(name: str) -> tuple[str, Path]:
    """What to run for one of the Python programs."""
    return sys.executable, PROGRAMS / name


def said(way: str, *words: str | Path) -> str:
    """Run a program to its end, which must be a good one, and return what it printed."""
    done = subprocess.run(
        command(way, *words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Friend:
    """A program at work, whose lines are waited for."""

    def __init__(self, way: str, *words: str | Path) -> None:
        self._words = words
        self._ends = time.monotonic() + LIMIT
        self.process = subprocess.Popen(
            command(way, *words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )

    def hear(self, line: str, count: int = 1) -> None:
        """Wait until it has said a line so many times."""
        assert self.process.stdout is not None
        heard = b""
        while count:
            ready, _, _ = select.select([self.process.stdout], [], [], max(self._ends - time.monotonic(), 0))
            assert ready, f"{self._words} is silent"
            byte = self.process.stdout.read(1)
            assert byte, f"{self._words} ended with {self.process.wait(LIMIT)} after {heard!r}"
            heard += byte
            if byte == b"\n":
                count -= heard.decode().strip() == line
                heard = b""

    def finish(self) -> None:
        """It must end, and well."""
        self.process.communicate(timeout=max(self._ends - time.monotonic(), 0.1))
        assert self.process.returncode == 0, f"{self._words}: exit {self.process.returncode}"

    def kill(self) -> None:
        """End it wherever it is."""
        self.process.kill()
        self.process.communicate(timeout=LIMIT)


@contextlib.contextmanager
def at_work(way: str, *words: str | Path) -> Iterator[Friend]:
    """Start a program; it is gone afterwards, whatever happened."""
    friend = Friend(way, *words)
    try:
        yield friend
    finally:
        friend.kill()


def compile_program(source: Path, target: Path, *libraries: str) -> Path:
    """Compile one C source."""
    run("gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-o", target, source, *libraries)
    return target
