"""The kernel that runs here: what it says to a mount now is answered the same without one."""

from __future__ import annotations

from pathlib import Path

import pytest
from recording_rig import MODES, record, repeat_generations
from replay_rig import replay_in


@pytest.mark.parametrize("mode", MODES)
def test_a_new_recording_is_answered_as_it_was(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / f"now-{mode}.txt"
    record(target, MODES[mode])
    repeat_generations(monkeypatch)
    assert len(replay_in(target, tmp_path / "pool")) > 25
