"""Random operations on leased files: what a client may touch gets no other owner, and answers that hold are true.

Clients request, store, renew and close; other programs write, cut, move and remove; the daemon ends and starts again,
orderly or after a crash, with and without programs that still map the pool. The oracle (`lease_rig.check`) runs after
each step, e2fsck at the end.
"""

from __future__ import annotations

import errno
import os
import random
import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from in_memory import SHARED_MEMORY
from lease_rig import (
    EXTEND,
    MAP,
    NOTHING,
    RENEW,
    STORE,
    WRITE,
    Client,
    SharedPool,
    check,
)
from machine_rig import fsck_content, run_few, run_many
from range_rig import COLLAPSE, INSERT, KEEP_SIZE, PUNCH, ZERO, check_credits
from tree_rig import QUIET

from daxfs.errors import FsError
from daxfs.fs.filesystem import ROOT_INO, FileSystem, OpenFile
from daxfs.fs.types import SetAttributes
from daxfs.protocol import Flag
from support import mke2fs

FORMATS: dict[str, tuple[str, ...]] = {
    "block4k": ("-b", "4096", "-J", "size=4", "-N", "64"),
    "block1k": ("-b", "1024", "-J", "size=1", "-N", "64"),
    "orphan-file": ("-b", "1024", "-J", "size=1", "-N", "64", "-O", "orphan_file"),
    "no-extents": ("-b", "1024", "-J", "size=1", "-N", "64", "-O", "^extent,^64bit"),
}
NAMES = (b"a", b"b", b"c")
SIZES = (0, 1, 1000, 1024, 4096, 5000, 8192, 20_000, 70_000)
FLAGS = (NOTHING, WRITE, STORE, STORE | EXTEND, MAP, STORE | MAP)
MODES = (0, KEEP_SIZE, PUNCH, ZERO, ZERO | KEEP_SIZE, COLLAPSE, INSERT)
EXPECTED = {errno.ENOSPC, errno.EAGAIN, errno.EINVAL, errno.EOPNOTSUPP, errno.EFBIG}
MAX_CLIENTS = 5

picks = st.integers(0, 99)
offsets = st.one_of(st.sampled_from(SIZES), st.integers(0, 80_000))
names = st.sampled_from(NAMES)
flags = st.sampled_from(FLAGS)


