"""Python programs that give up rights: the pool is unmapped, and files go on through the kernel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount_rig import NOBODY, Mounted, in_child, mounted_by_root

from daxfs import direct

DROPS: dict[str, Callable[[], None]] = {
    "setuid": lambda: os.setuid(NOBODY),
    "seteuid": lambda: os.seteuid(NOBODY),
    "setresuid": lambda: os.setresuid(NOBODY, NOBODY, NOBODY),
}


@pytest.fixture
def mount(pool: Callable[..., Path]) -> Iterator[Mounted]:
    """A mount whose pool root alone may open."""
    with mounted_by_root(pool("-b", "4096")) as mount:
        (mount.place / "file").write_bytes(b"x" * 65536)
        (mount.place / "file").chmod(0o666)
        yield mount


def mapped(mount: Mounted) -> bool:
    """Whether this process maps anything of the pool."""
    return str(mount.pool) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("how", DROPS)
def test_detach_before_rights_go(mount: Mounted, how: str) -> None:
    path = mount.place / "file"

    def work() -> None:
        file = direct.open(path, "r+b")
        assert file.pwrite(100, b"before") == 6
        assert file.pread(100, 6) == b"before"
        assert file.direct
        assert mapped(mount)
        direct.detach()
        assert not mapped(mount)
        assert (file.direct, file.why) == (False, "detached")
        DROPS[how]()
        assert file.pread(100, 6) == b"before"
        assert file.pwrite(100, b"after!") == 6
        file.flush()
        again = direct.open(path, "rb")
        assert again.pread(100, 6) == b"after!"
        assert not again.direct
        assert not mapped(mount)

    in_child(work)
    assert path.read_bytes()[100:106] == b"after!"


def test_what_was_stored_past_eof_is_told_by_detach(mount: Mounted) -> None:
    path = mount.place / "long"

    def work() -> None:
        file = direct.open(path, "w+b")
        for place in range(0, 1 << 20, 1 << 16):
            file.pwrite(place, b"y" * (1 << 16))
        direct.detach()
        assert not mapped(mount)
        assert os.stat(path).st_size == 1 << 20

    in_child(work)
    assert path.read_bytes() == b"y" * (1 << 20)


@pytest.mark.parametrize("asks", ["a place that is not known", "another open"])
def test_without_detach_it_is_noticed_at_the_next_question(mount: Mounted, asks: str) -> None:
    path = mount.place / "file"

    def work() -> None:
        file = direct.open(path, "r+b")
        other = direct.open(path, "r+b")
        file.pwrite(0, b"before")
        assert mapped(mount)
        os.seteuid(NOBODY)
        if asks == "another open":
            assert not direct.open(path, "rb").direct
        else:
            os.truncate(path, 5000)  # the epoch ends
            assert file.pread(0, 6) == b"before"
        assert not mapped(mount)
        assert not file.direct
        assert "rights" in file.why
        assert not other.direct
        assert other.pread(0, 6) == b"before"
        assert file.pwrite(65536, b"late") == 4
        os.seteuid(0)
        assert direct.open(path, "rb").direct

    in_child(work)
    assert path.read_bytes()[65536:65540] == b"late"


def test_who_may_still_open_the_pool_keeps_it(mount: Mounted) -> None:
    mount.pool.chmod(0o666)

    def work() -> None:
        file = direct.open(mount.place / "file", "r+b")
        os.setuid(NOBODY)
        os.truncate(mount.place / "file", 5000)
        assert file.pread(0, 4) == b"xxxx"
        assert file.direct
        assert direct.open(mount.place / "file", "rb").direct

    in_child(work)


def test_a_live_mapping_keeps_its_pool_until_it_is_closed(mount: Mounted) -> None:
    def work() -> None:
        mapping = direct.map(mount.place / "file", access="rw")
        direct.detach()
        assert mapped(mount)
        mapping.view[:4] = b"mine"
        mapping.close()
        assert not mapped(mount)

    in_child(work)
    assert (mount.place / "file").read_bytes()[:4] == b"mine"
