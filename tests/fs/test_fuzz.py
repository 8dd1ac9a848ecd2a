"""The fuzzer (`fuzz`): a few trials of each format here, the large run with ``make fuzz`` and in the full run."""

from __future__ import annotations

import itertools
import mmap
import random
import time
from pathlib import Path

import pytest
from fuzz.images import ALL, FOCUS, TIERS, image, tiered
from fuzz.mutations import Mutator, Places, _records, _seal_fast_commits
from fuzz.trial import Finding, judged, trial
from fuzz.watchdog import watched

from daxfs.fs.filesystem import FileSystem
from daxfs.pmem.memory import MemoryPool
from daxfs.structures import htree, inodes


def prepared(folder: Path, name: str) -> tuple[bytes, Places]:
    """Make the image of a format, and find its structures."""
    content, stage = tiered(folder) if name == TIERS else (image(folder, name), None)
    return content, Places(content, FOCUS.get(name, ""), stage)


def run(tmp_path: Path, name: str, seeds: range, check: int) -> None:
    content, places = prepared(tmp_path, name)
    for seed in seeds:
        finding = trial(seed, content, places, None if seed % check else tmp_path)
        assert finding is None, f"{name}, seed {seed}, {finding.kinds}:\n{finding.what}"


@pytest.mark.parametrize("name", ALL)
def test_damage_behind_right_checksums(tmp_path: Path, name: str) -> None:
    run(tmp_path, name, range(12), 6)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ALL)
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
    assert kinds >= {"orphan file", "directory index"}


@pytest.mark.parametrize("name", FOCUS)
def test_every_second_mutation_is_of_the_structure_that_the_format_is_for(tmp_path: Path, name: str) -> None:
    content, places = prepared(tmp_path, name)
    made = [Mutator(content, places, random.Random(seed)).mutate() for seed in range(40)]
    assert 10 < made.count(FOCUS[name]) < 40
    if places.fast:
        area = Mutator(content, places, random.Random())._gathered(places.fast)
        sealed = bytearray(area)
        _seal_fast_commits(sealed)
        assert sealed == area
        assert len(list(_records(area))) > 10


def test_the_deep_index_has_two_levels(tmp_path: Path) -> None:
    with FileSystem.open(MemoryPool(bytearray(image(tmp_path, "deep index")))) as fs:
        view = fs.volume.view
        _, words, _ = htree.root(view, inodes.read(view, fs.tree.resolve("/deep")))
        assert words[7] >> 16 & 0xFF == 1


def test_the_watchdog_ends_what_no_alarm_ends() -> None:
    def run(seed: int) -> Finding | None:
        if seed == 1:
            sum(itertools.repeat(0))  # one call, in which no signal handler runs
        if seed == 2:
            held = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # the heap may have as much free
            held.write(bytes(64 << 20))
            while held:
                time.sleep(0.01)
        if seed == 3:
            raise ValueError
        return Finding(seed, (), "found") if seed == 4 else None

    found = {each.seed: each.what for each in watched(run, range(6), cpu_seconds=2, memory=32 << 20)}
    assert found.keys() == {1, 2, 3, 4}
    assert "no end" in found[1]
    assert "more than 32 MiB" in found[2]
    assert "ValueError" in found[3]
    assert found[4] == "found"


def test_the_judge_sees_what_e2fsck_can_not_repair(tmp_path: Path) -> None:
    assert not judged(tmp_path / "whole", image(tmp_path, "default"))
    assert "e2fsck" in judged(tmp_path / "nothing", bytes(1 << 20))
