"""``daxfs exec``: the library precedes others in LD_PRELOAD, exit codes are env(1)'s, signals are as from a shell."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from mount_rig import COMMAND, daxfs

from daxfs.errors import UserError
from daxfs.tools import exec as execute


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a file in place of the library, for tests that don't load it."""
    monkeypatch.setattr(execute, "library", lambda: Path("/lib/ours.so"))
    return "/lib/ours.so"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "/lib/ours.so"),
        ({"LD_PRELOAD": "/a.so"}, "/lib/ours.so:/a.so"),
        ({"LD_PRELOAD": "/a.so /b.so:"}, "/lib/ours.so:/a.so:/b.so"),
        ({"LD_PRELOAD": "/a.so:/lib/ours.so"}, "/lib/ours.so:/a.so"),
    ],
)
@pytest.mark.usefixtures("library")
def test_preload_keeps_what_is_there(before: dict[str, str], after: str) -> None:
    assert execute.environment({"HOME": "/", **before}) == {"HOME": "/", "LD_PRELOAD": after}


def test_switched_off_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "library", lambda: pytest.fail("asked for"))
    given = {"DAXFS_DIRECT": "0", "LD_PRELOAD": "/a.so"}
    assert execute.environment(given, verbose=True) == given


def test_a_library_that_was_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(execute, "LIBRARY", tmp_path / "_preload.so")
    with pytest.raises(UserError, match="C compiler") as caught:
        execute.run(["true"])
    assert caught.value.code == 125


def test_a_place_that_ld_preload_cannot_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "a b"
    place.mkdir()
    (place / "_preload.so").touch()
    monkeypatch.setattr(execute, "LIBRARY", place / "_preload.so")
    with pytest.raises(UserError, match="space or colon"):
        execute.library()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["exec"], 125),
        (["exec", "--nonsense", "true"], 125),
        (["exec", "/nonexistent"], 127),
        (["exec", "--", "no-such-program-anywhere"], 127),
        (["exec", "/etc/passwd/x"], 127),
        (["exec", "/etc/passwd"], 126),
        (["exec", "/"], 126),
    ],
)
def test_an_error_is_one_line_and_a_code(arguments: list[str], code: int) -> None:
    said = daxfs(*arguments, code=code)
    assert said.startswith("daxfs: ")
    assert said.count("\n") == 1


def test_arguments_and_the_exit_code_are_the_programs() -> None:
    assert daxfs("exec", "--", "sh", "-c", 'echo "$@"; exit 7', "sh", "--verbose", "-v", "--", code=7) == (
        "--verbose -v --\n"
    )


def test_the_program_has_the_library_loaded() -> None:
    assert str(execute.LIBRARY) in daxfs("exec", "cat", "/proc/self/maps")
    assert "LD_PRELOAD=" in daxfs("exec", "--verbose", "true")


def test_a_reader_that_leaves_ends_the_program() -> None:
    """The program does not ignore SIGPIPE, though Python does."""
    done = subprocess.run(
        [*COMMAND, "exec", "grep", "SigIgn", "/proc/self/status"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    ignored = int(done.stdout.split()[1], 16)
    assert not ignored & (1 << 12)
