"""A pool with directories that the tests of names change, held against a dict model and e2fsprogs."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daxfs.ext4 import dirent
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.hash import dirhash
from daxfs.ext4.inode import FT_DIR, FT_REG_FILE
from daxfs.ext4.superblock import Superblock
from daxfs.journal.handle import Handle
from daxfs.journal.journal import Journal
from daxfs.pmem.opening import open_pool
from daxfs.structures import blocks, dirblocks, directories, dirlist, inode_allocation, inodes, mapping
from daxfs.structures.directories import Entry, Place
from daxfs.structures.dirhints import Hints
from daxfs.structures.inodes import Inode
from support import fsck, mke2fs, run

ROOT = 2
CREDITS = 200


def weaken_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on all names in listings share eight hashes."""

    def weak(name: bytes, version: int, seed: tuple[int, int, int, int]) -> tuple[int, int]:
        return dirhash(name, version, seed)[0] & 6, 7 if len(name) % 2 else 0xFFFFFFFF

    monkeypatch.setattr(dirlist, "dirhash", weak)


def make_image(path: Path, *options: str, size: str = "16M") -> Path:
    """A pool without a journal."""
    return mke2fs(path, "-O", "^has_journal", *options, size=size)


class DirectoryRig:
    """An open pool with one directory, ``model`` (name -> inode), whose names all are links to one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model: dict[bytes, int] = {}
        self.target = self.ino = 0
        self.open()
        self.ino = self.make_directory(b"dir")
        self.target = self.make_file(b"target")

    def open(self) -> None:
        self.pool = open_pool(self.path, persistence="volatile")
        self.geometry = Geometry.of(Superblock(self.pool.memory[1024:2048]))
        self.journal = Journal.open(self.pool, self.geometry, None)
        self.journal.add_commit_hook(blocks.apply_frees, self.journal.has_frees)

    def remount(self) -> None:
        self.commit_consistent()
        self.journal.close()
        self.pool.close()
        self.open()

    @property
    def view(self):
        return self.journal.view

    @property
    def inode(self) -> Inode:
        return inodes.read(self.view, self.ino)

    @contextmanager
    def change(self, ino: int = 0, credits: int = CREDITS) -> Iterator[tuple[Handle, Inode]]:
        with self.journal.handle(credits) as tx:
            yield tx, inodes.edit(tx, ino or self.ino)

    def make_directory(self, name: bytes, parent: int = ROOT) -> int:
        with self.change(parent) as (tx, above):
            inode = inode_allocation.allocate(tx, above, stat.S_IFDIR | 0o755)
            mapping.new_inode_map(tx, inode)
            directories.create(tx, inode, parent)
            inode.links_count = 2
            above.links_count += 1
            directories.insert(tx, directories.find(tx, above, name), inode.number, FT_DIR)
            return inode.number

    def make_file(self, name: bytes, parent: int = ROOT) -> int:
        with self.change(parent) as (tx, above):
            inode = inode_allocation.allocate(tx, above, stat.S_IFREG | 0o644)
            mapping.new_inode_map(tx, inode)
            inode.links_count = 1
            directories.insert(tx, directories.find(tx, above, name), inode.number, FT_REG_FILE)
            return inode.number

    def insert(self, *names: bytes) -> None:
        """In one handle; all are looked for before the first is changed, so that places grow old."""
        with self.change() as (tx, inode):
            for place in [directories.find(tx, inode, name) for name in names]:
                assert not place.ino
                directories.insert(tx, place, self.target, FT_REG_FILE)
        for name in names:
            self.model[name] = self.target

    def insert_many(self, names: list[bytes], step: int = 20) -> None:
        for at in range(0, len(names), step):
            self.insert(*names[at : at + step])

    def remove(self, *names: bytes) -> None:
        """As `insert`."""
        with self.change() as (tx, inode):
            for place in [directories.find(tx, inode, name) for name in names]:
                directories.remove(tx, place)
        for name in names:
            del self.model[name]

    def find(self, name: bytes) -> Place | None:
        place = directories.find(self.view, self.inode, name)
        return place if place.ino else None

    def listing(self, cookie: int = 0) -> list[Entry]:
        return list(directories.entries(self.view, self.inode, cookie))

    def check(self) -> None:
        """Every name is found and listed once."""
        for name, ino in self.model.items():
            entry = self.find(name)
            assert entry is not None, name
            assert entry.ino == ino
        listed = self.listing()
        assert listed[0][0] == b"."
        assert listed[1][0] == b".."
        assert sorted((e.name, e.ino) for e in listed[2:]) == sorted(self.model.items())
        cookies = [entry.cookie for entry in listed]
        assert cookies == sorted(set(cookies))
        assert directories.is_empty(self.view, self.inode) == (not self.model)
        self.check_starts()

    def check_starts(self) -> None:
        """What is known of the entries of each block are the first entries of its chain."""
        limit = dirblocks.limit_of(self.view.geometry)
        for number, starts in self.view.caches[Hints].starts.items():
            chain = [offset for offset, *_ in dirent.walk(self.view.block(number), limit)]
            assert starts.tolist() == chain[: len(starts)]

    def commit_consistent(self) -> None:
        """Make the link counts fit, so that e2fsck has nothing to say, and commit."""
        with self.change(self.target) as (_, inode):
            inode.links_count = 1 + len(self.model)
        self.journal.commit()

    def close(self) -> None:
        """Check, then let e2fsck check."""
        self.check()
        self.commit_consistent()
        self.journal.close()
        self.pool.close()
        fsck(self.path)

    def htree(self) -> str:
        """What debugfs says about the index (of a committed pool)."""
        self.commit_consistent()
        return run("debugfs", "-R", f"htree <{self.ino}>", self.path)

    def depth(self) -> int:
        return int(re.search(r"Indirect levels: (\d+)", self.htree())[1])
