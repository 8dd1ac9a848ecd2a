"""The compiled core: what is loaded and when it is not, and how the build prepares the sources."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from cli_rig import daxfs

from daxfs import compiled
from daxfs.ext4 import field, inode
from daxfs.ext4.inode import InodeRecord
from support import HANG_SECONDS

ROOT = Path(__file__).parents[2]
SAMPLE = '''\
from daxfs.ext4.field import joined, raw, u16, u32
from daxfs.ext4.record import Record

PLACE = 0x08


class Short(Record):
    """Eight bytes and more."""

    SIZE = 16
    __slots__ = ("end",)

    first = u16(0x00)
    second = u16(0x02, within="end")
    both = joined("first", "second")
    third = u32(PLACE)  # a comment

    def fail(self):
        raise ValueError("line 19")


class Long(Short):
    SIZE = 24
    __slots__ = ()

    fourth = raw(0x10, 4)
    both = joined("third")

    def __init__(self, buf):
        self.buffer = buf
        self.halves = buf.cast("H")
        self.words = buf.cast("I")
        self.end = 24
'''


@pytest.fixture
def build() -> ModuleType:
    """The script that compiles the core."""
    spec = importlib.util.spec_from_file_location("compile_core", ROOT / "scripts" / "compile_core.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(source: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "sample"}
    exec(compile(source, "sample", "exec"), names)
    return names


# The sources that mypyc gets


def test_expanded_records_are_what_they_were(build: ModuleType) -> None:
    before, after = run(SAMPLE), run(build.expanded(SAMPLE, field)[0])
    for name in ("Short", "Long"):
        assert after[name].FIELDS == before[name].FIELDS
        assert (after[name].SIZE, after[name].ALIGNMENT) == (before[name].SIZE, before[name].ALIGNMENT)
        memories = [bytearray(range(24)), bytearray(range(24))]
        records = [kind[name](memoryview(memory)) for kind, memory in zip((before, after), memories, strict=True)]
        for record in records:
            record.end = 4
        for attribute in ("first", "second", "both", "third", *(["fourth"] if name == "Long" else [])):
            old, new = (getattr(record, attribute) for record in records)
            assert old == new
            for record in records:
                setattr(record, attribute, b"1234" if attribute == "fourth" else old + 1)
            assert memories[0] == memories[1] != bytearray(range(24))
    with pytest.raises(ValueError, match="cannot be bound"):
        after["Short"](memoryview(bytearray(8)))


def test_lines_of_expanded_sources_are_known(build: ModuleType) -> None:
    text, origins = build.expanded(SAMPLE, field)
    made, source = text.splitlines(), SAMPLE.splitlines()
    assert len(made) == len(origins) > len(source)
    for line in ('        raise ValueError("line 19")', "class Long(Short):", "        self.end = 24"):
        assert source[origins[made.index(line)] - 1] == line


def test_tracebacks_of_expanded_sources_get_the_old_lines(build: ModuleType) -> None:
    origins = [number // 2 for number in range(100)]
    code = """
        CPy_AddTraceback("daxfs/ext4/inode.py", "size", 61, CPyStatic_globals);
        CPy_TypeErrorTraceback("daxfs/ext4/inode.py", "size", 31, CPyStatic_globals, "int", cpy_r_r0);
        CPy_AttributeError("daxfs/ext4/inode.py", "size", "Inode", "words", 21, CPyStatic_globals);
        CPy_AddTraceback("daxfs/ext4/group.py", "size", 61, CPyStatic_globals);
    """
    numbers = [
        int(found) for found in re.findall(r", (\d+), ", build.with_old_lines(code, origins, "daxfs/ext4/inode.py"))
    ]
    assert numbers == [30, 15, 10, 61]


def test_an_error_names_the_line_of_the_source() -> None:
    geometry: Any = SimpleNamespace(inode_size=256)
    record = InodeRecord(memoryview(bytearray(256)), 0, geometry)
    with pytest.raises(ValueError, match="i_extra_isize") as caught:
        record.set_extra_isize(3)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert last.filename == compiled.source_of(inode.__name__)
    assert last.lineno is not None
    source = Path(last.filename).read_text().splitlines()
    assert "raise ValueError" in source[last.lineno - 1]


TAKES_ALL = frozenset(
    {
        "accumulate",
        "all",
        "any",
        "before_all",
        "bytes",
        "extend",
        "frozenset",
        "fromiter",
        "join",
        "list",
        "max",
        "min",
        "next",
    }
    | {"set", "sorted", "sum", "tuple", "update"}
)
"""Functions to which mypyc gives a list in the place of a generator expression, without a difference."""


def test_no_compiled_module_relies_on_a_lazy_expression(build: ModuleType) -> None:
    """Mypyc makes a list of each generator expression, at once: searches that shall stop early are generators."""
    for module in build.NAMES:
        tree = ast.parse(Path(compiled.source_of(module)).read_text())
        for node in ast.walk(tree):
            taken = isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in TAKES_ALL
            if not (taken or isinstance(node, ast.Starred | ast.AugAssign)):
                kept = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.GeneratorExp)]
                assert not kept, f"{module}: {ast.unparse(kept[0])}"


def test_numbers_of_the_format_are_final(build: ModuleType) -> None:
    """Others are left as they are, and no line moves."""
    text = (
        "from __future__ import annotations\nMASK = 0xFF  # a comment\nMOST = 1 << 15\nLIMIT = (1 << 48) - 1\n"
        "NAME = b'x'\nTWICE = 2 * MOST\ndef f():\n    X = 3\n"
    )
    made = build.with_final_numbers(text)
    assert made == (
        "from __future__ import annotations; from typing import Final\nMASK: Final = 0xFF  # a comment\n"
        "MOST: Final = 1 << 15\nLIMIT = (1 << 48) - 1\nNAME = b'x'\nTWICE = 2 * MOST\ndef f():\n    X = 3\n"
    )
    assert build.with_final_numbers(text, private=True) == text
    assert "\n_MOST: Final = 1 << 15\nLIMIT" in build.with_final_numbers(
        text.replace("MOST =", "_MOST ="), private=True
    )


def test_what_is_compiled_exists(build: ModuleType) -> None:
    assert all(Path(compiled.source_of(name)).is_file() for name in build.NAMES)
    assert len(set(build.NAMES)) == len(build.NAMES)


def test_without_mypyc_a_build_says_so(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mypyc.build", None)
    monkeypatch.setattr(build, "WORK", tmp_path / "work")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old.so").touch()
    build.attempt(tmp_path / "made")
    assert (
        capsys.readouterr().out.splitlines()[-1].startswith("setup: the core stays interpreted: mypyc is not installed")
    )
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_without_a_compiler_that_works_a_build_says_so(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    monkeypatch.setenv("CC", compiler)
    (tmp_path / "module.c").write_text("int one;\n")
    extension = SimpleNamespace(name="module", sources=["module.c"], extra_compile_args=[], include_dirs=[])
    with pytest.raises(build.Unavailable, match="the C compiler failed"):
        build.compiled(tmp_path, [extension], tmp_path, print, tmp_path / "objects")


def test_what_was_compiled_is_not_compiled_again(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another source, another header or another argument is compiled; what nobody has used for long is removed."""
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\necho >>{tmp_path}/calls\nexec cc "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    folder, objects = tmp_path / "work", tmp_path / "objects"
    folder.mkdir()
    (folder / "module.h").write_text("#define ONE 1\n")
    (folder / "module.c").write_text('#include "module.h"\nint one = ONE;\n')
    extension = SimpleNamespace(name="module", sources=["module.c"], extra_compile_args=[], include_dirs=["."])

    def calls() -> int:
        before = len(made.read_text()) if (made := tmp_path / "calls").exists() else 0
        build.compiled(folder, [extension], tmp_path, lambda _: None, objects)
        assert (tmp_path / "module.so").exists()
        return len(made.read_text()) - before

    linking = 1
    assert calls() == 1 + linking
    assert calls() == linking
    (folder / "module.h").write_text("#define ONE 2\n")
    assert calls() == 1 + linking
    (folder / "module.c").write_text('#include "module.h"\nint two = ONE;\n')
    assert calls() == 1 + linking
    extension.extra_compile_args = ["-O1"]
    assert calls() == 1 + linking
    assert len(list(objects.iterdir())) == 4
    for path in objects.iterdir():
        os.utime(path, (0, 0))
    assert calls() == 1 + linking
    assert len(list(objects.iterdir())) == 1


