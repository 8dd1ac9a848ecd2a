"""Floor 0: every error that daxfs raises on purpose.

Four kinds, told apart by who can mend them. The core raises them; the edges translate them (a FUSE errno, one line and
an exit code). Nothing here imports anything of daxfs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable


class FsError(OSError):
    """An operation was refused with a POSIX error number; nothing is wrong with the pool.

    It is an ``OSError``, so a program that uses daxfs as a library needs no new ``except``.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(number, message or os.strerror(number))


class Corrupt(FsError):
    """The pool's content contradicts the format: ``kind`` says what, ``where`` says in which structure (EUCLEAN)."""

    def __init__(self, kind: str, where: str) -> None:
        super().__init__(errno.EUCLEAN, f"{kind}: {where}")
        self.kind = kind
        self.where = where


class Unsupported(FsError):
    """The pool uses features that this version of daxfs does not know (``features`` has their e2fsprogs names)."""

    def __init__(self, features: Iterable[str]) -> None:
        self.features = tuple(features)
        super().__init__(errno.EOPNOTSUPP, "unsupported features: " + " ".join(self.features))


class UserError(Exception):
    """Something the user can mend: one line that names the thing and the mend, and the exit code to end with."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class PoolError(UserError):
    """The pool can't be opened as memory: missing, too small, in use, no permission, no way to flush it."""
