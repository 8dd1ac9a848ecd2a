"""A full pool: what can be reclaimed is reclaimed, once, before an operation fails."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem, OpenFile
from daxfs.fs.types import ROOT_INO

OpenFs = Callable[..., FileSystem]
MIB = 1 << 20


def fill(fs: FileSystem, file: OpenFile) -> int:
    """Write past EOF until the pool is full; return the errno."""
    position = fs.getattr(file.ino).size
    while True:
        try:
            position += fs.write(file, position, bytes(MIB))
        except FsError as error:
            return error.errno or 0


def filled(fs: FileSystem) -> OpenFile:
    """Return an open file that has taken all free blocks."""
    file, _ = fs.create(ROOT_INO, b"full", 0o600)
    assert fill(fs, file) == errno.ENOSPC
    return file


def test_what_nobody_knows_any_more_makes_room_for_a_write(open_fs: OpenFs) -> None:
    fs = open_fs(size="16M")
    gone, _ = fs.create(ROOT_INO, b"gone", 0o600)
    fs.write(gone, 0, bytes(MIB))
    fs.pin(fs.getattr(gone.ino))
    fs.release(gone)
    fs.unlink(ROOT_INO, b"gone")
    fs.sync()
    file = filled(fs)
    calls: list[bool] = []

    def forget() -> bool:
        calls.append(bool(fs.pins))
        if fs.pins:
            fs.unpin(gone.ino)
        return calls[-1]

    fs.add_reclaimer(forget)
    size = fs.getattr(file.ino).size
    assert fs.write(file, size, bytes(MIB)) == MIB
    assert calls == [True]
    assert fill(fs, file) == errno.ENOSPC
    assert calls.count(True) == 1
    fs.release(file)


def test_a_reclaimer_that_has_nothing_changes_no_answer(open_fs: OpenFs) -> None:
    fs = open_fs(size="16M")
    file = filled(fs)
    calls: list[int] = []
    fs.add_reclaimer(lambda: bool(calls.append(1)))
    with pytest.raises(FsError) as caught:
        fs.mkdir(ROOT_INO, b"d", 0o700)
    assert caught.value.errno == errno.ENOSPC
    assert calls == [1], "it is asked once for each operation"
    fs.release(file)


def test_an_operation_is_tried_once_more_and_no_more(open_fs: OpenFs) -> None:
    fs = open_fs(size="16M")
    tried: list[int] = []

    def full() -> None:
        tried.append(1)
        raise FsError(errno.ENOSPC)

    fs.add_reclaimer(lambda: True)
    with pytest.raises(FsError):
        fs.volume.reclaimers.retrying(full)
    assert len(tried) == 2


def test_other_errors_are_not_tried_again(open_fs: OpenFs) -> None:
    fs = open_fs(size="16M")
    calls: list[int] = []
    fs.add_reclaimer(lambda: bool(calls.append(1)))
    with pytest.raises(FsError):
        fs.rmdir(ROOT_INO, b"missing")
    assert not calls
