"""Truncates: what they free, and what a file shows where its old end was."""

from __future__ import annotations

import os

import pytest

from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import SetAttributes


@pytest.mark.crash
def test_growing_shows_zeros_where_the_old_end_was(fs: FileSystem) -> None:
    file, made = fs.create(ROOT_INO, b"f", 0o644)
    fs.write(file, 0, b"\xff" * 8192)
    fs.setattr(made.ino, SetAttributes(size=100))
    fs.setattr(made.ino, SetAttributes(size=8192))
    assert bytes(fs.read(file, 0, 8192)) == b"\xff" * 100 + bytes(8092)
    fs.write(file, 0, b"\xee" * 5000)
    fs.setattr(made.ino, SetAttributes(size=4500))
    fs.write(file, 6000, b"z")
    assert bytes(fs.read(file, 4400, 1601)) == b"\xee" * 100 + bytes(1500) + b"z"
    fs.release(file)


@pytest.mark.crash
def test_truncating_open_frees_the_blocks(fs: FileSystem) -> None:
    free = fs.statfs().free
    file, made = fs.create(ROOT_INO, b"f", 0o644)
    fs.write(file, 0, b"x" * (1 << 20))
    fs.release(file)
    assert fs.statfs().free == free - 256
    fs.release(fs.open_file(made.ino, os.O_RDWR | os.O_TRUNC))
    assert fs.getattr(made.ino).size == 0
    assert fs.statfs().free == free
