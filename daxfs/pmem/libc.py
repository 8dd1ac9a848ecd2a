"""The error of a call of the C library through ctypes."""

from __future__ import annotations

import ctypes
import os


def last_error(*path: str) -> OSError:
    """Return the error of this thread's last call of a library that was loaded with ``use_errno``."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), *path)
