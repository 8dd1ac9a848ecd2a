"""Loads and stores that meet missing memory: one error each, nothing stored meanwhile, and the process lives."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from kernel_rig import kernel_mount
from poison_rig import PAGE, Poison

from daxfs.errors import MissingMemory
from daxfs.pmem import guard, reservation
from daxfs.pmem.opening import open_pool
from daxfs.pmem.pool import Pool
from support import mke2fs, tmpfs

WITHOUT_COMPILER = "from daxfs.pmem import guard\nguard.LIBRARY = guard.LIBRARY.with_name('none')\n"
AS_HERE = "" if isinstance(guard.handler(), guard.InC) else WITHOUT_COMPILER
"""How a program begins that has the same handler as this one."""

SIZE = 1 << 20
HALF = SIZE // 2


@pytest.fixture(params=["volatile", "msync"])
def pool(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pool]:
    path = tmp_path / "pool"
    path.write_bytes(bytes(SIZE))
    with open_pool(path, persistence=request.param) as opened:
        yield opened


@pytest.fixture
def poison(pool: Pool) -> Iterator[Poison]:
    made = Poison(pool)
    yield made
    made.close()


def load(pool: Pool, offset: int, length: int = 8) -> bytes:
    return bytes(pool.memory[offset : offset + length])


@pytest.mark.parametrize("operation", ["write", "zero", "store_word"])
def test_a_store_to_missing_memory_fails_and_the_next_one_works(pool: Pool, poison: Poison, operation: str) -> None:
    pool.write(HALF - 8, b"before!!")
    pool.write(HALF + PAGE, b"after!!!")
    poison.add(HALF)
    arguments = {"write": (HALF - 4, b"12345678"), "zero": (HALF - 4, 8), "store_word": (HALF, 7)}[operation]
    for _ in range(3):
        with pytest.raises(MissingMemory) as failed:
            getattr(pool, operation)(*arguments)
        assert failed.value.errno == errno.EIO
        assert str(HALF) in str(failed.value)
    pool.fence()
    assert load(pool, HALF + PAGE) == b"after!!!"
    poison.mend()
    assert load(pool, HALF) == bytes(8), "nothing reached the page"
    getattr(pool, operation)(*arguments)
    assert pool.faults.total == 3


@pytest.mark.parametrize("operation", ["write", "zero", "store_word", "flush", "fence"])
def test_nothing_is_stored_after_a_load_that_met_missing_memory(pool: Pool, poison: Poison, operation: str) -> None:
    pool.write(0, b"original")
    pool.write(HALF, b"content!")
    poison.add(HALF)
    assert load(pool, HALF) == bytes(8), "zeros that the pool does not hold"
    assert pool.faults.pending[0] == 1
    arguments = {"write": (0, b"new"), "zero": (0, 8), "store_word": (0, 7), "flush": (0, 8), "fence": ()}[operation]
    with pytest.raises(MissingMemory):
        getattr(pool, operation)(*arguments)
    assert load(pool, 0) == b"original"
    assert pool.faults.pending[0] == 0
    getattr(pool, operation)(*arguments)
    poison.mend()
    assert load(pool, HALF) == b"content!"


def test_many_pages_at_once(pool: Pool, poison: Poison) -> None:
    pool.write(0, b"x" * SIZE)
    for page in range(0, SIZE, 2 * PAGE):
        poison.add(page)
    assert load(pool, 0, SIZE).count(b"x") == HALF
    assert pool.faults.pending[0] == HALF // PAGE
    assert pool.faults.settle().errno == errno.EIO
    assert pool.faults.pending[0] == 0
    poison.mend()
    assert load(pool, 0, SIZE) == b"x" * SIZE


def test_a_file_that_was_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "pool"
    path.write_bytes(b"x" * SIZE)
    with open_pool(path) as pool:
        os.truncate(path, HALF)
        for _ in range(2):
            with pytest.raises(MissingMemory, match=f"was cut to {HALF} bytes") as failed:
                pool.write(HALF + 10, b"lost")
            assert failed.value.errno == errno.EIO
        pool.write(10, b"kept")
        pool.fence()
    assert path.stat().st_size == HALF
    assert path.read_bytes()[10:14] == b"kept"
    assert len([record for record in caplog.records if "was cut" in record.message]) == 1, "the log says it once"


def test_a_file_that_was_cut_to_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    path.write_bytes(b"x" * SIZE)
    with open_pool(path) as pool:
        os.truncate(path, 0)
        with pytest.raises(MissingMemory, match="was cut to 0 bytes") as failed:
            pool.write(10, b"lost")
        assert failed.value.errno == errno.EIO


def test_a_page_that_is_partly_a_hole_is_not_bad(tmp_path: Path) -> None:
    """A full file system with small blocks fills a part of a page and has no room for the rest."""
    image = mke2fs(tmp_path / "image", "-b", "1024", "-O", "^has_journal", "-m", "0", size="4M")
    with kernel_mount(image, "nodelalloc") as place:
        path, filling = place / "pool", place / "filling"
        with path.open("wb") as file:
            file.truncate(SIZE)
        with open_pool(path) as pool:
            pool.write(0, b"x")
            with suppress(OSError), filling.open("wb", buffering=0) as file:
                while file.write(bytes(1024)):
                    pass
            os.truncate(filling, filling.stat().st_size - 1024)
            with pytest.raises(MissingMemory) as failed:
                pool.write(HALF, b"y" * PAGE)
            assert failed.value.errno == errno.ENOSPC
            assert not pool.bad
            filling.unlink()
            pool.write(HALF, b"y" * PAGE)


@pytest.mark.parametrize(("full", "lasting", "number"), [(1, 0, errno.ENOSPC), (1, 1, errno.EIO), (0, 0, errno.EIO)])
def test_a_page_that_only_a_store_misses_is_not_bad(
    pool: Pool, poison: Poison, monkeypatch: pytest.MonkeyPatch, full: int, lasting: int, number: int
) -> None:
    """On a full file system a page that can be loaded is good, whether it has its blocks or not."""
    monkeypatch.setattr(reservation, "free_bytes", lambda _: 0 if full else 1 << 40)
    (poison.add if lasting else poison.add_once)(HALF)
    with pytest.raises(MissingMemory) as failed:
        pool.write(HALF, b"new")
    assert failed.value.errno == number
    assert bool(pool.bad) == (number == errno.EIO)


def test_a_hole_on_a_full_file_system(tmp_path: Path) -> None:
    with tmpfs(tmp_path, "size=256k"):
        path = tmp_path / "pool"
        with path.open("wb") as file:
            file.truncate(SIZE)
        with open_pool(path) as pool:
            done = 0
            with suppress(MissingMemory):
                while done < SIZE:
                    pool.write(done, b"y" * PAGE)
                    done += PAGE
            assert done < SIZE
            with pytest.raises(MissingMemory) as failed:
                pool.write(done, b"y" * PAGE)
            assert failed.value.errno == errno.ENOSPC
            assert done >= 128 << 10
            assert load(pool, 0, done) == b"y" * done
            pool.write(0, b"what was stored can be changed")


def test_a_private_mapping_stays_unusable(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    path.write_bytes(b"x" * SIZE)
    with open_pool(path, private=True) as pool:
        pool.write(0, b"own content")
        os.truncate(path, HALF)
        for _ in range(2):
            with pytest.raises(MissingMemory):
                pool.write(HALF, b"lost")
            with pytest.raises(MissingMemory):
                pool.write(0, b"refused")
        assert load(pool, 0, 11) == b"own content"


def test_a_closed_pool_is_not_watched(tmp_path: Path) -> None:
    for number in range(80):  # more than there are watches
        path = tmp_path / str(number % 3)
        path.write_bytes(bytes(8 * PAGE))
        open_pool(path).close()


def test_pools_that_are_dropped_without_being_closed_are_not_watched(tmp_path: Path) -> None:
    """The addresses of the last pool are those of the next one as a rule: the faults are the next one's."""
    path = tmp_path / "pool"
    path.write_bytes(bytes(SIZE))
    for _ in range(80):
        pool = open_pool(path, exclusively=False, private=False, read_only=True)
        poison = Poison(pool)
        poison.add(HALF)
        load(pool, HALF)
        assert pool.faults.pending[0] == 1
        assert pool.faults.settle().errno == errno.EIO
        assert pool.faults.pending[0] == 0
        poison.mend()
        del pool, poison


