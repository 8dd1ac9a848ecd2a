"""Power cuts of the whole file system: recovery brings back a state that the tree went through.

Every single operation and a sample of sequences, each perhaps followed by a sync, are cut before each fence with every
kind of subset of the stores that are not durable by then (`recorder`). daxfs recovers each image and e2fsck checks the
result; e2fsck and the kernel recover a sample of them to the same tree.
"""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest
from crash_rig import (
    AFTER,
    AGAIN,
    FORMATS,
    QUIET,
    SINGLE,
    Run,
    Step,
    grow_everything,
    image,
    recover,
    recover_by_e2fsck,
    recover_by_kernel,
    torn_descriptor,
    torn_superblock,
    unlike,
)
from recorder import CrashImage, RecordingPool

from daxfs.fs import removal, truncating
from daxfs.fs.filesystem import FileSystem
from support import fsck


def check(run: Run, left: CrashImage, path: Path, *, grow: bool = False) -> None:
    """Check that daxfs recovers the image to a state that the workload may leave, and that e2fsck finds nothing."""
    found = recover(left.image)
    wrong = run.judge(found, left.position)
    assert not wrong, run.describe(left) + "\n" + "\n".join(wrong)
    if grow:
        assert not grow_everything(left.image), run.describe(left)
    path.write_bytes(left.image)
    try:
        fsck(path)
    except AssertionError as error:
        raise AssertionError(run.describe(left)) from error


def sweep(steps: list[Step], name: str, path: Path, share: float, *, prefixes: int = 2, subsets: int = 3) -> int:
    """Cut one workload everywhere, and check a share of the images; return their number."""
    seed = zlib.crc32(repr((steps, name)).encode())
    rng = random.Random(seed)
    run = Run(image(name), steps)
    count = 0
    for left in run.images(rng, share, prefixes=prefixes, subsets=subsets):
        check(run, left, path, grow=rng.random() < 0.25)
        count += 1
    return count


def sequences(count: int, seed: int) -> list[tuple[list[Step], str]]:
    """Return random workloads of two and three operations with formats."""
    rng = random.Random(seed)
    return [
        (
            [(rng.choice(SINGLE), rng.choice(("", "", *AFTER))) for _ in range(rng.choice((2, 2, 3)))],
            rng.choice(list(FORMATS)),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("after", AFTER)
def test_one_operation(tmp_path: Path, after: str) -> None:
    images = {name: sweep([(name, after)], "1k", tmp_path / "pool", 0.2) for name in SINGLE}
    assert all(images.values()), [name for name, count in images.items() if not count]


def test_every_operation_does_something() -> None:
    """No operation is refused, and all but the trim and the moves of blocks change the tree."""
    for operation in SINGLE:
        *_, before, after = Run(image("1k"), [(operation, "")]).moments
        assert after.name == operation
        assert after.picture != before.picture or operation.startswith(("trim", "relocate")), operation


STORIES: list[list[Step]] = [
    [("collapse", ""), ("overwrite moved", "")],
    [("insert", ""), ("overwrite moved", "")],
    [("fill", "sync"), ("unlink big", ""), ("write beyond", "")],
    [("fill", "sync"), ("truncate to nothing", ""), ("write beyond", "")],
    [("split leaf", ""), ("split leaf", "")],
    [("atomic overwrite", "sync"), ("punch", "sync"), ("fill", "sync")],
    [("atomic overwrite", "fsync"), ("unlink big", "sync"), ("fill", "sync")],
    [("atomic overwrite", "fsync"), ("overwrite atomic", "fsync")],
    [("atomic overwrite", ""), ("overwrite atomic", "fsync"), ("atomic overwrite", "")],
    [("atomic overwrite", "fsync"), ("zero", ""), ("overwrite atomic", "fsync")],
    [("atomic overwrite of a word", ""), ("punch to the end", "")],
    [("atomic overwrite of a word", ""), ("zero unaligned", "")],
    [("journal", "sync"), ("atomic journaled overwrite", "fsync"), ("punch", "sync"), ("fill", "sync")],
    [("journal", ""), ("atomic journaled overwrite", "sync"), ("journal no longer", ""), ("overwrite atomic", "fsync")],
]
"""What a random choice seldom hits: blocks that moved are stored to, freed blocks are the only ones, an index grows,
blocks that the log holds are freed and used again, or stored to in place."""


@pytest.mark.parametrize("steps", STORIES, ids=lambda steps: " ".join(name for name, _ in steps))
def test_stories(tmp_path: Path, steps: list[Step]) -> None:
    assert sweep(steps, "1k", tmp_path / "pool", 1) > 5


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "no-extents"])
@pytest.mark.parametrize("steps", STORIES, ids=lambda steps: " ".join(name for name, _ in steps))
def test_stories_in_full(tmp_path: Path, name: str, steps: list[Step]) -> None:
    assert sweep(steps, name, tmp_path / "pool", 1, prefixes=6, subsets=9) > 10


