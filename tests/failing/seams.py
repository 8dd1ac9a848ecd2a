"""Where an error can happen: each seam counts its events while it is armed, and fails one of them.

The seams are those that the core has anyway: the search for free blocks and inodes, the reservation of memory below the
pool's file, the pool's stores, the loads of metadata, and the buffers that Python makes. Those but the pool's replace
functions of the core, which must run interpreted for that (tests/interpreted.py).
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from explorer.disk import Disk, UndoPool

from daxfs.errors import FsError, MissingMemory
from daxfs.journal.handle import Handle
from daxfs.journal.view import SUPERBLOCK_KEY, View
from daxfs.pmem import persist
from daxfs.pmem.faults import Faults
from daxfs.pmem.persist import Operations
from daxfs.structures import blocks, blocksearch, inode_allocation

LAYERS = ("daxfs.fs.", "daxfs.journal.", "daxfs.structures.", "daxfs.snapshots.", "daxfs.ext4.")
"""The packages in which a buffer that is made can fail."""


class Trigger:
    """Decides which event fails.

    Attributes:
        at: the number of the event that fails, from 1 on; 0: none.
        lasting: all later ones fail too.
        armed: events count and fail.
        count: the events so far.
        paths: which way through the program led to each event so far; None: nobody asks.
    """

    def __init__(self) -> None:
        self.at = 0
        self.lasting = False
        self.armed = False
        self.count = 0
        self.paths: list[int] | None = None

    @contextmanager
    def watching(self) -> Iterator[list[int]]:
        """No event fails; the paths to all of them are noted."""
        self.at, self.count, self.paths = 0, 0, []
        try:
            yield self.paths
        finally:
            self.paths = None

    def hit(self) -> bool:
        """Count an event; return whether it fails."""
        if not self.armed:
            return False
        self.count += 1
        if self.paths is not None:
            self.paths.append(_path())
        return self.count == self.at or (self.lasting and 0 < self.at < self.count)


def _path() -> int:
    """Return a number for the calls that the program is in, each with its line."""
    calls = []
    frame = sys._getframe(2)
    while frame is not None:
        calls.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return hash(tuple(calls))


def distinct(paths: list[int]) -> list[int]:
    """Return the numbers of the events to try, from 1 on: of each path the first two and the last.

    A loop comes to the same place again and again. Its first turn begins with nothing done, its second with something,
    and its last ends it.
    """
    found: dict[int, list[int]] = {}
    for number, path in enumerate(paths, 1):
        found.setdefault(path, []).append(number)
    return sorted({number for numbers in found.values() for number in (*numbers[:2], numbers[-1])})


class InjectedFaults(Faults):
    """The faults of a pool in memory, which a seam makes."""

    def __init__(self) -> None:
        super().__init__()
        self.pending = memoryview(bytearray(8)).cast("Q")

    def settle(self) -> MissingMemory:
        """As `Faults.settle`: the page is there again."""
        self.total += self.pending[0]
        self.pending[0] = 0
        return MissingMemory(errno.EIO, "injected", 0)


class FailingPool(UndoPool):
    """A pool whose stores can fail (seam ``store``), and whose memory can be missing (seams ``load`` and ``room``)."""

    def __init__(self, disk: Disk, seam: str, trigger: Trigger) -> None:
        self._seam, self._trigger = seam, trigger
        self._faults = InjectedFaults()
        super().__init__(disk)
        self.faults = self._faults
        if seam == "room":
            self.reserve = self._reserve

    def _reserve(self, *_: object, **__: object) -> None:
        if self._trigger.hit():
            raise MissingMemory(errno.ENOSPC, "injected")

    def _operations(self, memory: memoryview) -> Operations:
        plain = super()._operations(memory)
        if self._seam != "store":
            return persist.guarded(plain, self._faults)
        trigger = self._trigger

        def failing(operation: Callable[..., None], *, data: bool) -> Callable[..., None]:
            def run(*arguments: Any) -> None:
                if trigger.hit():
                    error = MissingMemory(errno.EIO, "injected", 0)
                    error.of_data = data
                    raise error
                operation(*arguments)

            return run

        return persist.guarded(
            plain._replace(
                write=failing(plain.write, data=True),
                zero=failing(plain.zero, data=True),
                store_word=failing(plain.store_word, data=False),
                flush=failing(plain.flush, data=False),
                fence=failing(plain.fence, data=False),
            ),
            self._faults,
        )


def failing_allocations(patches: pytest.MonkeyPatch, trigger: Trigger) -> None:
    """A search for free blocks, or for an inode, finds none; a run that a move has found is more than may be taken."""

    def failing(search: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            if trigger.hit():
                raise FsError(errno.ENOSPC, "injected")
            return search(*arguments)

        return run

    patches.setattr(blocksearch, "search", failing(blocksearch.search))
    patches.setattr(blocks, "take_run", failing(blocks.take_run))
    patches.setattr(inode_allocation, "allocate", failing(inode_allocation.allocate))


def failing_loads(patches: pytest.MonkeyPatch, trigger: Trigger) -> None:
    """A block of metadata is missing: the load finds zeros, and a fault is pending, as `daxfs.pmem.guard` has it."""
    block, verified, touch, superblock = View.block, View.verified, Handle._touch, View.superblock

    def loads(view: View, number: int) -> bool:
        return number not in view._overlay and 0 < number < view._limit

    def missing(view: View) -> bool:
        if isinstance(view.pool, FailingPool) and trigger.hit():
            view.pool.faults.pending[0] += 1  # type: ignore[index]
            return True
        return False

    def failing_block(view: View, number: int) -> memoryview:
        if loads(view, number) and missing(view):
            return memoryview(bytes(view.block_size))
        return block(view, number)

    def failing_verified(view: View, number: int, check: Any, *context: object) -> memoryview:
        if loads(view, number) and missing(view):
            zeros = memoryview(bytes(view.block_size))
            check(*context, zeros)
            return zeros
        return verified(view, number, check, *context)

    def failing_touch(handle: Handle, number: int) -> None:
        lost = loads(handle, number) and missing(handle)
        touch(handle, number)
        if lost:
            handle._copies[number][:] = bytes(handle.block_size)

    def failing_superblock(view: View) -> Any:
        if SUPERBLOCK_KEY not in view._overlay:
            missing(view)
        return superblock(view)

    patches.setattr(View, "block", failing_block)
    patches.setattr(View, "verified", failing_verified)
    patches.setattr(Handle, "_touch", failing_touch)
    patches.setattr(View, "superblock", failing_superblock)


def failing_buffers(patches: pytest.MonkeyPatch, trigger: Trigger) -> None:
    """Memory runs out where the core makes a buffer: a call of ``bytes`` or ``bytearray``."""

    def counted(real: type) -> type:
        class Kind(type):
            def __call__(cls, *arguments: Any, **options: Any) -> Any:
                if trigger.hit():
                    raise MemoryError("injected")
                return real(*arguments, **options)

            def __instancecheck__(cls, found: object) -> bool:
                return isinstance(found, real)

            def __getattr__(cls, name: str) -> Any:
                return getattr(real, name)

        return Kind(real.__name__, (), {})

    kinds = {"bytes": counted(bytes), "bytearray": counted(bytearray)}
    for name, module in list(sys.modules.items()):
        if name.startswith(LAYERS) and module is not None:
            for kind, made in kinds.items():
                if kind not in vars(module):
                    patches.setattr(module, kind, made, raising=False)


SEAMS: dict[str, Callable[[pytest.MonkeyPatch, Trigger], None] | None] = {
    "allocation": failing_allocations,
    "room": None,
    "store": None,
    "load": failing_loads,
    "buffer": failing_buffers,
}
"""Name -> what it replaces in the core; None: `FailingPool` itself fails."""


@contextmanager
def injected(seam: str) -> Iterator[Trigger]:
    """Let a seam fail as the trigger says, which is not armed yet."""
    trigger = Trigger()
    with pytest.MonkeyPatch.context() as patches:
        replace = SEAMS[seam]
        if replace is not None:
            replace(patches, trigger)
        yield trigger
