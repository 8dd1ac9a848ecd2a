"""A change of a file in one handle: its node learns of all of it, or of nothing when the handle fails."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from daxfs.errors import FsError
from daxfs.fs.change import Change
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import ROOT_INO

OpenFs = Callable[..., FileSystem]
BLOCK = 4096


def test_a_change_that_fails_says_nothing(open_fs: OpenFs) -> None:
    fs = open_fs(size="16M")
    file, _ = fs.create(ROOT_INO, b"f", 0o600)
    fs.write(file, 0, b"." * 10 * BLOCK)
    fs.read(file, 0, BLOCK)
    volume, size = fs.volume, file.node.size

    def change_and_fail() -> None:
        with volume.handle(200) as tx, Change(volume, tx, file.ino) as change:
            change.unmap(0, None)
            change.inode.size = 0
            raise FsError(errno.EIO)

    with pytest.raises(FsError):
        change_and_fail()
    assert file.node.size == size
    fs.check()
    fs.release(file)
