"""A state machine in which blocks move under the operations of `tree_machine`, and what must stay as it is then.

The file system grows and shrinks, files are relocated, parts of the pool are emptied: in steps, with all other rules
between them, to the end or abandoned. Snapshots are made, compared with the model of their moment, and deleted. Clients
of direct access are granted memory and store there. The power fails between all that and in the middle of it: then
daxfs and e2fsck must recover the same tree. What is refused must have changed nothing.
"""

from __future__ import annotations

import errno
import random
import subprocess
import tempfile
from collections import Counter
from functools import cache
from itertools import count
from pathlib import Path
from typing import NamedTuple

from crash_rig import Picture, image_of, recover_by_e2fsck, take_picture, torn_superblock, unlike
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from in_memory import SHARED_MEMORY
from lease_rig import EXTEND, MAP, NOTHING, RENEW, STORE, WRITE, Client, SharedPool
from lease_rig import check as check_clients
from machine_rig import fsck_content
from model_machine import expect_same, picks, seeds
from tree_machine import SIZES, Machine, offsets
from tree_model import Partial, State, numbers_in
from tree_rig import QUIET

from daxfs.errors import FsError
from daxfs.ext4.superblock import EXT4_ERROR_FS
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.grants import recall
from daxfs.fs.steps import Steps, Wait, interruption
from daxfs.fs.types import Evacuation, Relocation, Resized
from daxfs.pmem.memory import MemoryPool
from daxfs.protocol import Flag
from daxfs.runs import ByteRange
from support import fsck, mke2fs, tool

SMALL = ("-b", "1024", "-g", "512", "-J", "size=1", "-N", "256")
FORMATS: dict[str, tuple[str, ...]] = {
    "block4k": ("-b", "4096", "-g", "256", "-N", "512", "-J", "size=4", "-E", "resize=65536"),
    "block1k": (*SMALL, "-E", "resize=20000"),
    "meta-bg": (*SMALL, "-O", "^resize_inode"),
    "no-csum": (*SMALL, "-O", "^metadata_csum,^64bit", "-I", "128", "-E", "resize=20000"),
    "orphan-file": (*SMALL, "-O", "orphan_file", "-E", "resize=20000"),
    "no-extents": (*SMALL, "-O", "^extent,^64bit", "-E", "resize=20000"),
}
ROOM = bytes(1 << 20)
"""What a pool has beyond its file system at first."""
MOST_CLIENTS = 3
REFUSED = {errno.EBUSY, errno.EOPNOTSUPP, errno.ENOSPC, errno.EINVAL, errno.EFBIG}
RESIZE, RELOCATE = "resize", "relocate"
NAMES = (b"monday", b"tuesday", b"wednesday")
"""Of snapshots."""


