"""The feature flag needs_recovery in the pool's own superblock: stored durably, and repaired when it is torn."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from crash_rig import image, torn_superblock
from recorder import RecordingPool

from daxfs.ext4.features import Incompat
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET, Superblock
from daxfs.fs import recovery_flag
from daxfs.fs.filesystem import FileSystem
from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.pool import Pool
from daxfs.tools import check
from support import HANG_SECONDS, fsck, tool, write_image

MENDED = (0, 1)


def preen(path: Path, *more: str) -> int:
    """Run ``e2fsck -p``; return its exit code."""
    command = [tool("e2fsck"), "-p", *more, str(path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG_SECONDS, check=False)
    return done.returncode


def pool_of() -> RecordingPool:
    """Return a recording pool that was unmounted cleanly."""
    return RecordingPool(bytearray(image("4k")))


def flag(pool: Pool) -> bool:
    """Return whether the flag is set, in a superblock whose checksum is right."""
    sb = Superblock(memoryview(bytearray(pool.memory[SUPERBLOCK_OFFSET : 2 * SUPERBLOCK_OFFSET])))
    assert not sb.is_torn()
    return bool(sb.s_feature_incompat & Incompat.needs_recovery)


def test_it_is_raised_and_lowered_durably() -> None:
    pool = pool_of()
    assert not flag(pool)
    for raised in (True, True, False, False):
        recovery_flag.store(pool, raised=raised)
        assert flag(pool) is raised
        assert bytes(pool.image()) == bytes(pool.memory), "after a fence"


def test_a_flag_that_is_so_already_is_not_stored() -> None:
    pool = pool_of()
    recovery_flag.store(pool, raised=False)
    assert pool.events == []


def test_every_cut_of_a_store_is_whole_or_mended() -> None:
    """A mend stores nothing into a whole superblock, and leaves a whole one."""
    tears = 0
    for raised in (True, False):
        pool = pool_of()
        recovery_flag.store(pool, raised=not raised)
        start = len(pool.events)
        recovery_flag.store(pool, raised=raised)
        for left in pool.crash_images(random.Random(1), start=start):
            cut = MemoryPool(bytearray(left.image))
            torn = torn_superblock(left.image)
            tears += torn
            assert recovery_flag.mend(cut) is torn
            flag(cut)
            assert not recovery_flag.mend(cut)
    assert tears


def test_other_damage_is_not_mended() -> None:
    content = bytearray(image("4k"))
    content[SUPERBLOCK_OFFSET + 0x0C] ^= 1
    pool = MemoryPool(bytearray(content))
    assert not recovery_flag.mend(pool)
    assert pool.image() == content


@pytest.mark.parametrize("by_mount", [True, False], ids=["mount", "check"])
def test_a_torn_flag_is_mended_by_a_mount_and_by_check(tmp_path: Path, by_mount: bool) -> None:
    """The flag's word has reached the medium, and the checksum's has not."""
    content = bytearray(image("4k"))
    content[1024 + 0x60] ^= 4
    assert torn_superblock(content)
    path = tmp_path / "pool"
    write_image(path, content)
    assert preen(path) not in MENDED
    write_image(path, content)
    if by_mount:
        with FileSystem.open(path):
            pass
    else:
        assert check.check(str(path), ["-p"]) == 1
    fsck(path)
