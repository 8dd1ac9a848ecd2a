"""Tests that replace code of the core, for which it must run interpreted: the marker ``interpreted``.

Compiled callers call compiled functions and methods directly, so they never see what a test puts in their place. A test
with the marker runs in a process of its own with ``DAXFS_PURE=1`` if the core is compiled here. A test without it that
replaces compiled code fails at once: it would test nothing. Constants of modules, and functions that are attributes of
objects, are looked up as always.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from daxfs import compiled
from support import HANG_SECONDS

OURS = ("PYTEST_", "_PYTEST")
"""Variables with such names tell pytest what its parent is."""
_results: dict[Path, tuple[set[str], str]] = {}
"""What the marked tests of each file came to."""


def runs_elsewhere(item: pytest.Item) -> bool:
    """Whether a test needs the core interpreted, which is compiled here."""
    return item.get_closest_marker("interpreted") is not None and compiled.state() == compiled.COMPILED


def run(item: pytest.Function) -> bool | None:
    """Run a marked test interpreted; True: done, None: pytest runs it here.

    The first one of a file runs all that are selected of that file, since starting a process costs some seconds.
    """
    if not runs_elsewhere(item):
        return None
    if item.path not in _results:
        marked = [other for other in item.session.items if other.path == item.path and runs_elsewhere(other)]
        _results[item.path] = _run_all(marked, item.config.rootpath)
    passed, said = _results[item.path]
    if item.nodeid not in passed:
        pytest.fail(f"interpreted:\n{said}", pytrace=False)
    return True


def _run_all(items: list[pytest.Item], root: Path) -> tuple[set[str], str]:
    """Run tests in a process of its own; return which passed, and what pytest said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    environment[compiled.VARIABLE] = "1"
    with tempfile.TemporaryDirectory(prefix="daxfs-interpreted-") as folder:
        command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", f"--basetemp={folder}/base"]
        done = subprocess.run(
            [*command, *(item.nodeid for item in items)],
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=HANG_SECONDS * (1 + len(items)),
            check=False,
        )
    return set(re.findall(r"^PASSED (.*)$", done.stdout, re.MULTILINE)), done.stdout + done.stderr


def is_compiled(owner: object, name: str) -> bool:
    """Whether ``owner.name`` is code that compiled callers reach without looking it up."""
    modules = compiled.modules()
    if isinstance(owner, ModuleType):
        return owner.__name__ in modules and getattr(getattr(owner, name, None), "__module__", None) in modules
    kind = owner if isinstance(owner, type) else type(owner)
    return kind.__module__ in modules and isinstance(owner, type)


def refuse_patches_of_compiled_code() -> None:
    """Have pytest's monkeypatch refuse to replace code that compiled callers would not look up."""
    original = pytest.MonkeyPatch.setattr

    def setattr(patch: pytest.MonkeyPatch, target: Any, name: Any, *rest: Any, **options: Any) -> None:
        owner, attribute = target, name
        if isinstance(target, str):
            path, _, attribute = target.rpartition(".")
            owner = pytest.importorskip(path) if path in sys.modules else None
        if owner is not None and is_compiled(owner, attribute):
            pytest.fail(f"{attribute} is compiled, and its callers do not look it up: mark the test interpreted")
        original(patch, target, name, *rest, **options)

    pytest.MonkeyPatch.setattr = setattr  # type: ignore[method-assign]
