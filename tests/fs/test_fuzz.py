"""The fuzzer (`fuzz`): a few trials of each format here, the large run with ``make fuzz`` and in the full run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzz.images import FORMATS, image
from fuzz.mutations import Mutator, Places
from fuzz.trial import judged, trial


def run(tmp_path: Path, name: str, seeds: range, check: int) -> None:
    content = image(tmp_path, name)
    places = Places(content)
    for seed in seeds:
        finding = trial(seed, content, places, None if seed % check else tmp_path)
        assert finding is None, f"{name}, seed {seed}, {finding.kinds}:\n{finding.what}"


@pytest.mark.parametrize("name", FORMATS)
def test_damage_behind_right_checksums(tmp_path: Path, name: str) -> None:
    run(tmp_path, name, range(12), 6)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
def test_much_damage_behind_right_checksums(tmp_path: Path, name: str) -> None:
    run(tmp_path, name, range(1000, 11_000), 20)


def test_mutations_are_told_by_their_seed_and_every_kind_is_made(tmp_path: Path) -> None:
    content = image(tmp_path, "orphan file")
    places = Places(content)
    kinds = set()
    for seed in range(120):
        first, second = (Mutator(content, places, random.Random(seed)) for _ in range(2))
        kinds.add(first.mutate())
        assert first.mutate() == (second.mutate(), second.mutate())[1]
        assert first.content == second.content
        assert len(first.content) == len(content)
    assert kinds >= {"superblock", "descriptor", "bitmap", "inode", "extent root", "directory", "attributes", "log"}
    assert "orphan file" in kinds


def test_the_judge_sees_what_e2fsck_can_not_repair(tmp_path: Path) -> None:
    assert not judged(tmp_path / "whole", image(tmp_path, "default"))
    assert "e2fsck" in judged(tmp_path / "nothing", bytes(1 << 20))
