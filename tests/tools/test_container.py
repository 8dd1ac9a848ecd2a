"""The containers of scripts/container: the files agree, an engine is called as documented, the steps run.

The tests need no engine: a stand-in records its calls. The steps themselves run in a debootstrap root (marker ``full``:
making it takes minutes).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from support import PATHS, tool

CHECKOUT = Path(__file__).parents[2]
SCRIPTS = CHECKOUT / "scripts" / "container"
STEPS = {"packages", "setup", "check"}

ENGINE = """#!/bin/sh
if [ "$1" = info ]; then exit {answer}; fi
printf '%s\\n' "$*" >>{calls}
"""


def shell_scripts() -> list[Path]:
    """Return the scripts whose first line names a shell."""
    files = [path for path in SCRIPTS.iterdir() if path.read_bytes().startswith(b"#!")]
    return [*files, CHECKOUT / "scripts" / "setup"]


def run_script(name: str, *arguments: str, path: str = PATHS) -> subprocess.CompletedProcess[str]:
    """Run a script with an environment of PATH only."""
    return subprocess.run(
        [SCRIPTS / name, *arguments],
        env={"PATH": path, "HOME": "/nonexistent"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def stand_in(folder: Path, name: str, *, answers: bool = True) -> Path:
    """Put a stand-in for an engine into ``folder``; return the file that records its calls."""
    folder.mkdir(exist_ok=True)
    calls = folder / f"{name}.calls"
    engine = folder / name
    engine.write_text(ENGINE.format(answer=0 if answers else 1, calls=shlex.quote(str(calls))))
    engine.chmod(0o755)
    return calls


# The files agree with each other


def test_the_scripts_are_shell_and_can_be_run() -> None:
    names = {path.name for path in shell_scripts()}
    assert {"run", "chroot", "steps", "setup"} <= names
    for path in shell_scripts():
        shell = path.read_text().splitlines()[0].split()[-1].rpartition("/")[2]
        subprocess.run([tool(shell), "-n", path], check=True, timeout=10)
        assert os.access(path, os.X_OK), path


def test_the_dockerfile_names_what_is_there() -> None:
    text = re.sub(r"\\\n", " ", (SCRIPTS / "Dockerfile").read_text())
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    known = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in lines} <= known
    assert lines[0] == ["FROM", "debian:bookworm-slim"]
    for word, rest in lines:
        if word == "COPY":
            assert (CHECKOUT / rest.split()[0]).exists(), rest
        elif word == "RUN":
            script, step = rest.split()
            assert os.access(CHECKOUT / script, os.X_OK)
            assert step in STEPS
    assert dict(lines)["ENTRYPOINT"] == '["scripts/container/steps"]'
    assert dict(lines)["CMD"] == '["check"]'


def test_the_context_leaves_out_what_git_leaves_out() -> None:
    """An image and a debootstrap root get the checkout without generated files."""
    left_out = set((CHECKOUT / ".dockerignore").read_text().split())
    for pattern in (CHECKOUT / ".gitignore").read_text().split():
        name = pattern.rstrip("/")
        assert {name, f"**/{name}"} & left_out, pattern


def test_the_workflow_calls_what_is_there() -> None:
    text = (CHECKOUT / ".github" / "workflows" / "ci.yml").read_text()
    workflow = yaml.safe_load(text)
    targets = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert {"make check", "make test"} <= set(commands)
    assert any(command.startswith("scripts/container/run ") for command in commands)
    for command in commands:
        words = command.removeprefix("sudo ").split()
        if words[0] == "make":
            assert set(words[1:]) <= targets
        elif "/" in words[0]:
            assert os.access(CHECKOUT / words[0], os.X_OK), command
    for job in workflow["jobs"].values():
        assert any(step.get("uses", "").startswith("actions/checkout@") for step in job["steps"])
        assert job["timeout-minutes"] <= 60
    assert "--privileged" in workflow["jobs"]["tests"]["container"]["options"]
    assert workflow["jobs"]["container"]["strategy"]["matrix"]["rights"] == ["", "--fuse-only"]


# How an engine is called


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_an_engine_that_answers_builds_and_runs(tmp_path: Path, name: str) -> None:
    path = f"{tmp_path / 'bin'}:{PATHS}"
    stand_in(tmp_path / "bin", "docker", answers=False)
    calls = stand_in(tmp_path / "bin", name)
    done = run_script("run", path=path)
    assert done.returncode == 0, done.stderr
    build, run = calls.read_text().splitlines()
    assert build == "build -t daxfs-container -f scripts/container/Dockerfile ."
    assert run == "run --rm --init --privileged --volume /dev:/dev daxfs-container check"
    assert f"{name} run" in done.stdout


def test_fewer_rights_are_a_device_and_a_capability(tmp_path: Path) -> None:
    calls = stand_in(tmp_path / "bin", "docker")
    done = run_script("run", "--fuse-only", "tests/mounted", "-x", path=f"{tmp_path / 'bin'}:{PATHS}")
    assert done.returncode == 0, done.stderr
    run = calls.read_text().splitlines()[1]
    flags = "--device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor=unconfined"
    assert run == f"run --rm --init {flags} daxfs-container check tests/mounted -x"
    assert "--privileged" not in run


def test_a_failure_inside_is_a_failure_outside(tmp_path: Path) -> None:
    stand_in(tmp_path / "bin", "docker")
    engine = tmp_path / "bin" / "docker"
    engine.write_text(engine.read_text() + '[ "$1" != run ] || exit 3\n')
    assert run_script("run", path=f"{tmp_path / 'bin'}:{PATHS}").returncode == 3


@pytest.mark.parametrize("arguments", [("--engine",), ("--engine", "other"), ("--help",)])
def test_wrong_use_is_told(arguments: tuple[str, ...]) -> None:
    done = run_script("run", *arguments)
    assert done.returncode == 64
    assert "Usage: scripts/container/run" in done.stderr


def test_the_steps_refuse_what_they_do_not_know() -> None:
    assert run_script("steps", "bogus").returncode == 64


def test_without_an_engine_an_ordinary_user_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    for engine in ("docker", "podman"):
        stand_in(folder, engine, answers=False)
    (folder / "id").write_text("#!/bin/sh\necho 1000\n")
    (folder / "id").chmod(0o755)
    done = run_script("run", path=f"{folder}:{PATHS}")
    assert done.returncode == 69
    assert "neither docker nor podman answers" in done.stderr
    assert run_script("chroot", path=f"{folder}:{PATHS}").returncode == 69


# The steps themselves


@pytest.mark.full
@pytest.mark.timeout(3000)
def test_the_steps_in_a_debootstrap_root(tmp_path: Path) -> None:
    """From an empty cache: make a bare Debian, install packages, run tests and fio; then again with fewer rights."""
    for flags, left_out in (((), False), (("--fuse-only",), True)):
        done = subprocess.run(
            [SCRIPTS / "run", "--engine", "chroot", *flags],
            env={**os.environ, "DAXFS_CONTAINER_CACHE": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1400,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert done.stdout.endswith("steps: all is well\n")
        assert re.search(r"^[0-9]+ passed", done.stdout, re.MULTILINE)
        assert len(re.findall(r"err= 0", done.stdout)) == 2
        assert ("is left out" in done.stdout) == left_out
        assert "debootstrap" in done.stdout or flags
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    shutil.rmtree(tmp_path / "bookworm")
