"""Actors below the preload library: where the library is, how programs are started with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import actor_rig
from actor_rig import Actor, Stage

from daxfs.tools.exec import library


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment with the library preloaded; fail if the library was not built."""
    here = Path(__file__).parent
    return {**os.environ, "LD_PRELOAD": str(library()), "PYTHONPATH": f"{here}:{here.parent}", **more}


def run_python(script: str, *arguments: str | Path, limit: float = 60, code: int = 0, **more: str) -> str:
    """Run a Python script below the library, expect its exit code, return its output."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
        env=environment(**more),
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class PreloadedActor(Actor):
    """An actor in a program of its own: a fork of the test process would not have the library."""

    def __init__(self, root: Path) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        os.set_inheritable(theirs.fileno(), True)
        script = "import preloaded_actors; preloaded_actors.act()"
        command = [sys.executable, "-c", script, str(root), str(theirs.fileno())]
        self.pid = os.posix_spawn(sys.executable, command, environment())
        theirs.close()


class PreloadedStage(Stage):
    """A stage whose actors have the library."""

    def __getitem__(self, name: str) -> Actor:
        if name not in self._actors:
            self._actors[name] = PreloadedActor(self.root)
        return self._actors[name]


@contextlib.contextmanager
def preloaded_stage(root: Path) -> Iterator[PreloadedStage]:
    """Yield a stage whose actors have the library."""
    stage = PreloadedStage(root)
    try:
        yield stage
    finally:
        stage.close()


def act() -> None:
    """Run an actor's calls; the main function of its program."""
    root, number = sys.argv[1:]
    actor_rig.perform(Path(root), Connection(int(number)))
