"""The tools on a pool whose memory goes away meanwhile: one line, and nothing shown that the pool does not hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_rig import daxfs

from daxfs.errors import MissingMemory
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import Options
from daxfs.pmem.opening import open_pool
from daxfs.pmem.pool import Pool
from daxfs.tools import dump, info, reading
from support import mke2fs


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = mke2fs(tmp_path / "pool", "-b", "4096")
    with FileSystem.open(path) as fs:
        fs.tree.mkdir("/folder")
        fs.tree.write_bytes("/file", b"content" * 10000)
    return path


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Cut each pool to a size after the tools have opened it and read its superblock."""

    def let_it_be_cut(size: int) -> None:
        newest = reading._newest_superblock

        def then_cut(pool: Pool) -> object:
            found = newest(pool)
            os.truncate(pool.path, size)
            return found

        monkeypatch.setattr(reading, "_newest_superblock", then_cut)

    return let_it_be_cut


@pytest.mark.parametrize(
    "arguments",
    [
        ("dump", "{}", "group", "0"),
        ("dump", "{}", "inode", "2"),
        ("dump", "{}", "inode", "/file"),
        ("dump", "{}", "extents", "/file"),
        ("dump", "{}", "dir", "/folder"),
        ("dump", "{}", "journal"),
        ("map", "/file", "--pool", "{}"),
        ("info", "{}"),
    ],
)
def test_a_pool_that_is_cut_is_one_line(pool: Path, cut: Callable[[int], None], arguments: tuple[str, ...]) -> None:
    cut(4096)
    said = daxfs(*(word.format(pool) for word in arguments), code=65)
    assert said.startswith("daxfs: ")
    assert said.count("\n") == 1
    assert "was cut to 4096 bytes while it was in use" in said


def test_nothing_is_printed_of_what_is_missing(
    pool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The superblock is printed field by field: all of it is there, or none."""
    newest = reading._newest_superblock

    def then_cut(opened: Pool) -> object:
        found = newest(opened)
        os.truncate(opened.path, 0)
        bytes(opened.memory[:8])
        return found

    monkeypatch.setattr(reading, "_newest_superblock", then_cut)
    with pytest.raises(MissingMemory):
        dump.show(str(pool), ["superblock"])
    assert capsys.readouterr().out == ""


def test_a_log_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that was not unmounted is recovered in private memory first."""
    source = mke2fs(tmp_path / "source", "-b", "4096")
    path = tmp_path / "pool"
    with FileSystem.open(source, Options(commit_interval=1e9)) as fs:
        fs.tree.write_bytes("/file", b"content")
        fs.sync()
        path.write_bytes(source.read_bytes())
    assert info.examine(str(path)).state.startswith("not unmounted")

    def opened_and_cut(*arguments: str, private: bool = False, **options: bool) -> Pool:
        pool = open_pool(*arguments, private=private, **options)
        if private:
            os.truncate(path, 8192)
        return pool

    monkeypatch.setattr(reading, "open_pool", opened_and_cut)
    with pytest.raises(MissingMemory, match="was cut to 8192 bytes"):
        info.examine(str(path))
