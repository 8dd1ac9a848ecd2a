"""A client that requests anything, claims anything and follows no rule: no one ever reads what others have deleted.

All free blocks hold a marker byte, and get it again whenever they become free. No file and no answer may show it: what
becomes readable was granted and zeroed, written, or is a hole. The client never stores by itself, so every byte of
memory that it was granted must be zero or a byte that another program has written.
"""

from __future__ import annotations

import errno
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from in_memory import SHARED_MEMORY
from lease_rig import (
    EXTEND,
    FAR,
    FILL,
    MAP,
    MEMORY,
    NOTHING,
    RENEW,
    STORE,
    WRITE,
    Client,
    another,
    client,
    make,
    truncate,
)
from range_rig import EVERY_MODE, KEEP_SIZE, PUNCH, check_credits, refused
from tree_rig import QUIET

from daxfs.errors import FsError
from daxfs.fs.filesystem import ROOT_INO, FileSystem, OpenFile
from daxfs.fs.types import WriteNotification
from daxfs.pmem.memory import MemoryPool
from daxfs.structures import blocks
from support import fsck, mke2fs, write_image

MARKER = b"\xa5"
FORMATS: dict[str, tuple[str, ...]] = {
    "4k": ("-b", "4096", "-J", "size=4", "-N", "64"),
    "1k": ("-b", "1024", "-J", "size=1", "-N", "64"),
    "no-extents": ("-b", "1024", "-J", "size=1", "-N", "64", "-O", "^extent,^64bit"),
}
FLAGS = (NOTHING, WRITE, STORE, STORE | EXTEND, STORE | EXTEND, STORE | EXTEND, MAP, STORE | MAP, FILL, EXTEND)
REFUSALS = {errno.ENOSPC, errno.EAGAIN, errno.EINVAL, errno.EOPNOTSUPP, errno.EFBIG, errno.ENXIO, errno.EBADF}
NAMES = (b"a", b"b")
LARGEST = 300_000
OPERATIONS = 4000


@cache
def image(name: str) -> bytes:
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as place:
        return mke2fs(Path(place) / "pool", *FORMATS[name], size="9M" if name == "4k" else "3M").read_bytes()


def mark(fs: FileSystem) -> None:
    """Fill every free block with the marker."""
    fs.sync()
    view, bits = fs.volume.view, fs.volume.block_bits
    for group in range(fs.volume.geometry.groups_count):
        for start, count in blocks.free_runs(view, group, 1):
            fs.volume.pool.write(start << bits, MARKER * (count << bits))


def innocent(data: memoryview | bytes) -> bool:
    """Return whether the content has no marker byte."""
    return MARKER not in bytes(data)


