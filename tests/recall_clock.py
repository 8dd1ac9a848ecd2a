"""The time of a recall (`daxfs.fs.grants.recall`), which the test sets."""

from __future__ import annotations

import pytest

from daxfs.fs.grants import recall


class Clock:
    """The time of a recall, which the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(recall, "time", made)
    return made
