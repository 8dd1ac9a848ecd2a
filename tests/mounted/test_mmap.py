"""Mapped files: what processes see through mappings, read(2) and O_DIRECT is what the kernel's ext4 shows them.

Each script is played on a mount and on ext4, by the same number of processes; every answer must be equal, a SIGBUS too.
The random walks mix all ways to change a file.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from actor_rig import (
    KEEP_SIZE,
    MS_ASYNC,
    MS_INVALIDATE,
    PAGE,
    PRIVATE,
    PUNCH_HOLE,
    READ,
    SHARED,
    WRITE,
    ZERO_RANGE,
    Stage,
    Step,
    play,
    stages,
)
from in_memory import tmp_path
from kernel_rig import kernel_mount
from mount_rig import SESSIONS, Mounted, mounted

from support import HANG_SECONDS

__all__ = ["tmp_path"]

pytestmark = pytest.mark.parametrize("session", ["kernel"], indirect=True)

RDWR, CREATE, DIRECT = os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_DIRECT
BOTH = READ | WRITE


@pytest.fixture
def sides(mount: Mounted, pool: Callable[..., Path]) -> Iterator[tuple[Stage, ...]]:
    """A mount of daxfs and one of the kernel."""
    with kernel_mount(pool("-b", "4096")) as place, stages(mount.place, place) as both:
        yield both


def file(size: int, *actors: str, name: str = "f") -> list[Step]:
    """A file of letters, opened as 0 by everyone and as 1 with O_DIRECT, mapped shared as 0."""
    content = bytes(65 + number % 26 for number in range(-(-size // 512)) for _ in range(512))[:size]
    return [
        ("maker", "open", 0, name, CREATE),
        ("maker", "pwrite", 0, content, 0),
        ("maker", "end"),
        *(
            step
            for actor in actors
            for step in (
                (actor, "open", 0, name, RDWR),
                (actor, "open", 1, name, DIRECT),
                (actor, "map", 0, 0, size + 8 * PAGE, BOTH, SHARED),
            )
        ),
    ]


SHARING: list[Step] = [
    *file(4 * PAGE + 100, "a", "b"),
    # A store is seen at once: through the other's mapping, by read(2), with O_DIRECT, by a later open.
    ("b", "load", 0, 0, 100),
    ("a", "store", 0, 10, b"stored"),
    ("b", "load", 0, 0, 100),
    ("b", "pread", 0, 100, 0),
    ("b", "read_aligned", 1, PAGE, 0),
    ("c", "content", "f"),
    # So is what is written, over pages that are dirty and over pages that are not.
    ("b", "pwrite", 0, b"written", 12),
    ("a", "load", 0, 0, 100),
    ("b", "pwrite", 0, b"written", 3 * PAGE - 3),
    ("a", "load", 0, 3 * PAGE - 10, 20),
    ("a", "store", 0, PAGE + 5, b"one"),
    ("b", "write_aligned", 1, b"d" * PAGE, PAGE),
    ("a", "load", 0, PAGE - 10, PAGE + 20),
    ("a", "store", 0, PAGE + 5, b"two"),
    ("b", "load", 0, PAGE, 20),
    ("b", "read_aligned", 1, PAGE, PAGE),
    ("a", "msync", 0),
    ("b", "read_aligned", 1, PAGE, PAGE),
    ("a", "store", 0, 2 * PAGE - 2, b"across"),
    ("a", "msync", 0, MS_ASYNC),
    ("a", "msync", 0, MS_INVALIDATE),
    ("b", "pread", 0, 20, 2 * PAGE - 10),
    ("a", "drop", 0),
    ("a", "load", 0, 2 * PAGE - 10, 20),
    ("a", "store", 0, 77, b"before the end of the process"),
    ("a", "end"),
    ("b", "pread", 0, 200, 0),
    ("b", "fsync", 0),
    ("b", "unmap", 0),
    ("b", "content", "f"),
]

PRIVATES: list[Step] = [
    *file(3 * PAGE, "a", "b"),
    ("a", "map", 1, 0, 3 * PAGE, BOTH, PRIVATE),
    ("b", "map", 1, 0, 3 * PAGE, READ, PRIVATE),
    ("a", "load", 1, 0, 20),
    ("a", "store", 1, 5, b"mine"),
    ("a", "load", 1, 0, 20),
    ("a", "load", 0, 0, 20),
    ("b", "load", 1, 0, 20),
    ("b", "pread", 0, 20, 0),
    # The copied page is the process's own, the others follow the file.
    ("b", "pwrite", 0, b"theirs", 0),
    ("b", "pwrite", 0, b"theirs", PAGE),
    ("a", "load", 1, 0, 20),
    ("a", "load", 1, PAGE, 20),
    ("b", "store", 0, 2 * PAGE, b"through the other mapping"),
    ("a", "load", 1, 2 * PAGE, 30),
    ("a", "msync", 1),
    ("a", "load", 1, 0, 20),
    ("a", "drop", 1),
    ("a", "load", 1, 0, 20),
    ("b", "store", 1, 0, b"no right"),
    ("b", "protect", 1, BOTH),
    ("b", "store", 1, 0, b"a right"),
    ("b", "load", 1, 0, 20),
    ("a", "content", "f"),
    # Private stores through a descriptor that may not write, and after the file was cut.
    ("a", "open", 2, "f", os.O_RDONLY),
    ("a", "map", 2, 2, 3 * PAGE, BOTH, PRIVATE),
    ("a", "store", 2, 9, b"copy on write"),
    ("a", "store", 2, 2 * PAGE, b"copy on write"),
    ("b", "truncate", "f", PAGE),
    ("a", "load", 2, 0, 20),
    ("a", "load", 2, 2 * PAGE, 20),
    ("a", "load", 1, 0, 20),
    ("a", "content", "f"),
]

ENDS: list[Step] = [
    *file(3 * PAGE + 500, "a", "b"),
    ("a", "load", 0, 3 * PAGE, 600),
    ("a", "load", 0, 4 * PAGE, 1),
    ("a", "store", 0, 4 * PAGE, b"x"),
    ("b", "truncate", "f", PAGE + 300),
    ("a", "load", 0, PAGE + 290, 20),
    ("a", "load", 0, 2 * PAGE - 1, 1),
    ("a", "load", 0, 2 * PAGE, 1),
    ("a", "store", 0, 3 * PAGE, b"x"),
    ("b", "pread", 0, 4 * PAGE, 0),
    # What was cut off does not come back.
    ("b", "truncate", "f", 4 * PAGE),
    ("a", "load", 0, PAGE + 290, 20),
    ("a", "load", 0, 2 * PAGE, 2 * PAGE),
    ("a", "load", 0, 4 * PAGE, 1),
    ("a", "store", 0, 3 * PAGE, b"back again"),
    ("b", "pread", 0, PAGE, 3 * PAGE),
    ("b", "truncate", "f", 0),
    ("a", "load", 0, 0, 1),
    ("a", "store", 0, 0, b"x"),
    ("b", "pwrite", 0, b"grown", 10),
    ("a", "load", 0, 0, 20),
    # The file grows below the mapping: by a write past EOF, one at EOF, by O_APPEND, fallocate, O_DIRECT.
    ("b", "pwrite", 0, b"y" * 2 * PAGE, PAGE),
    ("a", "load", 0, 0, 3 * PAGE),
    ("b", "open", 2, "f", os.O_WRONLY | os.O_APPEND),
    ("b", "append", 2, b"appended"),
    ("a", "load", 0, 3 * PAGE - 2, 20),
    ("a", "store", 0, 3 * PAGE + 1, b"PP"),
    ("b", "append", 2, b"again"),
    ("a", "load", 0, 3 * PAGE - 2, 30),
    ("b", "pread", 0, 30, 3 * PAGE - 2),
    ("b", "fallocate", 0, 0, 3 * PAGE, 2 * PAGE),
    ("a", "load", 0, 3 * PAGE, 2 * PAGE),
    ("a", "store", 0, 5 * PAGE - 3, b"end"),
    ("b", "write_aligned", 1, b"o" * 2 * PAGE, 5 * PAGE),
    ("a", "load", 0, 5 * PAGE - 5, 20),
    ("a", "load", 0, 7 * PAGE, 1),
    ("a", "size", "f"),
    ("b", "fallocate", 0, KEEP_SIZE, 7 * PAGE, PAGE),
    ("a", "load", 0, 7 * PAGE, 1),
    ("a", "content", "f"),
    ("a", "open", 3, "f", os.O_RDWR | os.O_TRUNC),
    ("a", "load", 0, 0, 1),
    ("b", "store", 0, 0, b"1"),
]

HOLES: list[Step] = [
    *file(6 * PAGE, "a", "b"),
    ("a", "store", 0, 2 * PAGE + 10, b"dirty"),
    ("b", "fallocate", 0, PUNCH_HOLE | KEEP_SIZE, PAGE + 100, 3 * PAGE),
    ("a", "load", 0, 0, 6 * PAGE),
    ("b", "pread", 0, 6 * PAGE, 0),
    ("a", "store", 0, 2 * PAGE + 10, b"into the hole"),
    ("a", "store", 0, 3 * PAGE + 10, b"into the hole"),
    ("b", "pread", 0, 6 * PAGE, 0),
    ("a", "msync", 0),
    ("b", "read_aligned", 1, 6 * PAGE, 0),
    ("b", "blocks", 0),
    ("a", "store", 0, 4 * PAGE + 10, b"dirty"),
    ("b", "fallocate", 0, ZERO_RANGE, 4 * PAGE, 2 * PAGE - 100),
    ("a", "load", 0, 4 * PAGE, 2 * PAGE),
    ("a", "store", 0, 4 * PAGE, b"zeroed before"),
    ("b", "pread", 0, PAGE, 4 * PAGE),
    ("b", "fallocate", 0, ZERO_RANGE, 5 * PAGE, 3 * PAGE),
    ("a", "load", 0, 5 * PAGE, 3 * PAGE),
    ("a", "store", 0, 7 * PAGE + 5, b"grown"),
    ("b", "fallocate", 0, PUNCH_HOLE | KEEP_SIZE, 0, 1 << 40),
    ("a", "load", 0, 0, 8 * PAGE),
    ("b", "blocks", 0),
    # Sparse and far away.
    ("b", "truncate", "f", 1 << 40),
    ("a", "map", 1, 0, 2 * PAGE, BOTH, SHARED, (1 << 40) - 2 * PAGE),
    ("a", "load", 1, 0, 2 * PAGE),
    ("a", "store", 1, PAGE - 2, b"far away"),
    ("b", "pread", 0, 20, (1 << 40) - PAGE - 10),
    ("a", "msync", 1),
    ("b", "blocks", 0),
    ("b", "seek_written", 0, 0, os.SEEK_DATA),
    ("b", "truncate", "f", 0),
    ("b", "blocks", 0),
]

COPIES: list[Step] = [
    *file(4 * PAGE, "a", "b"),
    *file(4 * PAGE, name="g"),
    ("b", "open", 2, "g", RDWR),
    ("b", "map", 1, 2, 8 * PAGE, BOTH, SHARED),
    ("b", "load", 1, 0, 4 * PAGE),
    ("a", "store", 0, 100, b"only stored"),
    ("b", "store", 1, PAGE + 100, b"to be overwritten"),
    ("b", "store", 1, 50, b"to stay"),
    ("b", "copy", 0, 0, 2, PAGE, 2 * PAGE),
    ("b", "load", 1, 0, 4 * PAGE),
    ("b", "copy", 0, 90, 2, 4 * PAGE + 17, 50),
    ("b", "load", 1, 4 * PAGE, 100),
    ("b", "copy", 0, 0, 0, 2 * PAGE, PAGE),
    ("a", "load", 0, 0, 4 * PAGE),
    # write(2) and read(2) whose memory is a mapping: of another file, of the same file, of the same page.
    ("a", "write_from", 0, 2 * PAGE, 0, 0, PAGE),
    ("a", "load", 0, 2 * PAGE, PAGE),
    ("a", "write_from", 0, 100, 0, 300, 50),
    ("a", "load", 0, 0, 400),
    ("a", "read_into", 0, 3 * PAGE, 0, 0, 200),
    ("a", "load", 0, 0, 400),
    ("a", "read_into", 0, 700, 0, 300, 200),
    ("b", "write_from", 2, 0, 0, 0, 3 * PAGE),
    ("b", "read_into", 0, 0, 1, PAGE, 2 * PAGE),
    ("b", "load", 1, 0, 4 * PAGE),
    ("b", "write_from", 1, PAGE, 1, 0, PAGE),
    ("b", "read_into", 1, 0, 1, PAGE, PAGE),
    ("b", "pread", 0, 4 * PAGE, 0),
    ("b", "content", "g"),
    # Pages past EOF of a mapped file are no memory.
    ("a", "write_from", 0, 0, 0, 6 * PAGE, 10),
    ("a", "read_into", 0, 0, 0, 6 * PAGE, 10),
    ("a", "size", "f"),
]

LIVES: list[Step] = [
    *file(2 * PAGE, "a", "b"),
    # A mapping outlives its descriptor and the file's names.
    ("a", "close", 0),
    ("a", "close", 1),
    ("a", "store", 0, 0, b"without a descriptor"),
    ("b", "pread", 0, 30, 0),
    ("b", "rename", "f", "g"),
    ("a", "store", 0, 100, b"renamed"),
    ("a", "msync", 0),
    ("b", "content", "g"),
    ("b", "unlink", "g"),
    ("a", "store", 0, 200, b"unlinked"),
    ("b", "load", 0, 0, 300),
    ("b", "end"),
    ("a", "msync", 0),
    ("a", "load", 0, 0, 300),
    ("a", "remap", 0, 20 * PAGE),
    ("a", "load", 0, PAGE, PAGE),
    ("a", "load", 0, 2 * PAGE, 1),
    ("a", "unmap", 0),
    # Which rights each kind of mapping needs.
    ("a", "open", 0, "h", os.O_WRONLY | os.O_CREAT),
    ("a", "pwrite", 0, b"h" * 100, 0),
    ("a", "open", 1, "h", os.O_RDONLY),
    ("a", "open", 2, ".", os.O_RDONLY),
    *(
        ("a", "map", number, slot, PAGE, protection, flags)
        for number, (slot, protection, flags) in enumerate(
            (slot, protection, flags)
            for slot in (0, 1, 2)
            for protection in (READ, WRITE, BOTH, READ | mmap.PROT_EXEC)
            for flags in (SHARED, PRIVATE)
        )
    ),
    ("a", "map", 50, 1, PAGE, READ, SHARED),
    ("a", "protect", 50, BOTH),
    ("a", "store", 50, 0, b"x"),
    ("a", "map", 51, 1, PAGE, READ, SHARED, 100),
    ("a", "map", 51, 1, PAGE, READ, SHARED, 1 << 50),
    ("a", "load", 51, 0, 1),
    ("a", "map", 52, 1, 0, READ, SHARED),
]


@pytest.mark.parametrize(
    "script",
    [SHARING, PRIVATES, ENDS, HOLES, COPIES, LIVES],
    ids=["sharing", "privates", "ends", "holes", "copies", "lives"],
)
def test_rules(sides: tuple[Stage, ...], script: list[Step]) -> None:
    play(sides, script)


ROOM = 40 * PAGE


def random_step(chance: random.Random) -> Step:
    """One change of, or one look at, the file that `file` made."""
    one = chance.choice
    at = chance.randrange(ROOM)
    size = min(one((1, 7, 100, 512, 3000, PAGE, 3 * PAGE, 50_000)), ROOM - at)
    page, pages = at // PAGE * PAGE, one((1, 1, 2, 5)) * PAGE
    content = bytes([chance.randrange(65, 91)]) * size
    steps: list[tuple[int, Step]] = [
        (10, ("store_within", 0, 0, at, content)),
        (10, ("load", 0, at, size)),
        (8, ("pwrite", 0, content, at)),
        (8, ("pread", 0, size, at)),
        (4, ("write_aligned", 1, bytes([chance.randrange(97, 123)]) * pages, page)),
        (4, ("read_aligned", 1, pages, page)),
        (3, ("truncate", "f", at)),
        (2, ("truncate", "f", ROOM - 5)),
        (3, ("fallocate", 0, PUNCH_HOLE | KEEP_SIZE, at, size)),
        (2, ("fallocate", 0, one((ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, 0, KEEP_SIZE)), at, size)),
        (3, ("copy", 0, at, 0, (at + size + chance.randrange(ROOM)) % ROOM, min(size, ROOM // 3))),
        (3, ("msync", 0, one((4, 4, 1, 2)))),
        (1, ("fsync", 0)),
        (1, ("drop", 0)),
        (2, ("size", "f")),
        (2, ("move_within", "write", 0, at, 0, (at * 7) % ROOM, min(size, ROOM - (at * 7) % ROOM))),
        (2, ("move_within", "read", 0, at, 0, (at * 7) % ROOM, min(size, ROOM - (at * 7) % ROOM))),
    ]
    (step,) = chance.choices([step for _, step in steps], [weight for weight, _ in steps])
    return (one("ab"), *step)


def walk(sides: tuple[Stage, ...], seed: int, steps: int) -> None:
    """Random steps of two processes; then the file is the same."""
    chance = random.Random(seed)
    play(sides, file(ROOM - 8 * PAGE, "a", "b"))
    play(sides, (random_step(chance) for _ in range(steps)))
    play(sides, [("a", "end"), ("b", "end"), ("c", "content", "f")])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_steps(sides: tuple[Stage, ...], seed: int) -> None:
    walk(sides, seed, 400)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(10, 30))
def test_many_random_steps(sides: tuple[Stage, ...], seed: int) -> None:
    walk(sides, seed, 2000)


@pytest.mark.parametrize("dirty", ["msync", "close"])
def test_stores_are_in_the_pool_after_the_unmount(session: str, pool: Callable[..., Path], dirty: str) -> None:
    """Stored through a mapping into old blocks, a hole and new blocks; read by the kernel's ext4."""
    image = pool("-b", "4096")
    expected = bytearray(40 * PAGE)
    with mounted(image, *SESSIONS[session]) as mount, open(mount.place / "f", "w+b") as file:
        file.write(b"old" * PAGE)
        file.truncate(len(expected))
        expected[: 3 * PAGE] = b"old" * PAGE
        with mmap.mmap(file.fileno(), 0) as memory:
            for at in (10, 3 * PAGE - 2, 10 * PAGE, 39 * PAGE + 4000):
                memory[at : at + 6] = expected[at : at + 6] = b"stored"
            if dirty == "msync":
                memory.flush()
    with kernel_mount(image, "ro") as place:
        assert (place / "f").read_bytes() == expected


