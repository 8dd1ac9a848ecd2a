"""A deletion that fails in its last step: all snapshots are there, and show what they showed."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from crash_rig import OPERATIONS, Workbench, image
from range_rig import refused
from snapshot_rig import differences, tree
from tree_rig import QUIET

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem
from daxfs.pmem.memory import MemoryPool
from daxfs.structures import directories


def changed(fs: FileSystem, *names: str) -> None:
    for name in names:
        OPERATIONS[name](Workbench(fs))
    fs.sync()


@pytest.mark.interpreted
@pytest.mark.parametrize("victim", [b"older", b"newer"])
def test_a_deletion_that_fails(victim: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileSystem.open(MemoryPool(bytearray(image("4k"))), QUIET) as fs:
        seen = {}
        for name, changes in ((b"older", ("overwrite", "mkdir")), (b"newer", ("unlink", "punch"))):
            seen[name] = tree(fs)
            fs.create_snapshot(name)
            changed(fs, *changes)

        def failing(*_: object) -> None:
            raise FsError(errno.ENOSPC)

        with monkeypatch.context() as patches:
            patches.setattr(directories, "remove", failing)
            with refused(errno.ENOSPC):
                fs.delete_snapshot(victim)
        changed(fs, "overwrite and append", "truncate unaligned", "write new", "rename dir")
        for name, expected in seen.items():
            assert not differences(fs, name, expected, tmp_path)
        fs.delete_snapshot(victim)
        fs.check()
