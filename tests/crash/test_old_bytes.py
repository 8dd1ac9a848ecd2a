"""Free blocks hold what was deleted: no way to get them shows it, before a power cut or after one.

The pool's free blocks are full of old bytes (`crash_rig.plant`). A file is compared with a model of bytes, so that an
error which a run and its recovery share is seen too.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from crash_rig import FORMATS, QUIET, image, noise, recover
from range_rig import KEEP_SIZE, PUNCH, ZERO

from daxfs.fs.filesystem import ROOT_INO, FileSystem, OpenFile
from daxfs.fs.types import SetAttributes
from daxfs.pmem.memory import MemoryPool


class Modelled:
    """A file and what it must hold."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        self.file: OpenFile = fs.create(ROOT_INO, b"modelled", 0o600)[0]
        self.model = bytearray()

    def write(self, offset: int, size: int) -> None:
        content = noise(size, offset)
        assert self.fs.write(self.file, offset, content) == size
        self._reach(offset + size)
        self.model[offset : offset + size] = content

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        self.fs.fallocate(self.file, mode, offset, length)
        if not mode & KEEP_SIZE:
            self._reach(offset + length)
        if mode & (PUNCH | ZERO):
            end = min(offset + length, len(self.model))
            self.model[offset:end] = bytes(max(end - offset, 0))

    def truncate(self, size: int) -> None:
        self.fs.setattr(self.file.ino, SetAttributes(size=size))
        del self.model[size:]
        self._reach(size)

    def copy(self, path: str, source: int, offset: int, length: int) -> None:
        other = self.fs.open_file(self.fs.tree.resolve(path), os.O_RDONLY)
        content = bytes(self.fs.read(other, source, length))
        assert self.fs.copy_range(other, source, self.file, offset, length) == length
        self.fs.release(other)
        self._reach(offset + length)
        self.model[offset : offset + length] = content

    def _reach(self, size: int) -> None:
        self.model.extend(bytes(max(size - len(self.model), 0)))

    def check(self) -> None:
        assert bytes(self.fs.read(self.file, 0, 1 << 20)) == self.model


Step = Callable[[Modelled], object]
STEPS: dict[str, Step] = {
    "write within a new block": lambda m: m.write(300, 100),
    "write into a hole": lambda m: m.write(20_500, 700),
    "write across blocks of a hole": lambda m: m.write(40_100, 9000),
    "write between": lambda m: m.write(30_001, 10),
    "copy into a hole": lambda m: m.copy("big", 1001, 60_007, 3000),
    "copy data and a hole": lambda m: m.copy("big", 7000, 70_001, 14_000),
    "cut": lambda m: m.truncate(75_555),
    "grow": lambda m: m.truncate(90_000),
    "write at the end": lambda m: m.write(90_000, 1),
}
EXTENTS: dict[str, Step] = {
    "reserve": lambda m: m.fallocate(0, 100_000, 30_000),
    "write into what is reserved": lambda m: m.write(104_500, 700),
    "write across what is reserved": lambda m: m.write(110_100, 9000),
    "reserve behind": lambda m: m.fallocate(KEEP_SIZE, 130_000, 20_000),
    "write behind": lambda m: m.write(135_001, 10),
    "zero": lambda m: m.fallocate(ZERO, 41_000, 6001),
    "write into zeros": lambda m: m.write(43_333, 10),
    "punch": lambda m: m.fallocate(PUNCH, 105_000, 10_000),
    "write into the hole": lambda m: m.write(109_000, 333),
}


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_old_is_shown(name: str) -> None:
    pool = MemoryPool(image(name))
    fs = FileSystem.open(pool, QUIET)
    modelled = Modelled(fs)
    for step in (STEPS if name == "no-extents" else {**STEPS, **EXTENTS}).values():
        step(modelled)
        modelled.check()
    fs.fsync(modelled.file.ino)
    found = recover(bytearray(pool.image()))
    assert found.contents[modelled.file.ino] == modelled.model