def test_msync_survives_the_daemon(session: str, pool: Callable[..., Path]) -> None:
    image = pool("-b", "4096")
    with mounted(image, *SESSIONS[session]) as mount:
        file = open(mount.place / "f", "w+b")  # noqa: SIM115 (its flush fails when the daemon is gone)
        os.ftruncate(file.fileno(), 8 * PAGE)
        memory = mmap.mmap(file.fileno(), 0)
        memory[5 * PAGE : 5 * PAGE + 7] = b"durable"
        memory.flush()
        mount.daemon.kill()
        mount.daemon.wait(HANG_SECONDS)
        memory.close()
        with contextlib.suppress(OSError):
            file.close()
    with mounted(image, *SESSIONS[session]) as mount:
        assert (mount.place / "f").read_bytes() == bytes(5 * PAGE) + b"durable" + bytes(3 * PAGE - 7)


def test_times_move_when_pages_are_stored(sides: tuple[Stage, ...]) -> None:
    for stage in sides:
        play((stage,), file(2 * PAGE, "a"))
        path = stage.root / "f"
        os.utime(path, (1, 1))
        stage["a"].do("load", 0, 0, 10)
        assert path.stat().st_mtime == 1
        stage["a"].do("store", 0, 0, b"stored")
        stage["a"].do("msync", 0)
        assert path.stat().st_mtime > 1
        assert path.stat().st_ctime >= path.stat().st_mtime


