"""Recorded messages of a real kernel get the recorded answers (`recording_rig` made the recordings)."""

from __future__ import annotations

from pathlib import Path

import pytest
from recording_rig import MODES, repeat_generations
from replay_rig import recorded_pages, replay_in

from daxfs.fuse.kernel import negotiation

RECORDINGS = sorted((Path(__file__).parent / "recorded").glob("*.txt"))


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.stem)
def test_a_recording_is_answered_as_it_was(recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = recorded_pages(recording)
    monkeypatch.setattr(negotiation, "most_pages", lambda: pages)
    repeat_generations(monkeypatch)
    assert len(replay_in(recording, tmp_path / "pool")) > 30


def test_there_is_a_recording_of_every_mode() -> None:
    assert {recording.stem.rpartition("-")[2] for recording in RECORDINGS} == set(MODES)
