"""``make circles`` finds modules that import each other, by any kind of import."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from support import run

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import circles  # noqa: E402  (a script, found by the line above)

TYPES_ONLY = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from {package}.{module} import Thing\n"
NAMES = itertools.count()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty package that can be imported; its name is new, because Python caches what it has found."""
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / f"made_up_{next(NAMES)}"
    folder.mkdir()
    (folder / "__init__.py").touch()
    return folder


def test_a_circle_of_type_only_imports_is_one_line(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, other in (("one", "two"), ("two", "three"), ("three", "one")):
        (package / f"{module}.py").write_text(TYPES_ONLY.format(package=package.name, module=other))
    (package / "beside.py").write_text(f"from {package.name} import one, two\n")
    name = package.name
    expected = f"{name}.one:3 -> {name}.two:3 -> {name}.three:3 -> {name}.one"
    assert circles.circles(name) == [expected]
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    assert run(sys.executable, SCRIPTS / "circles.py", name, code=1) == f"import circle: {expected}\n"


@pytest.mark.parametrize(
    "back", ["from {0}.inner import high", "import {0}.inner.high", "def late():\n    from {0}.inner.high import x"]
)
def test_one_direction_may_be_of_any_kind(package: Path, back: str) -> None:
    (package / "inner").mkdir()
    (package / "inner" / "__init__.py").touch()
    (package / "inner" / "high.py").write_text(TYPES_ONLY.format(package=package.name, module="low"))
    (package / "low.py").write_text(back.format(package.name) + "\n")
    (found,) = circles.circles(package.name)
    assert found.startswith(f"{package.name}.inner.high:3 -> {package.name}.low:")


def test_modules_that_import_downwards_only_are_no_circle(package: Path) -> None:
    for module, others in (("high", ["middle", "low"]), ("middle", ["low"]), ("low", [])):
        text = "".join(TYPES_ONLY.format(package=package.name, module=other) for other in others)
        (package / f"{module}.py").write_text(text)
    assert circles.circles(package.name) == []


def test_daxfs_has_none() -> None:
    assert run(sys.executable, SCRIPTS / "circles.py") == "No import circles.\n"
