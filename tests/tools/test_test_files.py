"""Every module of fs, its packages and the Python client has a test file of its own, in the folder of the same name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("fs", "fs/grants", "fs/moving", "fs/snapshots", "fs/tiers", "direct")
WITHOUT = {
    "fs/notifiers": "protocols: each listener is tested as what it is (table, inode_grants), each caller as what calls",
    "fs/types": "plain values that cross the border of the layer, without a line that could be wrong",
}
"""Modules that declare and do nothing, with the reason."""


def modules(folder: str) -> set[str]:
    return {path.stem for path in (ROOT / "daxfs" / folder).glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_module_has_a_test_file(folder: str) -> None:
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / folder).glob("test_*.py")}
    excused = {name.rpartition("/")[2] for name in WITHOUT if name.rpartition("/")[0] == folder}
    assert modules(folder) - tested == excused


def test_what_has_none_does_nothing() -> None:
    """No function of an excused module has a body to test."""
    for name in WITHOUT:
        tree = ast.parse((ROOT / "daxfs" / f"{name}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert all(isinstance(line, ast.Expr) for line in node.body), f"{name}: {node.name}"
