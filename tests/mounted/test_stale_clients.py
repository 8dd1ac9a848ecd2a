"""Clients that outlive the daemon that granted them memory: nothing that they store shows in what others write later.

They keep the pool mapped and locked. Each later mount sees that, gives nothing to others that they may touch, and frees
it when they are gone; mkfs and e2fsck do not begin before.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_rig import daxfs
from lease_actor import TO_STORE, Client, becomes, clients, free_blocks, holders
from mount_rig import SESSIONS, Mounted, mountpoint

from daxfs.fuse import mounts
from support import HANG_SECONDS, fsck, run, tool

BLOCK = 4096
SIZE = 64 * BLOCK
TICK = 0.2
"""Seconds after which a mount with `COMMIT` looks whether stale clients are left; a fifth of that."""
COMMIT = "commit=1"
PATTERN = b"memory of somebody who was here before! "

Pool = Callable[..., Path]


class Life:
    """The mounts of one pool, one after the other, and the clients of all of them."""

    def __init__(self, pool: Path) -> None:
        self.pool = pool
        self.options = (*SESSIONS["kernel"], COMMIT)
        self.stack = contextlib.ExitStack()
        self.mount: Mounted | None = None
        self.others: dict[str, bytes] = {}

    def begin(self, *options: str) -> Mounted:
        """Mount it somewhere."""
        self.mount = Mounted(self.pool, self.stack.enter_context(mountpoint()), (*self.options, *options))
        self.stack.callback(self.mount.down)
        return self.mount

    @property
    def place(self) -> Path:
        assert self.mount is not None
        return self.mount.place

    def client(self) -> Client:
        return self.stack.enter_context(clients(self.place))()

    def kill(self) -> None:
        """SIGKILL the daemon; the dead mount is taken away."""
        assert self.mount is not None
        self.mount.daemon.kill()
        self.mount.daemon.wait(HANG_SECONDS)
        self.lazily()

    def terminate(self) -> None:
        """SIGTERM the daemon, which says good-bye."""
        assert self.mount is not None
        self.mount.daemon.send_signal(signal.SIGTERM)
        assert self.mount.daemon.wait(HANG_SECONDS) == 0, self.mount.said()
        if mounts.top_mount(str(self.place)) is not None:
            self.lazily()

    def unmount(self) -> None:
        assert self.mount is not None
        self.mount.unmount()

    def lazily(self) -> None:
        subprocess.run([tool("umount"), "-l", self.place], timeout=HANG_SECONDS, check=True)

    # Files

    def make(self, label: str, count: int = 8) -> None:
        """New files, and room for more: the oldest ones go."""
        for number in range(count):
            name = f"{label}-{number}"
            self.others[name] = name.encode().ljust(SIZE // 2, b".")
            (self.place / name).write_bytes(self.others[name])
        for name in list(self.others)[:-24]:
            (self.place / name).unlink()
            del self.others[name]
        free_blocks(self.place)
        self.check()

    def check(self) -> None:
        for name, content in self.others.items():
            assert (self.place / name).read_bytes() == content, f"{name} has changed"

    def all_free(self, before: int) -> None:
        """With all files removed, the pool is as empty as it was."""
        for path in self.place.iterdir():
            if path.is_file():
                path.unlink()
        assert becomes(lambda: free_blocks(self.place) >= before, 4), f"{before - free_blocks(self.place)} are missing"


@pytest.fixture
def life(pool: Pool, request: pytest.FixtureRequest) -> Iterator[Life]:
    life = Life(pool(*getattr(request, "param", ("-b", "4096", "-J", "size=4"))))
    with life.stack:
        yield life
        assert life.mount is None or life.mount.daemon.poll() is not None, "a test unmounts in the end"
    fsck(life.pool)


def holding(life: Life, *names: str) -> Client:
    """A client that stores all the time: into files that are there, and into what two of them have given up already."""
    one = life.client()
    for slot, name in enumerate((*names, "cut", "gone")):
        (life.place / name).write_bytes(bytes(SIZE))
        one.must("open", slot, name, os.O_RDWR)
        one.must("lease", slot, 0, SIZE, TO_STORE)
    os.truncate(life.place / "cut", 0)
    (life.place / "gone").unlink()
    free_blocks(life.place)
    one.ask("put_again_and_again", PATTERN)
    return one


ENDS: dict[str, Callable[[Life], None]] = {"SIGKILL": Life.kill, "SIGTERM": Life.terminate}


@pytest.mark.parametrize("end", ENDS)
def test_it_stores_into_nothing_that_others_get(life: Life, end: str) -> None:
    before = free_blocks(life.begin().place)
    one = holding(life, "a", "b", "c")
    life.make("first")
    ENDS[end](life)
    for turn, later in enumerate((Life.kill, Life.unmount, Life.terminate)):
        assert life.begin().said().count("programs still map it") == 1
        life.check()
        name = "abc"[turn]
        assert PATTERN in (life.place / name).read_bytes(), "it is its file still"
        if turn == 0:
            os.truncate(life.place / name, 0)
        elif turn == 1:
            (life.place / name).unlink()
        else:
            (life.place / name).write_bytes(b"")
        life.make(f"turn{turn}")
        time.sleep(0.02)
        life.check()
        later(life)
    life.begin()
    life.check()
    one.kill()
    life.all_free(before)
    life.unmount()


def test_an_unmount_overtakes_the_news_that_files_were_closed(life: Life) -> None:
    """The daemon hears of the unmount before it hears of the last close: no client has anything left to touch."""
    life.begin()
    assert life.mount is not None
    one = life.client()
    (life.place / "f").write_bytes(bytes(SIZE))
    one.must("open", 0, "f", os.O_RDWR)
    one.must("lease", 0, 0, SIZE, TO_STORE)
    one.must("open", 1, "f", os.O_RDWR)
    one.must("chdir", "/")
    one.must("close", 1)  # the kernel has learned that closing needs no FLUSH
    life.mount.daemon.send_signal(signal.SIGSTOP)
    one.must("close", 0)
    mounts.unmount(str(life.place))
    life.mount.daemon.send_signal(signal.SIGCONT)
    assert life.mount.daemon.wait(HANG_SECONDS) == 0, life.mount.said()
    fsck(life.pool)
    one.kill()


OTHERS = [("-O", "orphan_file"), ("-O", "^has_journal"), ("-O", "^metadata_csum", "-b", "1024")]


@pytest.mark.full
@pytest.mark.parametrize("life", OTHERS, indirect=True, ids=" ".join)
@pytest.mark.parametrize("end", ["SIGTERM"])
def test_it_stores_into_nothing_in_other_pools(life: Life, end: str) -> None:
    test_it_stores_into_nothing_that_others_get(life, end)


def test_blocks_come_back_a_moment_after_the_last_one_ends(life: Life) -> None:
    life.begin()
    one, other = holding(life), life.client()
    other.must("open", 0, "cut", os.O_RDWR)
    other.must("lease", 0, 0, 1, 0)
    child = other.must("fork")
    life.kill()
    life.begin()
    few = free_blocks(life.place)
    for end in (one.kill, other.kill):
        end()
        time.sleep(2 * TICK)
        assert free_blocks(life.place) < few + 64, "one is left"
    os.kill(child, signal.SIGKILL)
    assert becomes(lambda: free_blocks(life.place) >= few + 128)
    life.unmount()


def test_a_client_of_the_new_mount_is_not_stale(life: Life) -> None:
    before = free_blocks(life.begin().place)
    one = holding(life, "a")
    life.kill()
    life.begin()
    other = life.client()
    other.must("open", 0, "a", os.O_RDWR)
    other.must("lease", 0, 0, SIZE, TO_STORE)
    os.truncate(life.place / "a", 0)
    one.kill()
    assert becomes(lambda: free_blocks(life.place) > before - 160), "what waited for stale clients is free"
    assert free_blocks(life.place) < before - 64, "what waits for the client is not"
    other.kill()
    life.all_free(before - 1)  # the status page of this mount
    life.unmount()


def dirty(pool: Path) -> bool:
    return "needs_recovery" in run("dumpe2fs", "-h", pool)


def test_an_unmount_that_leaves_somebody_behind_is_like_a_crash(life: Life) -> None:
    """The pool is not clean, says so, and is sound: recovery is all that it needs."""
    before = free_blocks(life.begin().place)
    one = holding(life, "a")
    life.make("first")
    life.terminate()
    assert dirty(life.pool)
    life.begin()
    life.unmount()
    assert dirty(life.pool)
    run("e2fsck", "-fn", life.pool, code=4)
    copy = life.pool.with_name("copy")
    copy.write_bytes(life.pool.read_bytes())
    one.kill()
    run("e2fsck", "-fp", copy, code=0)
    fsck(copy)
    life.begin()
    life.check()
    life.all_free(before)
    life.unmount()
    assert not dirty(life.pool)


def test_mkfs_and_check_wait_for_the_last_one(life: Life) -> None:
    life.begin()
    one = holding(life)
    life.kill()
    for arguments, code in ((("mkfs", life.pool, "-F"), 32), (("check", life.pool, "-fy"), 8)):
        said = daxfs(*arguments, code=code)
        assert said.count("\n") == 1
        assert "programs still map it from an earlier mount" in said
    one.kill()
    daxfs("check", life.pool, "-fp")
    life.begin()
    life.unmount()


def test_who_has_closed_all_files_is_not_stale(life: Life) -> None:
    """It keeps the pool mapped, as a program below `daxfs exec` does until it ends."""
    before = free_blocks(life.begin().place)
    one = life.client()
    (life.place / "a").write_bytes(bytes(SIZE))
    one.must("open", 0, "a", os.O_RDWR)
    one.must("lease", 0, 0, SIZE, TO_STORE)
    one.must("close", 0)
    one.must("chdir", "/")
    assert becomes(lambda: holders(life.place) == 0)
    life.unmount()
    assert not dirty(life.pool)
    fsck(life.pool)
    assert "still map it" not in life.begin().said()
    os.truncate(life.place / "a", 0)
    life.all_free(before)
    life.unmount()
    assert "still map it" in daxfs("mkfs", life.pool, "-F", code=32), "it may come back"


def test_readers_of_a_read_only_mount_are_stale_clients_for_the_next(life: Life) -> None:
    """The pool is clean all the time; what they read stays what it was."""
    content = b"read by somebody" * (SIZE // 16)
    before = free_blocks(life.begin().place)
    (life.place / "a").write_bytes(content)
    life.unmount()
    life.begin("ro")
    one = life.client()
    one.must("open", 0, "a", os.O_RDONLY)
    one.must("lease", 0, 0, SIZE, 0)
    life.kill()
    assert "still map it" in life.begin().said()
    os.truncate(life.place / "a", 0)
    life.make("new")
    assert one.must("get", 0, 0, SIZE) == content
    one.kill()
    life.all_free(before)
    life.unmount()


@pytest.mark.parametrize("command", ["umount", "daxfs"])
def test_a_mount_that_is_taken_away_lazily_serves_its_clients_on(life: Life, command: str) -> None:
    mount = life.begin()
    one = life.client()
    (life.place / "a").write_bytes(bytes(SIZE))
    one.must("open", 0, "a", os.O_RDWR)
    one.must("lease", 0, 0, SIZE, TO_STORE)
    if command == "umount":
        life.lazily()
    else:
        daxfs("umount", "-l", life.place)
    assert one.must("put", 0, 0, b"stored")
    assert one.must("pread", 0, 6, 0) == b"stored"
    one.must("fallocate", 0, 3, 0, SIZE)
    assert one.must("get", 0, 0, 6) is None
    assert one.must("lease", 0, 0, SIZE, TO_STORE).extents
    assert one.must("put", 0, 0, b"again")
    assert "in use" in daxfs("check", life.pool, "-n", code=8)
    one.kill()
    assert mount.daemon.wait(HANG_SECONDS) == 0, mount.said()
    with contextlib.ExitStack() as stack:
        life.begin()
        stack.callback(life.unmount)
        assert (life.place / "a").read_bytes()[:6] == b"again\0"
