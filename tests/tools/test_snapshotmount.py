"""``daxfs snapshot mount`` without a mount: how the file that shows the snapshot is opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from crash_rig import image

from daxfs.fs.filesystem import FileSystem
from daxfs.fuse import options
from daxfs.tools import snapshotmount


def test_a_page_that_could_not_be_read_once_is_not_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    path.write_bytes(image("4k"))
    served: list[Any] = []

    def serve(core: FileSystem, *_: object) -> None:
        with core:
            pool = core.volume.pool
            served.append((core.read_only, pool.faults.lasting, pool.path, core.tree.read_bytes("f")))

    monkeypatch.setattr(snapshotmount.mounting, "serve_core", serve)
    wanted = options.parse(list(snapshotmount.ALWAYS))
    snapshotmount._serve_image(os.open(path, os.O_RDONLY), "pool@name", "/mnt", wanted, lambda: None)
    with FileSystem.open(path) as fs:
        assert served == [(True, False, "pool@name", fs.tree.read_bytes("f"))]