def test_sequences(tmp_path: Path) -> None:
    images = sum(sweep(steps, name, tmp_path / "pool", 0.12) for steps, name in sequences(40, 1))
    assert images > 50


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("after", AFTER)
def test_one_operation_in_full(tmp_path: Path, name: str, after: str) -> None:
    for operation in SINGLE:
        sweep([(operation, after)], name, tmp_path / "pool", 1, prefixes=6, subsets=9)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(2, 10))
def test_sequences_in_full(tmp_path: Path, seed: int) -> None:
    for steps, name in sequences(100, seed):
        sweep(steps, name, tmp_path / "pool", 0.7, prefixes=4, subsets=6)


# Lifecycle


LIFE: list[Step] = [
    ("unlink open", ""),
    ("write to unlinked", "sync"),
    ("write new", ""),
    ("overwrite", ""),
    ("truncate unaligned", ""),
    ("release", ""),
    ("rmdir", ""),
]


def life(name: str, path: Path, share: float, *, prefixes: int, subsets: int) -> int:
    """Cut from the first store of the mount to the last of the unmount, none refused; return the number of images."""
    rng = random.Random(zlib.crc32(name.encode()))
    run = Run(image(name), LIFE, close=True)
    count = 0
    for left in run.images(rng, share, prefixes=prefixes, subsets=subsets, start=0):
        check(run, left, path)
        count += 1
    return count


@pytest.mark.parametrize("name", FORMATS)
def test_mount_and_unmount(tmp_path: Path, name: str) -> None:
    assert life(name, tmp_path / "pool", 0.5, prefixes=2, subsets=3) > 10


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
def test_mount_and_unmount_in_full(tmp_path: Path, name: str) -> None:
    assert life(name, tmp_path / "pool", 1, prefixes=30, subsets=90) > 200


def cut_recoveries(steps: list[Step], name: str, path: Path, share: float, inner: float) -> int:
    """Cut the recovery of images that cuts have left."""
    rng = random.Random(zlib.crc32(repr(steps).encode()))
    run = Run(image(name), steps)
    count = 0
    for left in run.images(rng, share):
        recorder = RecordingPool(left.image)
        FileSystem.open(recorder, QUIET).close()
        for again in recorder.crash_images(rng, prefixes=2, subsets=3):
            if rng.random() >= inner:
                continue
            check(run, left._replace(image=again.image, choice=f"{left.choice}; then {again[1:]}"), path)
            count += 1
    return count


def test_cuts_of_the_recovery(tmp_path: Path) -> None:
    assert sum(cut_recoveries(steps, name, tmp_path / "pool", 0.05, 0.2) for steps, name in sequences(20, 50)) > 30


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_cuts_of_the_recovery_in_full(tmp_path: Path) -> None:
    assert sum(cut_recoveries(steps, name, tmp_path / "pool", 0.3, 0.5) for steps, name in sequences(60, 51)) > 3000


# Files without a name

NAMELESS: list[list[Step]] = [
    [("tmpfile", ""), ("name tmpfile", "")],
    [("tmpfile", "sync"), ("name tmpfile", ""), ("write to unlinked", "sync"), ("release", "")],
    [("tmpfile", "sync"), ("tmpfile", "sync"), ("name tmpfile", "sync"), ("unlink named", ""), ("release", "")],
    [
        ("unlink open", ""),
        ("tmpfile", "sync"),
        ("write to unlinked", "sync"),
        ("name tmpfile", ""),
        ("release", "sync"),
    ],
    [("tmpfile", "sync"), ("release", ""), ("create", "sync")],
]


def nameless(name: str, path: Path, share: float, *, prefixes: int = 2, subsets: int = 3) -> int:
    """Cut the lives of files that are made without a name; nothing may leak, which e2fsck would find."""
    return sum(sweep(steps, name, path, share, prefixes=prefixes, subsets=subsets) for steps in NAMELESS)


