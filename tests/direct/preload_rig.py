"""The preload library for tests, compiled from the sources, and processes that run below it.

An agent is a Python process below the library that evaluates what a test sends it, so that the test can act in turn
with it through plain FUSE.
"""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from support import HANG_SECONDS, tool

SOURCES = Path(__file__).parents[2] / "daxfs" / "direct" / "preload"
PROGRAMS = Path(__file__).parent / "programs"
STRICT = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")
LIMIT = 60.0
"""Seconds that a program below the library may take."""


def compile_library(target: Path) -> Path:
    """Compile as setup.py does, with warnings as errors."""
    sources = sorted(SOURCES.glob("*.c"))
    subprocess.run(
        [tool("gcc"), "-shared", "-fPIC", *STRICT, "-fvisibility=hidden", "-o", target, *sources, "-ldl"], check=True
    )
    return target


def compile_program(name: str, target: Path, *options: str) -> Path:
    """Compile one of the test programs."""
    subprocess.run([tool("gcc"), *STRICT, *options, "-o", target, PROGRAMS / f"{name}.c"], check=True)
    return target


def below(library: Path | None, **more: str) -> dict[str, str]:
    """Return an environment with the library, or without."""
    environment = {**os.environ, **more}
    environment.pop("LD_PRELOAD", None)
    if library:
        environment["LD_PRELOAD"] = str(library)
    return environment


def said(library: Path | None, *command: str | Path, **more: str) -> str:
    """Run a program, check that it succeeds, and return its output."""
    done = subprocess.run(
        list(map(str, command)),
        env=below(library, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


AGENT = """
import os, fcntl, ctypes, sys, struct
def calls():
    # Reads and writes that the kernel has done for this process: those from memory are not among them.
    lines = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
    return int(lines["syscr"]) + int(lines["syscw"])
def direct(action, most=2):
    # Do it often enough for a lease, then once more without the kernel.
    for _ in range(3):
        action()
    before = calls()
    between = calls() - before
    result = action()
    after = calls()
    return result, after - before - 2 * between
scope = globals()
for line in sys.stdin:
    text = eval(line)
    try:
        try:
            code = compile(text, "agent", "eval")
        except SyntaxError:
            exec(text, scope)
            said = None
        else:
            said = eval(code, scope)
        answer = ("ok", said)
    except OSError as error:
        answer = ("errno", error.errno)
    except BaseException as error:
        answer = ("failed", repr(error))
    os.write(1, (repr(answer) + "\\n").encode())
"""


class Agent:
    """A Python process below the library (or without)."""

    def __init__(self, library: Path | None, **more: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", AGENT],
            env=below(library, **more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, text: str, /, **values: object) -> object:
        """Evaluate an expression or run statements in the agent, with ``{name}`` replaced; raise its OSError here."""
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", repr(value))
        self._pipe(self.process.stdin).write(repr(text) + "\n")
        self._pipe(self.process.stdin).flush()
        line = self._pipe(self.process.stdout).readline()
        assert line, f"the agent is gone after {text!r}: {self.process.wait(HANG_SECONDS)}"
        kind, answer = ast.literal_eval(line)
        if kind == "errno":
            raise OSError(answer, os.strerror(answer))
        assert kind == "ok", f"{text!r}: {answer}"
        result: object = answer
        return result

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def end(self) -> None:
        """Close the agent's input, and kill the agent if it does not end."""
        self._pipe(self.process.stdin).close()
        try:
            assert self.process.wait(HANG_SECONDS) == 0
        finally:
            self.process.kill()
            self.process.wait()
            self._pipe(self.process.stdout).close()


@contextlib.contextmanager
def agent(library: Path | None, **more: str) -> Iterator[Agent]:
    """Yield an agent; it ends with the context."""
    made = Agent(library, **more)
    try:
        yield made
    finally:
        made.end()
