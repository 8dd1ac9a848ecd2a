"""Power cuts of pools with storage: the memory as it is, and the storage as it was last synchronised.

That is the worst that a cut can leave of the order between both: nothing of the storage is durable by chance.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import tier_rig
from in_memory import tmp_path
from tier_rig import GROUP, MIB, Members

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.steps import Steps
from daxfs.fs.tiers import placement
from daxfs.fs.tiers.moves import Moved
from daxfs.fs.types import ROOT_INO
from support import write_image

__all__ = ["tmp_path"]

R = TypeVar("R")
CONTENT = os.urandom(2 * MIB + 100)


class Cuts:
    """A pool in use, and copies of what a cut would leave."""

    def __init__(self, folder: Path) -> None:
        self.members = tier_rig.make(folder, 2 * GROUP, GROUP)
        self.fs = FileSystem.open(self.members.pool)
        self.stable = self.members.storage.read_bytes()
        self.count = 0
        self._folder = folder / "cut"
        self._folder.mkdir()
        tiers = self.fs.volume.tiers
        assert tiers is not None
        sync = tiers.queues[0].storage.sync

        def synchronised() -> None:
            sync()
            self.stable = self.members.storage.read_bytes()

        tiers.queues[0].storage.sync = synchronised  # type: ignore[method-assign]

    def cut(self) -> None:
        """Cut the power, recover, and compare."""
        left = Members(self._folder / "pool", self._folder / "slow")
        write_image(left.pool, self.members.pool.read_bytes())
        write_image(left.storage, self.stable)
        self.members.storage.rename(self.members.storage.with_name("away"))  # so that the copy beside the pool is used
        try:
            with FileSystem.open(left.pool) as fs:
                assert fs.tree.read_bytes("/f") == CONTENT
            left.check()
        finally:
            self.members.storage.with_name("away").rename(self.members.storage)
        self.count += 1

    def drive(self, steps: Steps[R]) -> R:
        """Run an operation, and cut at each of its steps."""
        while True:
            try:
                waiting = next(steps)
            except StopIteration as end:
                done: R = end.value
                return done
            self.cut()
            if waiting is not None:
                waiting.wait()
                self.cut()


def demote(fs: FileSystem, ino: int) -> Steps[Moved]:
    return fs.steps.demote(ino)


def promote(fs: FileSystem, ino: int) -> Steps[Moved]:
    fs.demote(ino)
    fs.sync()
    return fs.steps.promote(ino)


def comes_up(fs: FileSystem, ino: int) -> Steps[None]:
    """Return what a session does about a file on storage that is read often."""
    fs.demote(ino)
    fs.sync()
    for _ in range(2):
        fs.tree.read_bytes("/f")
    return fs.steps.keeping_tiers()


def is_placed(fs: FileSystem, ino: int) -> Steps[None]:
    """Return what a session does about a file that belongs on storage."""
    fs.setxattr(ino, placement.ATTRIBUTE, placement.STORAGE)
    return fs.steps.keeping_tiers()


@pytest.mark.parametrize(("begin", "way"), [(comes_up, "promoted"), (is_placed, "demoted")])
def test_a_file_is_whole_while_a_session_moves_it(
    tmp_path: Path, begin: Callable[[FileSystem, int], Steps[None]], way: str
) -> None:
    cuts = Cuts(tmp_path)
    with cuts.fs as fs:
        fs.tree.write_bytes("/f", CONTENT)
        ino = fs.lookup(ROOT_INO, b"f").ino
        fs.sync()
        cuts.drive(begin(fs, ino))
        assert getattr(fs.tier_use(), way) == 2 * MIB + 4096
        fs.sync()
        cuts.cut()
    assert cuts.count >= 5
    cuts.members.check()


@pytest.mark.parametrize("begin", [demote, promote])
def test_a_file_is_whole_at_each_step(tmp_path: Path, begin: Callable[[FileSystem, int], Steps[Moved]]) -> None:
    cuts = Cuts(tmp_path)
    with cuts.fs as fs:
        fs.tree.write_bytes("/f", CONTENT)
        ino = fs.lookup(ROOT_INO, b"f").ino
        fs.sync()
        assert cuts.drive(begin(fs, ino)).moved == 2 * MIB + 4096
        cuts.cut()
        fs.sync()
        cuts.cut()
        fs.tree.write_bytes("/g", b"x" * 3 * MIB)
        fs.demote(fs.lookup(ROOT_INO, b"g").ino)
        fs.sync()
        cuts.cut()
    assert cuts.count >= 5
    cuts.members.check()
