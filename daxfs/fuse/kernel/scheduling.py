"""Everything of one session that waits: requests in progress, requests behind them, postponed requests, forgets.

- *Works* are requests that take several steps. A handler gives its operation to `Scheduler.begin`, which runs it for a
  slice. If that is not enough, the session continues it between other requests, and answers it in the end.
- *Parked* works wait for a system call on storage (`daxfs.fs.tiers.moves`), in a thread. They have no turns until it
  has returned or taken too long.
- *Queued* requests exist only while a work is unfinished. The session then reads ahead what the kernel has, and takes
  it turn by turn between users (`turns.py`).
- *Blocked* requests would change a file, or with a rename the tree, that a work changes. They follow it, in order.
- *Postponed* requests found the pool full. A file that lost its last name occupies blocks until the kernel forgets it,
  shortly after the answer to the removal. The core frees the files that are forgotten already (`Connection.reclaim`).
  For files that the kernel is about to forget, the request waits. It is executed a second time when no file is left
  that could be forgotten, or after `PATIENCE_SECONDS`; the result is final. If the pool is still full then, no further
  request waits until a name is removed again.
- *Forgets* have no answer and wait in the `Connection`, until no request does.

What a request that was only read has waited for is lost with the session, as what the kernel still has.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from daxfs import protocol
from daxfs.fuse.kernel import abi
from daxfs.fuse.kernel.abi import BODY, Opcode
from daxfs.fuse.kernel.turns import NOBODY, Turns, User
from daxfs.fuse.kernel.work import Answer, Work

if TYPE_CHECKING:
    from daxfs.fs.filesystem import FileSystem
    from daxfs.fs.steps import Steps
    from daxfs.fuse.kernel.request import Request

R = TypeVar("R")

SLICE_SECONDS = 0.002
"""How long a work runs before others have their turn; between two steps it ends earlier if a request has come."""
PATIENCE_SECONDS = 0.05
"""How long a request waits for the kernel to forget files."""
MOST_POSTPONED = 4096
"""The most requests that wait for the kernel to forget files."""

TIERS_SECONDS = 1.0
"""The least time from one look at memory and storage to the next."""

FORGETS, POSTPONED, WORKS, PARKED = "forgets", "postponed", "works", "parked"
TREE = frozenset({0})
"""Stands for the tree of directories where nodes are expected: no node has the number 0."""

_HEADER = abi.IN_HEADER.index
_OPCODE, _NODE, _UID = _HEADER.opcode, _HEADER.nodeid, _HEADER.uid
_OPEN_FLAGS = abi.OPEN_IN.index.flags
_WRITE_FLAGS = abi.WRITE_IN.index.write_flags
_COPY_TARGET = abi.COPY_FILE_RANGE_IN.index.nodeid_out

OF_NOBODY = frozenset({Opcode.RELEASE, Opcode.RELEASEDIR})
CHANGING = frozenset({Opcode.WRITE, Opcode.SETATTR, Opcode.FALLOCATE, Opcode.IOCTL})
COPYING = frozenset({Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64})
RENAMING = frozenset({Opcode.RENAME, Opcode.RENAME2})
SHORTENED = frozenset({Opcode.FALLOCATE, *COPYING})
FITRIM = 0xC0185879
"""The ioctl(2) of fstrim(8)."""
LEASES = frozenset({protocol.IOC_LEASE, protocol.IOC_SHORT_LEASE})


def opcode_of(message: bytes) -> int:
    """Return the opcode of a message."""
    return abi.IN_HEADER.read(message, 0).opcode


def unique_of(message: bytes) -> int:
    """Return the number of a message."""
    return abi.IN_HEADER.read(message, 0).unique


def may_be_short(message: bytes) -> bool:
    """Return whether INTERRUPT ends a request that has not begun: those that take long and may do a part.

    They are fallocate, copy_file_range, FITRIM and a lease with FILL. For others the caller waits, as on ext4, where
    signals end no truncate and no stat: many programs, and whole languages, do not expect EINTR from these.
    """
    opcode = opcode_of(message)
    if opcode != Opcode.IOCTL or len(message) < abi.IOCTL_ARGUMENT:
        return opcode in SHORTENED
    command = abi.IOCTL_IN.read(message, BODY).cmd
    if command in LEASES and len(message) >= abi.IOCTL_ARGUMENT + protocol.LEASE.size:
        return bool(protocol.LEASE.unpack_from(message, abi.IOCTL_ARGUMENT)[3] & protocol.Flag.FILL)
    return command == FITRIM


def user_of(request: Request) -> int:
    """Return the number of the user whose turn a request takes."""
    opcode = request.words[_OPCODE]
    if opcode in OF_NOBODY or (opcode == Opcode.WRITE and request.words[_WRITE_FLAGS] & abi.WRITE_CACHE):
        return NOBODY
    return request.words[_UID]


def changed_by(request: Request) -> frozenset[int]:
    """Return the nodes that a request changes, as far as a work may change them too."""
    opcode = request.words[_OPCODE]
    if opcode in CHANGING or (opcode == Opcode.OPEN and request.words[_OPEN_FLAGS] & os.O_TRUNC):
        return frozenset({request.longs[_NODE]})
    if opcode in COPYING:
        return frozenset({request.longs[_NODE], request.longs[_COPY_TARGET]})
    return TREE if opcode in RENAMING else frozenset()


class Scheduler:
    """What waits in one session.

    Attributes:
        waiting: of `FORGETS`, `POSTPONED`, `WORKS` and `PARKED` those of which there are any; always the same set, so
            that the session has one thing to test. `WORKS` stands for queued requests too, and not for parked works.
        works: the unfinished works.
        postponed: the postponed messages, oldest first.
        refused: the number of requests that were refused because too many of their user waited.
    """

    def __init__(self, core: FileSystem, background: Callable[[], Steps[None]]) -> None:
        """Begin with nothing.

        Args:
            core: the file system.
            background: returns the steps of what nobody waits for, until there is nothing left of it.
        """
        self.waiting: set[str] = set()
        self.works: list[Work] = []
        self.postponed: list[bytes] = []
        self.refused = 0
        self._core = core
        self._background = background
        self._in_background: Work | None = None
        self._keeping_tiers: Work | None = None
        self._tiers_at = 0.0
        self._parked: list[tuple[int, Work]] = []
        self._turns = Turns()
        self._blocked: list[tuple[User, frozenset[int], bytes]] = []
        self._interrupted: set[int] = set()
        self._deadline = 0.0
        self._promising = True
        self._last_chance = False

    # Works

    def begin(
        self,
        request: Request,
        steps: Steps[R],
        answer: Callable[[R], Answer],
        changes: frozenset[int] = frozenset(),
        *,
        shortens: bool = False,
        patience: float = math.inf,
    ) -> Answer:
        """Run an operation in steps; return the body of the answer, or None if the session will answer later.

        Args:
            request: asks for the operation.
            steps: the operation, which needs the request itself for its first step only.
            answer: returns the answer's body for the operation's result.
            changes: the nodes that no other request may change meanwhile.
            shortens: whether INTERRUPT shortens the operation.
            patience: seconds of its own after which it is shortened.
        """
        begun = perf_counter()
        try:
            waiting = next(steps)
        except StopIteration as end:  # as most do; they need no `Work`
            return answer(end.value)
        taken = perf_counter() - begun
        work = Work(steps, answer, changes, shortens=shortens, patience=patience, seconds=taken)
        if waiting is None and taken < SLICE_SECONDS and work.run(SLICE_SECONDS - taken):
            return work.answer()
        work.message = bytes(request.buffer[: request.length])
        work.opcode = request.opcode
        work.unique = request.unique
        self._add(work, user_of(request))
        return None

    def bring(self, request: Request, steps: Steps[None]) -> None:
        """Have what a request needs brought from storage, and the request answered anew afterwards."""
        work = Work(steps, lambda _: None)
        work.again = True
        work.message = bytes(request.buffer[: request.length])
        work.opcode = request.opcode
        work.unique = request.unique
        self._add(work, user_of(request))

    def wake(self) -> None:
        """Give turns to parked works that have nothing to wait for any longer."""
        still = []
        for number, work in self._parked:
            if work.waits is not None and not work.waits.due:
                still.append((number, work))
            else:
                self.waiting.add(WORKS)
                self._turns.user(number).works.append(work)
        self._parked = still
        if not still:
            self.waiting.discard(PARKED)

    def begin_background(self) -> None:
        """Have the session do what nobody waits for: free what closed and forgotten files have left."""
        if self._in_background is None:
            self._in_background = Work(self._background(), lambda _: None)
            self._add(self._in_background, NOBODY)

    def begin_keeping_tiers(self, steps: Callable[[], Steps[None]]) -> None:
        """Have the session move data between memory and storage, unless it does, or did a moment ago."""
        if self._keeping_tiers not in self.works and perf_counter() >= self._tiers_at:
            self._tiers_at = perf_counter() + TIERS_SECONDS
            self._keeping_tiers = Work(steps(), lambda _: None)
            self._add(self._keeping_tiers, NOBODY)

    def _add(self, work: Work, number: int) -> None:
        self.works.append(work)
        self.waiting.add(WORKS)
        self._turns.user(number).works.append(work)

    def ended(self, work: Work) -> None:
        """Take note that a work has ended, with a result or an error: the requests behind it have their turn."""
        self.works.remove(work)
        if work is self._in_background:
            self._in_background = None
        blocked, self._blocked = self._blocked, []
        for user, _, message in reversed(blocked):
            self._turns.user(user.number).messages.appendleft(message)

    # Turns

    def arrived(self, request: Request, length: int) -> bool:
        """Queue a request that was read ahead; return False if its user has too many."""
        user = self._turns.user(user_of(request))
        if not user.keep(length):
            self.refused += 1
            return False
        user.messages.append(bytes(request.buffer[:length]))
        return True

    def next(self) -> tuple[User, Work | bytes, float] | None:
        """Take what has its turn, as `Turns.next`; None if there is nothing."""
        found = self._turns.next()
        if found is None:
            self.waiting.discard(WORKS)
            self._turns = Turns()
            self._interrupted.clear()
        return found

    def had_turn(self, user: User, what: Work | bytes, seconds: float) -> None:
        """Take note of the time that a message, or a slice of a work, has taken."""
        if isinstance(what, bytes):
            user.answering += seconds
        else:
            user.working += seconds
            if what not in self.works:
                return
            if what.waits is None:
                user.works.append(what)
            else:
                self._parked.append((user.number, what))
                self.waiting.add(PARKED)

    def blocks(self, request: Request, user: User, message: bytes) -> bool:
        """Keep a request back that would change what a work, or a blocked request before it, changes."""
        nodes = changed_by(request)
        if nodes and (
            any(nodes & work.changes for work in self.works) or any(nodes & each for _, each, _ in self._blocked)
        ):
            self._blocked.append((user, nodes, message))
            return True
        user.begun(len(message))
        return False

    def interrupt(self, unique: int) -> None:
        """Shorten what an interrupted request does, or, if it has not begun, let it end at once (`was_interrupted`)."""
        for work in self.works:
            if work.unique == unique:
                work.interrupt()
                return
        for place, (user, _, message) in enumerate(self._blocked):
            if unique_of(message) == unique:
                if may_be_short(message):
                    del self._blocked[place]
                    user.messages.appendleft(message)
                    self._interrupted.add(unique)
                return
        if WORKS in self.waiting:
            self._interrupted.add(unique)

    def was_interrupted(self, message: bytes) -> bool:
        """Return whether a queued request is to be refused with EINTR now."""
        return unique_of(message) in self._interrupted and may_be_short(message)

    @property
    def queued(self) -> int:
        """The number of requests that were read and not begun."""
        return self._turns.waiting + len(self._blocked)

    def counts(self) -> dict[str, int]:
        """Return how many requests wait now, and how many were refused since too many waited, for the statistics."""
        return {
            "long_requests": len(self.works),
            "queued_requests": self.queued,
            "postponed_requests": len(self.postponed),
            "refused_requests": self.refused,
        }

    # Postponed requests

    def postpone(self, message: bytes) -> bool:
        """Keep a request that found the pool full; return False if waiting is useless and it must be refused."""
        if self._last_chance:
            self._promising = False
        if not self._promising or not self._core.holds_forgettable:
            return False
        if len(self.postponed) >= MOST_POSTPONED:
            self.refused += 1
            return False
        if not self.postponed:
            self._deadline = perf_counter() + PATIENCE_SECONDS
        self.postponed.append(message)
        self.waiting.add(POSTPONED)
        return True

    def name_removed(self) -> None:
        """Allow requests to wait again: a name is removed, so the kernel may soon forget its file."""
        self._promising = True

    @property
    def due(self) -> bool:
        """Whether the postponed requests must be answered: no file is left that could be forgotten, or time is up."""
        return bool(self.postponed) and (perf_counter() > self._deadline or not self._core.holds_forgettable)

    def last_chances(self) -> Iterator[bytes]:
        """Yield the postponed messages, to be answered now; while the iterator runs none is postponed again."""
        waiting = self.postponed[:]
        self.postponed.clear()
        self.waiting.discard(POSTPONED)
        self._last_chance = True
        try:
            yield from waiting
        finally:
            self._last_chance = False
