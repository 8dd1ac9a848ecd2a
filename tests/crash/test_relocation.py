"""Power cuts of moves: each cut leaves the old place or the new one, for every kind of block and format.

daxfs recovers each image; e2fsck and the kernel recover a share of them to the same tree.
"""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest
from crash_rig import (
    FORMATS,
    Run,
    image,
    recover,
    recover_by_e2fsck,
    recover_by_kernel,
    torn_descriptor,
    torn_superblock,
    unlike,
)

from support import fsck, write_image

KINDS = ["relocate", "relocate directory", "relocate index", "relocate map", "relocate symlink", "relocate attributes"]
SHARE = 0.4
COMPARED = 3
"""Images of each test that all three recover."""


def torn(content: bytes) -> bool:
    """Whether the kernel refuses an image for what only daxfs and e2fsck mend."""
    return torn_superblock(content) or torn_descriptor(content)


def cut(name: str, steps: list[tuple[str, str]], path: Path) -> int:
    """Cut a workload everywhere, and examine a share of the images; return their number."""
    rng = random.Random(zlib.crc32(repr((steps, name)).encode()))
    run = Run(image(name), steps)
    assert not [moment.name for moment in run.moments if "refused" in moment.name]
    compared = count = 0
    for left in run.images(rng, SHARE):
        before = bytes(left.image)
        found = recover(left.image)
        wrong = run.judge(found, left.position)
        assert not wrong, run.describe(left) + "\n" + "\n".join(wrong)
        write_image(path, left.image)
        fsck(path)
        count += 1
        if compared < COMPARED and rng.random() < 0.5 and not torn(before):
            compared += 1
            assert not unlike(recover_by_e2fsck(before, path), found), run.describe(left)
            assert not unlike(recover_by_kernel(before, path), found), run.describe(left)
    return count


@pytest.mark.parametrize("name", ["4k", "no-csum", "no-extents"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_moves_or_stays(tmp_path: Path, kind: str, name: str) -> None:
    assert cut(name, [(kind, "sync")], tmp_path / "pool") > 1


@pytest.mark.full
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", ["overwrite moved", "split leaf", "replace xattr", "write new in d", "snapshot"])
def test_after_changes(tmp_path: Path, kind: str, name: str, before: str) -> None:
    cut(name, [(before, ""), (kind, "sync")], tmp_path / "pool")


def test_two_moves(tmp_path: Path) -> None:
    assert cut("1k", [("relocate index", ""), ("relocate index", ""), ("split leaf", "sync")], tmp_path / "pool") > 1
