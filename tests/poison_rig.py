"""Missing pages of a mapped pool: a load or store there is SIGBUS, as on poisoned memory, until they are mended."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import Options
from daxfs.pmem.address import address_of
from daxfs.pmem.faults import MappedFaults
from daxfs.pmem.opening import open_pool
from daxfs.pmem.pool import Pool
from support import run

PAGE = mmap.PAGESIZE
_SHARED_FIXED = mmap.MAP_SHARED | 0x10
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]


class Poison:
    """Missing pages of one pool. Its file has them all the time."""

    def __init__(self, pool: Pool) -> None:
        assert isinstance(pool.faults, MappedFaults)
        self._faults = pool.faults
        self._addresses = pool.faults._addresses
        self._base = address_of(pool.memory)
        self._empty = os.memfd_create("empty")  # mapped past its end
        self._pages: set[int] = set()
        self._remap = self._addresses.remap
        self._addresses.remap = self._remap_all_but_these  # type: ignore[method-assign]

    def add(self, offset: int) -> None:
        """The page around a byte offset of the pool is missing from now on."""
        self._pages.add(offset - offset % PAGE)
        self.add_once(offset)

    def add_once(self, offset: int) -> None:
        """The page around a byte offset of the pool is missing until it is mapped again."""
        self._cover(offset - offset % PAGE)

    def mend(self) -> None:
        """All pages are there again."""
        pages, self._pages = self._pages, set()
        for page in pages:
            self._faults.forgive(page, page + PAGE)

    def close(self) -> None:
        if not self._addresses.closed:
            self.mend()
        del self._addresses.remap
        os.close(self._empty)

    def _cover(self, page: int) -> None:
        found = _libc.mmap(self._base + page, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, _SHARED_FIXED, self._empty, 0)
        assert found == self._base + page

    def _remap_all_but_these(self, offset: int, length: int) -> None:
        self._remap(offset, length)
        for page in self._pages:
            self._cover(page)


class PoisonRig:
    """A pool with some files, open, and its poison."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path = path
        self.pool = open_pool(path)
        self.fs = FileSystem.open(self.pool, options)
        self.poison = Poison(self.pool)

    def inode(self, name: str) -> int:
        """The pool's offset of a file's inode."""
        said = run("debugfs", "-R", f"imap <{self.fs.tree.stat(name).ino}>", self.path)
        found = re.search(r"at block (\d+), offset (0x[0-9a-f]+)", said)
        assert found
        return (int(found[1]) << self.fs.volume.block_bits) + int(found[2], 16)

    def data(self, name: str, block: int = 0) -> int:
        """The pool's offset of a block of a file."""
        bits = self.fs.volume.block_bits
        run = next(each for each in self.fs.describe(self.fs.tree.stat(name).ino) if each.lblk + each.length > block)
        return run.pblk + block - run.lblk << bits

    @contextmanager
    def overwritten_without_its_inode(self, name: str, content: bytes) -> Iterator[None]:
        """An open file is overwritten, and "/meanwhile" made and committed, while the file's inode is missing.

        The inode is missing until the end of the body.
        """
        place = self.inode(name)
        with self.fs.tree.open(name, "r+b") as file:
            file.write(b"x")
            self.fs.sync()
            self.poison.add(place)
            file.seek(0)
            file.write(b"new")
            self.fs.tree.write_bytes("/meanwhile", content)
            self.fs.sync()
            assert not self.fs.read_only
            yield
            self.poison.mend()
