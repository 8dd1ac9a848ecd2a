"""Third-party applications on a mount: by themselves, or below `daxfs exec`."""

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

PROGRAMS = Path(__file__).parent / "applications"
LIMIT = 40.0
"""Seconds that one program may take."""


def command(way: str, *words: str | Path) -> list[str]:
    """Return the command line of a program; a name that is no path is looked up among the tools."""
    name, *rest = map(str, words)
    begin = [sys.executable, "-m", "daxfs.tools", "exec", "--"] if way == "exec" else []
    return [*begin, name if "/" in name else tool(name), *rest]


def script(name: str) -> tuple[str, Path]:
    """Return the command line of one of the Python programs."""
    return sys.executable, PROGRAMS / name


def said(way: str, *words: str | Path) -> str:
    """Run a program, check that it succeeds, and return its output."""
    done = subprocess.run(
        command(way, *words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Application:
    """A running program whose output lines a test waits for."""

    def __init__(self, way: str, *words: str | Path) -> None:
        self._words = words
        self._ends = time.monotonic() + LIMIT
        self.process = subprocess.Popen(
            command(way, *words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )

    def hear(self, line: str, count: int = 1) -> None:
        """Wait until the program has printed a line so many times."""
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
        """Wait for the program's end, which must be a success."""
        self.process.communicate(timeout=max(self._ends - time.monotonic(), 0.1))
        assert self.process.returncode == 0, f"{self._words}: exit {self.process.returncode}"

    def kill(self) -> None:
        """Kill the program."""
        self.process.kill()
        self.process.communicate(timeout=LIMIT)


@contextlib.contextmanager
def at_work(way: str, *words: str | Path) -> Iterator[Application]:
    """Start a program; it is killed at the end in any case."""
    application = Application(way, *words)
    try:
        yield application
    finally:
        application.kill()


def compile_program(source: Path, target: Path, *libraries: str) -> Path:
    """Compile one C source."""
    run("gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-o", target, source, *libraries)
    return target
