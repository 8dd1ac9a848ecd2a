"""Power cuts while a mount brings metadata from storage into memory: each block is where it was, or in memory."""

from __future__ import annotations

import logging
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import tier_rig
from foreign_rig import by_kernel, fill_memory, litter, on_storage, unmarked
from in_memory import tmp_path
from recorder import CrashImage
from tier_rig import MIB
from tiered_recorder import TieredPool, opened
from tree_rig import QUIET, pool_tree, same

from daxfs.fs import mounting
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.steps import Steps
from daxfs.fs.tiers import homecoming
from daxfs.pmem.memory import MemoryPool
from support import fsck, write_image

__all__ = ["tmp_path"]

MEMORY, STORAGE = 16 * MIB, 8 * MIB
OPTIONS = ("-b", "4096", "-g", "512", "-N", "256", "-m", "0", "-J", "size=4")
FOLDERS = 24
IMAGES = 16


def sample(pool: TieredPool) -> Iterator[CrashImage]:
    """Yield some images, from the first cut to the last."""
    numbers = count()
    for _ in pool.crash_images(random.Random(7), prefixes=1, subsets=1, wanted=lambda: next(numbers) < 0):
        pass
    step = next(numbers) // IMAGES
    again = count()
    yield from pool.crash_images(random.Random(7), prefixes=1, subsets=1, wanted=lambda: next(again) % step == 0)


def test_the_old_place_or_the_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    move = homecoming._Pass._guarded

    def committed(self: homecoming._Pass, steps: Steps[bool]) -> Steps[None]:
        yield from move(self, steps)
        self.volume.commit()

    pool = tier_rig.make(tmp_path, MEMORY, STORAGE, OPTIONS)
    fill_memory(pool, 420 << 10)
    with by_kernel(pool) as place:
        tree = litter(place, FOLDERS)
    recording = TieredPool((whole := pool.join()).read_bytes(), MEMORY)
    monkeypatch.setattr(homecoming._Pass, "_guarded", committed)
    with opened(recording, QUIET) as fs:
        assert not any(on_storage(fs).values())
    monkeypatch.undo()
    left = []
    for cut in sample(recording):
        write_image(whole, cut.image)
        if not mounting.read_superblock(MemoryPool(cut.image)).is_torn():  # `daxfs check` mends that first
            mended = shutil.copy(whole, tmp_path / "mended")
            subprocess.run(["e2fsck", "-fp", mended], check=False, capture_output=True)
            fsck(mended)
        pool.split(whole)
        caplog.clear()
        with FileSystem.open(pool.pool, QUIET) as fs:
            assert not any(on_storage(fs).values())
            same(unmarked(pool_tree(fs)), tree)
        pool.check()
        found = re.search(r"(\d+) blocks of metadata", caplog.text)
        left.append(int(found[1]) if found else 0)
    assert left[0] > left[-1] == 0
    assert len(set(left)) > 4, "between two moves too"
