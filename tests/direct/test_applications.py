"""Programs that keep their data in mapped files: PMDK, LMDB, SQLite, NumPy, through FUSE and below `daxfs exec`.

Each program keeps an invariant in every transaction, so that a reader at any time, and whoever opens the data after a
kill -9, can tell whether all is there. After each test e2fsck finds nothing.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from application_rig import LIMIT, PROGRAMS, WAYS, at_work, command, compile_program, said, script
from mount_rig import SESSIONS, Mounted, mounted

ROUNDS = 60
"""Transactions of each of two processes."""
KILLS = 2


@pytest.fixture
def mount(pool: Callable[..., Path]) -> Iterator[Mounted]:
    """A pool with blocks of 4 KiB, mounted."""
    with mounted(pool("-b", "4096", size="128M"), *SESSIONS["kernel"]) as mount:
        yield mount


@pytest.fixture
def root(mount: Mounted) -> Path:
    """The root directory of the mount."""
    return mount.place


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """Return each way of running a program."""
    kind: str = request.param
    return kind


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the libpmemobj program. It finds out that a mount has no MAP_SYNC, and calls msync(2) to flush.

    PMEM_IS_PMEM_FORCE is not set: through FUSE it would make the program flush cache lines of the page cache.
    """
    return compile_program(PROGRAMS / "accounts.c", tmp_path_factory.mktemp("applications") / "accounts", "-lpmemobj")


def kill_at_work(way: str, mount: Mounted, *words: str | Path) -> None:
    """Kill a program after two rounds of reports. It maps the pool exactly if the way is direct."""
    with at_work(way, *words) as application:
        application.hear("round", 2)
        maps = Path(f"/proc/{application.process.pid}/maps").read_text()
        assert (str(mount.pool) in maps) == (way == "exec"), maps
        application.kill()


def objects(way: str, root: Path) -> Path:
    """Return a pool of libpmemobj, made on the mount."""
    file = root / "objects"
    said(way, "pmempool", "create", "--layout=accounts", "--size=16M", "obj", file)
    return file


def test_pmempool_makes_knows_and_checks_a_pool(way: str, root: Path, accounts: Path) -> None:
    file = objects(way, root)
    shown = said(way, "pmempool", "info", file)
    assert "Layout                   : accounts" in shown
    assert "Signature                : PMEMOBJ" in shown
    assert "consistent" in said(way, "pmempool", "check", "-v", file)
    said(way, accounts, "work", file, str(ROUNDS))
    assert said(way, accounts, "check", file) == f"{ROUNDS}\n"
    for other in WAYS:
        assert "consistent" in said(other, "pmempool", "check", "-v", file)
    with file.open("r+b") as content:
        content.seek(16)
        content.write(b"damage")
    checked = subprocess.run(command(way, "pmempool", "check", file), capture_output=True, timeout=LIMIT, check=False)
    assert checked.returncode != 0, "damage was not seen"


def test_libpmemobj_is_killed_in_a_transaction(way: str, mount: Mounted, root: Path, accounts: Path) -> None:
    file = objects(way, root)
    said(way, accounts, "work", file, str(ROUNDS))
    ended = subprocess.run(command(way, accounts, "die", file), timeout=LIMIT, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert said(way, accounts, "check", file) == f"{ROUNDS}\n"
    least = ROUNDS
    for _ in range(KILLS):
        kill_at_work(way, mount, accounts, "work", file, "0")
        seen = int(said(way, accounts, "check", file))
        assert seen >= least + 100
        least = seen
    assert "consistent" in said(way, "pmempool", "check", "-v", file)


@pytest.mark.parametrize("writemap", [False, True])
def test_lmdb(way: str, mount: Mounted, root: Path, writemap: bool) -> None:
    base = root / "lmdb"
    program = script("with_lmdb.py")
    base.mkdir()
    with (
        at_work(way, *program, "work", base, str(writemap), str(ROUNDS)) as one,
        at_work(way, *program, "work", base, str(writemap), str(ROUNDS)) as two,
    ):
        one.finish()
        two.finish()
    assert said(way, *program, "check", base, str(writemap)) == f"{2 * ROUNDS}\n"
    least = 2 * ROUNDS
    for _ in range(KILLS):
        kill_at_work(way, mount, *program, "work", base, str(writemap), "0")
        seen = int(said(way, *program, "check", base, str(writemap)))
        assert seen >= least + 40
        least = seen
    # What one way has written, the other reads.
    for other in WAYS:
        assert int(said(other, *program, "check", base, str(not writemap))) == least


@pytest.mark.parametrize("journal", ["wal", "truncate"])
def test_sqlite(way: str, mount: Mounted, root: Path, journal: str) -> None:
    base = root / "base.sqlite"
    program = script("with_sqlite.py")
    with at_work(way, *program, "work", base, journal, str(ROUNDS)) as one:
        one.hear("begun")
        with at_work(way, *program, "work", base, journal, str(ROUNDS)) as two:
            one.finish()
            two.finish()
    assert said(way, *program, "check", base, journal) == f"{2 * ROUNDS}\n"
    least = 2 * ROUNDS
    for _ in range(KILLS):
        kill_at_work(way, mount, *program, "work", base, journal, "0")
        seen = int(said(way, *program, "check", base, journal))
        assert seen >= least + 40
        least = seen
    for other in WAYS:
        assert int(said(other, *program, "check", base, journal)) == least


def test_numpy_maps(way: str, root: Path) -> None:
    file = root / "array"
    program = script("with_numpy.py")
    said(way, *program, "make", file)
    size = 700_000
    assert file.stat().st_size == 8 * size
    total = size * (size - 1) // 2
    for other in WAYS:
        assert said(other, *program, "read", file) == f"{total} 7004 699003 699999\n"
    said(way, *program, "change", file)
    tripled = [row * 1000 + column for row in range(0, 700, 7) for column in range(1000)]
    lost = sum((3 if row % 7 == 0 else 1) * (row * 1000 + 3) + 1 for row in range(700))
    expected = total + 2 * sum(tripled) - lost
    for other in WAYS:
        assert said(other, *program, "read", file) == f"{expected} 21012 -1 699999\n"
