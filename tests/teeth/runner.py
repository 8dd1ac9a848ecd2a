"""Runs the tests of a mutant, or of the sources as they are, in a copy of the project of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from teeth.mutant import Mutant, Stale

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "build", "_compiled", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis"
)
FAILED = re.compile(r"^(?:FAILED|ERROR) (?:tests/)?(\S+(?: \S+)*?)(?: - .*)?$", re.MULTILINE)
TESTS_FAILED, ALL_PASSED = 1, 0
"""Exit codes of pytest; all others mean that it could not run the tests."""


class Outcome(Enum):
    """What became of a mutant."""

    CAUGHT = "caught"
    HUNG = "caught (a hang)"
    SURVIVED = "survived"
    STALE = "edit no longer applies"
    BROKEN = "tests could not run"

    @property
    def good(self) -> bool:
        """Whether the tests have done their work."""
        return self in (Outcome.CAUGHT, Outcome.HUNG)


class Verdict(NamedTuple):
    """How a run ended: ``by`` is the test that failed first, or what is wrong with the mutant."""

    outcome: Outcome
    by: str
    seconds: float


@contextlib.contextmanager
def copied() -> Iterator[Path]:
    """A copy of the project, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="teeth-") as folder:
        target = Path(folder) / "copy"
        shutil.copytree(ROOT, target, symlinks=True, ignore=LEFT_OUT)
        yield target


def pytest(copy: Path, tests: tuple[str, ...], limit: float, *, full: bool, compiled: bool) -> tuple[int | None, str]:
    """Run tests with the copy's sources, in child processes too; exit code (None: too slow) and output.

    They run interpreted, or with the copy's core ``compiled``.
    """
    selection = () if full else ("-m", "not full")
    plugins = ("-p", "no:cacheprovider", "-p", "teeth.first_failure")
    command = [sys.executable, "-m", "pytest", "-x", "-q", *plugins, *selection, *tests]
    places = os.pathsep.join((str(copy), str(copy / "tests")))
    environment = {**os.environ, "PYTHONPATH": places, "PYTHONDONTWRITEBYTECODE": "1"}
    environment["DAXFS_PURE"] = "" if compiled else "1"
    with tempfile.TemporaryFile() as output:
        with subprocess.Popen(
            command,
            cwd=copy,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            with contextlib.suppress(ProcessLookupError):  # what the tests left running ends too
                os.killpg(process.pid, signal.SIGKILL)
        output.seek(0)
        return code, output.read().decode(errors="replace")


def build(copy: Path) -> None:
    """Compile the preload library anew."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True, timeout=300)


def compile_core(copy: Path) -> None:
    """Compile the core of a copy. What is made from the same C as an earlier one, here or in the project, is made once.

    Raises:
        CalledProcessError: it can't be compiled.
    """
    made = copy / "daxfs" / "_compiled"
    with contextlib.suppress(FileNotFoundError):
        shutil.copytree(ROOT / "daxfs" / "_compiled", made)  # it stays if the mutant is in none of its sources
    environment = {**os.environ, "DAXFS_OBJECTS": str(ROOT / "build" / "objects")}
    command = [sys.executable, "scripts/compile_core.py"]
    subprocess.run(command, cwd=copy, env=environment, check=True, capture_output=True, timeout=3600)
    if not (made / "MANIFEST").exists():
        raise subprocess.CalledProcessError(1, "compile_core.py")


def try_mutant(mutant: Mutant, limit: float, *, compiled: bool) -> Verdict:
    """Apply a mutant to a copy and run its tests there, with the core interpreted or compiled."""
    begin = time.monotonic()
    with copied() as copy:
        try:
            mutant.apply(copy)
        except Stale as error:
            return Verdict(Outcome.STALE, str(error), 0.0)
        if mutant.path.endswith((".c", ".h")):
            build(copy)
        if compiled:
            compile_core(copy)
        code, output = pytest(copy, mutant.tests, limit, full=mutant.full, compiled=compiled)
    return _verdict(code, output, time.monotonic() - begin)


def _verdict(code: int | None, output: str, seconds: float) -> Verdict:
    if code is None:
        return Verdict(Outcome.HUNG, "", seconds)
    if code == ALL_PASSED:
        return Verdict(Outcome.SURVIVED, "", seconds)
    found = FAILED.search(output)
    if code == TESTS_FAILED and found:
        return Verdict(Outcome.CAUGHT, found[1], seconds)
    return Verdict(Outcome.BROKEN, output.strip()[-500:], seconds)


def try_unchanged(mutants: list[Mutant], limit: float, *, compiled: bool) -> str:
    """The same tests on the sources as they are: empty if they pass, else what pytest said."""
    for full in (False, True):
        tests = tuple(sorted({test for mutant in mutants if mutant.full == full for test in mutant.tests}))
        if tests:
            with copied() as copy:
                if compiled:
                    compile_core(copy)
                code, output = pytest(copy, tests, limit * len(tests), full=full, compiled=compiled)
            if code != ALL_PASSED:
                return output[-3000:] or "too slow"
    return ""
