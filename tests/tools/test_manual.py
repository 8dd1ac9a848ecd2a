"""Help, README, man pages, licence and completion agree with the code."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import typer
from mount_rig import COMMAND, daxfs

from daxfs.fuse.optiontable import OPTIONS
from daxfs.tools import cli
from support import run

TOP = Path(__file__).parents[2]
MAN = TOP / "man"
PAGES = {"daxfs.1", "daxfs-mount.8", "mkfs.daxfs.8", "mount.fuse.daxfs.8"}
sys.path.insert(0, str(TOP / "scripts"))

import manual  # noqa: E402  (a script, found by the line above)


@pytest.mark.parametrize("name", manual.PLACES)
def test_the_table_of_options_is_the_code_s(name: str) -> None:
    assert (TOP / name).read_text() == manual.filled(name), "run: python scripts/manual.py"


def test_help_has_every_option_with_one_line() -> None:
    said = daxfs("mount", "--help")
    for option in OPTIONS:
        words = ", ".join(option.spellings)
        assert re.search(rf"^  {re.escape(words)}\s+{re.escape(option.text)}$", said, re.MULTILINE), words
    for name in ("wake", "dax", "session"):
        assert name in said


def plain(page: str) -> str:
    """Return a man page as text."""
    text = run("env", "MANWIDTH=500", "man", "-E", "UTF-8", "--warnings", "-l", MAN / page)
    return re.sub(r"\x1b\[\d+m|.\x08", "", text)


@pytest.mark.parametrize("page", sorted(PAGES - {"mount.fuse.daxfs.8"}))
def test_a_man_page_is_well_formed(page: str) -> None:
    command = ["man", "-E", "UTF-8", "--warnings", "-l", str(MAN / page)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "MANWIDTH": "200"})
    assert done.stderr == ""
    for title in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "SEE ALSO"):
        assert title in done.stdout


def test_an_installation_has_the_pages_and_the_licence(tmp_path: Path) -> None:
    """Check a wheel of the tracked files, built without the network, as pip installs it."""
    tracked = run("git", "-C", TOP, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in tracked:
        if (TOP / name).is_file():
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TOP / name, tmp_path / "source" / name)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    # The preload library is optional: with a compiler that fails, building the wheel takes no time.
    done = subprocess.run(
        [*pip, "-w", str(tmp_path), str(tmp_path / "source")],
        env={**os.environ, "CC": "false"}, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "wheel")
    man = next((tmp_path / "wheel").glob("*.data")) / "data" / "share" / "man"
    assert {path.name for path in man.rglob("*.[18]")} == PAGES == {path.name for path in MAN.iterdir()}
    for page in PAGES:
        assert str(man) in run("man", "-M", man, "-w", page[-1], page[:-2])
    assert "daxfs-mount" in run("man", "-E", "UTF-8", "--warnings", "-M", man, "mount.fuse.daxfs")
    licence = next((tmp_path / "wheel").glob("*.dist-info/licenses/LICENSE"))
    assert licence.read_text() == (TOP / "LICENSE").read_text()


def test_the_man_page_names_every_command_and_option() -> None:
    said = plain("daxfs.1")
    group = typer.main.get_command(cli.app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert re.search(rf"^ +{name}\b", said, re.MULTILINE), name
        for parameter in command.params:
            for word in parameter.opts:
                if word.startswith("--"):
                    assert word in said, f"{name} {word}"


def test_the_licence_is_named() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    assert (project["license"], project["license-files"]) == ("MIT", ["LICENSE"])
    assert "the daxfs authors" in (TOP / "LICENSE").read_text()
    assert importlib.metadata.metadata("daxfs")["License-Expression"] == "MIT"


def test_the_readme_says_what_it_is_not() -> None:
    said = (TOP / "README.md").read_text()
    assert "multikernel/daxfs" in said
    for link in re.findall(r"\]\(((?!https?:)[^)#]+)\)", said):
        assert (TOP / link).exists(), link


def complete(words: str) -> list[str]:
    """Return the completions that bash would offer."""
    place = {"_DAXFS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    daxfs_command = [sys.executable, "-c", "from daxfs.tools.cli import main; main()"]
    done = subprocess.run(daxfs_command, env={**os.environ, **place}, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_shell_completes() -> None:
    assert complete("daxfs m") == ["mkfs", "mount", "map"]
    assert "--prometheus" in complete("daxfs stats --")
    done = subprocess.run(
        [*COMMAND, "exec", "echo", "--show-completion", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "--show-completion --help\n"
