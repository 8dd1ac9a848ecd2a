"""Questions to a mount that may never answer."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from daxfs.tools import asking


def refuse() -> None:
    raise OSError("for a test")


def test_an_answer() -> None:
    assert asking.ask(lambda: {"pid": os.getppid()}) == {"pid": os.getpid()}
    assert asking.ask(refuse) is None


def test_nothing_else_is_asked_while_a_child_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that can't be killed because it waits for the daemon."""
    killed: list[int] = []
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with monkeypatch.context() as patch:
        patch.setattr(asking.os, "kill", lambda pid, _: killed.append(pid))
        with pytest.raises(TimeoutError):
            asking.ask(pipe.read_text, 0.01)
    (child,) = killed
    with pytest.raises(TimeoutError):
        asking.ask(lambda: pytest.fail("it is asked"))
    pipe.write_text("")
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.001)
    assert asking.ask(lambda: 5) == 5
