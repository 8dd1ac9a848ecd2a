"""Errors of storage at every call of it, in every operation that needs it: nothing is half-done, the volume goes on."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import tier_rig
from failing.seams import Trigger
from failing.sweep import go_on
from in_memory import tmp_path

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import SetAttributes
from daxfs.pmem.storage import Storage

__all__ = ["tmp_path"]

MIB = 1 << 20
CONTENT = random.Random(3).randbytes(2 * MIB + 100)


def changed(fs: FileSystem, change: Callable[[Any], object]) -> None:
    """Change /cold through an open file."""
    file = fs.open_file(fs.tree.resolve("/cold"), os.O_RDWR)
    try:
        change(file)
    finally:
        fs.release(file)


OPERATIONS: dict[str, Callable[[FileSystem], object]] = {
    "demote": lambda fs: fs.demote(fs.tree.resolve("/warm")),
    "promote": lambda fs: fs.promote(fs.tree.resolve("/cold")),
    "read": lambda fs: fs.tree.read_bytes("/cold"),
    "write": lambda fs: changed(fs, lambda file: fs.write(file, MIB + 17, b"y" * 5000)),
    "cut": lambda fs: fs.setattr(fs.tree.resolve("/cold"), SetAttributes(size=MIB + 1)),
    "punch": lambda fs: changed(fs, lambda file: fs.fallocate(file, 3, 5000, MIB)),
}
KEEPS = ("demote", "promote", "read")
"""Operations that change no content."""


@pytest.mark.parametrize("name", OPERATIONS)
def test_storage_that_fails_at_any_call(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = tier_rig.make(tmp_path, 3 * tier_rig.GROUP, tier_rig.GROUP)
    with FileSystem.open(members.pool) as fs:
        for path in ("/warm", "/cold"):
            fs.tree.write_bytes(path, CONTENT)
        fs.demote(fs.tree.resolve("/cold"))
    before = members.pool.read_bytes(), members.storage.read_bytes()
    trigger = Trigger()

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            if trigger.hit():
                raise FsError((errno.EIO, errno.ENOSPC, errno.EDQUOT)[trigger.at % 3], "injected")
            return call(*arguments)

        return run

    for call in ("read", "write", "sync"):
        monkeypatch.setattr(Storage, call, failing(getattr(Storage, call)))
    for trigger.at in count(1, 5 if name == "read" else 1):
        members.pool.write_bytes(before[0])
        members.storage.write_bytes(before[1])
        with FileSystem.open(members.pool) as fs:
            trigger.count, trigger.armed, failed = 0, True, False
            try:
                OPERATIONS[name](fs)
            except FsError:
                failed = True
            trigger.armed = False
            fs.check()
            assert fs.tree.read_bytes("/warm") == CONTENT
            assert (fs.tree.read_bytes("/cold") == CONTENT) == (failed or name in KEEPS)
            go_on(fs)
        members.check()
        if trigger.count < trigger.at:
            break
    assert trigger.at > 1
