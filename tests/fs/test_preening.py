"""``e2fsck -p`` mends every cut of a mount and an unmount without a question, but for a torn superblock, which daxfs
mends: e2fsck looks at its checksum before it looks at the log, and -p goes no further.

A torn superblock is one of two images, and `name_of_tear` knows both: the torn flag, and the torn home copy.
"""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from crash_rig import FORMATS, QUIET, Run, image, torn_superblock, words_agree
from explorer.disk import Disk
from explorer.sweep import sweep
from recorder import RecordingPool

from daxfs.errors import Corrupt
from daxfs.ext4.features import Incompat
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.mounting import TornView, log_area, read_superblock
from daxfs.fs.types import Options
from daxfs.journal import recovery
from daxfs.journal.log import load_superblock
from daxfs.pmem.memory import MemoryPool
from daxfs.tools import check
from support import HANG_SECONDS, fsck, mke2fs, tool

STEPS = [("write new", ""), ("unlink open", ""), ("mkdir", "sync"), ("release", "")]
MENDED = (0, 1)
TEARS: dict[str, set[str]] = {"no-csum": set()}
"""The tears that the life of a mount may leave, by format."""


def preen(path: Path, *more: str) -> int:
    """Run ``e2fsck -p``; return its exit code."""
    command = [tool("e2fsck"), "-p", *more, str(path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG_SECONDS, check=False)
    return done.returncode


def name_of_tear(content: bytearray, whole: list[bytes]) -> str:
    """Return which of the two torn superblocks an image has, "" if neither.

    Args:
        content: the image.
        whole: all superblocks that were whole at home until then.
    """
    pool = MemoryPool(bytes(content))
    found = superblock_of(content)
    inverted = bytearray(content)
    inverted[SUPERBLOCK_OFFSET + 0x60] ^= int(Incompat.needs_recovery)
    geometry = Geometry.of(read_superblock(pool))
    area = log_area(TornView(pool, geometry), read_superblock(pool))
    block, offset = divmod(SUPERBLOCK_OFFSET, geometry.block_size)
    logged = recovery.newest_copy(pool, geometry, area, block)
    if load_superblock(pool, geometry, area).s_start == 0:
        return "" if torn_superblock(inverted) else "torn flag"
    if logged is None or not found[0x60] & Incompat.needs_recovery:
        return ""
    newest = bytes(logged[offset : offset + len(found)])
    return "torn home copy" if any(words_agree(found, [newest, old]) for old in whole) else ""


def superblock_of(content: bytearray) -> bytes:
    return bytes(content[SUPERBLOCK_OFFSET : 2 * SUPERBLOCK_OFFSET])


def sweep_life(
    content: bytes, pool: RecordingPool, path: Path, *, alone: int, subsets: int
) -> tuple[int, Counter[str]]:
    """Cut from the first store of a mount to the last of its unmount; return the number of images, and of each tear."""
    disk = Disk(content, Geometry.of(read_superblock(MemoryPool(content))).block_size)
    images = 0
    torn: Counter[str] = Counter()
    seen: set[bytes] = set()
    whole = [superblock_of(disk.content)]
    for shown in sweep(pool.events, disk, random.Random(1), alone=alone, subsets=subsets):
        if not torn_superblock(disk.content) and superblock_of(disk.content) not in whole:
            whole.append(superblock_of(disk.content))
        digest = disk.digest()
        if digest in seen:
            continue
        seen.add(digest)
        images += 1
        where = f"cut at {shown.position} of {len(pool.events)}, {shown.label}"
        path.write_bytes(disk.content)
        code = preen(path)
        if code not in MENDED:
            assert torn_superblock(disk.content), f"{where}: e2fsck -p says {code}"
            tear = name_of_tear(disk.content, whole)
            assert tear, f"{where}: e2fsck -p says {code}, to an image without a name"
            torn[tear] += 1
            with FileSystem.open(MemoryPool(bytearray(disk.content))):
                pass
            path.write_bytes(disk.content)
            assert check.check(str(path), ["-p"]) == 1, where
        # Without -f e2fsck leaves a needless orphan_present, which it does not take for damage.
        assert preen(path, "-f") in MENDED, where
        fsck(path)
    return images, torn


@pytest.mark.parametrize("name", FORMATS)
def test_every_cut_of_mount_and_unmount_is_preened(tmp_path: Path, name: str) -> None:
    run = Run(image(name), STEPS, close=True)
    images, torn = sweep_life(image(name), run.pool, tmp_path / "pool", alone=3, subsets=2)
    assert images > 40
    assert torn.total() < images / 8
    assert torn.keys() <= TEARS.get(name, {"torn flag", "torn home copy"})


@pytest.mark.parametrize("name", FORMATS)
def test_every_cut_of_the_first_mount_is_preened(tmp_path: Path, name: str) -> None:
    """The first mount sets the features of the log."""
    size, blocks = ("16M", "4") if "4096" in FORMATS[name] else ("4M", "1")
    path = mke2fs(tmp_path / "made", *FORMATS[name], "-N", "64", "-J", f"size={blocks}", size=size)
    content = path.read_bytes()
    pool = RecordingPool(bytearray(content))
    FileSystem.open(pool, QUIET).close()
    images, torn = sweep_life(content, pool, tmp_path / "pool", alone=3, subsets=2)
    assert images > 20
    assert torn.keys() <= TEARS.get(name, {"torn flag", "torn home copy"})


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
def test_every_line_of_mount_and_unmount_is_preened(tmp_path: Path, name: str) -> None:
    run = Run(image(name), STEPS, close=True)
    images, torn = sweep_life(image(name), run.pool, tmp_path / "pool", alone=400, subsets=16)
    assert images > 400
    assert torn.keys() == TEARS.get(name, {"torn flag", "torn home copy"})


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