# What is loaded


def described(package: Path, *names: str) -> compiled.Manifest:
    hashes = {name: compiled.hash_of(compiled.source_of(name, str(package))) for name in names}
    return compiled.Manifest(compiled.this_python(), hashes)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, with a folder for compiled modules."""
    made = tmp_path / "daxfs"
    shutil.copytree(ROOT / "daxfs", made, ignore=shutil.ignore_patterns("_compiled", "__pycache__"))
    (made / "_compiled").mkdir()
    return made


def said(package: Path, **variables: str) -> str:
    """What a process with this package says of its core, after it has loaded it."""
    environment = {**os.environ, "PYTHONPATH": str(package.parent), **variables}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import daxfs.fs.filesystem, daxfs.compiled as c; print(c.__file__, c.state(), sep='|')",
        ],
        env=environment,
        cwd=package.parent,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=True,
    )
    place, _, state = done.stdout.strip().partition("|")
    assert place == str(package / "compiled.py")
    return state


def test_a_manifest_is_read_as_it_was_written(package: Path) -> None:
    folder = str(package / "_compiled")
    assert compiled.read_manifest(folder) is None
    manifest = described(package, "daxfs.runs", "daxfs.fs.names")
    compiled.write_manifest(folder, manifest)
    assert compiled.read_manifest(folder) == manifest


def test_changed_sources_run_interpreted(package: Path) -> None:
    assert said(package, DAXFS_PURE="") == "interpreted (not compiled)"
    compiled.write_manifest(str(package / "_compiled"), described(package, "daxfs.runs", "daxfs.fs.names"))
    assert said(package, DAXFS_PURE="1") == "interpreted (DAXFS_PURE is set)"
    with (package / "fs" / "names.py").open("a") as file:
        file.write("# changed\n")
    assert said(package, DAXFS_PURE="0") == "interpreted (daxfs.fs.names has changed since it was compiled)"


def test_another_python_runs_interpreted(package: Path) -> None:
    manifest = described(package, "daxfs.runs")._replace(python="cpython-399-x86_64-linux-gnu")
    compiled.write_manifest(str(package / "_compiled"), manifest)
    assert said(package, DAXFS_PURE="") == "interpreted (compiled for cpython-399-x86_64-linux-gnu)"


def test_a_missing_source_is_a_difference(package: Path) -> None:
    manifest = described(package, "daxfs.runs")
    (package / "runs.py").unlink()
    assert compiled.difference(manifest, str(package)) == "daxfs.runs has changed since it was compiled"


def test_modules_come_from_where_the_state_says() -> None:
    """All compiled modules are loaded compiled, or none."""
    places = {
        name: getattr(sys.modules[name], "__file__", "") or "" for name in sys.modules if name.startswith("daxfs.")
    }
    native = {name for name, place in places.items() if place.startswith(compiled.FOLDER)}
    assert native == compiled.modules() & places.keys()
    assert bool(native) == (compiled.state() == compiled.COMPILED)


def test_users_are_told(pool: Callable[..., Path]) -> None:
    assert daxfs("--version").endswith(f", {compiled.state()}\n")
    assert f"core:          {compiled.state()}\n" in daxfs("info", pool(size="8M"))


@pytest.mark.parametrize("content", ["", "python\nodd\n"])
def test_a_damaged_manifest_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / compiled.MANIFEST).write_text(content)
    assert compiled.read_manifest(str(tmp_path)) is None


def test_a_missing_library_is_an_obstacle(tmp_path: Path) -> None:
    manifest = compiled.Manifest(compiled.this_python(), {"daxfs.one": "0"})
    names = (compiled.LIBRARY, "daxfs.one")
    for name in names:
        assert compiled.missing(manifest, str(tmp_path)) == f"the library of {name} is missing"
        Path(compiled.library_of(name, str(tmp_path))).touch()
    assert not compiled.missing(manifest, str(tmp_path))
