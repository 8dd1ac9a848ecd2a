"""The comparer of damaged images (`damaged`): what it calls equal, and what it notices."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

from damage_rig import flip
from damaged.__main__ import judge, main, unpack
from damaged.comparison import Verdict, compare, worst
from damaged.readers import PoolReader, Status, walk

from daxfs.fs.filesystem import FileSystem
from daxfs.structures import inodes, mapping

MakePool = Callable[..., Path]


def furnished(pool: MakePool) -> Path:
    path = pool("-b", "1024", size="8M")
    with FileSystem.open(path) as fs:
        fs.tree.mkdir("/folder")
        for number in range(150):
            fs.tree.write_bytes(f"/folder/file-{number}", b"x" * number)
        fs.tree.write_bytes("/large", bytes(range(256)) * 1000)
        fs.tree.symlink("large", "/link")
        fs.setxattr(fs.tree.resolve("/large"), b"user.name", b"value")
    return path


def test_the_kernel_and_daxfs_read_the_same(pool: MakePool, tmp_path: Path) -> None:
    path = furnished(pool)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    assert judge(path, mountpoint) == (Verdict.EQUAL, [])
    with FileSystem.open(path) as fs:
        run = mapping.lookup(fs.volume.view, inodes.read(fs.volume.view, fs.tree.resolve("/folder")), 0)
    flip(path, run.pblk * 1024 + 40)  # the index
    verdict, _ = judge(path, mountpoint)
    assert verdict in (Verdict.EQUAL, Verdict.MORE)


def test_every_difference_is_found(pool: MakePool) -> None:
    with FileSystem.open(furnished(pool)) as fs:
        whole = walk(PoolReader(fs))
    assert compare(whole, whole) == []
    less = {path: dict(record) for path, record in whole.items()}
    del less[b"folder/file-7"]
    assert [verdict for verdict, _ in compare(whole, less)] == [Verdict.LESS]
    assert [verdict for verdict, _ in compare(less, whole)] == [Verdict.MORE]
    other = {path: dict(record) for path, record in whole.items()}
    other[b"large"]["content at 4096"] = "another"
    status = other[b"link"]["status"]
    assert isinstance(status, Status)
    other[b"link"]["status"] = status._replace(mode=0)
    other[b"large"]["attributes"] = "DAMAGED"
    found = compare(whole, other)
    assert [verdict for verdict, _ in found] == [Verdict.LESS, Verdict.DIFFERENT, Verdict.DIFFERENT]
    assert worst([verdict for verdict, _ in found]) is Verdict.DIFFERENT


def test_images_are_unpacked_and_none_is_an_error(tmp_path: Path) -> None:
    content = bytes(70_000) + b"end" + bytes(200_000)
    (tmp_path / "image.gz").write_bytes(gzip.compress(content))
    unpack(tmp_path / "image.gz", tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == content
    assert main([str(tmp_path / "nothing")]) == 2
