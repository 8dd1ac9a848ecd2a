"""A signal that ends an export or an import leaves nothing half made behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import HANG_SECONDS, mke2fs

PROGRAM = """
import contextlib, os, sys
from daxfs.tools import exporting, importing

@contextlib.contextmanager
def signalling():
    yield lambda *_: os.kill(os.getpid(), int(sys.argv[1]))

exporting.progress_bar = importing.progress_bar = signalling
{"export": exporting, "import": importing}[sys.argv[2]].run(sys.argv[3], sys.argv[4])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("tool", ["export", "import"])
def test_what_a_signal_ends_leaves_nothing(tmp_path: Path, tool: str, number: int) -> None:
    source = mke2fs(tmp_path / "source", size="16M")
    command = [sys.executable, "-c", PROGRAM, str(int(number)), tool, str(source), str(tmp_path / "target")]
    ended = subprocess.run(command, capture_output=True, timeout=HANG_SECONDS, check=False)
    assert ended.returncode == -number
    assert ended.stderr == b""
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    source = mke2fs(tmp_path / "source", size="16M")
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + PROGRAM
    command = [sys.executable, "-c", ignoring, str(int(signal.SIGHUP)), "export", str(source), str(tmp_path / "target")]
    subprocess.run(command, timeout=HANG_SECONDS, check=True)
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
