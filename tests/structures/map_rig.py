"""A pool with a few empty files; tests of extents and indirect blocks change their maps and a dict model together."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pointer_map

from daxfs.ext4.extent import leaves
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.inode import EXT4_EXTENTS_FL
from daxfs.ext4.superblock import Superblock
from daxfs.journal.handle import Handle
from daxfs.journal.journal import Journal
from daxfs.journal.view import View
from daxfs.pmem.opening import open_pool
from daxfs.structures import blocks, extents, indirect, inodes, mapping
from daxfs.structures.extent_tree import MAX_BLOCKS, descend
from daxfs.structures.inodes import Inode
from support import fsck, mke2fs, run

FILES = ("first", "second", "third")
FIRST_INO = 12  # mke2fs numbers the files of -d in the order of the directory, after lost+found


def make_image(path: Path, *options: str, size: str = "16M") -> Path:
    """Make a pool without a journal that holds `FILES`, all empty."""
    source = path.with_suffix(".files")
    source.mkdir()
    for name in FILES:
        (source / name).touch()
    mke2fs(path, "-O", "^has_journal", "-d", str(source), *options, size=size)
    shutil.rmtree(source)
    return path


def count_blocks(view: View, inode: Inode) -> int:
    """Count the blocks of a map, mapped ones and its own, as ``i_blocks`` does, in blocks of the file system."""
    if not inode.flags & EXT4_EXTENTS_FL:
        return pointer_map.count_blocks(view, inode)
    nodes: set[int] = set()
    blocks_mapped = position = 0
    while position < MAX_BLOCKS:
        path, position = descend(view, inode, position)
        nodes.update(step.number for step in path[1:])
        blocks_mapped += sum(extent.length for extent in leaves(path[-1].words))
    return len(nodes) + blocks_mapped


class MapRig:
    """An open pool. ``model`` is the expected map of ``ino``: {logical: (physical, unwritten)}."""

    def __init__(self, path: Path, ino: int = FIRST_INO, *, extent_mapped: bool = True, fresh: bool = True) -> None:
        self.path = path
        self.pool = open_pool(path, persistence="volatile")
        self.geometry = Geometry.of(Superblock(self.pool.memory[1024:2048]))
        self.journal = Journal.open(self.pool, self.geometry, None, check_credits=True)
        self.journal.add_commit_hook(blocks.apply_frees, self.journal.has_frees)
        self.ino = ino
        self.model: dict[int, tuple[int, bool]] = {}
        if fresh:
            with self.change() as (tx, inode):
                (extents if extent_mapped else indirect).new_inode_map(tx, inode)

    @contextmanager
    def change(self, credits: int = 64) -> Iterator[tuple[Handle, Inode]]:
        """Begin a handle, and yield it with the inode, for changing."""
        with self.journal.handle(credits) as tx:
            yield tx, inodes.edit(tx, self.ino)

    @property
    def view(self) -> View:
        return self.journal.view

    @property
    def inode(self) -> Inode:
        """Return the inode, for reading."""
        return inodes.read(self.view, self.ino)

    @property
    def depth(self) -> int:
        return self.inode.words[11] >> 16

    def allocate(self, lblk: int, want: int = 1, **options: int) -> mapping.Extent:
        with self.change() as (tx, inode):
            extent = mapping.allocate(tx, inode, lblk, want, **options)
        assert extent.lblk == lblk
        assert 1 <= extent.length <= want
        for at in range(extent.length):
            assert lblk + at not in self.model
            self.model[lblk + at] = (extent.pblk + at, extent.unwritten)
        return extent

    def remove(self, first: int, last: int | None, limit: int = 32) -> int:
        """Remove a range in as many handles as needed; return their number."""
        handles, done = 0, False
        while not done:
            with self.change() as (tx, inode):
                done = mapping.remove(tx, inode, first, last, limit=limit)
            handles += 1
            assert handles <= len(self.model) + 2
        for lblk in [n for n in self.model if n >= first and (last is None or n <= last)]:
            del self.model[lblk]
        return handles

    def reallocate(self, first: int, last: int) -> None:
        """Put new blocks in the place of a range."""
        with self.change() as (tx, inode):
            before = {pblk for pblk, _ in self.model.values()}
            new = mapping.reallocate(tx, inode, first, last, blocks.GroupBound(2))
        replaced = spread(iter(new))
        assert sorted(replaced) == list(range(first, last + 1))
        assert not before & {pblk for pblk, _ in replaced.values()}
        self.model.update(replaced)

    def mark_written(self, lblk: int, length: int) -> None:
        with self.change() as (tx, inode):
            mapping.mark_written(tx, inode, lblk, length)
        for at in range(lblk, lblk + length):
            if at in self.model:
                self.model[at] = (self.model[at][0], False)

    def check(self) -> None:
        """Check that the map equals the model, and that ``i_blocks`` is right."""
        inode = self.inode
        assert spread(mapping.walk(self.view, inode)) == self.model
        taken = count_blocks(self.view, inode)
        assert inode.blocks == taken * (self.geometry.block_size // 512)

    def check_lookup(self, lblk: int) -> None:
        found = mapping.lookup(self.view, self.inode, lblk)
        assert found.lblk == lblk
        assert found.length > 0
        for at in range(min(found.length, 100)):
            expected = (found.pblk + at, found.unwritten) if found.pblk else None
            assert self.model.get(lblk + at) == expected
        check_search(self.view, self.inode, lblk, self.model)

    def commit_consistent(self) -> None:
        """Commit with a size that fits the map, so that e2fsck finds nothing wrong."""
        deep = self.depth > 1 and bool(self.inode.flags & EXT4_EXTENTS_FL)
        with self.change() as (_, inode):
            # Unwritten blocks may lie past EOF. But if the tree has two levels of index nodes, e2fsck 1.47 reports
            # index entries past EOF as errors, whoever made the tree.
            inside = [lblk for lblk, (_, unwritten) in self.model.items() if deep or not unwritten]
            inode.size = (max(inside, default=-1) + 1) * self.geometry.block_size
        self.journal.commit()

    def close(self) -> None:
        """Check the map, then let e2fsck check the pool and debugfs list the map."""
        self.check()
        self.commit_consistent()
        self.journal.close()
        self.pool.close()
        fsck(self.path)
        if self.model and len(self.model) < 5000:
            assert debugfs_map(self.path, self.ino) == self.model


def check_search(view: View, inode: Inode, lblk: int, model: dict[int, tuple[int, bool]]) -> None:
    """Check both searches from ``lblk`` on, one leaf or run at a time, against {logical: (physical, unwritten)}."""
    for written in (True, False):
        at, found = lblk, False
        while not found and at < MAX_BLOCKS:
            before = at
            at, found = mapping.search(view, inode, at, written=written, limit=1)
            assert found or at > before
        if written:
            expected = min((n for n, (_, unwritten) in model.items() if n >= lblk and not unwritten), default=None)
        else:
            expected = lblk
            while expected in model and not model[expected][1]:
                expected += 1
        assert (at if found else None) == expected


def spread(runs: Iterator[mapping.Extent]) -> dict[int, tuple[int, bool]]:
    """Return {logical: (physical, unwritten)} for extents, which must be in order."""
    found: dict[int, tuple[int, bool]] = {}
    end = 0
    for lblk, pblk, length, unwritten in runs:
        assert lblk >= end
        assert length > 0
        end = lblk + length
        found.update({lblk + at: (pblk + at, unwritten) for at in range(length)})
    return found


def debugfs_map(path: Path, ino: int) -> dict[int, tuple[int, bool]]:
    """Return the map as debugfs shows it."""
    stat = run("debugfs", "-R", f"stat <{ino}>", path)
    found: dict[int, tuple[int, bool]] = {}
    listing = re.search(r"^(EXTENTS|BLOCKS):\n(.*?)(?:\nTOTAL:.*)?\n*\Z", stat, re.S | re.M)
    if listing is None:
        return found
    for match in re.finditer(r"\((\d+)(\[u\])?(?:-(\d+)(\[u\])?)?\):(\d+)", listing[2]):
        first, physical = int(match[1]), int(match[5])
        last = int(match[3] or first)
        for at in range(last - first + 1):
            found[first + at] = (physical + at, bool(match[2] or match[4]))
    return found
