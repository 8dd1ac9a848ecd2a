"""Appends that are made durable one by one: what a window past EOF saves, and that nothing of it is left over."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_rig import image
from explorer.disk import Disk
from failing.seams import FailingPool, Trigger
from tree_rig import QUIET

from daxfs.errors import FsError
from daxfs.fs import appends
from daxfs.fs.filesystem import ROOT_INO, FileSystem, OpenFile
from daxfs.fs.ranges import KEEP_SIZE
from daxfs.fs.types import SetAttributes
from support import fsck, run, write_image

OpenFs = Callable[..., FileSystem]
BLOCK = 4096


def append(fs: FileSystem, file: OpenFile, count: int = 1, size: int = BLOCK) -> bytes:
    """Append blocks, each with an fsync; return them."""
    made = b""
    for number in range(count):
        content = bytes([1 + (file.size // size + number) % 251]) * size
        assert fs.write(file, file.size, content) == size
        fs.fsync(file.ino)
        made += content
    return made


def log_of(fs: FileSystem, name: bytes = b"log", count: int = appends.ENOUGH + 1) -> tuple[OpenFile, bytes]:
    """Return an open file with a window, and its content."""
    file, _ = fs.create(ROOT_INO, name, 0o644)
    content = append(fs, file, count)
    assert file.node.window > file.size
    return file, content


def blocks_past_eof(fs: FileSystem, ino: int) -> int:
    size = fs.getattr(ino).size
    return sum(part.logical + part.length - max(part.logical, size) for part in fs.fiemap(ino, size, 1 << 40, 100))


def read(fs: FileSystem, file: OpenFile) -> bytes:
    return bytes(fs.read(file, 0, 1 << 24))


def test_an_append_inside_the_window_changes_one_block(open_fs: OpenFs) -> None:
    fs = open_fs(size="16M")
    file, _ = log_of(fs)
    before = fs.volume.journal.stats.blocks
    append(fs, file, 10)
    assert fs.volume.journal.stats.blocks - before == 10
    fs.check()


def test_the_content_is_what_was_appended(open_fs: OpenFs, any_format: tuple[str, ...]) -> None:
    fs = open_fs(*any_format)
    file, _ = fs.create(ROOT_INO, b"log", 0o644)
    content = append(fs, file, 150)
    content += append(fs, file, 3, 3 * BLOCK)
    content += append(fs, file, 3, 100)
    content += append(fs, file, 5, 2 * appends.WINDOW_BYTES)
    assert read(fs, file) == content
    fs.check()
    fs.release(file)
    assert fs.volume.journal.idle


def test_the_last_close_frees_the_window(open_fs: OpenFs) -> None:
    fs = open_fs(size="16M")
    file, content = log_of(fs)
    again = fs.open_file(file.ino, os.O_RDONLY)
    assert file.ino in fs.volume.lives.listed
    fs.release(file)
    assert blocks_past_eof(fs, again.ino)
    fs.release(again)
    assert not blocks_past_eof(fs, file.ino)
    assert file.ino not in fs.volume.lives.listed
    assert fs.getattr(file.ino).blocks == len(content) // 512
    fs.check()


def test_files_that_are_closed_early_get_none(open_fs: OpenFs) -> None:
    fs = open_fs(size="16M")
    file, _ = fs.create(ROOT_INO, b"f", 0o644)
    append(fs, file, appends.ENOUGH)
    assert not file.node.window
    fs.write(file, 0, bytes(BLOCK))
    fs.fsync(file.ino)
    fs.fsync(file.ino)
    assert file.node.appends == appends.ENOUGH


@pytest.mark.parametrize(
    "change",
    [
        lambda fs, file: fs.setattr(file.ino, SetAttributes(size=100)),
        lambda fs, file: fs.setattr(file.ino, SetAttributes(size=1 << 20)),
        lambda fs, file: fs.write(file, file.size + 5 * BLOCK, b"x"),
        lambda fs, file: fs.write(file, file.size, b"x"),
        lambda fs, file: fs.fallocate(file, 0, 0, 1 << 20),
        lambda fs, _: fs.unlink(ROOT_INO, b"log"),
        lambda fs, _: fs.sync(),
    ],
    ids=["cut", "lengthen", "write past EOF", "small append", "allocate", "unlink", "sync"],
)
def test_other_changes_meanwhile(open_fs: OpenFs, change: Callable[[FileSystem, OpenFile], object]) -> None:
    fs = open_fs(size="16M")
    file, content = log_of(fs)
    change(fs, file)
    fs.check()
    size = file.size
    assert read(fs, file)[: len(content)] == content[:size] + bytes(max(min(size, len(content)) - len(content), 0))
    append(fs, file, 5)
    fs.check()
    fs.release(file)
    fs.check()
    assert not fs.volume.lives.listed


def test_what_a_user_has_reserved_stays(open_fs: OpenFs) -> None:
    fs = open_fs(size="16M")
    file, _ = log_of(fs)
    fs.fallocate(file, KEEP_SIZE, file.size, 10 * BLOCK)
    append(fs, file, 4)
    fs.release(file)
    assert blocks_past_eof(fs, file.ino) == 6 * BLOCK
    fs.check()


def test_a_full_pool_gets_the_windows_back(open_fs: OpenFs) -> None:
    fs = open_fs(size="8M")
    file, content = log_of(fs)
    other, _ = fs.create(ROOT_INO, b"other", 0o644)
    with contextlib.suppress(FsError):
        while True:
            fs.write(other, other.size, bytes(1 << 16))
    assert not file.node.window
    assert not blocks_past_eof(fs, file.ino)
    with pytest.raises(FsError) as caught:
        append(fs, file, 1)
    assert caught.value.errno == errno.ENOSPC
    fs.unlink(ROOT_INO, b"other")
    fs.release(other)
    content += append(fs, file, 5)
    assert read(fs, file) == content
    fs.check()


def test_a_mount_that_ends_with_open_files_is_clean(open_fs: OpenFs) -> None:
    fs = open_fs(size="16M")
    file, _ = log_of(fs)
    path = fs.volume.pool.path
    fs.close()
    fsck(path)
    assert file.node.window == 0


@pytest.mark.crash
def test_power_cuts_of_appends(fs: FileSystem) -> None:
    file, _ = log_of(fs)
    append(fs, file, appends.WINDOW_BYTES // BLOCK)
    append(fs, file, 2, 3 * BLOCK)
    fs.write(file, file.size, bytes(BLOCK))
    fs.fsync(file.ino, True)
    append(fs, file, 1, 100)
    fs.release(file)


@pytest.mark.crash
def test_power_cuts_of_a_window_that_ends(fs: FileSystem) -> None:
    file, _ = log_of(fs)
    fs.setattr(file.ino, SetAttributes(size=BLOCK))
    append(fs, file, appends.ENOUGH + 1)
    fs.unlink(ROOT_INO, b"log")
    append(fs, file, 1)
    fs.release(file)
    fs.sync()


@pytest.mark.parametrize(("features", "code"), [("^orphan_file", 0), ("orphan_file", 1)])
def test_recovery_cuts_a_window_off(open_fs: OpenFs, tmp_path: Path, features: str, code: int) -> None:
    fs = open_fs("-O", features, size="16M")
    _, content = log_of(fs)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for path in (ours, theirs):
        path.write_bytes(Path(fs.volume.pool.path).read_bytes())
    run("e2fsck", "-fy", theirs, code=code)
    for path in (ours, theirs):
        with FileSystem.open(path) as recovered:
            found = recovered.lookup(ROOT_INO, b"log")
            assert found.blocks == len(content) // 512
            assert recovered.tree.read_bytes("/log") == content
        fsck(path)


@pytest.mark.parametrize("error", ["room", "reading"])
def test_a_close_that_can_not_free_the_window(error: str, tmp_path: Path) -> None:
    """It has succeeded nevertheless, and the unmount frees the blocks."""
    disk = Disk(image("4k"), BLOCK)
    trigger = Trigger()
    fs = FileSystem.open(FailingPool(disk, "room", trigger), QUIET)
    file, content = log_of(fs)
    trigger.armed, trigger.at = error == "room", 1
    fs.volume.pool.faults.pending[0] = error == "reading"  # type: ignore[index]
    fs.release(file)
    trigger.armed = False
    fs.check()
    assert blocks_past_eof(fs, file.ino)
    assert file.ino in fs.volume.lives.listed
    assert fs.tree.read_bytes("/log") == content
    fs.close()
    write_image(tmp_path / "pool", disk.content)
    fsck(tmp_path / "pool")