@cache
def image(name: str) -> bytes:
    """Return a fresh pool of the format, with many small groups."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as place:
        size = "12M" if name == "block4k" else "6M"
        path = mke2fs(Path(place) / "pool", *FORMATS[name], size=size)
        with FileSystem.open(path, QUIET) as fs:
            plant(fs)
        return path.read_bytes() + ROOM


def plant(fs: FileSystem) -> None:
    """Make files in directories all over the pool, some of them in pieces."""
    for number in range(6):
        place = f"/{number}"
        fs.tree.mkdir(place)
        for size in (3000, 50_000, 120_000):
            fs.tree.write_bytes(f"{place}/{size}", random.Random(size + number).randbytes(size))
    for number in range(5):
        fs.tree.unlink(f"/{number}/50000")
        fs.tree.write_bytes(f"/{number}/pieces", random.Random(number).randbytes(70_000))
    fs.tree.symlink("target" * 40, "/5/link")
    fs.setxattr(fs.tree.resolve("/5/3000"), b"user.large", bytes(700))


Ordinary = tuple[int, int, int, int, int]
ordinary = st.tuples(st.integers(0, 7), picks, offsets, st.sampled_from(SIZES), seeds)
"""An operation on names or data: which one, files and directories, offset, size, content."""


class Moving(NamedTuple):
    """An operation in steps that runs; ``size``: of the file system at its beginning, in blocks."""

    kind: str
    steps: Steps[object]
    size: int


class Clock:
    """The time of recalls: it passes as somebody looks at it."""

    def __init__(self) -> None:
        self._ticks = count()

    def monotonic(self) -> float:
        return next(self._ticks) / 20


class MovingMachine(Machine):
    """See above.

    Attributes:
        tally: how often each thing was done, over all walks.
        moving: the operation that runs.
        clients: of this mount.
        past: what each snapshot must show.
        unsure: snapshots that a power cut in their making or deletion may have left or not.
        sizes: those that the file system may have after a power cut.
    """

    keeps_numbers = False

    def __init__(self, name: str, tally: Counter[str]) -> None:
        self.tally = tally
        self.moving: Moving | None = None
        self.clients: list[Client] = []
        self.past: dict[bytes, State] = {}
        self.unsure: set[bytes] = set()
        self._surrogates = count(-1, -1)
        super().__init__(name)

    def image(self) -> bytes:
        return image(self.format)

    def pool_of(self, content: bytearray) -> SharedPool:
        return SharedPool(content)

    def start(self, content: bytes | bytearray) -> None:
        dead, self.moving = self.moving, None
        super().start(content)
        if dead is not None:
            dead.steps.close()  # in the process that a power cut has ended, which stores nothing any more
        recall.time = Clock()  # type: ignore[assignment]
        self.clients.clear()
        self.sizes = {self.fs.size}

    def busy(self, ino: int) -> bool:
        return super().busy(ino) or any(client.file.ino == ino for client in self.clients)

    # Operations in steps

    def begin(self, kind: str, steps: Steps[object]) -> None:
        self.moving = Moving(kind, steps, self.fs.size)
        self.advance()

    @precondition(lambda self: self.moving is None)
    @rule(blocks=st.sampled_from((-100_000, -3000, -1500, -700, -300, -1, 0, 1, 100, 500, 700, 3000)))
    def grow(self, blocks: int) -> None:
        """Begin to make the file system larger or smaller."""
        self.begin(RESIZE, self.fs.steps.resize(max(self.fs.size + blocks, 1)))

    @precondition(lambda self: self.moving is not None)
    @rule()
    def resize_twice(self) -> None:
        """While another resize runs, it is refused."""
        assert self.moving is not None
        if self.moving.kind == RESIZE:
            size = self.fs.size
            assert not self.tried(lambda: self.fs.resize(size + 512), {errno.EBUSY, errno.ENOSPC})
            assert self.fs.size == size

    @precondition(lambda self: self.moving is None)
    @rule(pick=picks, first=st.integers(0, 3), whole=st.booleans())
    def defragment(self, pick: int, first: int, whole: bool) -> None:
        if ino := self.file(pick):
            length = 1 << 40 if whole else 20_000
            self.begin(RELOCATE, self.fs.steps.defragment(ino, first * 10_000, length))

    @precondition(lambda self: self.moving is None)
    @rule(pick=picks, eighth=st.integers(0, 7), every=st.booleans())
    def evacuate(self, pick: int, eighth: int, every: bool) -> None:
        """Empty a part of the pool, or have one inode leave it."""
        self.begin(RELOCATE, self.leaving(pick, eighth, every))

    def leaving(self, pick: int, eighth: int, every: bool) -> Steps[object]:
        part = (self.fs.size << self.fs.volume.block_bits) // 8
        place = ByteRange(eighth * part, (eighth + 1) * part)
        if every:
            return self.fs.steps.evacuate(place)
        return self.fs.steps.vacate(self.choose(pick, lambda thing: thing.is_dir or thing.is_file), place)

    @precondition(lambda self: self.moving is not None)
    @rule(steps=st.sampled_from((1, 1, 3, 10, 200)), late=st.booleans())
    def step(self, steps: int, late: bool) -> None:
        """Go on with what runs. ``late``: do not wait for storage."""
        for _ in range(steps):
            if self.moving is not None:
                self.advance(late=late)

    @precondition(lambda self: self.moving is not None)
    @rule()
    def finish(self) -> None:
        while self.moving is not None:
            self.advance()

    @precondition(lambda self: self.moving is not None)
    @rule(shorten=st.booleans())
    def abandon(self, shorten: bool) -> None:
        """End what runs early: it keeps what it has done, a size as it was or on the way."""
        moving, self.moving = self.moving, None
        assert moving is not None
        done: object = None
        if shorten:
            try:
                moving.steps.throw(interruption())
                raise AssertionError("it goes on")
            except StopIteration as end:
                done = end.value
            except FsError as error:
                assert error.errno == errno.EINTR
        moving.steps.close()
        if moving.kind == RESIZE and done is None:
            assert self.fs.size >= moving.size
        self.tally[f"{moving.kind} abandoned"] += 1
        self.settled()

    @precondition(lambda self: self.moving is None)
    @rule(
        what=st.sampled_from((RESIZE, RESIZE, RELOCATE)),
        pick=picks,
        others=st.lists(ordinary, min_size=1, max_size=8),
        steps=st.integers(1, 30),
        then=st.sampled_from(("finish", "finish", "finish", "abandon", "crash", "")),
        seed=seeds,
    )
    def interleave(self, what: str, pick: int, others: list[Ordinary], steps: int, then: str, seed: int) -> None:
        """Other operations run between the steps of one; then it ends, or the power fails."""
        self.begin(what, self.begun(what, pick))
        for other in others:
            if self.moving is not None:
                self.step(steps, late=other[4] % 2 > 0)
            self.do(other)
        if self.moving is not None and then == "finish":
            self.finish()
        elif self.moving is not None and then == "abandon":
            self.abandon(seed % 2 > 0)
        elif then == "crash":
            self.crash(seed, syncing=False)

    def do(self, wanted: Ordinary) -> None:
        """One ordinary operation."""
        what, pick, offset, size, seed = wanted
        if what == 0:
            self.write(pick, offset, size, seed)
        elif what == 1:
            self.truncate(pick, offset)
        elif what == 2:
            self.copy_range(pick, seed, offset, seed % 9000, size)
        elif what == 3:
            self.create(pick, b"abcdef"[seed % 6 : seed % 6 + 1], 0, size, seed)
        elif what == 4:
            self.unlink(pick, seed, b"a")
        elif what == 5:
            self.rename(pick, seed, b"a", seed, b"abcdef"[size % 6 : size % 6 + 1], 0)
        elif what == 6:
            self.mkdir(pick, b"abcdef"[seed % 6 : seed % 6 + 1], 0o755)
        else:
            self.fsync(pick)

    def advance(self, *, late: bool = False) -> None:
        """One step."""
        moving = self.moving
        assert moving is not None
        try:
            waiting = next(moving.steps)
        except StopIteration as end:
            self.moving = None
            self.ended(end.value)
        except FsError as error:
            self.moving = None
            self.refused(moving, error)
        else:
            if waiting is not None:
                self.waits(waiting, late=late)
            self.sizes.add(self.fs.size)
            if moving.kind == RESIZE:
                self.follow()

    def waits(self, waiting: Wait, *, late: bool) -> None:
        """A step waits for something; ``late``: nobody waits for it now."""
        if not late:
            waiting.wait()

    def ended(self, done: object) -> None:
        if isinstance(done, Resized):
            assert done.blocks == self.fs.size
            if done.blocks != done.before:
                self.tally["grown" if done.blocks > done.before else "shrunk"] += 1
                self.durable_now()
        elif isinstance(done, Relocation | Evacuation):
            self.tally["relocated"] += bool(done.moved or done.metadata)
        self.settled()

    def durable_now(self) -> None:
        self.follow()
        self.durable(self.state)
        self.sizes = {self.fs.size}

    def refused(self, moving: Moving, error: FsError) -> None:
        """What failed has left the size, unless it was growing, and the tree."""
        assert error.errno in REFUSED | self.excused, repr(error)
        assert self.fs.size == moving.size or (moving.kind == RESIZE and self.fs.size > moving.size)
        self.tally[f"{moving.kind} refused"] += 1
        self.settled()

    def settled(self) -> None:
        """Nothing that moves may change what users see, or what clients hold."""
        self.follow()
        self.fs.check()
        expect_same(self.fs, self.state)
        if self.clients:
            check_clients(self.fs, self.clients)

    def follow(self) -> None:
        """Inodes of groups that go may have other numbers, unless they are in use."""
        numbers = numbers_in(self.fs, self.state)
        if all(ino == number for ino, number in numbers.items()):
            return
        self.tally["renumbered"] += 1
        assert all(numbers.get(file.ino, file.ino) == file.ino for file in self.opened)
        taken = set(numbers.values())
        for state in self.states:
            for ino in state:
                if ino not in numbers:
                    numbers[ino] = next(self._surrogates) if ino in taken else ino
        self.states = [
            {
                numbers[ino]: thing._replace(names={name: numbers[child] for name, child in thing.names.items()})
                for ino, thing in state.items()
            }
            for state in self.states
        ]
        self.partials = [Partial(numbers.get(each.ino, 0), each.low, each.high) for each in self.partials]

    # Snapshots

    @rule(name=st.sampled_from(NAMES))
    def snapshot(self, name: bytes) -> None:
        state = self.state
        expected = {errno.EEXIST} if name in self.past else set()
        try:
            self.fs.create_snapshot(name)
        except FsError as error:
            assert error.errno in (expected or REFUSED)
            self.tally["snapshot refused"] += 1
            self.settled()
        else:
            assert not expected
            self.past[name] = state
            self.touched(ROOT_INO)
            self.durable(self.state)
            self.tally["snapshot"] += 1

    @precondition(lambda self: self.past)
    @rule(pick=picks)
    def delete_snapshot(self, pick: int) -> None:
        name = sorted(self.past)[pick % len(self.past)]
        try:
            self.fs.delete_snapshot(name)
        except FsError as error:
            assert error.errno in {errno.EBUSY, errno.ENOSPC}
        else:
            del self.past[name]
            self.touched(ROOT_INO)
            self.durable(self.state)
        self.look_back()

    def delete_snapshots(self) -> None:
        """Delete all snapshots, with which the size can't change."""
        for _ in range(len(self.past)):
            self.delete_snapshot(0)

    @precondition(lambda self: self.past)
    @rule()
    def look_back(self) -> None:
        """Each snapshot is there and shows its moment; it may be lost where the pool was full."""
        listed = self.fs.list_snapshots()
        names = {found.name for found in listed}
        assert self.past.keys() - self.unsure <= names <= self.past.keys()
        self.past = {name: state for name, state in self.past.items() if name in names}
        self.unsure.clear()
        for found in listed:
            if found.lost:
                self.tally["snapshot lost"] += 1
                continue
            content = image_of(self.fs, found.name)
            with FileSystem.open(MemoryPool(content), QUIET) as past:
                expect_same(past, self.past[found.name], {})
            fsck_content(content)
            self.tally["snapshot compared"] += 1

    # Clients

    def client(self, pick: int) -> Client | None:
        return self.clients[pick % len(self.clients)] if self.clients else None

    @precondition(lambda self: len(self.clients) < MOST_CLIENTS)
    @rule(pick=picks, flags=st.sampled_from((NOTHING, WRITE, STORE, STORE | MAP)))
    def client_begins(self, pick: int, flags: Flag) -> None:
        """A client opens a file and asks for all of it."""
        if ino := self.file(pick):
            self.clients.append(Client(self.fs, self.fs.open_file(ino, 2), len(self.clients) + 1))
            self.client_asks(len(self.clients) - 1, 0, 1 << 20, flags, False)

    @rule(
        pick=picks,
        offset=offsets,
        length=offsets,
        flags=st.sampled_from((NOTHING, STORE, STORE | EXTEND, MAP)),
        renew=st.booleans(),
    )
    def client_asks(self, pick: int, offset: int, length: int, flags: Flag, renew: bool) -> None:
        client = self.client(pick)
        if client is not None:
            wanted = flags | (RENEW if renew else NOTHING)
            try:
                client.ask(offset, length + 1, wanted)
            except FsError as error:
                assert error.errno in REFUSED | self.excused | {errno.EAGAIN}, repr(error)
            self.touched(client.file.ino)

    def touched(self, ino: int) -> None:
        """The times of a file are those of now."""
        self.moment({ino: self.state[ino]._replace(mtime_ns=None)})

    @precondition(lambda self: self.clients)
    @rule(pick=picks, offset=offsets, length=st.sampled_from(SIZES[1:]), seed=seeds)
    def client_stores(self, pick: int, offset: int, length: int, seed: int) -> None:
        """A client stores where it was granted memory, up to EOF."""
        client = self.clients[pick % len(self.clients)]
        content = self.state[client.file.ino].content
        end = min(offset + length, len(content))
        at = offset
        while at < end and client.place(at) is not None:
            at = min(at - at % 512 + 512, end)
        if at > offset:
            stored = random.Random(seed).randbytes(at - offset)
            client.store(offset, stored)
            self.grown(client.file.ino, offset, stored)
            self.tally["client stored"] += 1

    @precondition(lambda self: self.clients)
    @rule(pick=picks, more=st.sampled_from((1, 700, 4096, 9000)), seed=seeds, durable=st.booleans())
    def client_appends(self, pick: int, more: int, seed: int, durable: bool) -> None:
        """A client stores past EOF and reports it."""
        client = self.clients[pick % len(self.clients)]
        size = len(self.state[client.file.ino].content)
        self.client_asks(pick, size, more, STORE | EXTEND, False)
        end = size
        while end < size + more and client.place(end) is not None:
            end = min(end - end % 512 + 512, size + more)
        if end == size:
            return
        stored = random.Random(seed).randbytes(end - size)
        client.store(size, stored)
        try:
            client.stored(end, durable=durable)
        except FsError as error:
            assert error.errno in {errno.EAGAIN, errno.EINVAL, errno.ENOSPC} | self.excused, repr(error)
        else:
            self.grown(client.file.ino, size, stored)
            self.tally["client appended"] += 1

    @precondition(lambda self: self.clients)
    @rule(pick=picks)
    def client_ends(self, pick: int) -> None:
        client = self.clients.pop(pick % len(self.clients))
        client.close()
        self.forget_idle(client.file.ino)

    # The mount ends

    def leave(self) -> bytes | bytearray:
        if self.moving is not None:
            self.abandon(True)
        if self.past:
            self.look_back()
        self.fs.end_mount()
        for client in self.clients:
            self.fs.release(client.file)
        return super().leave()

    @rule()
    def inspect(self) -> None:
        """What a power cut right after a sync leaves has this tree."""
        self.sync()
        content = bytearray(self.pool.image())
        with self.mount(self.pool_of(content)) as fs:
            expect_same(fs, self.state, {})

    @precondition(lambda self: self.moving is None)
    @rule(seed=seeds, what=st.sampled_from((RESIZE, RELOCATE, "snapshot", "delete snapshot")), pick=picks)
    def cut_within(self, seed: int, what: str, pick: int) -> None:
        """Cut the power within something, or after it."""
        steps = self.begun(what, pick)
        try:
            for waiting in steps:
                if waiting is not None:
                    waiting.wait()
                self.sizes.add(self.fs.size)
        except FsError as error:
            assert error.errno in REFUSED, repr(error)
        self.sizes.add(self.fs.size)
        self.tally[f"cut within {what}"] += 1
        self.crash(seed, syncing=False)

    def begun(self, what: str, pick: int) -> Steps[object]:
        if what == "snapshot" and (free := sorted(set(NAMES) - self.past.keys())):
            self.past[free[0]] = self.state
            self.unsure.add(free[0])
            return self.fs.steps.create_snapshot(free[0])
        if what == "delete snapshot" and self.past:
            name = sorted(self.past)[pick % len(self.past)]
            self.unsure.add(name)
            return self.fs.steps.delete_snapshot(name)
        if what == RESIZE:
            if pick % 4:
                self.delete_snapshots()
            unit = self.fs.volume.geometry.blocks_per_group
            return self.fs.steps.resize(max(self.fs.size + (-4, -2, -1, -3, 1, 2)[pick % 6] * unit, 1))
        return self.leaving(pick, pick % 8, pick % 3 > 0)

    def recover(self, content: bytearray, where: str) -> None:
        """As `ModelMachine.recover`, with one of the sizes; and e2fsck recovers the same."""
        sizes = self.sizes
        with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
            path = Path(folder) / "pool"
            picture, marked = self.recovered(content, path)
            mended = path.read_bytes()
            if not torn_superblock(content):
                found = unlike(recover_by_e2fsck(bytes(content), path), picture)
                assert not found, f"{where}: e2fsck: {found}"
        self.tally["power cut"] += 1
        super().recover(bytearray(mended) if marked or self.tally["power cut"] % 2 else content, where)
        assert self.fs.size in sizes, where
        self.look_back()

    def recovered(self, content: bytearray, path: Path) -> tuple[Picture, bool]:
        """Have daxfs recover a copy, in which e2fsck must find nothing then.

        Returns:
            The tree; and whether e2fsck had to mend it first, because the power failed while the journal moved.
        """
        copy = bytearray(content)
        pool = self.pool_of(copy)
        with self.mount(pool) as fs:
            picture = take_picture(fs)
            marked = bool(fs.volume.view.superblock().s_state & EXT4_ERROR_FS)
        path.write_bytes(self.bytes_of(pool, copy))
        if marked:
            done = subprocess.run([tool("e2fsck"), "-p", path], capture_output=True, check=False)
            assert done.returncode in (0, 1), done.stdout
        fsck(path)
        return picture, marked
