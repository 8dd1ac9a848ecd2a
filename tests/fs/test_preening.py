"""``e2fsck -p`` mends every cut of a mount and an unmount without a question, but for one image, which daxfs mends.

That image is the torn superblock: e2fsck looks at its checksum before it looks at the log, and -p goes no further.
"""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from crash_rig import FORMATS, Run, image, torn_superblock
from explorer.disk import Disk
from explorer.sweep import sweep

from daxfs.errors import Corrupt
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import Options
from daxfs.pmem.memory import MemoryPool
from daxfs.tools import check
from support import HANG_SECONDS, fsck, tool

STEPS = [("write new", ""), ("unlink open", ""), ("mkdir", "sync"), ("release", "")]
MENDED = (0, 1)


def preen(path: Path, *more: str) -> int:
    """``e2fsck -p``; its exit code."""
    command = [tool("e2fsck"), "-p", *more, str(path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG_SECONDS, check=False)
    return done.returncode


def sweep_life(name: str, path: Path, *, alone: int, subsets: int) -> tuple[int, int]:
    """Cuts from the first store of a mount to the last of its unmount: how many images, and torn superblocks."""
    run = Run(image(name), STEPS, close=True)
    disk = Disk(image(name), run.fs.volume.block_size)
    images = torn = 0
    seen: set[bytes] = set()
    for shown in sweep(run.pool.events, disk, random.Random(name), alone=alone, subsets=subsets):
        if "words" in shown.label:
            continue  # a line of the journal's superblock that is cut within: docs/CRASH.md, "What remains"
        digest = disk.digest()
        if digest in seen:
            continue
        seen.add(digest)
        images += 1
        where = f"{name}: cut at {shown.position} of {len(run.pool.events)}, {shown.label}"
        path.write_bytes(disk.content)
        code = preen(path)
        if code not in MENDED:
            assert torn_superblock(disk.content), f"{where}: e2fsck -p says {code}"
            torn += 1
            with FileSystem.open(MemoryPool(bytearray(disk.content))):
                pass
            path.write_bytes(disk.content)
            assert check.check(str(path), ["-p"]) in MENDED, where
        # Without -f e2fsck leaves a needless orphan_present, which it does not take for damage.
        assert preen(path, "-f") in MENDED, where
        fsck(path)
    return images, torn


@pytest.mark.parametrize("name", FORMATS)
def test_every_cut_of_mount_and_unmount_is_preened(tmp_path: Path, name: str) -> None:
    images, torn = sweep_life(name, tmp_path / "pool", alone=3, subsets=0)
    assert images > 40
    assert torn < images / 8


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
def test_every_line_of_mount_and_unmount_is_preened(tmp_path: Path, name: str) -> None:
    images, _ = sweep_life(name, tmp_path / "pool", alone=400, subsets=8)
    assert images > 400


@pytest.mark.parametrize("by_mount", [True, False], ids=["mount", "check"])
def test_a_torn_flag_is_mended_by_a_mount_and_by_check(tmp_path: Path, by_mount: bool) -> None:
    """The flag's word has reached the medium, and the checksum's has not."""
    content = bytearray(image("4k"))
    content[1024 + 0x60] ^= 4
    assert torn_superblock(content)
    path = tmp_path / "pool"
    path.write_bytes(content)
    assert preen(path) not in MENDED
    path.write_bytes(content)
    if by_mount:
        with FileSystem.open(path):
            pass
    else:
        assert check.check(str(path), ["-p"]) == 1
    fsck(path)


def test_a_superblock_that_is_wrong_elsewhere_is_refused(tmp_path: Path) -> None:
    content = bytearray(image("4k"))
    content[1024 + 0x0C] ^= 1
    path = tmp_path / "pool"
    path.write_bytes(content)
    with pytest.raises(Corrupt, match="superblock checksum"):
        FileSystem.open(path)
    with pytest.raises(Corrupt, match="superblock checksum"):
        FileSystem.open(path, Options(read_only=True))
    assert path.read_bytes() == bytes(content)
