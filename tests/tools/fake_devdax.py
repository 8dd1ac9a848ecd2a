"""A file that the tools take for a devdax device: alignment 2 MiB, and nobody reads or writes it by system calls."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daxfs.pmem import kinds


def disguise(monkeypatch: pytest.MonkeyPatch, path: Path) -> Path:
    """Let the file be a devdax device for this process and its forks; reading or writing it fails as there."""
    identify = kinds.identify
    status = path.stat()

    def identified(name: str, **trees: str) -> kinds.Target:
        target = identify(name, **trees)
        if not os.path.samestat(target.status, status):
            return target
        size = target.size - target.size % kinds.HUGE_PAGE
        return replace(target, kind=kinds.DEVDAX, size=size, align=kinds.HUGE_PAGE)

    monkeypatch.setattr(kinds, "identify", identified)
    for name in ("pread", "pwrite", "read", "write", "fsync", "ftruncate", "lseek", "posix_fallocate", "fchmod"):
        monkeypatch.setattr(os, name, _refusing(getattr(os, name), status))
    return path


def _refusing(call: Callable[..., Any], status: os.stat_result) -> Callable[..., Any]:
    def refused(descriptor: int, *arguments: Any) -> Any:
        assert not os.path.samestat(os.fstat(descriptor), status), "EINVAL on a devdax device"
        return call(descriptor, *arguments)

    return refused