@pytest.mark.parametrize("name", FORMATS)
def test_files_without_a_name(tmp_path: Path, name: str) -> None:
    assert nameless(name, tmp_path / "pool", 0.4) > 20


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
def test_files_without_a_name_in_full(tmp_path: Path, name: str) -> None:
    assert nameless(name, tmp_path / "pool", 1, prefixes=10, subsets=30) > 200


# Long stories


SLOW_ENDS: list[list[Step]] = [
    [("unlink one name", ""), ("unlink h", "")],
    [("truncate to nothing", "")],
    [("truncate f unaligned", ""), ("append far", "")],
    [("unlink one name", ""), ("rename g to h", "")],
    [("unlink one name", ""), ("unlink open h", ""), ("mkdir", "sync"), ("release", "")],
]


def end_slowly(name: str, path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> int:
    """Free a file with many extents in many transactions; a cut between them leaves the rest to the orphan list."""
    monkeypatch.setattr(truncating, "CREDITS_CUT", 254)
    monkeypatch.setattr(truncating, "BLOCKS_PER_CUT", 8)
    monkeypatch.setattr(removal, "CREDITS_FREE", 254)
    monkeypatch.setattr(removal, "BLOCKS_PER_STEP", 8)
    count = 0
    for steps in SLOW_ENDS:
        rng = random.Random(len(steps))
        run = Run(image(name), [("scatter", "sync"), *steps])
        for left in run.images(rng, share, start=run.moments[2].begun, prefixes=1, subsets=2):
            check(run, left, path, grow=rng.random() < 0.25)
            count += 1
    return count


@pytest.mark.parametrize("name", ["1k", "no-extents"])
def test_files_that_end_slowly(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert end_slowly(name, tmp_path / "pool", monkeypatch, 0.06) > 20


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "4k"])
def test_files_that_end_slowly_in_full(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert end_slowly(name, tmp_path / "pool", monkeypatch, 1) > 300


def go_round(seed: int, name: str, path: Path, share: float) -> int:
    """Fill the log until it starts over, and cut about there."""
    rng = random.Random(seed)
    run = Run(image(name), [(rng.choice(AGAIN), "sync") for _ in range(330)])
    assert run.laps
    count = 0
    for lap in run.laps[:1]:
        before = next(moment.begun for moment in run.moments if moment.begun >= lap - 60)
        after = next(moment.ended for moment in run.moments if moment.begun >= lap + 60)
        for left in run.images(rng, share, start=before):
            if left.position > after:
                break
            check(run, left, path)
            count += 1
    return count


def test_a_log_that_begins_anew(tmp_path: Path) -> None:
    assert go_round(1, "1k", tmp_path / "pool", 0.3) > 5


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "4k"])
def test_a_log_that_begins_anew_in_full(tmp_path: Path, name: str) -> None:
    for seed in range(2, 8):
        assert go_round(seed, name, tmp_path / "pool", 1) > 20


# Others recover


def others_agree(steps: list[Step], name: str, path: Path, share: float) -> tuple[int, int]:
    """Check that e2fsck and the kernel recover the images to the tree that daxfs finds.

    Return the number of images, and how many of them the kernel refused.
    The kernel checks the superblock and the group descriptors before it reads the log (docs/CRASH.md).
    """
    rng = random.Random(zlib.crc32(repr((steps, name)).encode()))
    run = Run(image(name), steps)
    count = refused = 0
    for left in run.images(rng, share):
        content = bytes(left.image)
        mine = recover(left.image)
        torn = torn_superblock(content)
        if not torn:
            assert not unlike(recover_by_e2fsck(content, path), mine), run.describe(left)
        if torn or torn_descriptor(content):
            refused += 1
        else:
            assert not unlike(recover_by_kernel(content, path), mine), run.describe(left)
        count += 1
    return count, refused


def test_others_recover_to_the_same_tree(tmp_path: Path) -> None:
    results = [others_agree(steps, name, tmp_path / "pool", 0.06) for steps, name in sequences(30, 70)]
    count, refused = map(sum, zip(*results, strict=True))
    assert count > 20
    assert refused < count / 3


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(71, 75))
def test_others_recover_to_the_same_tree_in_full(tmp_path: Path, seed: int) -> None:
    results = [others_agree(steps, name, tmp_path / "pool", 0.3) for steps, name in sequences(60, seed)]
    count, refused = map(sum, zip(*results, strict=True))
    assert count > 500
    assert refused < count / 6