@pytest.mark.parametrize("through", ["mapping", "write"])
def test_processes_count_together(root: Path, through: str) -> None:
    """Under a lock, no process sees an old value, whichever way the others change it."""
    (root / "f").write_bytes(bytes(2 * PAGE))
    rounds, workers = 200, 3
    children = []
    for number in range(workers):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                count(root / "f", rounds, mapped=through == "mapping" or number == 0)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * workers
    content = (root / "f").read_bytes()
    assert struct.unpack_from("<Q", content, PAGE - 4) == (rounds * workers,)


def count(path: Path, rounds: int, *, mapped: bool) -> None:
    """Add one to a number across two pages, again and again, through a mapping or by read(2) and write(2)."""
    number = struct.Struct("<Q")
    at = PAGE - 4
    descriptor = os.open(path, os.O_RDWR)
    with mmap.mmap(descriptor, 2 * PAGE) as memory:
        for _ in range(rounds):
            os.lockf(descriptor, os.F_LOCK, 0)
            if mapped:
                number.pack_into(memory, at, number.unpack_from(memory, at)[0] + 1)
            else:
                (value,) = number.unpack(os.pread(descriptor, 8, at))
                os.pwrite(descriptor, number.pack(value + 1), at)
            os.lockf(descriptor, os.F_ULOCK, 0)


