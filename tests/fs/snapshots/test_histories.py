"""Random histories with snapshots: each image is clean and has the tree of its moment, after power cuts too."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
from crash_rig import FORMATS, OPERATIONS, Picture, Workbench, image
from in_memory import tmp_path
from recorder import RecordingPool
from snapshot_rig import after_power_loss, differences, remounted, tree
from tree_rig import QUIET

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.snapshots.catalogue import FULL, OLDER, REASONS
from daxfs.pmem.memory import MemoryPool

__all__ = ["tmp_path"]

STEPS = 24
NEARLY_FULL = 60
"""Blocks."""
SAMPLE, ALL = 6, 1000
CHANGES = [name for name in OPERATIONS if "snapshot" not in name]


class History:
    """A pool whose file system is changed at random.

    Attributes:
        trees: what each snapshot must show.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.fs = FileSystem.open(RecordingPool(image(self.rng.choice(list(FORMATS)))), QUIET)
        self.trees: dict[bytes, Picture] = {}
        self.log: list[str] = []

    def step(self) -> None:
        """Do one thing."""
        choice = self.rng.random()
        if choice < 0.2 and len(self.trees) < 4:
            self.snapshot(b"%d" % len(self.log))
        elif choice < 0.27 and self.trees:
            name = self.rng.choice(sorted(self.trees))
            self.log.append(f"delete {name!r}")
            self.fs.delete_snapshot(name)
            del self.trees[name]
        elif choice < 0.32:
            self.log.append("remount")
            self.fs = remounted(self.fs)
        elif choice < 0.37:
            self.log.append("power loss")
            self.fs = after_power_loss(self.fs)
        elif choice < 0.45:
            self.log.append("sync")
            self.fs.sync()
        else:
            name = self.rng.choice(CHANGES)
            self.log.append(name)
            self.change(name)
        self.forget_lost()

    def change(self, name: str) -> None:
        """Try a change: what it needs may be gone or not open, and a write is short where the pool is full."""
        try:
            OPERATIONS[name](Workbench(self.fs))
        except (FsError, LookupError):
            pass
        except AssertionError:
            assert self.fs.statfs().free < NEARLY_FULL, self.log

    def snapshot(self, name: bytes) -> None:
        """Make one, if there is room."""
        self.log.append(f"snapshot {name!r}")
        expected = tree(self.fs)
        with contextlib.suppress(FsError):
            self.fs.create_snapshot(name)
            self.trees[name] = expected

    def forget_lost(self) -> None:
        """A snapshot may be lost only because the pool was full."""
        for found in self.fs.list_snapshots():
            if found.lost:
                assert found.lost in (REASONS[FULL], REASONS[OLDER]), self.log
                self.trees.pop(found.name, None)

    def check(self, fs: FileSystem, folder: Path, what: str) -> None:
        """All snapshots of a mounted pool show their trees."""
        for found in fs.list_snapshots():
            if found.name in self.trees and not found.lost:
                unlike = differences(fs, found.name, self.trees[found.name], folder)
                assert not unlike, (what, found.name, self.log, unlike)


def run_history(seed: int, folder: Path) -> int:
    history = History(seed)
    for _ in range(STEPS):
        history.step()
    history.check(history.fs, folder, "at the end")
    assert {each.name for each in history.fs.list_snapshots() if not each.lost} == set(history.trees)
    # Once more on a recording pool: what a cut may leave while everything goes on.
    pool = RecordingPool(bytearray(history.fs.volume.pool.memory))
    history.fs = FileSystem.open(pool, QUIET)
    known = dict(history.trees)
    pool.restart()
    for _ in range(3):
        history.change(history.rng.choice(CHANGES))
    history.fs.sync()
    cuts = list(pool.crash_images(history.rng, prefixes=1, subsets=1))
    for left in history.rng.sample(cuts, min(2, len(cuts))):
        with_cut = FileSystem.open(MemoryPool(bytearray(left.image)), QUIET)
        history.check(with_cut, folder, f"cut at {left.position}: {left.choice}")
        lost = {each.lost for each in with_cut.list_snapshots()} - {""}
        assert lost <= {REASONS[FULL], REASONS[OLDER]}, history.log
    return len(known)


def test_a_sample_of_histories(tmp_path: Path) -> None:
    assert sum(run_history(seed, tmp_path) for seed in range(SAMPLE)) > SAMPLE / 2


@pytest.mark.full
@pytest.mark.parametrize("tens", range(ALL // 10))
def test_histories(tens: int, tmp_path: Path) -> None:
    assert sum(run_history(SAMPLE + 10 * tens + at, tmp_path) for at in range(10)) > 0
