"""The guest of ``make test-pmem`` as far as it can be tested without booting it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import tool

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from guest import image, kernel, report  # noqa: E402  (a script, found by the line above)
from guest.failure import CannotRun  # noqa: E402


def test_other_runs_leave_the_folder_out(request: pytest.FixtureRequest) -> None:
    assert "devices" in request.config.getini("norecursedirs")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-o", "addopts=", "-q", "tests/tools", "tests/devices"],
        cwd=SCRIPTS.parent, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert "tests/devices run in the guest: make test-pmem" in done.stderr


def test_missing_packages_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "PATHS", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CannotRun, match=r"ask an administrator for: apt-get install qemu-system-x86 ndctl "):
        kernel.install_tools()
    with pytest.raises(CannotRun, match="cpio is missing: apt-get install cpio"):
        kernel.tool("cpio")


def test_another_processor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel.platform, "machine", lambda: "aarch64")
    with pytest.raises(CannotRun, match="x86-64 machine, this one is aarch64"):
        kernel.find(tmp_path)


def test_a_command_that_fails_is_one_line() -> None:
    with pytest.raises(CannotRun, match=r"^sh -c: exit 3: last$"):
        kernel.run("sh", "-c", "echo first >&2; echo last >&2; exit 3")


def test_the_command_line_fails_where_the_guest_cant_boot(tmp_path: Path) -> None:
    """No kernel in the directory that is named: a line, no traceback, no skip."""
    done = subprocess.run(
        [sys.executable, "-m", "guest", "--kernel", tmp_path],
        cwd=SCRIPTS, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 69
    assert done.stderr == f"test-pmem: {tmp_path} holds no kernel: remove it, the next run downloads one\n"


def test_one_report_of_several_boots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = report.Report()
    assert made.add(tmp_path / "none") == 0
    assert made.close() == 1  # no test has run
    for boot, outcomes in enumerate((["passed", "passed"], ["passed", "failed"])):
        lines = [json.dumps({"test": f"test{boot}", "outcome": outcome}) for outcome in outcomes]
        (tmp_path / str(boot)).write_text("\n".join(lines) + "\n")
        made.add(tmp_path / str(boot))
        if boot == 0:
            assert made.close() == 0
    assert made.close() == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "3 passed, 1 failed"
    assert "FAILED test1" in said


def test_what_is_appended_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    follow = report.Follower(path)
    follow()
    for text in ("one\n", "two\n"):
        with path.open("a") as file:
            file.write(text)
        follow()
    follow()
    assert capsys.readouterr().out == "one\ntwo\n"


STARTER = """
import sys, time
sys.path.insert(0, {scripts!r})
from pathlib import Path
from guest import machine
machine._command = lambda parts, out: ["sleep", "600"]
class Parts:
    places = []
made = machine.Machine(Parts, Path({out!r}), Path(sys.executable))
print(made._process.pid, flush=True)
time.sleep(600)
"""


def test_the_guest_ends_with_who_started_it(tmp_path: Path) -> None:
    """Even when the starter is killed."""
    code = STARTER.format(scripts=str(SCRIPTS), out=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        starter.send_signal(signal.SIGKILL)
    end = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_cache_notices_a_changed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image.sysconfig, "get_path", lambda _name: str(tmp_path / "stdlib"))
    for name in ("stdlib/os.py", "stdlib/test/big.py", "environment/lib/module.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a = 1\n")
    places = image.python_files(tmp_path / "environment")
    before = image._fingerprint(places)
    (tmp_path / "stdlib" / "test" / "big.py").write_text("a = 22\n")
    assert image._fingerprint(places) == before
    (tmp_path / "environment" / "lib" / "module.py").write_text("a = 22\n")
    assert image._fingerprint(places) != before


def test_the_guest_gets_what_make_setup_compiled_and_no_caches(tmp_path: Path) -> None:
    checkout = image.checkout_image(tmp_path)
    listed = subprocess.run(
        [tool("debugfs"), "-R", "ls -p /", checkout], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    names = {line.split("/")[5] for line in listed.splitlines() if line.count("/") > 5}
    assert {"daxfs", "tests", "scripts", "pyproject.toml", ".venv"} <= names
    assert not names & {".git", "build", ".mypy_cache"}
