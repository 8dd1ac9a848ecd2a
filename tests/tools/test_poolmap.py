"""``daxfs map POOL``: what each chunk of a pool holds, compared with e2fsprogs' own figures."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_rig import daxfs
from mount_rig import mounted

from daxfs.errors import UserError
from daxfs.fs.filesystem import FileSystem
from daxfs.tools import pooldrawing
from daxfs.tools.poolmap import Kind, PoolMap, examine
from support import mke2fs, run

M = 1 << 20
FORMATS = {"4k": ("-b", "4096"), "1k": ("-b", "1024"), "no-extents": ("-b", "4096", "-O", "^extent,^64bit")}
FRAGMENTS = 40


def superblock(pool: Path) -> dict[str, str]:
    return dict(re.findall(r"^(.+?): +(.*)$", run("dumpe2fs", "-h", pool), re.MULTILINE))


@pytest.mark.parametrize("kind", FORMATS)
def test_the_sums_are_those_of_e2fsprogs(kind: str, tmp_path: Path) -> None:
    pool = mke2fs(tmp_path / "pool", *FORMATS[kind], size="64M")
    with FileSystem.open(pool) as fs:
        size = fs.volume.geometry.block_size
        fs.tree.mkdir("/folder")
        fs.tree.write_bytes("/folder/file", bytes(3 * M))
        fs.tree.write_bytes("/fragments", b"")
        with fs.tree.open("/fragments", "r+b") as file:
            for number in range(FRAGMENTS):
                file.seek(2 * number * size)
                file.write(b"x")
    found, told = examine(str(pool)), superblock(pool)
    assert found.size == int(told["Block count"]) * size
    assert found.chunks.sum() * size == found.size
    assert found.bytes_of(Kind.FREE) == int(told["Free blocks"]) * size
    assert found.bytes_of(Kind.DATA) == 3 * M + FRAGMENTS * size
    blocks = int(re.search(r"Blockcount: (\d+)", run("debugfs", "-R", "stat <8>", pool))[1]) * 512
    assert blocks - 16 * size <= found.bytes_of(Kind.JOURNAL) <= blocks  # i_blocks counts the blocks of the map too
    assert found.bytes_of(Kind.UNKNOWN) == found.bytes_of(Kind.BAD) == found.bytes_of(Kind.SNAPSHOT) == 0


def test_directories_and_the_blocks_of_maps_are_metadata(tmp_path: Path) -> None:
    pool = mke2fs(tmp_path / "pool", "-b", "4096", size="16M")
    before = examine(str(pool))
    with FileSystem.open(pool) as fs:
        fs.tree.mkdir("/folder")
        fs.tree.write_bytes("/fragments", b"")
        with fs.tree.open("/fragments", "r+b") as file:
            for number in range(FRAGMENTS):
                file.seek(2 * number * 4096)
                file.write(b"x")
        fs.setxattr(fs.tree.resolve("/fragments"), b"user.long", bytes(3000))
    after = examine(str(pool))
    assert after.bytes_of(Kind.METADATA) - before.bytes_of(Kind.METADATA) == 3 * 4096


def test_a_snapshot_and_bad_blocks(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("9000\n9001\n")
    pool = mke2fs(tmp_path / "pool", "-b", "4096", "-l", str(tmp_path / "bad"), size="64M")
    with FileSystem.open(pool) as fs:
        fs.tree.write_bytes("/file", bytes(M))
        fs.create_snapshot(b"one")
        fs.tree.write_bytes("/file", b"x" * M)
        store = fs.tree.stat("/.daxfs/snapshots/one").blocks * 512
    found = examine(str(pool))
    assert found.bytes_of(Kind.BAD) == 2 * 4096
    assert found.bytes_of(Kind.SNAPSHOT) == store
    assert found.chunks[9000 // 512, Kind.BAD] == 2


def test_a_group_without_a_readable_bitmap_is_unknown(tmp_path: Path) -> None:
    pool = mke2fs(tmp_path / "pool", "-b", "1024", "-g", "8192", "-O", "^flex_bg", size="32M")
    with FileSystem.open(pool) as fs:
        fs.tree.write_bytes("/file", bytes(20 * M))
    place = int(re.search(r"Group 3: .*?Block bitmap at (\d+)", run("dumpe2fs", pool), re.DOTALL)[1])
    with pool.open("r+b") as file:
        file.seek(place * 1024 + 100)
        byte = file.read(1)
        file.seek(place * 1024 + 100)
        file.write(bytes([byte[0] ^ 1]))
    assert 0 < examine(str(pool)).bytes_of(Kind.UNKNOWN) <= 8192 * 1024


def pool_map(*rows: dict[Kind, int]) -> PoolMap:
    """A pool of blocks of 4 KiB; what a row does not name is free."""
    chunks = np.zeros((len(rows), len(Kind)), np.int64)
    for at, row in enumerate(rows):
        for kind, count in row.items():
            chunks[at, kind] = count
        chunks[at, Kind.FREE] = 512 - sum(row.values())
    return PoolMap("pool", 2 * M * len(rows), 4096, chunks)


def test_whole_and_broken_chunks() -> None:
    found = pool_map({}, {Kind.DATA: 1}, {Kind.DATA: 511}, {Kind.METADATA: 512}, {})
    assert (found.whole, found.broken) == (2, 2)
    assert pooldrawing.legend(found)[-1].plain == (
        "free: 2 whole chunks of 2 MiB (67 % of the free space), 2 broken ones"
    )


def test_a_cell_shows_what_most_of_it_holds_and_any_bad_memory() -> None:
    rows: tuple[dict[Kind, int], ...] = (
        {}, {Kind.DATA: 512}, {Kind.DATA: 3, Kind.METADATA: 4}, {Kind.DATA: 500, Kind.BAD: 1}, {Kind.SNAPSHOT: 9},
    )  # fmt: skip
    (line,) = pooldrawing.lines(pooldrawing.cells_of(pool_map(*rows), 8), 8)
    assert line.plain == "·█MXS"
    (line,) = pooldrawing.lines(pooldrawing.cells_of(pool_map(*rows), 2), 8)
    assert line.plain == "▒X"


def test_a_drawing_has_whole_lines() -> None:
    cells = pooldrawing.cells_of(pool_map(*[{Kind.DATA: 512}] * 10), 100)
    assert [line.plain for line in pooldrawing.lines(cells, 4)] == ["████", "████", "██"]


@pytest.mark.parametrize(("name", "begin"), [("map.png", b"\x89PNG"), ("map.svg", b"<?xml")])
def test_an_image(name: str, begin: bytes, tmp_path: Path) -> None:
    pooldrawing.draw(pool_map({Kind.DATA: 100}, {Kind.BAD: 1}, {}), str(tmp_path / name))
    assert (tmp_path / name).read_bytes().startswith(begin)


def test_any_path_is_a_title(tmp_path: Path) -> None:
    """A path is neither a formula nor several lines, and a surrogate has a glyph."""
    pool = replace(pool_map({}), pool="/$m^{_$\n\udcff\x1b")
    pooldrawing.draw(pool, str(tmp_path / "map.png"))
    assert pooldrawing.title(pool, pool.chunks).startswith("/$m^{_$\\n\\udcff\\x1b: 2 MiB")


def test_a_terminal_without_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = mke2fs(tmp_path / "pool", "-b", "4096", size="16M")
    with FileSystem.open(pool) as fs:
        fs.tree.write_bytes("/file", bytes(5 * M))
    output = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", output)
    pooldrawing.show(str(pool))
    output.flush()
    said = output.buffer.getvalue()  # type: ignore[attr-defined]
    assert b"# data" in said
    assert b". free" in said


def test_images_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = mke2fs(tmp_path / "pool", size="16M")
    assert "is drawn as .png or .svg" in daxfs("map", pool, "--image", tmp_path / "map.gif", code=64)
    assert "No such file or directory" in daxfs("map", pool, "--image", tmp_path / "missing" / "map.png", code=73)
    assert "only a whole pool is drawn" in daxfs("map", f"{pool}:/lost+found", "--image", tmp_path / "map.png", code=64)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="without matplotlib"):
        pooldrawing.draw(pool_map({}), str(tmp_path / "map.png"))


def test_the_command(tmp_path: Path) -> None:
    pool = mke2fs(tmp_path / "pool", "-b", "4096", size="64M")
    with mounted(pool) as mount:
        (mount.place / "file").write_bytes(bytes(4 * M))
        on_mount = json.loads(daxfs("map", mount.place, "--json"))
        refused = daxfs("map", mount.place / "file", "--image", tmp_path / "map.png", code=64)
        assert "only a whole pool is drawn" in refused
        assert on_mount["pool"] == str(pool)
    text = daxfs("map", pool)
    assert "a cell is 2 MiB" in text
    assert "█ data" in text
    assert on_mount["data"] == json.loads(daxfs("map", pool, "--json"))["data"] == 4 * M
    assert sum(map(sum, on_mount["chunks"])) * 4096 == on_mount["size"] == 64 * M
