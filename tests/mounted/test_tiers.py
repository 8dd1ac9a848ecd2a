"""A mount with storage: reads and writes of what lies there, and others while the storage does not answer."""

from __future__ import annotations

import json
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mount_rig
import pytest
import tier_rig
from cli_rig import daxfs
from foreign_rig import FOLDERS, by_kernel, fill_memory, litter, unmarked
from in_memory import tmp_path
from tier_rig import MIB, Members
from tree_rig import kernel_tree, same

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import ROOT_INO
from daxfs.pmem.storage import Storage
from daxfs.pmem.storagequeue import StorageQueue
from daxfs.tools.mkfs import make_pool
from support import HANG_SECONDS, fsck

__all__ = ["tmp_path"]

CONTENT = os.urandom(5 * MIB + 321)


@pytest.fixture
def tiered(tmp_path: Path) -> Iterator[Members]:
    """Return a pool with a cold file and a warm one."""
    made = tier_rig.make(tmp_path)
    with FileSystem.open(made.pool) as fs:
        fs.tree.write_bytes("/cold", CONTENT)
        fs.tree.write_bytes("/warm", CONTENT)
        assert not fs.demote(fs.lookup(ROOT_INO, b"cold").ino).stayed
    yield made
    made.check()


def test_what_lies_on_storage_is_read_and_written(tiered: Members) -> None:
    content = bytearray(CONTENT)
    with mount_rig.mounted_unchecked(tiered.pool) as mounted:
        cold = mounted.place / "cold"
        with cold.open("r+b", buffering=0) as file:
            assert os.pread(file.fileno(), 5000, 70_001) == content[70_001:75_001]
            os.pwrite(file.fileno(), b"new" * 1000, MIB - 17)
            content[MIB - 17 : MIB - 17 + 3000] = b"new" * 1000
            os.fsync(file.fileno())
        assert cold.read_bytes() == content
        os.truncate(cold, 3 * MIB + 5)
        del content[3 * MIB + 5 :]
        (mounted.place / "copy").write_bytes(cold.read_bytes())
        assert (mounted.place / "copy").read_bytes() == content
    with FileSystem.open(tiered.pool) as fs:
        assert fs.tree.read_bytes("/cold") == content