@cache
def image(name: str) -> bytes:
    """Return a pool whose free blocks hold old bytes."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as place:
        path = mke2fs(Path(place) / "pool", *FORMATS[name], size="9M" if name == "block4k" else "3M")
        with FileSystem.open(path) as fs:
            file, _ = fs.create(ROOT_INO, b"junk", 0o600)
            fs.write(file, 0, random.Random(1).randbytes(8 << 20))
            fs.release(file)
            fs.unlink(ROOT_INO, b"junk")
        return path.read_bytes()


class Machine(RuleBasedStateMachine):
    """``ghosts``: what the stale clients of earlier mounts may touch."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.format = name
        self.clients: list[Client] = []
        self.files: list[OpenFile] = []
        self.ghosts: list[tuple[int, set[int]]] = []
        self.start(image(name))

    def start(self, content: bytes | bytearray) -> None:
        self.content = bytearray(content)
        self.pool = SharedPool(self.content)
        self.pool.stale_clients = bool(self.ghosts)
        self.fs = FileSystem.open(self.pool, QUIET)
        check_credits(self.fs)

    def ino(self, name: bytes) -> int:
        return self.fs.lookup(ROOT_INO, name).ino

    @staticmethod
    def tried(action: object, *arguments: object) -> bool:
        try:
            action(*arguments)  # type: ignore[operator]
        except FsError as error:
            assert error.errno in EXPECTED | {errno.ENOENT}, repr(error)
            return False
        return True

    def choose(self, pick: int) -> Client | None:
        return self.clients[pick % len(self.clients)] if self.clients else None

    # Clients

    @precondition(lambda self: len(self.clients) < MAX_CLIENTS)
    @rule(name=names, holder=st.integers(1, 2))
    def open(self, name: bytes, holder: int) -> None:
        try:
            file = self.fs.open_file(self.ino(name), os.O_RDWR)
        except FsError:
            file, _ = self.fs.create(ROOT_INO, name, 0o644)
        self.clients.append(Client(self.fs, file, holder))

    @rule(pick=picks, offset=offsets, length=offsets, flags=flags, renew=st.booleans(), few=st.booleans())
    def ask(self, pick: int, offset: int, length: int, flags: Flag, renew: bool, few: bool) -> None:
        client = self.choose(pick)
        if client is None:
            return
        self.tried(client.ask, offset, length + 1, flags | (RENEW if renew else NOTHING), 2 if few else 124)

    @rule(pick=picks)
    def renew(self, pick: int) -> None:
        client = self.choose(pick)
        if client is not None:
            client.renew()

    @rule(pick=picks)
    def close(self, pick: int) -> None:
        client = self.choose(pick)
        if client is not None:
            self.clients.remove(client)
            client.close()

    @rule(pick=picks, offset=offsets, length=st.integers(1, 6000), seed=picks)
    def store(self, pick: int, offset: int, length: int, seed: int) -> None:
        """Store where a client may; the file has the bytes at once."""
        client = self.choose(pick)
        if client is None:
            return
        size = self.fs.getattr(client.file.ino).size
        end = min(offset + length, size)
        while end > offset and client.place(end - 1) is None:
            end -= 1
        if end <= offset or any(client.place(at) is None for at in range(offset, end, 512)):
            return
        content = random.Random(seed).randbytes(end - offset)
        client.store(offset, content)
        assert bytes(self.fs.read(client.file, offset, end - offset)) == content

    @rule(pick=picks, more=st.integers(0, 9000), durable=st.booleans())
    def stored(self, pick: int, more: int, durable: bool) -> None:
        """Report stores past EOF as far as memory was granted; the file then has those bytes."""
        client = self.choose(pick)
        if client is None or client.file.node.grants is None:
            return
        size = self.fs.getattr(client.file.ino).size
        end = size
        while end < size + more and client.place(end) is not None:
            end += 1
        if end > size:
            content = random.Random(more).randbytes(end - size)
            client.store(size, content)
        if self.tried(lambda: client.stored(end if end > size else 0, durable=durable)) and end > size:
            assert self.fs.getattr(client.file.ino).size == end
            assert bytes(self.fs.read(client.file, size, end - size)) == content

    # Others

    @rule(name=names, offset=offsets, length=st.sampled_from(SIZES[1:]), seed=picks)
    def write(self, name: bytes, offset: int, length: int, seed: int) -> None:
        self.change(name, lambda file: self.fs.write(file, offset, random.Random(seed).randbytes(length)))

    @rule(name=names, mode=st.sampled_from(MODES), offset=offsets, length=offsets, aligned=st.booleans())
    def fallocate(self, name: bytes, mode: int, offset: int, length: int, aligned: bool) -> None:
        if aligned or mode in (COLLAPSE, INSERT):
            offset, length = offset & -4096, (length & -4096) + 4096
        self.change(name, lambda file: self.fs.fallocate(file, mode, offset, length + 1 - aligned))

    @rule(name=names, other=names, offset=offsets, to=offsets, length=offsets)
    def copy(self, name: bytes, other: bytes, offset: int, to: int, length: int) -> None:
        def copy_to(target: OpenFile) -> None:
            self.change(name, lambda source: self.fs.copy_range(source, offset, target, to, length))

        self.change(other, copy_to)

    def change(self, name: bytes, action: object) -> None:
        """Change the file through an open file of its own."""
        try:
            file = self.fs.open_file(self.ino(name), os.O_RDWR)
        except FsError:
            return
        try:
            self.tried(action, file)
        finally:
            self.fs.release(file)

    @rule(name=names, size=offsets)
    def truncate(self, name: bytes, size: int) -> None:
        self.tried(lambda: self.fs.setattr(self.ino(name), SetAttributes(size=size)))

    @rule(name=names)
    def open_and_cut(self, name: bytes) -> None:
        def cut() -> None:
            self.fs.release(self.fs.open_file(self.ino(name), os.O_RDWR | os.O_TRUNC))

        self.tried(cut)

    @rule(name=names)
    def unlink(self, name: bytes) -> None:
        self.tried(self.fs.unlink, ROOT_INO, name)

    @rule(name=names, other=names)
    def rename(self, name: bytes, other: bytes) -> None:
        self.tried(self.fs.rename, ROOT_INO, name, ROOT_INO, other)

    @rule(number=st.integers(0, 4))
    def make_directory(self, number: int) -> None:
        """Make a directory, whose blocks are metadata that free blocks are allocated for."""
        try:
            self.fs.mkdir(ROOT_INO, b"d%d" % number, 0o755)
        except FsError as error:
            assert error.errno in (errno.EEXIST, errno.ENOSPC)
            self.tried(self.fs.rmdir, ROOT_INO, b"d%d" % number)

    @rule()
    def sync(self) -> None:
        self.fs.sync()

    # The daemon goes

    @rule(stay=st.booleans())
    def remount(self, stay: bool) -> None:
        """Unmount and mount again; some clients stay."""
        self.haunt(stay)
        self.pool.ours = stay and bool(self.clients)
        self.fs.end_mount()
        for client in self.clients:
            self.fs.release(client.file)
        self.clients.clear()
        self.fs.close()
        self.start(self.content)

    @rule(stay=st.booleans(), seed=picks)
    def crash(self, stay: bool, seed: int) -> None:
        """End without an unmount: the daemon dies and all stores stay, or the power is cut and no client is left."""
        if stay:
            self.haunt(stay)
            self.clients.clear()
            self.start(self.pool.image())
            return
        self.ghosts.clear()
        self.clients.clear()
        left = list(self.pool.crash_images(random.Random(seed), start=len(self.pool.events), prefixes=1, subsets=1))
        self.start(left[seed % len(left)].image)

    def haunt(self, stay: bool) -> None:
        if stay:
            self.ghosts += [(client.file.ino, set(client.granted)) for client in self.clients if client.granted]
        else:
            self.ghosts.clear()

    @rule()
    def exorcise(self) -> None:
        """End the stale clients."""
        self.ghosts.clear()
        self.pool.stale_clients = False
        self.fs.tick()

    @invariant()
    def everything_is_owned(self) -> None:
        assert not self.fs.volume.read_only
        check(self.fs, self.clients, self.ghosts)

    def teardown(self) -> None:
        self.exorcise()
        for client in self.clients:
            client.close()
        assert self.fs.volume.lives.nameless <= {self.fs.grants.page.ino}
        self.fs.close()
        fsck_content(self.content)


@pytest.mark.parametrize("name", FORMATS)
def test_random_operations_on_leased_files(name: str) -> None:
    run_few(lambda: Machine(name), 6, steps=40)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
def test_many_random_operations_on_leased_files(name: str) -> None:
    run_many(lambda: Machine(name), 600, steps=60)
