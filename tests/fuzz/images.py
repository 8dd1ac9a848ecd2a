"""The images that the fuzzer damages: small, and with every structure that it knows."""

from __future__ import annotations

import random
from pathlib import Path

from tree_rig import PoolSide, furnish, mingle

from daxfs.fs.filesystem import FileSystem
from support import mke2fs

FORMATS = {
    "default": ("-b", "1024"),
    "orphan file": ("-b", "1024", "-O", "orphan_file"),
    "no checksums": ("-b", "1024", "-O", "^metadata_csum", "-g", "2048"),
    "no extents": ("-b", "1024", "-O", "^extent,^64bit,^has_journal,^dir_index", "-I", "128"),
    "groups": ("-b", "1024", "-g", "1024", "-O", "^flex_bg"),
}


def image(folder: Path, name: str) -> bytes:
    """Make an image of a format."""
    path = mke2fs(folder / "base", *FORMATS[name], size="8M")
    with FileSystem.open(path) as fs:
        furnish(fs)
        mingle(PoolSide(fs), random.Random(1), {}, 60)
    content = path.read_bytes()
    path.unlink()
    return content
