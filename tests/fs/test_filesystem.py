"""The promises of the facade for its operations."""

from __future__ import annotations

import ast
import errno
import inspect
import os
from collections.abc import Callable
from typing import Any

import pytest

from daxfs.errors import FsError
from daxfs.fs.administration import Administration
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import ROOT_INO
from daxfs.fs.volume import Volume
from daxfs.journal.journal import Journal


def marked(decorator: str) -> set[str]:
    """Return the methods of the facade with this decorator."""
    halves = (ast.parse(inspect.getsource(half)).body for half in (Administration, FileSystem))
    return {
        node.name
        for (facade,) in halves
        if isinstance(facade, ast.ClassDef)
        for node in facade.body
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(mark, ast.Name) and mark.id == decorator for mark in node.decorator_list)
    }


def without_storage(fs: FileSystem) -> None:
    with pytest.raises(FsError) as refused:
        fs.tier_use()
    assert refused.value.errno == errno.EOPNOTSUPP


READS: dict[str, Callable[[FileSystem, int, Any], object]] = {
    "lookup": lambda fs, _ino, _file: fs.lookup(ROOT_INO, b"file"),
    "find": lambda fs, _ino, _file: fs.find(ROOT_INO, b"file"),
    "readlink": lambda fs, _ino, _file: fs.readlink(fs.lookup(ROOT_INO, b"link").ino),
    "getattr": lambda fs, ino, _file: fs.getattr(ino),
    "size_of": lambda fs, _ino, file: fs.size_of(file),
    "get_flags": lambda fs, ino, _file: fs.get_flags(ino),
    "get_fsxattr": lambda fs, ino, _file: fs.get_fsxattr(ino),
    "uses_dax": lambda fs, ino, _file: fs.uses_dax(ino),
    "access": lambda fs, ino, _file: fs.access(ino, os.R_OK),
    "getxattr": lambda fs, ino, _file: fs.getxattr(ino, b"user.x"),
    "listxattr": lambda fs, ino, _file: fs.listxattr(ino),
    "statfs": lambda fs, _ino, _file: fs.statfs(),
    "metadata_errors": lambda fs, _ino, _file: fs.metadata_errors(),
    "get_label": lambda fs, _ino, _file: fs.get_label(),
    "seek": lambda fs, _ino, file: fs.seek(file, 0, os.SEEK_HOLE),
    "describe": lambda fs, ino, _file: fs.describe(ino),
    "batch": lambda fs, _ino, file: fs.batch(file).abort(),
    "fiemap": lambda fs, ino, _file: fs.fiemap(ino, 0, 1 << 20, 100),
    "opendir": lambda fs, _ino, _file: fs.opendir(ROOT_INO),
    "by_number": lambda fs, ino, _file: fs.by_number(ino),
    "list_snapshots": lambda fs, _ino, _file: fs.list_snapshots(),
    "open_snapshot": lambda fs, _ino, _file: fs.open_snapshot(b"s"),
    "generation": lambda fs, ino, _file: fs.generation(ino),
    "tier_use": lambda fs, _ino, _file: without_storage(fs),
}


def test_every_reading_operation_is_here() -> None:
    assert marked("reading") | {"seek"} == set(READS)  # `seek` is in steps


@pytest.mark.interpreted
def test_a_reading_operation_changes_nothing(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes wait for the commit meanwhile, and freed blocks too."""
    fs.tree.write_bytes("/gone", b"x" * 100_000)
    fs.tree.write_bytes("/other", b"x" * 100_000)
    fs.tree.write_bytes("/file", b"x" * 100_000)
    fs.tree.symlink("file", "/link")
    fs.tree.unlink("/gone")
    ino = fs.tree.resolve("/file")
    fs.setxattr(ino, b"user.x", b"1")
    file = fs.open_file(ino, os.O_RDWR)
    fs.write(file, 0, b"y")
    fs.create_snapshot(b"s")
    fs.write(file, 0, b"y")
    fs.tree.unlink("/other")
    changed: list[str] = []
    for name, read in READS.items():
        with monkeypatch.context() as watched:
            for owner, method in ((Volume, "handle"), (Journal, "handle"), (Journal, "commit")):
                watched.setattr(owner, method, lambda *_, name=name: changed.append(name))
            read(fs, ino, file)
    assert changed == []
    fs.release(file)