class Crook:
    """One round: two files, several open files of each, and the operations on them."""

    def __init__(self, fs: FileSystem, seed: int) -> None:
        self.fs = fs
        self.random = random.Random(seed)
        self.clients: list[Client] = []
        self.done: Counter[str] = Counter()
        self.acts: list[Callable[[], object]] = [
            *(self.lease,) * 6,
            *(self.stored,) * 3,
            *(self.appended,) * 3,
            *(self.allocate,) * 3,
            *(self.write,) * 2,
            self.truncate,
            self.copy,
            self.renew,
            self.reopen,
            self.replace,
            lambda: mark(fs),
        ]

    # What can be asked

    @property
    def file(self) -> OpenFile:
        return self.random.choice(self.clients).file

    def offset(self) -> int:
        """Return any offset: at the edges of blocks, near EOF, next to them, or far away."""
        near = self.file.node.size
        kind = self.random.randrange(8)
        if kind == 0:
            return self.random.choice((1 << 30, 1 << 45, 1 << 61))
        if kind < 3:
            return max(near + self.random.randrange(-5000, 5000), 0)
        if kind < 6:
            return self.random.randrange(0, LARGEST, 1024)
        return self.random.randrange(LARGEST)

    def length(self) -> int:
        return self.random.choice((1, 100, 1024, 4096, 5000, 16_384, 65_536, self.random.randrange(1, LARGEST)))

    def within(self, number: int) -> int:
        """Return the number, reduced so that files stay small."""
        return number if number < LARGEST else number % LARGEST

    def lease(self) -> None:
        one = self.random.choice(self.clients)
        one.holder = self.random.randrange(1, 3)
        flags = self.random.choice(FLAGS) | self.random.choice((NOTHING, NOTHING, RENEW))
        length = self.random.choice((self.length(), self.length(), FAR))
        if flags & FILL:
            length = min(length, LARGEST)
        offset = self.within(self.offset()) if flags & FILL else self.offset()
        if flags & EXTEND and self.random.random() < 0.7:
            offset = one.file.node.size & -1024
        one.ask(offset, length, flags, self.random.choice((2, 124)))

    def stored(self) -> None:
        file = self.file
        size = self.random.choice((0, self.offset(), *(file.node.size + self.length() for _ in range(4))))
        self.fs.notify_stored(file, WriteNotification(size, durable=self.random.random() < 0.1))

    def appended(self) -> None:
        file, holder = self.file, self.random.randrange(1, 3)
        if file.node.grants is not None and file.node.grants.extender is not None:
            file, holder = file.node.grants.extender
        base = self.random.choice((*(file.node.size,) * 5, self.offset()))
        size = self.random.choice((*(base + self.length() for _ in range(4)), self.offset()))
        self.fs.notify_stored(file, WriteNotification(size, base=base, holder=holder))

    def allocate(self) -> None:
        mode = self.random.choice((KEEP_SIZE, PUNCH, *EVERY_MODE))
        offset, length = self.within(self.offset()), self.length()
        if self.random.random() < 0.5:
            offset, length = offset & -4096, (length & -4096) + 4096
        self.fs.fallocate(self.file, mode, offset, length)

    def write(self) -> None:
        content = bytes([self.random.randrange(1, 100)]) * min(self.length(), 20_000)
        self.fs.write(self.file, self.within(self.offset()), content)

    def truncate(self) -> None:
        truncate(self.fs, self.file.ino, self.within(self.offset()))

    def copy(self) -> None:
        offset, target = self.within(self.offset()), self.within(self.offset())
        self.fs.copy_range(self.file, offset, self.file, target, self.length())

    def renew(self) -> None:
        self.random.choice(self.clients).renew()

    def reopen(self) -> None:
        one = self.random.choice(self.clients)
        flags = self.random.choice((os.O_RDWR, os.O_RDWR, os.O_RDWR | os.O_TRUNC))
        self.clients.append(another(one, flags=flags))
        if len(self.clients) > 6:
            self.clients.remove(one)
            one.close()

    def replace(self) -> None:
        """Give a name a new file; the old file lives as long as it is open."""
        name = self.random.choice(NAMES)
        self.fs.unlink(ROOT_INO, name)
        self.clients.append(Client(self.fs, make(self.fs, name)))
        self.clients.pop(0).close()

    # What must hold

    def step(self) -> None:
        act = self.random.choice(self.acts)
        name = getattr(act, "__name__", "")
        try:
            act()
        except FsError as error:
            assert error.errno in REFUSALS, repr(error)
            self.done[f"{name} refused"] += 1
            return
        self.done[name] += 1

    def look(self) -> None:
        """Read everything, through the file system and in granted memory."""
        memory = self.fs.volume.pool.memory
        for file in {one.file.ino: one.file for one in self.clients}.values():
            assert innocent(self.fs.read(file, 0, 1 << 20)), f"inode {file.ino} shows what was deleted: {self.done}"
        for one in self.clients:
            for answer in one.current:
                for piece in answer.pieces:
                    if piece.kind == MEMORY:
                        granted = memory[piece.pool_offset : piece.pool_offset + piece.length]
                        assert innocent(granted), f"{piece} of inode {one.file.ino} was not zeroed: {self.done}"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_a_client_without_honour(tmp_path: Path, name: str, seed: int) -> None:
    content = bytearray(image(name))
    fs = FileSystem.open(MemoryPool(content), QUIET)
    check_credits(fs)
    mark(fs)
    crook = Crook(fs, seed)
    crook.clients = [client(fs, each, b"x" * 5000) for each in NAMES]
    crook.clients += [another(crook.clients[0]), another(crook.clients[1])]
    for _ in range(OPERATIONS):
        crook.step()
        crook.look()
        assert not fs.volume.read_only
    if name != "no-extents":
        assert min(crook.done[act] for act in ("lease", "stored", "appended", "allocate")) > 20, crook.done
    for one in crook.clients:
        one.close()
    fs.close()
    path = tmp_path / "pool"
    write_image(path, content)
    fsck(path)


# What the random walk would find, one by one


@pytest.fixture(params=["4k", "1k"])
def marked(request: pytest.FixtureRequest) -> FileSystem:
    fs = FileSystem.open(MemoryPool(bytearray(image(request.param))), QUIET)
    mark(fs)
    return fs


@pytest.mark.parametrize("base", [None, 0])
def test_more_than_was_granted_is_refused(marked: FileSystem, base: int | None) -> None:
    """The file has more unwritten blocks past EOF, but only the first was zeroed and granted."""
    held = client(marked)
    marked.fallocate(held.file, KEEP_SIZE, 0, 1 << 20)
    held.ask(0, 4096, STORE | EXTEND)
    with refused(errno.EINVAL):
        marked.notify_stored(held.file, WriteNotification(1 << 20, base=base))
    assert held.file.node.size == 0
    marked.notify_stored(held.file, WriteNotification(4096, base=base))
    assert bytes(marked.read(held.file, 0, FAR)) == bytes(4096)
    truncate(marked, held.file.ino, 1 << 20)
    assert bytes(marked.read(held.file, 0, FAR)) == bytes(1 << 20)


def test_a_gap_is_refused(marked: FileSystem) -> None:
    """The bytes between EOF and the granted range were not granted."""
    held = client(marked, content=b"x" * 100)
    held.ask(16_384, 4096, STORE | EXTEND)
    with refused(errno.EINVAL):
        held.stored(20_480)
    assert held.file.node.size == 100
    held.ask(0, 16_384, STORE | EXTEND)
    held.stored(20_480)
    assert bytes(marked.read(held.file, 0, FAR)) == b"x" * 100 + bytes(20_380)


def test_only_what_is_claimed_becomes_written(marked: FileSystem) -> None:
    """The rest of the granted range stays unwritten, and so do preallocated blocks after it."""
    held = client(marked)
    marked.fallocate(held.file, KEEP_SIZE, 0, 1 << 20)
    held.ask(0, 65_536, STORE | EXTEND)
    held.stored(5000)
    bits = marked.volume.block_bits
    written = [run for run in marked.describe(held.file.ino) if not run.unwritten]
    assert [(run.lblk, run.lblk + run.length << bits) for run in written] == [(0, 5000 + -5000 % (1 << bits))]
