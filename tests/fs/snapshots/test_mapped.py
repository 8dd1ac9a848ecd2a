"""What clients may store to while a snapshot is made: it is copied, or there is no snapshot."""

from __future__ import annotations

import errno

import pytest
from lease_rig import STORE, client

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem
from daxfs.snapshots.copier import Copier

BLOCK = 4096


@pytest.mark.interpreted
@pytest.mark.parametrize("error", [FsError(errno.ENOSPC), MemoryError()], ids=["room", "memory"])
def test_without_the_copies_there_is_no_snapshot(
    error: Exception, memory_fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = client(memory_fs, b"leased", b"x" * BLOCK)
    held.ask(0, BLOCK, STORE)

    def failing(*_: object) -> None:
        raise error

    with monkeypatch.context() as patches:
        patches.setattr(Copier, "copy", failing)
        with pytest.raises(type(error)):
            memory_fs.create_snapshot(b"first")
    assert not memory_fs.list_snapshots()
    assert memory_fs.create_snapshot(b"second").snapshot.mapped == BLOCK
