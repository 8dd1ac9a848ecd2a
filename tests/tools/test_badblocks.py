"""``daxfs badblocks``: what lies where the memory is bad, by kind and by path."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from cli_rig import daxfs
from damage_rig import place_of
from mount_rig import mounted

from daxfs.errors import UserError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import Options
from daxfs.pmem import opening
from daxfs.tools import badblocks
from support import mke2fs, run

PAGE = 4096
CONTENT = random.Random(4).randbytes(20 * PAGE)
FORMATS = {"4k": ("-b", "4096"), "1k": ("-b", "1024"), "no-extents": ("-b", "4096", "-O", "^extent,^64bit")}


@pytest.fixture(params=FORMATS)
def pool(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = mke2fs(tmp_path / "pool", *FORMATS[request.param], size="64M")
    with FileSystem.open(path) as fs:
        fs.tree.mkdir("/folder")
        fs.tree.mkdir("/folder/below")
        fs.tree.write_bytes("/folder/below/file", CONTENT)
    return path


def places(pool: Path, *begins: int, monkeypatch: pytest.MonkeyPatch) -> list[badblocks.Place]:
    monkeypatch.setattr(opening, "listed", lambda *_: [(begin, begin + 512) for begin in begins])
    return badblocks.examine(str(pool)).places


def test_a_healthy_pool(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert badblocks.show(str(pool)) == 0
    assert capsys.readouterr().out == f"{pool}: no bad memory is known\n"


def test_files_are_named(pool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with FileSystem.open(pool, Options(read_only=True)) as fs:
        bits = fs.volume.block_bits
        ino = fs.tree.stat("/folder/below/file").ino
        runs = fs.describe(ino)
        folder = fs.tree.stat("/folder").ino
        in_folder = fs.describe(folder)[0].pblk << bits
    start = runs[0].pblk << bits
    begin = start + 3 * PAGE & -PAGE
    at = begin - start
    found = places(pool, begin, 50 << 20, monkeypatch=monkeypatch)
    assert [each for each in found if each.ino == ino] == [
        badblocks.Place(begin, PAGE, "data", ino, "/folder/below/file", at)
    ]
    assert {each.kind for each in found} == {"data", "free"}
    assert sum(each.length for each in found) == 2 * PAGE
    assert badblocks.show(str(pool)) == badblocks.FOUND
    assert f"data of /folder/below/file (inode {ino}), at offset {at}" in capsys.readouterr().out
    assert badblocks.show(str(pool), as_json=True) == badblocks.FOUND
    assert json.loads(capsys.readouterr().out)["bytes"] == 2 * PAGE
    found = places(pool, in_folder, begin, monkeypatch=monkeypatch)
    assert (in_folder, "directory", "/folder") in [(each.offset, each.kind, each.path) for each in found]
    assert "" in [each.path for each in found if each.ino == ino], "its directory can't be read"


@pytest.mark.parametrize("what", ["Block bitmap", "Inode bitmap", "Inode table"])
def test_metadata_is_named(pool: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    begin = place_of(pool, what)
    found = places(pool, begin, monkeypatch=monkeypatch)
    assert what.lower() in [each.kind for each in found if each.offset <= begin < each.offset + each.length]


def test_the_journal_is_named(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileSystem.open(pool) as fs:
        area = fs.volume.log_area
        assert area is not None
        begin = area.physical(400) << fs.volume.block_bits
    assert {each.kind for each in places(pool, begin, monkeypatch=monkeypatch)} == {"journal"}


def test_the_map_of_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mke2fs(tmp_path / "pool", "-b", "4096", size="64M")
    with FileSystem.open(path) as fs, fs.tree.open("/sparse", "wb") as file:
        for number in range(10):
            file.seek(number * 2 * PAGE)
            file.write(b"x" * PAGE)
        ino = file._file.ino
    index = int(run("debugfs", "-R", f"ex <{ino}>", path).splitlines()[1].split("/")[2].split()[4])
    found = places(path, index * PAGE, monkeypatch=monkeypatch)
    assert [(each.kind, each.path) for each in found] == [("map", "/sparse")]


def test_a_mount_is_asked(pool: Path) -> None:
    with mounted(pool) as mount:
        assert daxfs("badblocks", mount.place).endswith(": no bad memory is known\n")


def test_no_such_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no daxfs is mounted"):
        badblocks.examine(str(tmp_path))
