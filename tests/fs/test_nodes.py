"""The node of an inode in use agrees with the pool, whatever happens to the inode and whatever fails meanwhile."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from damage_rig import stopped_by_damage

from daxfs.errors import FsError
from daxfs.fs import ranges
from daxfs.fs.filesystem import FileSystem, OpenFile
from daxfs.fs.nodes import MAX_LAZY
from daxfs.fs.types import ROOT_INO, Options, SetAttributes
from daxfs.structures import mapping
from support import wait_a_tick

OpenFs = Callable[..., FileSystem]
BLOCK = 4096


def truncate(fs: FileSystem, file: OpenFile, size: int) -> None:
    fs.setattr(file.ino, SetAttributes(size=size))


OPERATIONS: dict[str, Callable[[FileSystem, OpenFile], object]] = {
    "overwrite": lambda fs, file: fs.write(file, BLOCK, b"x" * BLOCK),
    "append": lambda fs, file: fs.write(file, 40 * BLOCK, b"x" * 5000),
    "fill a hole": lambda fs, file: fs.write(file, 12 * BLOCK + 5, b"x" * 100),
    "beyond the end": lambda fs, file: fs.write(file, 60 * BLOCK, b"x"),
    "cut": lambda fs, file: truncate(fs, file, 10 * BLOCK + 7),
    "cut to nothing": lambda fs, file: truncate(fs, file, 0),
    "lengthen": lambda fs, file: truncate(fs, file, 99 * BLOCK),
    "punch": lambda fs, file: fs.fallocate(file, ranges.PUNCH_HOLE | ranges.KEEP_SIZE, 3 * BLOCK + 9, 20 * BLOCK),
    "zero": lambda fs, file: fs.fallocate(file, ranges.ZERO_RANGE, 3 * BLOCK + 9, 20 * BLOCK),
    "collapse": lambda fs, file: fs.fallocate(file, ranges.COLLAPSE_RANGE, 3 * BLOCK, 4 * BLOCK),
    "insert": lambda fs, file: fs.fallocate(file, ranges.INSERT_RANGE, 3 * BLOCK, 4 * BLOCK),
    "allocate": lambda fs, file: fs.fallocate(file, 0, 0, 80 * BLOCK),
    "allocate past EOF": lambda fs, file: fs.fallocate(file, ranges.KEEP_SIZE, 0, 80 * BLOCK),
    "copy": lambda fs, file: fs.copy_range(file, 0, file, 50 * BLOCK, 20 * BLOCK),
}


def made(fs: FileSystem) -> OpenFile:
    """Return a file of 40 blocks with two holes, whose map is in DRAM."""
    file, _ = fs.create(ROOT_INO, b"f", 0o600)
    for begin, end in ((0, 10), (15, 25), (30, 40)):
        fs.write(file, begin * BLOCK, b"." * (end - begin) * BLOCK)
    fs.read(file, 0, BLOCK)
    assert file.node.map is not None
    return file


@pytest.mark.parametrize("second", OPERATIONS)
@pytest.mark.parametrize("first", OPERATIONS)
def test_two_operations(open_fs: OpenFs, first: str, second: str) -> None:
    fs = open_fs(size="16M")
    file = made(fs)
    for name in (first, second):
        try:
            OPERATIONS[name](fs, file)
        except FsError as error:
            assert (error.errno, first, name) in {
                (errno.EINVAL, "cut to nothing", "collapse"),
                (errno.EINVAL, "cut to nothing", "insert"),
            }
        fs.check()
    fs.release(file)


@pytest.mark.parametrize("step", range(1, 4))
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.interpreted
def test_an_operation_that_fails_half_way(
    open_fs: OpenFs, name: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operation fails at the end of its first, second or third handle, after the rest of that handle."""
    fs = open_fs(size="16M")
    file = made(fs)
    wait_a_tick()
    OPERATIONS["overwrite"](fs, file)
    before = fs.getattr(file.ino)
    normalize, count = mapping.normalize_tail, 0

    def fail(*arguments: object) -> None:
        nonlocal count
        normalize(*arguments)  # type: ignore[arg-type]
        count += 1
        if count == step:
            raise FsError(errno.EIO)

    monkeypatch.setattr(mapping, "normalize_tail", fail)
    try:
        OPERATIONS[name](fs, file)
    except FsError as error:
        assert error.errno == errno.EIO
        if step == 1:
            assert fs.getattr(file.ino).size == before.size
            assert file.node.size == before.size
    monkeypatch.undo()
    fs.check()
    assert len(bytes(fs.read(file, 0, 1 << 20))) == fs.getattr(file.ino).size
    fs.release(file)


