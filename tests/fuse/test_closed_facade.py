"""The facade is closed: layers above it only call its methods, and do not access attributes of the core's objects."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import daxfs

TOP = Path(daxfs.__file__).parent
ABOVE = sorted(path for room in ("fuse", "tools", "direct") for path in (TOP / room).rglob("*.py"))
KEPT = {"volume", "node", "nodes", "leases", "caller", "append"}
"""Private attributes of the core's objects."""
OTHERS = {("request", "node"), ("request", "caller"), ("self", "node")}
"""Attributes of the session's own objects that have the same names, by the name of the object."""


def reaches_in(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of each access to a private attribute of the core; ``append`` of a list is not counted."""
    tree = ast.parse(source)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr not in KEPT:
            continue
        of = node.value.id if isinstance(node.value, ast.Name) else ""
        if (of, node.attr) in OTHERS or (node.attr == "append" and id(node) in called):
            continue
        yield node.lineno, ast.unparse(node)


def test_nothing_above_the_facade_reaches_into_the_core() -> None:
    found = {f"{path.relative_to(TOP)}:{line}": text for path in ABOVE for line, text in reaches_in(path.read_text())}
    assert found == {}


def test_no_test_of_a_session_does() -> None:
    here = Path(__file__).parent
    tests = [*here.glob("*.py"), here.parent / "fuse/hostile_rig.py", here.parent / "message_rig.py"]
    found = [(path.name, text) for path in tests for _, text in reaches_in(path.read_text()) if "volume" in text]
    assert found == []


def test_what_reaches_in_is_seen() -> None:
    source = "core.volume.x = f\nif file.node.plain: file.append = False\nfile.caller = request.caller(l.append(1))"
    assert {text for _, text in reaches_in(source)} == {"file.append", "file.caller", "core.volume", "file.node"}
