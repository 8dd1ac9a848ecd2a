"""The lease cache of one open file: epochs, renewing, wrong answers, sizes that must be reported."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from direct_rig import DATA, KIB, MIB, POOL_SIZE, FakeDaemon, noise, pool_bytes
from mount_rig import in_child

from daxfs import direct, protocol
from daxfs.protocol import GrantedExtent, Kind


def test_a_new_epoch_is_seen_at_once_and_the_old_memory_given_back(daemon: FakeDaemon) -> None:
    with direct.open(daemon.file, "r+b") as file:
        file.pwrite(0, b"old")
        daemon.move(DATA * 4, b"n" * daemon.size)
        assert file.pread(0, 3) == b"nnn"
        assert daemon.renewals[-1]
        daemon.move(DATA * 2, b"o" * daemon.size)
        assert file.pwrite(0, b"new") == 3
    assert pool_bytes(daemon, DATA, 3) == b"old"
    assert pool_bytes(daemon, DATA * 2, 4) == b"newo"


def test_nothing_is_given_back_while_a_store_may_run(daemon: FakeDaemon) -> None:
    with direct.open(daemon.file, "r+b") as file:
        assert file.pread(0, 1) == b"m"
        cache = file._cache
        assert cache is not None
        cache.active_stores += 1  # another thread is in the middle of a store
        daemon.move(DATA * 4, b"n" * daemon.size)
        assert file.pread(0, 3) == b"nnn"
        assert not daemon.renewals[-1]
        cache.active_stores -= 1


def test_while_another_thread_asks_the_kernel_is_asked(daemon: FakeDaemon) -> None:
    with direct.open(daemon.file, "r+b") as file:
        cache = file._cache
        assert cache is not None
        daemon.move(DATA * 4, b"n" * daemon.size)
        with cache._lock:
            assert file.pread(0, 3) == b"kkk"
        assert file.pread(0, 3) == b"nnn"


def test_an_epoch_that_never_holds_ends_at_the_kernel(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def restless(*arguments: Any) -> int:
        result = daemon.ioctl(*arguments)
        daemon.epoch += 1
        daemon.post()
        return result

    with direct.open(daemon.file, "r+b") as file:
        monkeypatch.setattr(fcntl, "ioctl", restless)
        daemon.move(DATA, b"m" * daemon.size)
        assert file.pread(0, 3) == b"kkk"
        assert file.pwrite(0, b"x") == 1
    assert daemon.file.read_bytes()[:2] == b"xk"


def test_a_momentary_refusal_is_asked_again_later(daemon: FakeDaemon) -> None:
    with direct.open(daemon.file) as file:
        daemon.move(DATA * 4, b"n" * daemon.size)
        daemon.refuse["lease"] = errno.EAGAIN
        assert file.pread(0, 3) == b"kkk"
        assert file.direct
        del daemon.refuse["lease"]
        found = {file.pread(0, 3) for _ in range(20)}
        assert file.pread(0, 3) == b"nnn"
        assert found <= {b"kkk", b"nnn"}


def test_an_answer_about_another_pool_ends_it(daemon: FakeDaemon) -> None:
    with direct.open(daemon.file) as file:
        daemon.move(DATA * 4, b"n" * daemon.size)
        daemon.record = daemon.record._replace(inode=99)
        assert file.pread(0, 3) == b"kkk"
        assert "another pool" in file.why


def test_an_extent_outside_the_mapped_pool_ends_it(daemon: FakeDaemon) -> None:
    with direct.open(daemon.file) as file:
        daemon.extents = [GrantedExtent(0, POOL_SIZE - 4096, 8192, Kind.MEMORY)]
        daemon.epoch += 1
        daemon.post()
        assert file.pread(0, 3) == b"kkk"
        assert "grown" in file.why


def growing(daemon: FakeDaemon, records: int) -> direct.DirectFile:
    """Return a file to which so many KiB were appended and not reported."""
    file = direct.open(daemon.file, "r+b")
    daemon.extents = [GrantedExtent(0, DATA, 32 << 10, Kind.MEMORY)]
    file.seek(daemon.size)
    for _ in range(records + 1):
        file.write(b"w" * 1024)
        if daemon.size == 16 << 10:  # the first write was the kernel's
            daemon.size += 1024
            daemon.post()
    return file


def test_what_another_cut_is_not_made_longer_again(daemon: FakeDaemon) -> None:
    with growing(daemon, 3) as file:
        daemon.size = 100
        daemon.epoch += 1
        daemon.post()
        assert file.size == 100
    assert daemon.size == 100


def test_what_was_appended_is_saved_when_another_makes_the_file_longer(daemon: FakeDaemon) -> None:
    """Only the bytes in the block that EOF was in are lost."""
    file = growing(daemon, 10)
    daemon.size = 200 << 10
    daemon.epoch += 1
    daemon.post()
    with pytest.raises(OSError, match="3072 bytes from 17408 on are lost: another program"):
        file.size  # noqa: B018
    assert daemon.file.read_bytes()[20 << 10 :] == b"w" * (7 << 10)
    file.close()


@pytest.mark.parametrize("cause", ["size", "flush", "fileno", "close"])
def test_the_new_size_is_told_once(daemon: FakeDaemon, cause: str) -> None:
    file = growing(daemon, 8)
    assert (daemon.stored, daemon.appended) == ([], [])
    {"size": lambda: file.size, "flush": file.flush, "fileno": file.fileno, "close": file.close}[cause]()
    flags = protocol.DURABLE if cause == "flush" else 0
    holder = daemon.leases[0].holder
    assert daemon.appended == [protocol.Appended(17 << 10, 25 << 10, holder, flags)]
    file.close()
    assert len(daemon.appended) == 1


def test_a_forked_child_has_a_holder_of_its_own_and_no_old_extents(daemon: FakeDaemon) -> None:
    with direct.open(daemon.file, "r+b") as file:
        file.pwrite(0, b"x")
        cache = file._cache
        assert cache is not None
        holder = cache._holder
        child = os.fork()
        if child == 0:
            code = 1
            try:
                daemon.move(DATA * 4, b"n" * daemon.size)
                assert cache.write_extent == cache.read_extent
                assert cache._holder != holder
                assert not cache.unreported
                assert file.pread(0, 3) == b"nnn"
                assert daemon.leases[-1].holder == cache._holder
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert cache._holder == holder


@pytest.mark.parametrize("piece", [1000, 4 * KIB, 300 * KIB])
def test_a_file_grows_in_steps(root: Path, asked: list[int], piece: int) -> None:
    content = noise(9 * MIB)
    with direct.open(root / "a", "wb") as file:
        assert file.direct
        for place in range(0, len(content), piece):
            assert file.write(content[place : place + piece]) == len(content[place : place + piece])
        assert len(asked) < 20
    assert (root / "a").read_bytes() == content
    assert (root / "a").stat().st_blocks * 512 == 9 * MIB, "what was granted past EOF is given back"


def test_a_range_is_flushed_without_a_word_where_a_lease_told_it(root: Path, asked: list[int]) -> None:
    (root / "a").write_bytes(bytes(MIB))
    with direct.open(root / "a", "r+b") as file:
        file.pwrite(5000, b"x")
        count = len(asked)
        file.flush(5000, 1)
        assert len(asked) == count
        file.flush(0, 2 * MIB)
        assert asked[count:] == [protocol.IOC_STORED]
    with direct.open(root / "b", "wb") as file:
        file.write(b"small")
        file.flush(0, 5)
        assert file.direct


def test_filling_a_hole_in_order_asks_seldom(root: Path, asked: list[int]) -> None:
    with direct.open(root / "a", "w+b") as file:
        file.truncate(20 * MIB)
        for place in range(0, 20 * MIB, 4 * KIB):
            file.pwrite(place, b"f" * 4096)
    assert len(asked) < 30
    assert set((root / "a").read_bytes()) == {ord("f")}


def test_unreported_appends_survive_a_fork(root: Path) -> None:
    with direct.open(root / "a", "wb") as file:
        for _ in range(50):
            file.write(b"p" * 1000)
        in_child(file.close)
        for _ in range(50):
            file.write(b"q" * 1000)
    assert (root / "a").read_bytes() == b"p" * 50000 + b"q" * 50000
