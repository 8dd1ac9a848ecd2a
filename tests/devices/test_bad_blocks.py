"""Bad blocks that the kernel lists of a device: named, never touched, replaced or mended by whoever writes them."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from pathlib import Path

import pytest
from device_rig import checked, contents, daxfs, mkfs, mounted, said
from poison_injection import PAGE, poison

from daxfs.tools import badblocks
from support import run

CONTENT = {name: os.urandom(5 * PAGE + 100) for name in ("hit", "other")}
DEVICES = ("bad", "bad-devdax")
"""Namespaces of their own: poison stays."""


def listed(place: Path) -> list[dict[str, object]]:
    """What ``daxfs badblocks --json`` says; exit code 1."""

    def action() -> None:
        sys.exit(badblocks.show(str(place), as_json=True))

    found: list[dict[str, object]] = json.loads(said(action, badblocks.FOUND))["places"]
    return found


@pytest.mark.parametrize("ground", DEVICES, indirect=True)
def test_a_bad_block_of_a_file(ground: Path) -> None:
    pool = mkfs(ground)
    with mounted(pool) as mount:
        for name, content in CONTENT.items():
            (mount.place / name).write_bytes(content)
    with contents(pool) as file:
        found = re.search(r"(?m)^(\d+)$", run("debugfs", "-R", "bmap /hit 2", file))
    assert found
    block = int(found[1])
    poison(pool, block * PAGE)
    wanted = {"offset": block * PAGE, "length": PAGE, "kind": "data", "path": "/hit", "file_offset": 2 * PAGE}
    assert [{name: place[name] for name in wanted} for place in listed(pool)] == [wanted]
    with mounted(pool, "dax=never") as mount, (mount.place / "hit").open("rb", buffering=0) as hit:
        for page in (0, 1, 3, 4):
            assert os.pread(hit.fileno(), PAGE, page * PAGE) == CONTENT["hit"][page * PAGE :][:PAGE]
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.pread(hit.fileno(), PAGE, 2 * PAGE)
        assert os.fstat(hit.fileno()).st_size == len(CONTENT["hit"])
    with mounted(pool) as mount:
        assert [place["path"] for place in listed(mount.place)] == ["/hit"]
        descriptor = os.open(mount.place / "hit", os.O_RDWR)
        assert os.pread(descriptor, 4 * PAGE, PAGE) == CONTENT["hit"][PAGE : 2 * PAGE]
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.pread(descriptor, 100, 2 * PAGE + 50)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.pwrite(descriptor, b"a part", 2 * PAGE)
        assert os.pread(descriptor, 10 * PAGE, 3 * PAGE) == CONTENT["hit"][3 * PAGE :]
        assert (mount.place / "other").read_bytes() == CONTENT["other"]
        assert os.pwrite(descriptor, b"n" * PAGE, 2 * PAGE) == PAGE
        os.close(descriptor)
        daxfs("sync", mount.place)
        new = CONTENT["hit"][: 2 * PAGE] + b"n" * PAGE + CONTENT["hit"][3 * PAGE :]
        assert (mount.place / "hit").read_bytes() == new
        (mount.place / "other").unlink()
        (mount.place / "other").write_bytes(CONTENT["other"])
    checked(pool)
    with mounted(pool) as mount:
        assert (mount.place / "hit").read_bytes() == new
        assert (mount.place / "other").read_bytes() == CONTENT["other"]
        assert mount.daemon.poll() is None
    checked(pool)
    with contents(pool) as file:
        replaced = str(block) in run("dumpe2fs", "-b", file).split()
    assert replaced or "no bad memory" in daxfs("badblocks", pool), "the block is good again, or nobody's"


def test_a_bad_superblock(devices: dict[str, Path], tmp_path: Path) -> None:
    """The mount is refused by one line, which says what can replace it. The last test on this namespace."""
    pool = mkfs(devices["bad"])
    poison(pool, 0)
    said = daxfs("mount", pool, tmp_path, code=32)
    assert "the superblock lies in bad memory; e2fsck -b 32768 takes a backup in its place" in said
    assert len(said.splitlines()) == 1
