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
"""

from __future__ import annotations

import errno
from collections.abc import Generator
from typing import TypeVar

from daxfs.errors import FsError

R = TypeVar("R")

Steps = Generator[None, None, R]
"""An operation in steps; its result is the generator's return value."""


def finish(steps: Steps[R]) -> R:
    """Run the rest of an operation as a whole; return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: R = end.value
            return result


def interruption() -> FsError:
    """Return what shortens an operation at its next step: EINTR."""
    return FsError(errno.EINTR)
