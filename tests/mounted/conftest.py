"""Mounted pools: one per test, for each kind of session, and a clean file system afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount_rig import SESSIONS, Mounted, mounted


@pytest.fixture(params=SESSIONS)
def session(request: pytest.FixtureRequest) -> str:
    """Each kind of session in turn."""
    kind: str = request.param
    return kind


@pytest.fixture
def mount(session: str, pool: Callable[..., Path]) -> Iterator[Mounted]:
    """A pool with blocks of 4 KiB, mounted."""
    with mounted(pool("-b", "4096"), *SESSIONS[session]) as mount:
        yield mount


@pytest.fixture
def root(mount: Mounted) -> Path:
    """The root directory of the mount, which everybody may write to."""
    mount.place.chmod(0o777)
    return mount.place
