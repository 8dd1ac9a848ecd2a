"""Tiered pools for tests: small ones, and e2fsck's word on both members together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.tiers import members
from daxfs.pmem.opening import open_pool
from daxfs.pmem.storage import CONTENT
from daxfs.tools.mkfs import make_pool
from daxfs.tools.tiermaking import Tier
from support import fsck, write_image

MIB = 1 << 20
GROUP = 8 * MIB
MEMORY = 4 * GROUP
STORAGE = 8 * GROUP
OPTIONS = ("-g", str(GROUP >> 12), "-N", "1024", "-J", "size=4")


class Members(NamedTuple):
    """The files of a tiered pool: the memory, and the first member of the storage."""

    pool: Path
    storage: Path

    def join(self) -> Path:
        """Return a file with the content of all members, one after the other."""
        with open_pool(self.pool, read_only=True, exclusively=False) as pool:
            found = members.records(pool)
            length = found[0].label.begin if found else pool.size
        content = bytearray()
        with self.pool.open("rb") as memory:
            content += memory.read(length)
        for record in found:
            with open(record.find(str(self.pool)), "rb") as storage:
                storage.seek(CONTENT)
                content += storage.read(record.label.size)
            content += bytes(record.place.end - len(content))
        whole = self.pool.with_name("whole")
        write_image(whole, content)
        return whole

    def split(self, whole: Path) -> None:
        """Give the members what a file with the content of all of them has now; the file goes."""
        with open_pool(self.pool, read_only=True, exclusively=False) as pool:
            found = members.records(pool)
        with whole.open("rb") as file, self.pool.open("r+b") as memory:
            memory.write(file.read(found[0].label.begin))
            for record in found:
                with open(record.find(str(self.pool)), "r+b") as storage:
                    storage.seek(CONTENT)
                    storage.write(file.read(record.label.size))
        os.unlink(whole)

    def check(self) -> None:
        """The oracle: e2fsck finds nothing."""
        whole = self.join()
        fsck(whole)
        os.unlink(whole)


@pytest.fixture
def tiered(tmp_path: Path) -> Members:
    return make(tmp_path)


@pytest.fixture
def fs(tiered: Members) -> Iterator[FileSystem]:
    """The file system of `tiered`, which is checked afterwards."""
    with FileSystem.open(tiered.pool) as fs:
        yield fs
        fs.volume.check()
    tiered.check()


def make(
    folder: Path, memory: int = MEMORY, storage: int = STORAGE, options: tuple[str, ...] = OPTIONS, name: str = ""
) -> Members:
    """Make a tiered pool."""
    if name:
        folder = folder / name
        folder.mkdir()
    return make_several(folder, memory, [storage], options)


def make_several(folder: Path, memory: int, sizes: list[int], options: tuple[str, ...] = OPTIONS) -> Members:
    """Make a tiered pool with several members of storage: ``slow``, ``slow2``, ..."""
    paths = [folder / ("slow" if number == 1 else f"slow{number}") for number in range(1, len(sizes) + 1)]
    tiers = [Tier(str(path), size + CONTENT) for path, size in zip(paths, sizes, strict=True)]
    made = Members(folder / "pool", paths[0])
    make_pool(made.pool, memory, options, sparse=True, tier=tiers)
    return made
