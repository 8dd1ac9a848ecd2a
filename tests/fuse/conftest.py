"""Fixtures of connections without a mount: over a small pool, which e2fsck checks afterwards, and over a fake core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_core import FakeCore
from message_rig import Rig

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import Options
from daxfs.fuse.mountoptions import MountOptions
from support import fsck


@pytest.fixture
def rig_of(pool: Callable[..., Path]) -> Iterator[Callable[..., Rig]]:
    """Return a function that makes a pool and a connection; check afterwards that pools are clean and writable."""
    made: list[tuple[Rig, Path]] = []

    def make(*options: str, size: str = "16M", mount: Options | None = None) -> Rig:
        path = pool("-b", "4096", *options, size=size)
        core = FileSystem.open(path, mount)
        rig = Rig(core, options=MountOptions(dax=core.options.dax, atime=core.options.atime))
        made.append((rig, path))
        return rig

    yield make
    for rig, path in made:
        rig.connection.close_all(unmounted=False)
        damaged = rig.core.read_only and not (rig.core.options.read_only or rig.may_turn_read_only)
        rig.core.close()
        fsck(path)
        assert not damaged, "the volume has turned read-only"


@pytest.fixture
def rig(rig_of: Callable[..., Rig]) -> Rig:
    """Return a connection to a pool, before INIT."""
    return rig_of()


@pytest.fixture
def agreed(rig: Rig) -> Rig:
    """Return a connection to a pool, after INIT with a kernel that offers all flags."""
    rig.init()
    return rig


@pytest.fixture
def fake() -> Rig:
    """Return a connection to a fake core, after INIT with a kernel that offers all flags, without recorded calls."""
    rig = Rig(FakeCore())
    rig.init()
    return rig
