"""Long operations in steps: what a step is, how to run all of them, and how to end an operation early.

An operation in steps is a generator. Each ``yield`` lies between two handles. There no handle is open, and the inode is
in a state that readers and a power cut may see (docs/CRASH.md lists these states). So its driver may do anything else
before the next step, except change what the operation works on: its files, or with `rename` the directory tree.

An operation in steps can end in four ways:

- It ends by itself, with a result or an error.
- ``throw(interruption())`` shortens it. Only operations whose callers accept less are shortened: those that return a
  count end with the count so far, the others fail with EINTR, and what is done stays.
- ``close()`` abandons it. A truncate is then finished as the blocks of a removed file are (`removal.freeing`).
- The process dies: recovery does what close() does.

A step may end with something to wait for (`Wait`), a system call on storage. The driver need not wait before the next
step, but nothing happens earlier.
"""

from __future__ import annotations

import errno
from collections.abc import Generator
from typing import Any, Protocol, TypeVar

from daxfs.errors import FsError

R = TypeVar("R")


class Wait(Protocol):
    """Something that other threads do."""

    @property
    def due(self) -> bool:
        """Whether there is nothing to wait for any longer."""

    def wait(self) -> None:
        """Wait until it is `due`."""


Steps = Generator[Any, None, R]
"""An operation in steps; its result is the generator's return value. It yields None, or a `Wait`."""


def finish(steps: Steps[R]) -> R:
    """Run the rest of an operation as a whole; return its result."""
    while True:
        try:
            waiting: Wait | None = next(steps)
            if waiting is not None:
                waiting.wait()
        except StopIteration as end:
            result: R = end.value
            return result


def interruption() -> FsError:
    """Return what shortens an operation at its next step: EINTR."""
    return FsError(errno.EINTR)