def test_more_pools_than_anybody_has(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    path.write_bytes(b"x" * SIZE)
    pools = [open_pool(path, read_only=True) for _ in range(200)]
    os.truncate(path, HALF)
    for pool in pools:
        assert load(pool, HALF) == bytes(8)
        assert pool.faults.settle().errno == errno.EIO
        pool.close()


def test_views_that_outlive_the_pool_are_watched(tmp_path: Path) -> None:
    """The process lives, and the closed pool says that the zeros are none of the pool's."""
    path = tmp_path / "pool"
    path.write_bytes(b"x" * SIZE)
    pool = open_pool(path)
    view = memoryview(pool.memory)[HALF:]
    pool.close()
    os.truncate(path, HALF)
    assert bytes(view[:8]) == bytes(8)
    assert pool.faults.pending[0] == 1
    assert pool.faults.settle().errno == errno.EIO
    assert pool.faults.pending[0] == 1, "they stay zeros"
    other = open_pool(path)
    assert other.faults.pending[0] == 0
    del view
    other.close()


def test_what_ends_the_program_stays_what_it_is(pool: Pool, poison: Poison) -> None:
    def interrupted() -> None:
        with pool.faults.checked():
            load(pool, HALF)
            raise KeyboardInterrupt

    poison.add(HALF)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert pool.faults.pending[0] == 0


HANDLERS = {
    "over it": "faulthandler.enable(); pool.faults.install()",
    "between two": "faulthandler.enable(); second = open_pool(path, read_only=True, exclusively=False)",
    "twice": "faulthandler.enable(); pool.faults.install(); faulthandler.disable(); "
    "faulthandler.enable(); pool.faults.install()",
    "gone": "faulthandler.enable(); pool.faults.install(); faulthandler.disable(); pool.faults.install()",
    "python": "signal.signal(signal.SIGBUS, lambda *_: None); pool.faults.install()",
}


@pytest.mark.parametrize("name", HANDLERS)
def test_handlers_that_were_installed_later(tmp_path: Path, name: str) -> None:
    """Faults of the pool are handled; others reach the handlers below, and end the process at last."""
    script = f"""{AS_HERE}
import faulthandler, mmap, os, signal
from daxfs.pmem.opening import open_pool
path = {str(tmp_path / "pool")!r}
open(path, "wb").write(bytes({SIZE}))
pool = open_pool(path)
{HANDLERS[name]}
os.truncate(path, {HALF})
for _ in range(3):
    pool.memory[{HALF}]
    print(pool.faults.settle().errno, flush=True)
other = os.memfd_create("other"); os.truncate(other, mmap.PAGESIZE)
memory = mmap.mmap(other, mmap.PAGESIZE); os.truncate(other, 0)
memory[0]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, timeout=60)
    assert done.stdout == b"5\n" * 3, done.stderr
    assert done.returncode == -signal.SIGBUS
    assert (b"Bus error" in done.stderr) == (name in ("over it", "between two", "twice"))


def test_faults_outside_of_pools_end_the_process(tmp_path: Path) -> None:
    script = f"""{AS_HERE}
import mmap, os
from daxfs.pmem.opening import open_pool
open({str(tmp_path / "pool")!r}, "wb").write(bytes({SIZE}))
pool = open_pool({str(tmp_path / "pool")!r})
other = os.memfd_create("other"); os.truncate(other, mmap.PAGESIZE)
memory = mmap.mmap(other, mmap.PAGESIZE); os.truncate(other, 0)
print("before", flush=True)
memory[0]
"""
    for extra in ([], ["-X", "faulthandler"]):
        done = subprocess.run([sys.executable, *extra, "-c", script], capture_output=True, check=False, timeout=60)
        assert done.stdout == b"before\n", done.stderr
        assert done.returncode == -signal.SIGBUS
        assert (b"Bus error" in done.stderr) == bool(extra)


def test_a_signal_that_was_sent_ends_the_process(tmp_path: Path) -> None:
    script = f"""{AS_HERE}
import os, signal
from daxfs.pmem.opening import open_pool
open({str(tmp_path / "pool")!r}, "wb").write(bytes({SIZE}))
pool = open_pool({str(tmp_path / "pool")!r})
os.kill(os.getpid(), signal.SIGBUS)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGBUS


def test_this_run_has_the_handler_in_c() -> None:
    assert isinstance(guard.handler(), guard.InC), "run make setup"


def test_all_of_this_with_the_handler_in_python(tmp_path: Path) -> None:
    """As installed without a C compiler."""
    script = f"""{WITHOUT_COMPILER}
import pytest, sys
sys.exit(pytest.main(["-q", "-x", "-k", "not this_run_has and not all_of_this", "-p", "no:cacheprovider",
    "--basetemp", {str(tmp_path / "inner")!r}, {__file__!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout.decode()[-3000:]
    assert b"[100%]" in done.stdout
