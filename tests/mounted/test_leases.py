"""Leases of real processes that speak the raw protocol: their end, what others see, and rights."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from actor_rig import KEEP_SIZE, PUNCH_HOLE, checked, libc
from cli_rig import daxfs
from in_memory import tmp_path
from lease_actor import TO_STORE, Client, Clients, ask, becomes, clients, free_blocks, holders
from mount_rig import NOBODY, SESSIONS, Mounted, mounted

from daxfs import protocol
from daxfs.protocol import Flag, Kind

__all__ = ["tmp_path"]

BLOCK = 4096
BLOCKS = 64
SIZE = BLOCKS * BLOCK
PATTERN = b"memory of client A! "

Pool = Callable[..., Path]


@pytest.fixture
def mount(pool: Pool) -> Iterator[Mounted]:
    """Leases are for the kernel session alone."""
    with mounted(pool("-b", "4096"), *SESSIONS["kernel"]) as mount:
        yield mount


@pytest.fixture
def client(mount: Mounted) -> Iterator[Clients]:
    """Make clients; what is left of them in the end is killed."""
    with clients(mount.place) as make:
        yield make


class Held:
    """A file of `BLOCKS` blocks that were granted to a client, and which is empty now: the frees are deferred."""

    def __init__(self, place: Path, client: Client, name: str = "file") -> None:
        self.place = place
        self.path = place / name
        self.path.write_bytes(bytes(SIZE))
        self.with_file = free_blocks(place)
        client.must("open", 1, name, os.O_RDWR)
        found = client.must("lease", 1, 0, SIZE, TO_STORE)
        assert sum(piece.length for piece in found.extents) == SIZE
        assert {piece.kind for piece in found.extents} == {Kind.MEMORY}
        os.truncate(self.path, 0)
        self.holds()

    def holds(self) -> None:
        """A moment later the lease is still there."""
        time.sleep(0.05)
        assert holders(self.place) == 1
        assert free_blocks(self.place) < self.with_file + BLOCKS // 2

    def ended(self) -> None:
        """The lease is gone and the blocks are free again (but for that of the status page)."""
        assert becomes(lambda: holders(self.place) == 0)
        assert becomes(lambda: free_blocks(self.place) > self.with_file + BLOCKS // 2)


# The end of a lease


def test_it_ends_with_close_exit_kill_and_renewal(mount: Mounted, client: Clients) -> None:
    endings: dict[str, Callable[[Client], Any]] = {
        "close": lambda client: client.must("close", 1),
        "renewal": lambda client: client.must("renew", 1),
        "exit": Client.end,
        "kill": Client.kill,
    }
    for name, end in endings.items():
        one = client()
        held = Held(mount.place, one, name)
        end(one)
        held.ended()


def test_the_command_shows_who_holds_leases(mount: Mounted, client: Clients) -> None:
    one = client()
    Held(mount.place, one)
    asked = json.loads(daxfs("stats", mount.place, "--total", "--json"))
    assert asked["files"]["leases"] == 1
    one.kill()
    assert becomes(lambda: holders(mount.place) == 0)
    assert json.loads(daxfs("stats", mount.place, "--total", "--json"))["files"]["leases"] == 0


def test_a_client_that_is_killed_before_it_maps_the_pool(mount: Mounted) -> None:
    """The answer is on its way, or there, and nobody ever uses it."""
    path = mount.place / "file"
    path.write_bytes(bytes(SIZE))
    before = free_blocks(mount.place)
    for _ in range(5):
        child = os.fork()
        if child == 0:
            descriptor = os.open(path, os.O_RDWR)
            while True:
                ask(descriptor, protocol.Lease(os.getpid(), 0, SIZE, TO_STORE | Flag.RENEW))
        assert becomes(lambda: holders(mount.place) == 1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert becomes(lambda: holders(mount.place) == 0)
    path.unlink()
    assert becomes(lambda: free_blocks(mount.place) > before + BLOCKS // 2)


def test_it_lives_as_long_as_a_duplicate(mount: Mounted, client: Clients) -> None:
    one = client()
    held = Held(mount.place, one)
    one.must("duplicate", 1, 2)
    one.must("close", 1)
    held.holds()
    one.must("close", 2)
    held.ended()


def test_it_lives_as_long_as_a_forked_child(mount: Mounted, client: Clients) -> None:
    one = client()
    held = Held(mount.place, one)
    one.must("fork")
    one.must("close", 1)
    held.holds()
    one.must("end_children")
    held.ended()


def test_it_lives_on_in_a_child_whose_parent_was_killed(mount: Mounted, client: Clients) -> None:
    one = client()
    held = Held(mount.place, one)
    child = one.must("fork")
    one.kill()
    held.holds()
    os.kill(child, signal.SIGKILL)
    held.ended()


def test_it_goes_on_with_the_file_that_was_passed_on(mount: Mounted, client: Clients) -> None:
    one, other = client(), client()
    held = Held(mount.place, one)
    name = f"\0daxfs-lease-{os.getpid()}"
    other.must("listen", name)
    one.must("send", 1, name)
    one.must("close", 1)
    held.holds()  # nobody has the file: it is in the socket
    other.must("receive", 5)
    one.kill()
    held.holds()
    other.must("close", 5)
    held.ended()


@pytest.mark.parametrize("inherit", [True, False])
def test_it_lives_in_another_program_that_inherits_the_file(mount: Mounted, client: Clients, inherit: bool) -> None:
    one = client()
    held = Held(mount.place, one)
    one.must("execute", 1, inherit)
    if inherit:
        one.must("close", 1)
        held.holds()
        one.must("end_children")
    else:
        held.holds()
        one.must("close", 1)
    held.ended()
    one.must("end_children")


def test_it_lives_as_long_as_a_mapping_of_the_file(mount: Mounted, client: Clients) -> None:
    one = client()
    held = Held(mount.place, one)
    one.must("anchor", 1, 1)
    one.must("close", 1)
    held.holds()
    one.must("unmap", 1)
    held.ended()


def test_the_anchor_of_a_child_counts(mount: Mounted, client: Clients) -> None:
    one = client()
    held = Held(mount.place, one)
    one.must("anchor", 1, 1)
    one.must("close", 1)
    one.must("fork")
    one.must("unmap", 1)
    held.holds()
    one.must("end_children")
    held.ended()


def test_one_holder_that_renews_frees_nothing_that_another_was_told_of(mount: Mounted, client: Clients) -> None:
    one, other = client(), client()
    held = Held(mount.place, one)
    other.must("open", 1, "file", os.O_RDWR)
    other.must("lease", 1, 0, BLOCK, 0)
    other.must("renew", 1)
    held.holds()
    other.must("close", 1)
    held.holds()
    one.must("renew", 1)
    held.ended()


# No stale memory


def storing(client: Client, name: str) -> None:
    """Let it store its pattern all over the file until it is killed."""
    client.must("open", 1, name, os.O_RDWR)
    client.must("lease", 1, 0, SIZE, TO_STORE)
    client.ask("put_again_and_again", PATTERN)


def punch(path: Path) -> None:
    with path.open("r+b") as file:
        checked(libc.fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, 0, SIZE))


def replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(b"n" * SIZE)
    new.rename(path)


LOSSES: dict[str, Callable[[Path], object]] = {
    "truncate": lambda path: os.truncate(path, 0),
    "punch": punch,
    "O_TRUNC": lambda path: os.close(os.open(path, os.O_RDWR | os.O_TRUNC)),
    "unlink": lambda path: path.unlink(),
    "rename": replace,
}


def check_others(place: Path, others: dict[str, bytes]) -> None:
    for name, content in others.items():
        assert (place / name).read_bytes() == content, f"{name} has changed"


def room(mount: Mounted) -> int:
    """Blocks that data may take: those that are free, less one block of the pool in 50, kept for extent trees."""
    return free_blocks(mount.place) - mount.pool.stat().st_size // BLOCK // 50


def test_what_a_client_goes_on_storing_shows_in_no_other_file(mount: Mounted, client: Clients) -> None:
    """The file loses its memory, and other files are made, of all blocks that are free: none of them may get it."""
    ballast = mount.place / "ballast"
    with ballast.open("wb") as file:
        checked(libc.posix_fallocate(file.fileno(), 0, (room(mount) - 3 * BLOCKS - 16) * BLOCK))
    for loss, lose in LOSSES.items():
        one = client()
        path = mount.place / "file"
        path.write_bytes(bytes(SIZE))
        storing(one, "file")
        assert becomes(lambda path=path: PATTERN in path.read_bytes())  # type: ignore[misc]
        lose(path)
        others = {}
        for number in range(max(room(mount) - 8, 8) // 8):
            name = f"{loss}-{number}"
            others[name] = name.encode().ljust(8 * BLOCK, b".")
            (mount.place / name).write_bytes(others[name])
        assert room(mount) < 16
        time.sleep(0.02)
        check_others(mount.place, others)
        if loss == "punch":
            assert path.read_bytes() == bytes(SIZE)
        elif loss == "rename":
            assert path.read_bytes() == b"n" * SIZE
        one.kill()
        check_others(mount.place, others)
        path.unlink(missing_ok=True)
        for name in others:
            (mount.place / name).unlink()
        assert becomes(lambda: room(mount) >= 3 * BLOCKS)


def test_pieces_come_back_one_epoch_after_the_other(mount: Mounted, client: Clients) -> None:
    """Many cuts and many renewals: in the end nothing is missing."""
    one, other = client(), client()
    path = mount.place / "file"
    path.write_bytes(b"")
    for each in (one, other):
        each.must("open", 1, "file", os.O_RDWR)
        each.must("lease", 1, 0, 1, TO_STORE)
    before = free_blocks(mount.place)
    for turn in range(30):
        path.write_bytes(bytes([turn]) * SIZE)
        one.must("lease", 1, 0, SIZE, TO_STORE)
        if turn % 3 == 0:
            one.must("renew", 1)
        if turn % 7 == 0:
            other.must("renew", 1)
        other.must("lease", 1, 0, SIZE, 0)
        os.truncate(path, 0)
    assert free_blocks(mount.place) < before - BLOCKS
    one.must("renew", 1)
    other.must("renew", 1)
    assert becomes(lambda: free_blocks(mount.place) >= before)


def test_a_cut_of_a_leased_file_works_in_a_full_pool(mount: Mounted, client: Clients) -> None:
    """What is given up needs an inode, and blocks for its map; there must always be some."""
    one = client()
    paths = [mount.place / f"file{number}" for number in range(4)]
    for path in paths:
        path.write_bytes(b"")
    for begin in range(0, 200 * BLOCK, BLOCK):  # in pieces: their blocks lie between those of the others
        for path in paths:
            with path.open("r+b") as file:
                file.seek(begin)
                file.write(b"x" * BLOCK)
    for slot, path in enumerate(paths):
        one.must("open", slot, path.name, os.O_RDWR)
        at = 0
        while at < 200 * BLOCK:
            at = one.must("lease", slot, at, 200 * BLOCK - at, TO_STORE).next
    with (mount.place / "rest").open("wb", buffering=0) as rest, contextlib.suppress(OSError):
        while True:
            rest.write(bytes(1 << 20))
    with (mount.place / "rest").open("ab", buffering=0) as rest, contextlib.suppress(OSError):
        while True:
            rest.write(bytes(BLOCK))
    os.truncate(paths[0], 0)
    os.close(os.open(paths[1], os.O_WRONLY | os.O_TRUNC))
    punch(paths[2])
    paths[3].unlink()
    one.kill()
    assert becomes(lambda: free_blocks(mount.place) > 3 * 190)


# What holders see of others, and others of them


def leased(client: Client, place: Path, content: bytes, flags: int = TO_STORE) -> Path:
    path = place / "file"
    path.write_bytes(content)
    client.must("open", 1, "file", os.O_RDWR)
    client.must("lease", 1, 0, max(len(content), BLOCK), flags)
    return path


def test_stores_and_loads_agree_with_system_calls(mount: Mounted, client: Clients) -> None:
    one, other = client(), client()
    path = leased(one, mount.place, b"a" * SIZE)
    assert one.must("put", 1, 5000, b"stored")
    assert path.read_bytes() == (b"a" * 5000 + b"stored").ljust(SIZE, b"a")
    other.must("open", 1, "file", os.O_RDONLY)
    other.must("lease", 1, 0, SIZE, 0)
    assert other.must("get", 1, 4999, 8) == b"astoreda"
    with path.open("r+b", buffering=0) as file:
        file.seek(SIZE - 3)
        file.write(b"system call")
    assert other.must("get", 1, SIZE - 4, 4) == b"asys"


def test_a_write_into_the_last_hole_behind_the_end_ends_the_answer(mount: Mounted, client: Clients) -> None:
    """The block with EOF was granted as a hole; it is no longer one when the file has grown into it."""
    one = client()
    path = mount.place / "file"
    path.write_bytes(b"")
    os.truncate(path, 100)
    one.must("open", 1, "file", os.O_RDWR)
    found = one.must("lease", 1, 0, BLOCK, 0)
    assert found.extents[0].kind == Kind.HOLE
    with path.open("r+b", buffering=0) as file:
        file.seek(200)
        file.write(b"behind the end")
    if one.must("get", 1, 0, BLOCK) is None:
        one.must("lease", 1, 0, BLOCK, 0)
    assert one.must("get", 1, 0, BLOCK) == bytes(200) + b"behind the end"


def test_the_board_says_that_an_answer_is_old(mount: Mounted, client: Clients) -> None:
    one = client()
    path = leased(one, mount.place, b"a" * SIZE)
    found = one.must("lease", 1, 0, SIZE, TO_STORE)
    assert one.must("status", 1)[:3] == (found.epoch, SIZE, path.stat().st_ino)
    with path.open("r+b", buffering=0) as file:
        file.write(b"in place")
    assert one.must("status", 1).epoch == found.epoch, "nothing moved"
    punch(path)
    assert one.must("status", 1).epoch != found.epoch
    assert one.must("get", 1, 0, 8) is None
    assert not one.must("put", 1, 0, b"x")
    one.must("lease", 1, 0, SIZE, 0)
    assert one.must("get", 1, 0, 8) == bytes(8)
    os.truncate(path, 12)
    assert one.must("status", 1).size == 12


def test_a_plain_program_appends_behind_what_a_client_has_stored(mount: Mounted, client: Clients) -> None:
    one, other = client(), client()
    path = leased(one, mount.place, b"begin ")
    other.must("open", 1, "file", os.O_WRONLY | os.O_APPEND)
    other.must("append", 1, b"plain ")
    expected = b"begin plain "
    for turn in range(20):
        text = f"client {turn} ".encode() * (1 + turn * 40)
        assert one.must("append_directly", 1, text) == len(expected)
        expected += text
        if turn % 2:
            assert path.stat().st_size == len(expected)
        text = f"plain {turn} ".encode()
        assert other.must("append", 1, text) == len(text)
        expected += text
        assert path.read_bytes() == expected


# Rights


def test_nobody_stores_through_a_file_that_was_opened_to_read(mount: Mounted, client: Clients) -> None:
    one = client()
    path = mount.place / "file"
    path.write_bytes(bytes(SIZE))
    one.must("open", 1, "file", os.O_RDONLY)
    one.must("open", 2, "file", os.O_WRONLY)
    assert one.do("lease", 1, 0, SIZE, Flag.WRITE) == "EBADF"
    assert one.do("lease", 1, 0, SIZE, TO_STORE) == "EBADF"
    assert one.do("lease", 2, 0, SIZE, 0) == "EBADF"
    assert one.do("stored", 1) == "EBADF"
    assert holders(mount.place) == 0
    one.must("lease", 1, 0, SIZE, 0)
    assert holders(mount.place) == 1


def test_what_is_no_regular_file_has_no_memory(mount: Mounted, client: Clients) -> None:
    one = client()
    one.must("open", 1, ".", os.O_RDONLY)
    assert one.do("lease", 1, 0, SIZE, 0) in {"EBADF", "EISDIR", "ENOTTY"}
    assert holders(mount.place) == 0


def test_a_read_only_mount_tells_and_keeps_no_board(pool: Pool) -> None:
    path = pool("-b", "4096")
    content = os.urandom(SIZE)
    with mounted(path, *SESSIONS["kernel"]) as mount:
        (mount.place / "file").write_bytes(content)
    with mounted(path, *SESSIONS["kernel"], "ro") as mount, clients(mount.place) as make:
        one = make()
        one.must("open", 1, "file", os.O_RDONLY)
        found = one.must("lease", 1, 0, SIZE, 0)
        assert found.entry == 0
        assert one.must("get", 1, 0, SIZE) == content
        assert one.do("lease", 1, 0, SIZE, Flag.WRITE) in {"EBADF", "EROFS"}


def test_who_may_not_open_the_pool_works_as_without_leases(pool: Pool) -> None:
    path = pool("-b", "4096")
    path.chmod(0o600)
    with mounted(path, *SESSIONS["kernel"], "allow_other") as mount, clients(mount.place) as make:
        mount.place.chmod(0o777)
        one, other = make(), make()
        other.must("become", NOBODY)
        other.must("open", 1, "file", os.O_RDWR | os.O_CREAT, 0o666)
        other.must("pwrite", 1, b"plain" * 2000, 0)
        assert other.do("attach", 1) == "EACCES"
        one.must("open", 1, "file", os.O_RDWR)
        one.must("lease", 1, 0, 10_000, TO_STORE)
        assert one.must("put", 1, 0, b"other")
        assert other.must("pread", 1, 10, 0) == b"otherplain"
        other.must("pwrite", 1, b"again", 0)
        assert one.must("get", 1, 0, 10) == b"againplain"


def test_a_session_without_leases_says_so(pool: Pool) -> None:
    with mounted(pool("-b", "4096"), *SESSIONS["pyfuse3"]) as mount, clients(mount.place) as make:
        (mount.place / "file").write_bytes(bytes(SIZE))
        one = make()
        one.must("open", 1, "file", os.O_RDWR)
        assert one.do("attach", 1) == "ENOTTY"
        assert one.do("lease", 1, 0, SIZE, 0) == "ENOTTY"
        assert one.do("stored", 1) == "ENOTTY"