def wait_for(what: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + HANG_SECONDS
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def shown(place: Path) -> dict[str, Any]:
    """Return what ``daxfs tier`` shows, and ask nothing else of the mount."""
    found: dict[str, Any] = json.loads(daxfs("tier", place, "--json"))
    return found


def test_what_is_read_twice_comes_up(tiered: Members) -> None:
    with mount_rig.mounted_unchecked(tiered.pool) as mounted, (mounted.place / "cold").open("rb", buffering=0) as cold:
        for offset in (100, 5000, MIB, 2 * MIB):
            assert os.pread(cold.fileno(), 50, offset) == CONTENT[offset : offset + 50]
        wait_for(lambda: shown(mounted.place)["promoted"] == 2 * MIB)
        assert cold.read() == CONTENT
        found = shown(mounted.place)
        assert 0 < found["hits"] < found["reads"]
        assert found["read"] > 0
        text = daxfs("stats", mounted.place, "--total")
        assert "reads did not wait for storage" in text
        assert " MiB promoted" in text
        assert "daxfs_storage_promoted_bytes" in daxfs("stats", mounted.place, "--prometheus")
        assert json.loads(daxfs("top", mounted.place, "--count", "1", "--json"))["tiers"]["reads"] == 0
        assert "hits:      " in daxfs("tier", mounted.place)


def test_attributes_and_watermarks_move_files_of_a_mount_that_is_idle(tiered: Members) -> None:
    with mount_rig.mounted_unchecked(tiered.pool, "tier_high=90,tier_low=80") as mounted:
        cold, warm = mounted.place / "cold", mounted.place / "warm"
        with pytest.raises(OSError, match="Invalid argument"):
            os.setxattr(warm, "user.daxfs.tier", b"disk")
        os.setxattr(cold, "user.daxfs.tier", b"memory")
        os.setxattr(mounted.place, "user.daxfs.tier", b"storage")
        wait_for(lambda: shown(mounted.place)["promoted"] >= 5 * MIB)
        (mounted.place / "new").write_bytes(CONTENT)
        assert os.getxattr(mounted.place / "new", "user.daxfs.tier") == b"storage"
        wait_for(lambda: shown(mounted.place)["demoted"] >= 5 * MIB)
        assert (mounted.place / "new").read_bytes() == CONTENT
        daxfs("mount", "-o", "remount,tier_high=1,tier_low=0", mounted.place)
        wait_for(lambda: shown(mounted.place)["demoted"] >= 10 * MIB)
        assert warm.read_bytes() == cold.read_bytes() == CONTENT
        listed = daxfs("info", mounted.place)
        assert "tier_high=1" in listed
        assert "tier_low=0" in listed


@contextmanager
def stalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have storage answer no read until the body has ended; the daemon is a fork of this process."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    read = Storage.read

    def waiting(storage: Storage, offset: int, length: int) -> bytes:
        with gate.open("rb") as opened:
            opened.read()
        return read(storage, offset, length)

    monkeypatch.setattr(Storage, "read", waiting)
    monkeypatch.setattr(StorageQueue, "limit_seconds", 10 * HANG_SECONDS)
    yield


def open_gate(gate: Path, done: threading.Event) -> None:
    """Let all reads go on, until all is done."""
    while not done.wait(0.001):
        try:
            os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            continue  # nobody reads at the moment


def test_others_are_served_while_storage_does_not_answer(
    tiered: Members, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stalled(tmp_path, monkeypatch), mount_rig.mounted_unchecked(tiered.pool) as mounted:
        cold, warm, done = mounted.place / "cold", mounted.place / "warm", threading.Event()
        with ThreadPoolExecutor() as threads:
            reads = threads.submit(cold.read_bytes)
            writes = threads.submit(_write, cold)
            for number in range(100):
                assert warm.stat().st_size == len(CONTENT)
                with warm.open("rb") as file:
                    assert os.pread(file.fileno(), 4096, number * 4096) == CONTENT[number * 4096 : (number + 1) * 4096]
                (mounted.place / str(number)).write_bytes(b"new")
                assert cold.stat().st_size == len(CONTENT)
            assert not reads.done()
            assert not writes.done()
            opener = threads.submit(open_gate, tmp_path / "gate", done)
            assert writes.result(HANG_SECONDS) == 4
            assert len(reads.result(HANG_SECONDS)) == len(CONTENT)
            done.set()
            opener.result(HANG_SECONDS)
        assert warm.read_bytes() == CONTENT


def _write(path: Path) -> int:
    with path.open("r+b", buffering=0) as file:
        return os.pwrite(file.fileno(), b"abcd", 2 * MIB + 1)


def test_more_is_written_than_the_memory_has(tmp_path: Path) -> None:
    made = tier_rig.make(tmp_path)
    with mount_rig.mounted_unchecked(made.pool) as mounted:
        contents = [os.urandom(2 * MIB) for _ in range(30)]
        for number, content in enumerate(contents):
            (mounted.place / str(number)).write_bytes(content)
        for number, content in enumerate(contents):
            assert (mounted.place / str(number)).read_bytes() == content
    made.check()


def test_storage_joins_and_leaves_a_mount(tmp_path: Path) -> None:
    """An untiered pool gets storage by the command line, data goes there by itself, and comes back."""
    pool, slow = tmp_path / "pool", tmp_path / "slow"
    make_pool(pool, 4 * tier_rig.GROUP, tier_rig.OPTIONS, sparse=True)
    contents = [os.urandom(2 * MIB) for _ in range(20)]
    with mount_rig.mounted_unchecked(pool) as mounted:
        for number, content in enumerate(contents[:8]):
            (mounted.place / str(number)).write_bytes(content)
        size = 8 * tier_rig.GROUP + tier_rig.CONTENT >> 20
        said = daxfs("tier", "--add", f"{slow}:{size}M", mounted.place)
        assert f"{mounted.place} has 96 MiB (24576 blocks) now" in said
        assert slow.stat().st_mode & 0o777 == 0o600
        for number, content in enumerate(contents[8:], 8):
            (mounted.place / str(number)).write_bytes(content)
        assert str(slow) in daxfs("tier", mounted.place)
        for number, content in enumerate(contents):
            assert (mounted.place / str(number)).read_bytes() == content
        line = daxfs("tier", "--remove", slow, mounted.place, code=1)
        assert "blocks are fewer than" in line or "past the new end stay" in line
        assert line.count("\n") == 1
        for number in range(10, 20):
            (mounted.place / str(number)).unlink()
        os.sync()
        said = daxfs("tier", "--remove", slow, mounted.place)
        assert "has 32 MiB (8192 blocks) now" in said
        for number, content in enumerate(contents[:10]):
            assert (mounted.place / str(number)).read_bytes() == content
        assert "no storage" in daxfs("tier", mounted.place, code=69)
    fsck(pool)


def test_refusals_of_members_by_the_command_line(tmp_path: Path) -> None:
    pool, slow = tmp_path / "pool", tmp_path / "slow"
    make_pool(pool, 4 * tier_rig.GROUP, tier_rig.OPTIONS, sparse=True)
    with mount_rig.mounted_unchecked(pool) as mounted:
        for arguments, code, text in (
            (("--add", slow), 1, "does not exist; give its size"),
            (("--add", f"{slow}:1M"), 32, "too few"),
            (("--add", f"{slow}:5M"), 1, "storage needs"),
            (("--add", pool), 1, "given twice"),
            (("--add", f"{slow}:much"), 64, "is not a size"),
            (("--remove", slow), 1, "is no storage of"),
        ):
            line = daxfs("tier", *arguments, mounted.place, code=code)
            assert text in line
            assert line.count("\n") == 1
            assert not slow.exists()
        assert "name a mountpoint" in daxfs("tier", "--add", slow, code=64)
    fsck(pool)


def reserve(path: Path, content: bytes) -> None:
    """Reserve blocks, and store into the last of them."""
    with path.open("w+b", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, len(content))
        assert os.fstat(file.fileno()).st_blocks * 512 >= len(content)
        os.pwrite(file.fileno(), b"end", len(content) - 3)
        assert os.pread(file.fileno(), MIB, len(content) - MIB) == bytes(MIB - 3) + b"end"


def store_through_a_mapping(path: Path, content: bytes) -> None:
    with path.open("w+b") as file:
        file.truncate(len(content))
        with mmap.mmap(file.fileno(), 0) as memory:
            memory[:] = content
            memory.flush()
    assert path.read_bytes() == content


def fill_what_a_truncate_has_made(path: Path, content: bytes) -> None:
    with path.open("w+b", buffering=0) as file:
        file.truncate(len(content))
        offset = 0
        while offset < len(content):  # a write that meets a full memory may be short
            offset += os.pwrite(file.fileno(), content[offset : offset + MIB], offset)
    assert path.read_bytes() == content


@pytest.mark.parametrize("way", [reserve, store_through_a_mapping, fill_what_a_truncate_has_made])
def test_every_way_to_get_blocks_finds_room_on_storage(tmp_path: Path, way: Callable[[Path, bytes], None]) -> None:
    made = tier_rig.make(tmp_path)
    with mount_rig.mounted_unchecked(made.pool) as mounted:
        way(mounted.place / "f", os.urandom(tier_rig.MEMORY + 4 * MIB))
    made.check()


def test_metadata_that_the_kernel_has_put_on_storage(tmp_path: Path) -> None:
    """It is read where it lies, and in memory after a mount that may write."""
    made = tier_rig.make(tmp_path)
    fill_memory(made)
    with by_kernel(made) as place:
        tree = litter(place)
    with mount_rig.mounted_unchecked(made.pool, "ro,noatime") as mounted:
        same(unmarked(kernel_tree(mounted.place)), tree)
        assert os.readlink(mounted.place / "d59" / "link") == "t" * 200
    with mount_rig.mounted_unchecked(made.pool, "noatime") as mounted:
        same(unmarked(kernel_tree(mounted.place)), tree)
        for number in range(FOLDERS):
            (mounted.place / f"d{number}" / "new").write_bytes(b"new")
            (mounted.place / f"d{number}" / "link").unlink()
    made.check()
    with by_kernel(made) as place:
        assert len(kernel_tree(place)) == len(tree)
    made.check()