@pytest.mark.interpreted
def test_a_refused_operation_keeps_the_times_that_wait(open_fs: OpenFs, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = open_fs(size="16M")
    file = made(fs)
    fs.sync()
    wait_a_tick()
    fs.write(file, 0, b"x")
    written = fs.getattr(file.ino)
    assert file.ino in fs.volume.nodes.lazy

    nodes = type(fs.volume.nodes)
    stamped = nodes.stamped

    def fail(*arguments: Any, **times: bool) -> None:
        stamped(*arguments, **times)
        raise FsError(errno.EIO)

    monkeypatch.setattr(nodes, "stamped", fail)
    wait_a_tick()
    with pytest.raises(FsError):
        fs.setattr(file.ino, SetAttributes(mtime_now=True))
    monkeypatch.undo()
    assert fs.getattr(file.ino) == written
    fs.release(file)


# Times that wait


def links(fs: FileSystem) -> list[int]:
    """Return as many symbolic links as may have times that wait."""
    return [fs.symlink(ROOT_INO, b"l%d" % number, b"x").ino for number in range(MAX_LAZY)]


def test_one_of_too_many_times_is_the_readers_own(open_fs: OpenFs) -> None:
    fs = open_fs(size="16M", mount=Options(atime="strictatime"))
    made = links(fs)
    fs.sync()
    for ino in (*made, made[0]):
        fs.readlink(ino)
    fs.check()


def test_times_that_find_no_room_are_not_kept(open_fs: OpenFs, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = open_fs(size="16M", mount=Options(atime="strictatime"))
    made = links(fs)
    last = fs.symlink(ROOT_INO, b"last", b"x").ino
    file = opened(fs)
    fs.sync()
    before, read = fs.getattr(last), fs.getattr(file.ino)
    for ino in made:
        fs.readlink(ino)

    def fail() -> None:
        raise FsError(errno.EIO)

    monkeypatch.setattr(fs.volume.nodes, "write_soon", fail)
    wait_a_tick()
    with pytest.raises(FsError):
        fs.readlink(last)
    with pytest.raises(FsError):
        fs.read(file, 0, 1)
    with pytest.raises(FsError):
        fs.write(file, 0, b"x")
    fs.check()
    assert fs.getattr(last) == before
    assert fs.getattr(file.ino) == read
    monkeypatch.undo()
    fs.release(file)


def opened(fs: FileSystem) -> OpenFile:
    file, _ = fs.create(ROOT_INO, b"f", 0o600)
    fs.write(file, 0, b"content")
    return file


def test_times_that_waited_when_damage_was_met_are_given_up(open_fs: OpenFs) -> None:
    """No commit follows, so that neither the times nor the nodes of closed files are kept."""
    fs = open_fs(size="16M")
    file = opened(fs)
    fs.sync()
    before = fs.getattr(file.ino)
    wait_a_tick()
    fs.write(file, 0, b"x")
    fs.release(file)
    assert fs.getattr(file.ino) != before
    stopped_by_damage(fs)
    fs.check()
    assert fs.getattr(file.ino) == before
    assert not fs.volume.nodes.open


def test_an_aborted_commit_leaves_no_map_of_what_it_gave_up(open_fs: OpenFs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node of a closed file, whose times waited, stays if they could not be written."""
    fs = open_fs(size="16M")
    file = opened(fs)
    fs.read(file, 0, 1)
    fs.write(file, 0, b"x")
    ino = file.ino
    fs.release(file)

    def fail(_: object) -> None:
        raise FsError(errno.EIO)

    monkeypatch.setattr(fs.volume.journal, "_commit_hooks", [*fs.volume.journal._commit_hooks, (lambda: True, fail)])
    with pytest.raises(FsError):
        fs.sync()
    assert fs.volume.nodes.open[ino].map is None
