"""What state machines over a file system share: the model's states, syncs, remounts and power cuts.

After a power cut the file system must be in the state of the last sync, or in one that came after it. A machine derives
from `ModelMachine` and adds what happens to the pool.
"""

from __future__ import annotations

import errno
import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from in_memory import SHARED_MEMORY
from machine_rig import fsck_content
from recorder import Fence, RecordingPool
from tree_model import NONE, Partial, State, Thing, differences, read_whole, renumbered, state_in
from tree_rig import QUIET

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem, OpenFile
from support import mke2fs

FORMATS: dict[str, tuple[str, ...]] = {
    "block4k": ("-b", "4096", "-J", "size=4"),
    "block1k": ("-b", "1024", "-J", "size=1", "-g", "512", "-E", "resize=20000"),
    "orphan-file": ("-b", "1024", "-J", "size=1", "-O", "orphan_file"),
    "no-csum": ("-b", "1024", "-J", "size=1", "-O", "^metadata_csum,^64bit", "-I", "128", "-E", "resize=20000"),
    "no-extents": ("-b", "1024", "-J", "size=1", "-O", "^extent,^64bit"),
    "no-journal": ("-b", "1024", "-O", "^has_journal"),
}
ROOM = bytes(2 << 20)
"""What a pool has beyond its file system, which can grow."""

picks = st.integers(0, 999)
seeds = st.integers(0, 1 << 30)


