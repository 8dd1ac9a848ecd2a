"""Power cuts while storage joins and leaves a pool: at each store the old members or the new ones, and all files.

A cut leaves all stores before it, in memory and on storage. Each image is recovered by a mount, and by e2fsck on the
members that there are after it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from in_memory import tmp_path
from tier_rig import GROUP, MIB, OPTIONS, Members

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.tiers import members
from daxfs.fs.types import ROOT_INO
from daxfs.pmem.opening import open_pool
from daxfs.pmem.storage import CONTENT
from daxfs.runs import ByteRange
from daxfs.tools.mkfs import make_pool
from support import write_image

__all__ = ["tmp_path"]

DATA = os.urandom(MIB + 100)
MEMORY, STORAGE = 2 * GROUP, 2 * GROUP
MOST = 50
"""Images of one operation that are examined."""


class Cuts:
    """A hook that keeps what a cut before each store would leave."""

    needed = bytearray(b"\xff" * 1024)
    bits = 21

    def __init__(self, pool: Path, storage: Path, folder: Path) -> None:
        self.pool, self.storage, self.folder = pool, storage, folder
        self.images: list[Members] = []

    def before(self, _offset: int, _length: int) -> None:
        """Keep the members as they are."""
        left = Members(self.folder / str(len(self.images)) / "pool", self.folder / str(len(self.images)) / "slow")
        left.pool.parent.mkdir()
        write_image(left.pool, self.pool.read_bytes())
        subprocess.run(["cp", "--sparse=always", self.storage, left.storage], check=True)
        self.images.append(left)

    def before_all(self, ranges: Iterable[ByteRange]) -> None:
        """As `before`, once for all."""
        if list(ranges):
            self.before(0, 0)

    def room(self) -> int:
        """Return that there is enough."""
        return 1 << 40

    def expect(self, length: int) -> None:
        """Do nothing."""


def add(fs: FileSystem, storage: Path) -> None:
    fs.add_storage(str(storage))


def remove(fs: FileSystem, storage: Path) -> None:
    fs.remove_storage(str(storage))


def shorter(fs: FileSystem, _: Path) -> None:
    fs.resize(MEMORY + GROUP >> 12)


def prepared(folder: Path) -> tuple[Path, Path, Cuts]:
    """Make a pool without storage, a file that becomes some, and what takes images of both."""
    pool, slow = folder / "pool", folder / "slow"
    make_pool(pool, MEMORY, OPTIONS, sparse=True)
    with slow.open("wb") as file:
        file.truncate(STORAGE + CONTENT)
    cuts = Cuts(pool, slow, folder / "cuts")
    cuts.folder.mkdir()
    return pool, slow, cuts


@pytest.mark.parametrize("change", [add, remove, shorter])
def test_the_old_members_or_the_new_ones(tmp_path: Path, change: Callable[[FileSystem, Path], None]) -> None:
    pool, slow, cuts = prepared(tmp_path)
    with FileSystem.open(pool) as fs:
        if change is not add:
            fs.add_storage(str(slow))
        fs.tree.write_bytes("/f", DATA)
        if change is not add:
            assert fs.demote(fs.lookup(ROOT_INO, b"f").ino).moved
        fs.sync()
        fs.volume.pool.hook_stores(cuts)
        change(fs, slow)
        fs.volume.pool.hook_stores(None)
        cuts.before(0, 0)
    slow.rename(tmp_path / "away")  # so that the copies beside the images are found
    assert len(cuts.images) > 20
    step = -(-len(cuts.images) // MOST)
    seen = []
    for number in {*range(0, len(cuts.images), step), len(cuts.images) - 1}:
        left = cuts.images[number]
        _examine_by_e2fsck(left)
        with FileSystem.open(left.pool) as fs:
            assert fs.tree.read_bytes("/f") == DATA
            seen.append((number, sum(each.size for each in fs.tier_use().members) if fs.storages else 0))
            fs.tree.write_bytes("/g", DATA)
        left.check()
    sizes = [size for _, size in sorted(seen)]
    old, new = {add: (0, STORAGE), remove: (STORAGE, 0), shorter: (STORAGE, GROUP)}[change]
    assert set(sizes) == {old, new}
    assert sizes == sorted(sizes, reverse=change is not add), "once new, always new"


def _examine_by_e2fsck(left: Members) -> None:
    """Recover a copy of all bytes that may belong to the pool."""
    whole = left.pool.with_name("both")
    with left.storage.open("rb") as storage:
        storage.seek(CONTENT)
        write_image(whole, left.pool.read_bytes()[:MEMORY] + storage.read())
    subprocess.run(["e2fsck", "-fp", whole], check=False, capture_output=True)
    done = subprocess.run(["e2fsck", "-fn", whole], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    found = subprocess.run(["debugfs", "-R", "cat /f", whole], check=True, capture_output=True).stdout
    assert found == DATA
    whole.unlink()


def test_a_mount_that_recovers_a_new_member_uses_it(tmp_path: Path) -> None:
    """The log has the new size, and the superblock at home has the old one."""
    pool, slow, cuts = prepared(tmp_path)
    with FileSystem.open(pool) as fs:
        fs.volume.pool.hook_stores(cuts)
        fs.add_storage(str(slow))
        fs.volume.pool.hook_stores(None)
    slow.rename(tmp_path / "away")
    late = 0
    for left in cuts.images:
        with open_pool(left.pool, read_only=True, exclusively=False) as opened:
            at_home = members.has_storage(opened)
        with FileSystem.open(left.pool) as fs:
            late += bool(fs.storages) and not at_home
    assert late
