"""Mapped files below the preload library: every answer is what the kernel's ext4 gives.

Two differences are by design. A process learns that another one has cut or punched a file in its next call on mapped
files (here: msync). A buffer that is no memory ends the program instead of giving EFAULT.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from actor_rig import KEEP_SIZE, PAGE, PRIVATE, PUNCH_HOLE, READ, SHARED, WRITE, ZERO_RANGE, Stage, Step, play, stages
from kernel_rig import kernel_mount
from mount_rig import SESSIONS, mounted
from preloaded_actors import preloaded_stage

RDWR, CREATE = os.O_RDWR, os.O_RDWR | os.O_CREAT
BOTH = READ | WRITE
ROOM = 40 * PAGE


@pytest.fixture
def sides(pool: Callable[..., Path]) -> Iterator[tuple[Stage, ...]]:
    """Yield the stages of a daxfs mount, whose actors have the library, and of an ext4 mount."""
    with (
        mounted(pool("-b", "4096"), *SESSIONS["kernel"]) as mount,
        kernel_mount(pool("-b", "4096")) as place,
        preloaded_stage(mount.place) as ours,
        stages(place) as (theirs,),
    ):
        yield ours, theirs


def file(size: int, *actors: str, length: int = 0) -> list[Step]:
    """Make a file of letters, which every actor opens as 0 and maps shared as 0."""
    content = bytes(65 + number % 26 for number in range(-(-size // 512)) for _ in range(512))[:size]
    return [
        ("maker", "open", 0, "f", CREATE),
        ("maker", "pwrite", 0, content, 0),
        ("maker", "end"),
        *(
            step
            for actor in actors
            for step in (
                (actor, "open", 0, "f", RDWR),
                (actor, "map", 0, 0, length or size + 8 * PAGE, BOTH, SHARED),
            )
        ),
    ]


SHARING: list[Step] = [
    *file(4 * PAGE + 100, "a", "b"),
    ("a", "store", 0, 10, b"stored"),
    ("b", "load", 0, 0, 100),
    ("b", "pread", 0, 100, 0),
    ("c", "content", "f"),
    ("b", "pwrite", 0, b"written", 12),
    ("a", "load", 0, 0, 100),
    ("b", "pwrite", 0, b"written", 3 * PAGE - 3),
    ("a", "load", 0, 3 * PAGE - 10, 20),
    ("a", "msync", 0),
    ("a", "drop", 0),
    ("a", "load", 0, 2 * PAGE - 10, 20),
    # Below mappings of both, the file grows.
    ("a", "load", 0, 5 * PAGE, 1),
    ("b", "pwrite", 0, b"y" * 2 * PAGE, 4 * PAGE),
    ("a", "load", 0, 4 * PAGE, 2 * PAGE),
    ("a", "store", 0, 5 * PAGE, b"in what has grown"),
    ("b", "load", 0, 5 * PAGE, 30),
    ("b", "pread", 0, 30, 5 * PAGE),
    ("b", "pwrite", 0, b"again", 5 * PAGE + 3),
    ("a", "load", 0, 5 * PAGE, 30),
    ("a", "pread", 0, 30, 5 * PAGE),
    ("a", "store", 0, 77, b"before the end of the process"),
    ("a", "end"),
    ("b", "pread", 0, 200, 0),
    ("b", "fsync", 0),
    ("b", "unmap", 0),
    ("b", "content", "f"),
]

CUTTING: list[Step] = [
    *file(3 * PAGE + 500, "a", "b"),
    ("a", "load", 0, 3 * PAGE, 600),
    ("a", "load", 0, 4 * PAGE, 1),
    ("a", "store", 0, 4 * PAGE, b"x"),
    ("a", "truncate", "f", PAGE + 300),
    ("b", "msync", 0, 1),
    ("a", "load", 0, PAGE + 290, 20),
    ("a", "load", 0, 2 * PAGE, 1),
    ("b", "load", 0, 2 * PAGE, 1),
    ("b", "store", 0, 3 * PAGE, b"x"),
    ("a", "truncate", "f", 4 * PAGE),
    ("a", "load", 0, PAGE + 290, 20),
    ("a", "load", 0, 2 * PAGE, 2 * PAGE),
    ("a", "store", 0, 3 * PAGE, b"back again"),
    ("b", "load", 0, 2 * PAGE, 2 * PAGE),
    ("b", "pread", 0, PAGE, 3 * PAGE),
    ("a", "fallocate", 0, PUNCH_HOLE | KEEP_SIZE, 100, PAGE),
    ("b", "msync", 0, 1),
    ("a", "load", 0, 0, 2 * PAGE),
    ("b", "load", 0, 0, 2 * PAGE),
    ("b", "store", 0, 200, b"into the hole"),
    ("a", "load", 0, 0, PAGE),
    ("a", "fallocate", 0, ZERO_RANGE, 0, PAGE),
    ("b", "msync", 0, 1),
    ("b", "load", 0, 0, PAGE),
    ("a", "open", 3, "f", os.O_RDWR | os.O_TRUNC),
    ("a", "load", 0, 0, 1),
    ("a", "size", "f"),
]

PRIVATES: list[Step] = [
    *file(3 * PAGE, "a", "b"),
    ("a", "map", 1, 0, 3 * PAGE, BOTH, PRIVATE),
    ("b", "open", 2, "f", os.O_RDONLY),
    ("b", "map", 1, 2, 3 * PAGE, READ, PRIVATE),
    ("a", "store", 1, 5, b"mine"),
    ("a", "load", 1, 0, 20),
    ("a", "load", 0, 0, 20),
    ("b", "load", 1, 0, 20),
    ("b", "pread", 0, 20, 0),
    ("b", "pwrite", 0, b"theirs", 0),
    ("b", "pwrite", 0, b"theirs", PAGE),
    ("a", "load", 1, 0, 20),
    ("a", "load", 1, PAGE, 20),
    ("a", "msync", 1),
    ("a", "drop", 1),
    ("a", "load", 1, 0, 20),
    ("b", "store", 1, 0, b"no right"),
    ("b", "protect", 1, BOTH),
    ("b", "store", 1, 0, b"a right"),
    ("b", "load", 1, 0, 20),
    ("b", "truncate", "f", PAGE),
    ("b", "load", 1, 0, 20),
    ("b", "load", 1, PAGE, 20),
    ("c", "content", "f"),
]

LIVES: list[Step] = [
    *file(2 * PAGE, "a", "b"),
    # A mapping outlives its descriptor and the file's names.
    ("a", "close", 0),
    ("a", "store", 0, 0, b"without a descriptor"),
    ("b", "pread", 0, 30, 0),
    ("b", "rename", "f", "g"),
    ("a", "store", 0, 100, b"renamed"),
    ("a", "msync", 0),
    ("b", "content", "g"),
    ("b", "unlink", "g"),
    ("a", "store", 0, 200, b"unlinked"),
    ("b", "load", 0, 0, 300),
    ("b", "remap", 0, 60 * PAGE),
    ("b", "load", 0, PAGE, PAGE),
    ("b", "load", 0, 2 * PAGE, 1),
    ("b", "remap", 0, PAGE),
    ("b", "load", 0, PAGE - 10, 10),
    ("b", "end"),
    ("a", "msync", 0),
    ("a", "load", 0, 0, 300),
    ("a", "remap", 0, PAGE),
    ("a", "load", 0, 0, PAGE),
    ("a", "unmap", 0),
    # Who may map how.
    ("a", "open", 0, "h", os.O_WRONLY | os.O_CREAT),
    ("a", "pwrite", 0, b"h" * 100, 0),
    ("a", "open", 1, "h", os.O_RDONLY),
    *(
        ("a", "map", number, slot, PAGE, protection, flags)
        for number, (slot, protection, flags) in enumerate(
            (slot, protection, flags)
            for slot in (0, 1)
            for protection in (READ, WRITE, BOTH)
            for flags in (SHARED, PRIVATE)
        )
    ),
    ("a", "map", 50, 1, PAGE, READ, SHARED),
    ("a", "protect", 50, BOTH),
    ("a", "load", 50, 0, 200),
    ("a", "store", 50, 0, b"x"),
    ("a", "map", 51, 1, PAGE, READ, SHARED, 100),
    ("a", "map", 51, 1, PAGE, READ, SHARED, 1 << 50),
    ("a", "load", 51, 0, 1),
    ("a", "map", 52, 1, 0, READ, SHARED),
]


@pytest.mark.parametrize("script", [SHARING, CUTTING, PRIVATES, LIVES], ids=["sharing", "cutting", "privates", "lives"])
def test_rules(sides: tuple[Stage, ...], script: list[Step]) -> None:
    play(sides, script)


def random_steps(chance: random.Random, count: int) -> Iterator[Step]:
    """Yield random changes and reads of the file; each process makes a call after what frees blocks."""
    one = chance.choice
    for _ in range(count):
        at = chance.randrange(ROOM)
        size = min(one((1, 7, 100, 512, 3000, PAGE, 3 * PAGE, 50_000)), ROOM - at)
        content = bytes([chance.randrange(65, 91)]) * size
        steps: list[tuple[int, Step]] = [
            (10, ("store_within", 0, 0, at, content)),
            (10, ("load", 0, at, size)),
            (8, ("pwrite", 0, content, at)),
            (8, ("pread", 0, size, at)),
            (3, ("truncate", "f", at)),
            (2, ("truncate", "f", ROOM - 5)),
            (3, ("fallocate", 0, PUNCH_HOLE | KEEP_SIZE, at, size)),
            (2, ("fallocate", 0, one((ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, 0, KEEP_SIZE)), at, size)),
            (3, ("msync", 0, one((4, 4, 1, 2)))),
            (1, ("fsync", 0)),
            (1, ("drop", 0)),
            (2, ("size", "f")),
        ]
        (step,) = chance.choices([step for _, step in steps], [weight for weight, _ in steps])
        yield (one("ab"), *step)
        if step[0] in {"truncate", "fallocate"}:
            yield from (("a", "msync", 0, 1), ("b", "msync", 0, 1))
        if chance.random() < 0.03:
            who = one("ab")
            yield from ((who, "unmap", 0), (who, "map", 0, 0, ROOM + 8 * PAGE, BOTH, SHARED))


def walk(sides: tuple[Stage, ...], seed: int, steps: int) -> None:
    play(sides, file(ROOM - 8 * PAGE, "a", "b", length=ROOM + 8 * PAGE))
    play(sides, random_steps(random.Random(seed), steps))
    play(sides, [("a", "end"), ("b", "end"), ("c", "content", "f")])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_steps(sides: tuple[Stage, ...], seed: int) -> None:
    walk(sides, seed, 300)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(10, 30))
def test_many_random_steps(sides: tuple[Stage, ...], seed: int) -> None:
    walk(sides, seed, 2000)