@cache
def image(name: str) -> bytes:
    """Return a fresh pool of the format."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as place:
        size = "12M" if name == "block4k" else "6M"
        return mke2fs(Path(place) / "pool", *FORMATS[name], size=size).read_bytes() + ROOM


def expect_same(fs: FileSystem, state: State, numbers: dict[int, int] | None = None) -> None:
    """The file system has this tree."""
    found = differences(fs, state, numbers=numbers)
    assert not found, found


class ModelMachine(RuleBasedStateMachine):
    """A pool in use and its model.

    Attributes:
        states: those since the last sync, the present one last.
        partials: for each of them the write that leads to the next.
        position: events of the pool's record by then.
        excused: errors that may end any operation at the moment, beside ENOSPC.
        keeps_numbers: inodes have the numbers that the model knows, also after a power cut.
    """

    keeps_numbers = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self.format = name
        self.opened: list[OpenFile] = []
        self.pinned: list[int] = []
        self.excused: set[int] = set()
        self.start(self.image())
        self.durable(state_in(self.fs))

    def image(self) -> bytes:
        """Return the pool to begin with."""
        return image(self.format)

    def pool_of(self, content: bytearray) -> RecordingPool:
        """Return a pool that may work in these bytes."""
        return RecordingPool(content)

    def mount(self, pool: RecordingPool) -> FileSystem:
        return FileSystem.open(pool, QUIET)

    def start(self, content: bytes | bytearray) -> None:
        """Mount."""
        self.content = bytearray(content)
        self.pool = self.pool_of(self.content)
        self.fs = self.mount(self.pool)

    # The model's side

    @property
    def state(self) -> State:
        return self.states[-1]

    def durable(self, state: State) -> None:
        """No state before the present one can come back."""
        self.states = [state]
        self.partials = [NONE]
        self.position = len(self.pool.events)

    def moment(self, changes: State, gone: set[int] = frozenset(), partial: Partial = NONE) -> None:  # type: ignore[assignment]
        """Record the state after a change."""
        self.partials[-1] = partial
        self.states.append({ino: thing for ino, thing in (self.state | changes).items() if ino not in gone})
        self.partials.append(NONE)

    def tried(self, action: Callable[[], object], expected: set[int]) -> bool:
        """Return whether an operation succeeds. ``expected``: one of these errors must come; a full pool is excused."""
        try:
            action()
        except FsError as error:
            accepted = (expected or {errno.ENOSPC}) | self.excused
            assert error.errno in accepted, f"{error!r}, expected {expected or 'none'}"
            return False
        assert not expected, f"done, expected {sorted(map(errno.errorcode.get, expected))}"
        return True

    def choose(self, pick: int, wanted: Callable[[Thing], bool]) -> int:
        """Return one of the inodes that have a name and are ``wanted``."""
        found = [ino for ino, thing in sorted(self.state.items()) if thing.nlink and wanted(thing)]
        return found[pick % len(found)] if found else 0

    def directory(self, pick: int) -> int:
        return self.choose(pick, lambda thing: thing.is_dir)

    def file(self, pick: int) -> int:
        return self.choose(pick, lambda thing: thing.is_file)

    def busy(self, ino: int) -> bool:
        return ino in self.pinned or any(file.ino == ino for file in self.opened)

    # Time passes

    @rule()
    def sync(self) -> None:
        self.fs.sync()
        self.durable(self.state)

    @rule(pick=picks)
    def fsync(self, pick: int) -> None:
        """fsync one file; its state is durable, and so are all earlier changes."""
        if ino := self.file(pick):
            self.fs.fsync(ino)
            first = len(self.states) - 1
            while first and self.states[first - 1].get(ino) is self.state[ino]:
                first -= 1
            self.states, self.partials = self.states[first:], self.partials[first:]
            self.position = len(self.pool.events)

    @rule()
    def compare(self) -> None:
        expect_same(self.fs, self.state)

    @rule()
    def remount(self) -> None:
        self.start(self.leave())
        self.go_on(self.state)
        expect_same(self.fs, self.state)

    def leave(self) -> bytes | bytearray:
        """Unmount; return what the pool has then."""
        self.fs.close()
        return self.bytes_of(self.pool, self.content)

    def bytes_of(self, pool: RecordingPool, content: bytearray) -> bytes | bytearray:  # noqa: ARG002
        """Return the bytes of a closed pool that began with ``content``."""
        return content

    @precondition(lambda self: self.format != "no-journal")
    @rule(seed=seeds, syncing=st.booleans())
    def crash(self, seed: int, syncing: bool) -> None:
        """Cut the power at any moment since the last sync, or within one."""
        chance = random.Random(seed)
        if syncing:
            self.fs.sync()
        events = self.pool.events
        fences = [at for at in range(self.position, len(events)) if isinstance(events[at], Fence)]
        # Before a fence most is undecided.
        cut = chance.choice(fences) if fences and chance.random() < 0.7 else chance.randint(self.position, len(events))
        if syncing and cut == len(events):
            self.durable(self.state)
        record = RecordingPool(self.pool.base)
        record.events = events[:cut]
        wanted = chance.randrange(8)
        for number, left in enumerate(record.crash_images(chance, start=cut, prefixes=2, subsets=4)):
            content, choice = left.image, left.choice
            if number == wanted:
                break
        self.recover(content, f"cut at {cut} of {len(events)}, {choice}")

    def recover(self, content: bytearray, where: str) -> None:
        """Mount what a power cut has left, which must have the tree of one of the states."""
        self.start(content)
        told = []
        for index in reversed(range(len(self.states))):
            numbers: dict[int, int] | None = None if self.keeps_numbers else {}
            state, partial = self.states[index], self.partials[index]
            found = differences(self.fs, state, self.states, partial, times=False, numbers=numbers)
            if not found:
                self.go_on(renumbered(state, numbers) if numbers else state)
                return
            told.append(f"state {index} of {len(self.states)}: {found}")
        raise AssertionError(f"{where}:\n" + "\n".join(told))

    def go_on(self, state: State) -> None:
        """Continue with the inodes that have a name, and with the bytes that are there."""
        self.opened.clear()
        self.pinned.clear()
        self.durable(
            {
                ino: thing._replace(mtime_ns=None, content=read_whole(self.fs, ino) if thing.is_file else thing.content)
                for ino, thing in state.items()
                if thing.nlink
            }
        )

    @invariant()
    def nobody_is_read_only(self) -> None:
        assert not self.fs.volume.read_only

    def teardown(self) -> None:
        if not self.fs.volume.read_only:
            expect_same(self.fs, self.state)
        fsck_content(self.leave())
