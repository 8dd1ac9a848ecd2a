"""``make c-layers`` finds C files that include headers of higher layers, or declare what other files define."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from support import run

SCRIPTS = Path(__file__).parents[2] / "scripts"
SOUND_OUTPUT = "The C files include only headers of layers below their own.\n"
sys.path.insert(0, str(SCRIPTS))

import c_layers  # noqa: E402  (a script, found by the line above)

SOUND = {
    "LAYERS": "calls  what programs call\nfile   open files\nbase   attributes\n",
    "base.h": '#include "../outside.h"\n',
    "file.h": '#include "base.h"\n\nextern int pl_count;\nstruct pl_file *pl_hold(int fd,\n    int flags);\n',
    "file.c": '#include "file.h"\n\nint pl_count;\n\nstruct pl_file *pl_hold(int fd, int flags) {\n    return 0;\n}\n',
    "calls.h": '#include "file.h"\n',
    "calls_open.c": '#include <fcntl.h>\n#include "calls.h"\n#include "base.h"\n\nint open(const char *path) {\n}\n',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of C files without a fault."""
    for name, text in SOUND.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_includes_that_go_down_are_no_fault(folder: Path) -> None:
    assert c_layers.faults(folder) == []
    assert run(sys.executable, SCRIPTS / "c_layers.py", folder) == SOUND_OUTPUT


def test_an_upward_include_is_one_line(folder: Path) -> None:
    (folder / "file.c").write_text(SOUND["file.c"] + '#include "calls.h"\n')
    expected = f"{folder}/file.c:8: includes calls.h, which is above file"
    assert c_layers.faults(folder) == [expected]
    assert run(sys.executable, SCRIPTS / "c_layers.py", folder, code=1) == f"{expected}\n"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("base.h", '#include "file.h"\n', "base.h:1: includes file.h, which is above base"),
        ("calls.h", '#include "calls.h"\n', "calls.h:1: includes itself"),
        ("file.c", SOUND["file.c"] + '#include "file.c"\n', "file.c:8: includes file.c, which is of no layer"),
        ("lease.c", "", "lease.c: is of no layer in {folder}/LAYERS"),
        ("LAYERS", SOUND["LAYERS"] + "copy  copies\n", "LAYERS: copy has no copy.h"),
        (
            "file.c",
            SOUND["file.c"] + "extern int pl_high;\n",
            "file.c:8: has an extern declaration: that belongs into a header",
        ),
        (
            "file.c",
            SOUND["file.c"] + "\nvoid pl_adopt(int fd,\n              int flags);\n",
            "file.c:9: declares pl_adopt: that belongs into a header",
        ),
        (
            "file.h",
            SOUND["file.h"] + "bool pl_adopt(int fd);\n",
            "file.h:6: declares pl_adopt, which file.c does not define",
        ),
        (
            "file.h",
            SOUND["file.h"] + "extern _Atomic int pl_high[4];\n",
            "file.h:6: declares pl_high, which file.c does not define",
        ),
    ],
)
def test_each_way_up_is_found(folder: Path, name: str, text: str, expected: str) -> None:
    (folder / name).write_text(text)
    assert c_layers.faults(folder) == [f"{folder}/{expected.format(folder=folder)}"]


def test_a_header_sees_only_definitions_that_are_not_static(folder: Path) -> None:
    (folder / "file.c").write_text(SOUND["file.c"].replace("struct pl_file *pl_hold", "static struct pl_file *pl_hold"))
    assert c_layers.faults(folder) == [f"{folder}/file.h:4: declares pl_hold, which file.c does not define"]


def test_the_preload_library_has_no_fault() -> None:
    assert run(sys.executable, SCRIPTS / "c_layers.py") == SOUND_OUTPUT
