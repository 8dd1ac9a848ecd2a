"""Fixtures of this folder."""

from __future__ import annotations

import fcntl
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from direct_rig import daemon
from mount_rig import SESSIONS, Mounted, mounted
from preload_rig import compile_library

__all__ = ["daemon"]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preload library, compiled from the sources."""
    return compile_library(tmp_path_factory.mktemp("library") / "preload.so")


@pytest.fixture
def mount(pool: Callable[..., Path]) -> Iterator[Mounted]:
    """Yield a mounted pool that this process may map."""
    with mounted(pool("-b", "4096", size="256M"), *SESSIONS["kernel"]) as mount:
        yield mount
        gc.collect()


@pytest.fixture
def root(mount: Mounted) -> Path:
    """Return the root directory of the mount."""
    return mount.place


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of the ioctls that this process makes."""
    numbers: list[int] = []
    really = fcntl.ioctl

    def ioctl(descriptor: int, request: int, *more: object) -> int:
        numbers.append(request)
        return really(descriptor, request, *more)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return numbers
