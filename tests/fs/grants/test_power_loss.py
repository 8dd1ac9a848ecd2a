"""Power cuts of operations on leased files: recovery finds the old file or the new one, and nothing else is left.

Each pair of a lease's state and an operation (`lease_rig.pairs`) is recorded from the first request to the last close,
and cut before each fence. daxfs and e2fsck recover the images: deferred frees and the status page are free blocks then.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from crash_rig import READ_ONLY, recover_by_e2fsck, words_agree
from lease_rig import OPERATIONS, STATES, SharedPool, owners, pairs, planted
from recorder import CrashImage
from tree_rig import QUIET

from daxfs.errors import FsError
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.pmem.memory import MemoryPool
from daxfs.structures import orphans
from support import fsck, write_image

FORMATS: dict[str, tuple[str, ...]] = {
    "1k": ("-b", "1024", "-J", "size=1", "-N", "64"),
    "4k": ("-b", "4096", "-J", "size=4", "-N", "64"),
    "orphan-file": ("-b", "1024", "-J", "size=1", "-N", "64", "-O", "orphan_file"),
    "no-extents": ("-b", "1024", "-J", "size=1", "-N", "64", "-O", "^extent,^64bit"),
}
IN_STEPS = (
    "copy into",
    "punch",
    "zero",
    "zero past EOF",
    "allocate",
    "write into a hole",
    "write past EOF",
    "overwrite",
)
"""Operations that are several handles, or stores in place: in between the file may be partly new."""


def image(folder: Path, name: str) -> bytes:
    return planted(folder, name, FORMATS[name])


Files = dict[bytes, bytes]


def files(fs: FileSystem) -> Files:
    """Return the contents of all files by name."""
    found = {}
    for name in (b"f", b"g", b"source"):
        try:
            fs.lookup(ROOT_INO, name)
        except FsError:
            continue
        found[name] = fs.tree.read_bytes(name)
    return found


class Story(NamedTuple):
    """The recorded events, and the files before and after the operation.

    ``durable``: number of events until the new state was synced; ``total``: number of blocks that are free or owned.
    """

    pool: SharedPool
    before: Files
    after: Files
    start: int
    durable: int
    total: int


def live(content: bytes, state: str, operation: str) -> Story:
    """Request a lease, change the file, sync, close."""
    pool = SharedPool(bytearray(content))
    fs = FileSystem.open(pool, QUIET)
    start = len(pool.events)
    pair = STATES[state](fs)
    before = files(fs)
    total = settled(fs)
    OPERATIONS[operation](pair)
    after = files(fs)
    fs.sync()
    durable = len(pool.events)
    pool.mark("durable")
    for file in {id(file): file for file in (*(one.file for one in pair.clients), *pair.others)}.values():
        fs.release(file)
    fs.sync()
    return Story(pool, before, after, start, durable, total)


def settled(fs: FileSystem) -> int:
    """Return the number of blocks that are free or owned, after a commit."""
    if not fs.volume.read_only:
        fs.sync()
    found = owners(fs)
    return len(found.free) + len(found.data) + len(found.metadata)


def judge(story: Story, operation: str, found: Files, position: int) -> None:
    """Check that the files are the old or the new ones, and the new ones if those were synced."""
    if position >= story.durable:
        assert found == story.after
    elif operation in IN_STEPS:
        assert found.keys() == story.before.keys()
        for name, content in found.items():
            old, new = story.before[name], story.after[name]
            assert min(len(old), len(new)) <= len(content) <= max(len(old), len(new))
            versions = [version.ljust(len(content), b"\0")[: len(content)] for version in (old, new)]
            assert words_agree(content, [*versions, bytes(len(content))])
    else:
        assert found in (story.before, story.after)


def recover(story: Story, left: CrashImage, operation: str, path: Path) -> Files:
    """Recover with daxfs, and return the files."""
    with FileSystem.open(MemoryPool(left.image), QUIET) as fs:
        found = files(fs)
        assert not fs.volume.lives.nameless
        assert not list(orphans.listing(fs.volume.view))
        assert settled(fs) == story.total
    judge(story, operation, found, left.position)
    write_image(path, left.image)
    fsck(path)
    return found


def recover_by_others(story: Story, content: bytes, path: Path) -> Files:
    """Recover with e2fsck alone."""
    recover_by_e2fsck(content, path)
    with FileSystem.open(path, READ_ONLY) as fs:
        assert settled(fs) == story.total
        return files(fs)


LEAST = 2
"""Images that are looked at of each pair."""


def sample(images: Iterable[CrashImage], rng: random.Random, share: float) -> Iterator[CrashImage]:
    """Yield a random share of the images, `LEAST` of them at least if there are so many."""
    shown = passed = 0
    spare: list[CrashImage] = []  # a fair choice of the images that do not belong to the share
    for left in images:
        if share == 1.0 or rng.random() < share:
            shown += 1
            yield left
            continue
        passed += 1
        if len(spare) < LEAST:
            spare.append(left)
        elif (at := rng.randrange(passed)) < LEAST:
            spare[at] = left
    yield from spare[: max(LEAST - shown, 0)]


def cut(content: bytes, state: str, operation: str, path: Path, share: float, *, prefixes: int, subsets: int) -> int:
    """Cut one pair; return the number of images."""
    rng = random.Random(zlib.crc32(f"{state} {operation}".encode()))
    story = live(content, state, operation)
    count = 0
    images = story.pool.crash_images(rng, start=story.start, prefixes=prefixes, subsets=subsets)
    for left in sample(images, rng, share):
        count += 1
        by_others = rng.random() < 0.3
        raw = bytes(left.image)
        try:
            mine = recover(story, left, operation, path)
            if by_others:
                assert recover_by_others(story, raw, path) == mine
        except AssertionError as error:
            raise AssertionError(f"{state}, {operation}: cut at {left.position} ({left.choice})") from error
    return count


@pytest.mark.parametrize("state", STATES)
def test_cuts(folder: Path, tmp_path: Path, state: str) -> None:
    for operation in random.Random(state).sample(list(OPERATIONS), 4):
        count = cut(image(folder, "1k"), state, operation, tmp_path / "pool", 0.08, prefixes=1, subsets=1)
        assert count >= LEAST, operation


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("state", STATES)
def test_cuts_in_full(folder: Path, tmp_path: Path, name: str, state: str) -> None:
    for chosen, operation in pairs(name):
        if chosen == state:
            cut(image(folder, name), state, operation, tmp_path / "pool", 1, prefixes=3, subsets=4)
