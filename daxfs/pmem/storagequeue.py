"""System calls on storage, each in a thread, so that nobody else waits for a slow one.

A call is described by a `Ticket`. Threads make the call and complete the ticket; they touch nothing else, so the rest
of the program stays as it is without threads (docs/DESIGN.md, decision 10). A call that has not returned
`LIMIT_SECONDS` after a thread has begun it counts as failed; so does one that no thread begins, if no other has
returned for so long. Then so does the storage: every later call fails at once. The thread may stay in the system call
for good; it has buffers of its own.
"""

from __future__ import annotations

import errno
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

from daxfs.errors import FsError
from daxfs.pmem.storage import Label, Storage

THREADS = 4
"""Calls that are made at a time."""
LIMIT_SECONDS = 30.0
"""How long a call may take, from its request on."""
FULL_SECONDS = 60.0
"""How long nothing is written to a member after there was no room."""


class Ticket:
    """One call, made or not.

    Attributes:
        done: it has returned.
    """

    __slots__ = ("_asked", "_begun", "_call", "_error", "_event", "_queue", "_result", "done")

    def __init__(self, calls: StorageQueue, call: Callable[[], Any]) -> None:
        self.done = False
        self._queue = calls
        self._call = call
        self._asked = monotonic()
        self._begun: float | None = None
        self._event = threading.Event()
        self._error: BaseException | None = None
        self._result: Any = None

    @property
    def due(self) -> bool:
        """Whether `result` returns or raises at once: the call has returned, or taken too long."""
        return self.done or bool(self._queue.failed) or self._left() <= 0

    def _left(self) -> float:
        """Return how many seconds it may still take."""
        since = max(self._asked, self._queue.returned) if self._begun is None else self._begun
        return since + self._queue.limit_seconds - monotonic()

    @property
    def failed(self) -> bool:
        """Whether it has returned with an error."""
        return self.done and self._error is not None

    def wait(self) -> None:
        """Wait until it is `due`."""
        while not self.due:
            self._event.wait(min(max(self._left(), 0.0), 1.0))

    def result(self) -> Any:
        """Return what the call has returned.

        Raises:
            FsError: what it has raised; EIO: it took too long, or the storage has failed before.
        """
        if not self.done:
            self._queue.fail("it did not answer")
            raise self._queue.failure()
        if self._error is not None:
            raise self._error
        return self._result

    def make(self) -> None:
        """Make the call; in a thread."""
        self._begun = monotonic()
        try:
            self._result = self._call()
        except BaseException as error:
            self._error = error
        self._queue.returned = monotonic()
        self.done = True
        self._event.set()


class StorageQueue:
    """The calls on one storage.

    Attributes:
        storage: that the calls are made on.
        limit_seconds: how long a call may take.
        failed: why every call fails now; "": it does not.
        full_until: when it makes sense to write anew (monotonic), after a write has found the file system full that the
            member's file, which has holes, lies on.
        returned: when a call has returned last.
        notify: called in a thread when a call has returned.
    """

    limit_seconds: float = LIMIT_SECONDS

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.failed = ""
        self.full_until = 0.0
        self.returned = 0.0
        self.notify: Callable[[], object] = bool
        self._waiting: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def read(self, offset: int, length: int) -> Ticket:
        """Ask for bytes of the content."""
        return self.ask(lambda: self.storage.read(offset, length))

    def write(self, offset: int, content: bytes) -> Ticket:
        """Ask that bytes be written and made durable."""

        def call() -> None:
            self.storage.write(offset, content)
            self.storage.sync()

        return self.ask(call)

    def label(self, label: Label) -> Ticket:
        """Ask that the member get a label, durably."""
        return self.ask(lambda: self.storage.set_label(label))

    def clear(self) -> Ticket:
        """Ask that the member's label be removed, durably."""
        return self.ask(self.storage.clear_label)

    @property
    def takes(self) -> bool:
        """Whether something may be written to it now."""
        return not self.failed and monotonic() >= self.full_until

    def put_off(self) -> None:
        """Have nothing written for a while: there is no room."""
        self.full_until = monotonic() + FULL_SECONDS

    def fail(self, why: str) -> None:
        """Have every call fail from now on."""
        self.failed = self.failed or why

    def failure(self) -> FsError:
        """Return the error of calls on storage that has failed."""
        return FsError(errno.EIO, f"{self.storage.path} has failed: {self.failed}")

    def close(self) -> None:
        """End the threads, those that are in a call when it returns."""
        for _ in self._threads:
            self._waiting.put(None)

    def ask(self, call: Callable[[], Any]) -> Ticket:
        """Have a thread make a call. Raises FsError EIO: the storage has failed before."""
        if self.failed:
            raise self.failure()
        if len(self._threads) < THREADS:
            thread = threading.Thread(target=self._serve, name="daxfs storage", daemon=True)
            self._threads.append(thread)
            thread.start()
        ticket = Ticket(self, call)
        self._waiting.put(ticket)
        return ticket

    def _serve(self) -> None:
        while (ticket := self._waiting.get()) is not None:
            ticket.make()
            with suppress(OSError):
                self.notify()


def at_once(storage: Storage, call: Callable[[], Any]) -> Any:
    """Make a call on storage and wait for it, where nobody else waits meanwhile: before a pool is in use, or in a tool.

    Raises:
        FsError: EIO: it took too long, or the call's own error.
    """
    queue = StorageQueue(storage)
    try:
        ticket = queue.ask(call)
        ticket.wait()
        return ticket.result()
    finally:
        queue.close()