def test_a_full_pool_says_so(session: str, pool: Callable[..., Path]) -> None:
    """ext4 refuses the store (SIGBUS); FUSE lets it happen in memory, and the write-back reports the error."""
    with mounted(pool("-b", "4096", "-m", "0", size="16M"), *SESSIONS[session]) as mount:
        with open(mount.place / "sparse", "w+b") as sparse:
            sparse.truncate(4 << 20)
            with mmap.mmap(sparse.fileno(), 0) as memory:
                memory[:PAGE] = b"f" * PAGE
                memory.flush()
                with open(mount.place / "fill", "wb", buffering=0) as fill, contextlib.suppress(OSError):
                    while fill.write(bytes(1 << 16)):
                        pass
                for at in range(PAGE, 4 << 20, PAGE):
                    memory[at] = 1
                with pytest.raises(OSError, match=r"No space|Input/output") as refused:
                    memory.flush()
                assert refused.value.errno in {errno.ENOSPC, errno.EIO}
            (mount.place / "fill").unlink()
        assert (mount.place / "sparse").read_bytes()[:PAGE] == b"f" * PAGE


WRITER = """
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
base.execute("create table if not exists t (who, number)")
for number in range(40):
    base.execute("insert into t values (?, ?)", (sys.argv[2], number))
base.close()
"""


def test_sqlite_keeps_its_write_ahead_log(root: Path) -> None:
    """Its index is shared memory in a file of the mount."""
    base = root / "base"
    with contextlib.closing(sqlite3.connect(base)) as new:
        assert new.execute("pragma journal_mode=wal").fetchone() == ("wal",)
    command = [sys.executable, "-c", WRITER, str(base)]
    writers = [subprocess.Popen([*command, str(who)], stdin=subprocess.DEVNULL) for who in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with contextlib.closing(sqlite3.connect(base)) as found:
        assert found.execute("pragma journal_mode").fetchone() == ("wal",)
        assert found.execute("pragma integrity_check").fetchone() == ("ok",)
        assert found.execute("select count(*), count(distinct who) from t").fetchone() == (120, 3)
