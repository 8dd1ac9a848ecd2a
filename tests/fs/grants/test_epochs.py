"""Every operation on a file in every state of its lease: blocks that a client may touch get no other owner.

After the operation all free blocks of a small pool are allocated, and every client then overwrites everything that it
was ever granted. The content of other owners must not change, and all blocks become free with the last holder.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from lease_rig import (
    EXTEND,
    OPERATIONS,
    RENEW,
    STATES,
    STORE,
    WRITE,
    Client,
    Pair,
    SharedPool,
    another,
    check,
    client,
    free_blocks,
    make,
    opened,
    owners,
    pairs,
    planted,
    truncate,
    with_flags,
)
from range_rig import PUNCH, check_credits
from tree_rig import QUIET

from daxfs.errors import FsError
from daxfs.fs.change import Change
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.grants import epochs, inode_grants
from daxfs.structures import inodes, orphans
from support import fsck, write_image

FORMATS: dict[str, tuple[str, ...]] = {
    "4k": ("-b", "4096", "-J", "size=4", "-N", "64", "-m", "0"),
    "1k": ("-b", "1024", "-J", "size=1", "-N", "64", "-m", "0"),
    "orphan-file": ("-b", "1024", "-J", "size=1", "-N", "64", "-O", "orphan_file"),
    "no-extents": ("-b", "1024", "-J", "size=1", "-N", "64", "-O", "^extent,^64bit"),
}


def image(folder: Path, name: str) -> bytes:
    return planted(folder, name, FORMATS[name])


class Bench:
    """A pool in memory and its file system."""

    def __init__(self, content: bytes | bytearray, *, stale_clients: bool = False) -> None:
        self.content = bytearray(content)
        self.pool = SharedPool(self.content)
        self.pool.stale_clients = stale_clients
        self.fs = FileSystem.open(self.pool, QUIET)
        check_credits(self.fs)

    def close(self, path: Path) -> None:
        """Close the file system and check it with e2fsck."""
        self.fs.close()
        write_image(path, self.content)
        fsck(path)


def settled(fs: FileSystem) -> int:
    """Return the number of blocks that are free or owned, after a commit: it never changes."""
    fs.sync()
    found = owners(fs)
    return len(found.free) + len(found.data) + len(found.metadata)


def nameless(fs: FileSystem) -> set[int]:
    """Return the inodes without a name, without that of the status page."""
    return fs.volume.lives.nameless - {fs.grants.page.ino}


def give_out_everything(fs: FileSystem) -> bytes:
    """Fill the pool with a new file, and return the file's content."""
    fs.sync()
    file = make(fs, b"eater")
    piece = random.Random(5).randbytes(16 * fs.volume.block_size)
    with suppress(FsError):
        while True:
            fs.write(file, fs.getattr(file.ino).size, piece)
    fs.release(file)
    return fs.tree.read_bytes("eater")


def overwrite_all(client: Client) -> None:
    """Store into every block that this client was granted, as a mapping does that the daemon can't stop."""
    pool, size = client.fs.volume.pool, client.fs.volume.block_size
    for block in client.granted:
        pool.write(block * size, b"\xee" * size)


def go_through(bench: Bench, state: str, operation: str, path: Path) -> None:
    """Run one pair of state and operation to its end."""
    fs = bench.fs
    total = settled(fs)
    pair = STATES[state](fs)
    check(fs, pair.clients)
    OPERATIONS[operation](pair)
    check(fs, pair.clients)
    expected = give_out_everything(fs)
    check(fs, pair.clients)
    for one in pair.clients:
        overwrite_all(one)
    assert fs.tree.read_bytes("eater") == expected
    assert fs.tree.read_bytes("source") == random.Random(12).randbytes(12 * fs.volume.block_size)
    fs.unlink(ROOT_INO, b"eater")
    fs.sync()
    assert settled(fs) == total
    while pair.clients:
        one = pair.clients.pop(0)
        if pair.clients and pair.clients[0].file is one.file:
            one.renew()
            check(fs, pair.clients)
            continue
        if pair.clients:
            one.ask(flags=RENEW)
            check(fs, [one, *pair.clients])
        one.close()
        check(fs, pair.clients)
    for file in pair.others:
        fs.release(file)
    assert not nameless(fs)
    assert not fs.grants.by_ino
    assert settled(fs) == total
    bench.close(path)


@pytest.mark.parametrize("state", STATES)
def test_pairs(folder: Path, tmp_path: Path, state: str) -> None:
    for operation in random.Random(state).sample(list(OPERATIONS), 8):
        go_through(Bench(image(folder, "4k")), state, operation, tmp_path / "pool")


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "4k"])
def test_some_pairs_in_other_formats(folder: Path, tmp_path: Path, name: str) -> None:
    for state, operation in random.Random(name).sample(pairs(name), 6):
        go_through(Bench(image(folder, name)), state, operation, tmp_path / "pool")


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
def test_pairs_in_full(folder: Path, tmp_path: Path, name: str) -> None:
    for state, operation in pairs(name):
        go_through(Bench(image(folder, name)), state, operation, tmp_path / "pool")


# Who is done, and who is not


def test_one_renews_the_other_does_not(folder: Path, tmp_path: Path) -> None:
    bench = Bench(image(folder, "4k"))
    fs = bench.fs
    pair = STATES["two files"](fs)
    eager, lazy = pair.clients
    lazy_blocks = set(lazy.granted)
    truncate(fs, pair.ino, 0)
    for _ in range(3):
        eager.ask(flags=RENEW)
        assert lazy.granted == lazy_blocks
        check(fs, pair.clients)
        fs.write(eager.file, 0, b"again" * 5000)
        eager.ask(flags=RENEW | STORE)
        truncate(fs, pair.ino, 0)
        check(fs, pair.clients)
    kept = nameless(fs)
    eager.ask(flags=RENEW)
    assert nameless(fs) <= kept
    assert nameless(fs)
    lazy.ask(flags=RENEW)
    assert not nameless(fs)
    for one in pair.clients:
        one.close()
    bench.close(tmp_path / "pool")


def test_who_comes_later_holds_up_nothing(folder: Path, tmp_path: Path) -> None:
    bench = Bench(image(folder, "4k"))
    fs = bench.fs
    pair = STATES["write"](fs)
    old = pair.clients[0]
    truncate(fs, pair.ino, 5)
    late = another(old, 9)
    late.ask(flags=STORE)
    old.close()
    assert not nameless(fs)
    check(fs, [late])
    late.close()
    bench.close(tmp_path / "pool")


def test_many_epochs(folder: Path, tmp_path: Path) -> None:
    """Deferred frees of many epochs join few inodes, and all of them wait for the holder of the first epoch."""
    bench = Bench(image(folder, "1k"))
    fs = bench.fs
    held = client(fs, b"new")
    witness = another(held, 2)
    for round_ in range(60):
        fs.write(held.file, 0, b"%d" % round_ * 3000)
        for one in (held, witness):
            one.ask()
        fs.fallocate(held.file, PUNCH, 0, 3 * 1024)
        check(fs, [held, witness])
        held.ask(flags=RENEW)
    assert len(nameless(fs)) <= epochs.MAX_DEFERRED + 1
    assert len(witness.granted) > 100
    witness.close()
    assert not nameless(fs)
    held.close()
    bench.close(tmp_path / "pool")


def test_more_pieces_than_are_told_apart(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inode_grants, "MAX_GRANTED", 4)
    for operation in ("truncate to nothing", "punch", "collapse"):
        bench = Bench(image(folder, "1k"))
        fs = bench.fs
        held = Client(fs, opened(fs))
        for block in range(0, 40, 3):
            held.ask(block * 1024 + 5, 100)
        OPERATIONS[operation](Pair(fs, [held], []))
        check(fs, [held])
        held.close()
        assert not nameless(fs)
        bench.close(tmp_path / "pool")


def test_a_part_of_a_block_is_granted(folder: Path, tmp_path: Path) -> None:
    bench = Bench(image(folder, "4k"))
    held = Client(bench.fs, opened(bench.fs))
    held.ask(100, 50)
    held.ask(3 * 4096 - 1, 2)
    assert len(held.granted) == 3
    truncate(bench.fs, held.file.ino, 0)
    check(bench.fs, [held])
    held.close()
    bench.close(tmp_path / "pool")


@pytest.mark.parametrize("name", ["4k", "1k"])
def test_a_cut_in_a_full_pool(folder: Path, tmp_path: Path, name: str) -> None:
    """The cut succeeds although it frees nothing yet."""
    bench = Bench(image(folder, name))
    fs = bench.fs
    size = fs.volume.block_size
    held = client(fs, b"scattered")
    for block in range(0, 140, 2):
        fs.write(held.file, block * size, b"x" * size)
    held.ask_all(0, 140 * size, WRITE)
    total = settled(fs)
    give_out_everything(fs)
    for end in (100 * size, 3, 0):
        truncate(fs, held.file.ino, end)
        check(fs, [held])
    held.close()
    assert not nameless(fs)
    assert free_blocks(fs) >= 70
    assert settled(fs) == total
    bench.close(tmp_path / "pool")


@pytest.mark.parametrize("operation", ["truncate to nothing", "punch", "unlink", "collapse", "zero"])
def test_no_inode_is_free(folder: Path, tmp_path: Path, operation: str) -> None:
    """Blocks that can't be deferred stay in the file, the file does not change, and answers stay true."""
    bench = Bench(image(folder, "4k"))
    fs = bench.fs
    pair = STATES["two files"](fs)
    with suppress(FsError):
        for number in range(100):
            fs.release(make(fs, b"%d" % number))
    assert not fs.statfs().files_free
    try:
        OPERATIONS[operation](pair)
    except FsError as error:
        assert error.errno == errno.ENOSPC
    check(fs, pair.clients)
    fs.unlink(ROOT_INO, b"0")
    if operation != "unlink":
        OPERATIONS[operation](pair)
    check(fs, pair.clients)
    for one in pair.clients:
        one.close()
    assert not nameless(fs)
    bench.close(tmp_path / "pool")


@pytest.mark.interpreted
def test_a_change_that_is_undone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the handle that has deferred blocks fails, no record of it is left."""
    bench = Bench(image(folder, "4k"))
    fs = bench.fs
    held = STATES["write"](fs).clients[0]
    truncate(fs, held.file.ino, 30 * 4096)
    grants = fs.grants.by_ino[held.file.ino]
    granted, deferred, kept = list(grants.granted.runs), list(grants.deferred), set(fs.volume.lives.quarantine)
    whole = Change.unmap

    def fail(*arguments: object, **options: object) -> bool:
        whole(*arguments, **options)  # type: ignore[arg-type]
        raise FsError(errno.EIO)

    monkeypatch.setattr(Change, "unmap", fail)
    with pytest.raises(FsError):
        truncate(fs, held.file.ino, 10)
    with pytest.raises(FsError):
        OPERATIONS["punch"](Pair(fs, [held], []))
    monkeypatch.undo()
    assert (grants.granted.runs, grants.deferred, fs.volume.lives.quarantine) == (granted, deferred, kept)
    check(fs, [held])
    held.close()
    assert not nameless(fs)
    bench.close(tmp_path / "pool")


# The daemon goes


@pytest.mark.parametrize("state", [state for state in STATES if state not in ("none", "gone")])
@pytest.mark.parametrize("how", ["unmount", "crash", "crash after a commit", "abort"])
def test_clients_outlive_the_daemon(folder: Path, tmp_path: Path, state: str, how: str) -> None:
    """What stale clients may touch gets no other owner until they end, across any number of mounts."""
    for operation in random.Random(state + how).sample(("truncate to nothing", "punch", "unlink", "overwrite"), 1):
        bench = Bench(image(folder, "1k"))
        fs = bench.fs
        total = settled(fs)
        pair = STATES[state](fs)
        ghosts = [(one.file.ino, set(one.granted)) for one in pair.clients]
        OPERATIONS[operation](pair)
        bench.pool.ours = True
        if how == "unmount":
            leave(pair)
        elif how == "abort":
            fs.abort(RuntimeError("for the test"))
            leave(pair)
        elif how == "crash after a commit":
            fs.sync()
        content = bytes(bench.pool.image()) if how.startswith("crash") else bytes(bench.content)
        for _ in range(2):
            bench = Bench(content, stale_clients=True)
            fs = bench.fs
            check(fs, [], ghosts)
            with suppress(FsError):
                OPERATIONS["truncate unaligned"](Pair(fs, [], [opened(fs)]))
            check(fs, [], ghosts)
            give_out_everything(fs)
            check(fs, [], ghosts)
            fs.unlink(ROOT_INO, b"eater")
            fs.tick()
            check(fs, [], ghosts)
            fs.close()
            content = bytes(bench.content)
        bench = Bench(content, stale_clients=True)
        bench.pool.stale_clients = False
        bench.fs.tick()
        assert not nameless(bench.fs)
        assert settled(bench.fs) == total
        bench.close(tmp_path / "pool")


def leave(pair: Pair) -> None:
    """Do what the session does at its end."""
    pair.fs.end_mount()
    for file in {id(one.file): one.file for one in pair.clients}.values():
        pair.fs.release(file)
    for file in pair.others:
        pair.fs.release(file)
    pair.fs.close()


@pytest.mark.parametrize("state", STATES)
def test_unmounted_with_nobody_left(folder: Path, tmp_path: Path, state: str) -> None:
    for operation in random.Random(state).sample(list(OPERATIONS), 2):
        bench = Bench(image(folder, "1k"))
        pair = STATES[state](bench.fs)
        OPERATIONS[operation](pair)
        leave(pair)
        write_image(tmp_path / "pool", bench.content)
        fsck(tmp_path / "pool")


def test_stale_clients_take_one_inode(folder: Path, tmp_path: Path) -> None:
    bench = Bench(image(folder, "1k"), stale_clients=True)
    fs = bench.fs
    file = make(fs, b"new")
    for _ in range(100):
        fs.write(file, 0, b"x" * 3000)
        truncate(fs, file.ino, 0)
    assert len(fs.volume.lives.quarantine) == 1
    fs.release(file)
    bench.pool.stale_clients = False
    fs.tick()
    assert not fs.volume.lives.nameless
    bench.close(tmp_path / "pool")


def test_stale_clients_end_while_others_hold(folder: Path, tmp_path: Path) -> None:
    bench = Bench(image(folder, "4k"), stale_clients=True)
    fs = bench.fs
    held = with_flags(STORE)(fs).clients[0]
    truncate(fs, held.file.ino, 5)
    truncate(fs, fs.tree.resolve("g"), 0)
    bench.pool.stale_clients = False
    fs.tick()
    check(fs, [held])
    assert len(nameless(fs)) == 1
    held.close()
    assert not nameless(fs)
    assert not list(orphans.listing(fs.volume.view)) or fs.grants.page.ino
    bench.close(tmp_path / "pool")


def by_write(fs: FileSystem, ino: int, size: int, content: bytes) -> None:
    file = fs.open_file(ino, os.O_RDWR | os.O_APPEND)
    fs.write(file, size, content)
    fs.release(file)


def by_truncate(fs: FileSystem, ino: int, size: int, content: bytes) -> None:
    truncate(fs, ino, size + len(content))
    file = fs.open_file(ino, os.O_RDWR)
    fs.write(file, size, content)
    fs.release(file)


def by_allocation(fs: FileSystem, ino: int, size: int, content: bytes) -> None:
    file = fs.open_file(ino, os.O_RDWR)
    fs.fallocate(file, 0, size, len(content))
    fs.write(file, size, content)
    fs.release(file)


def by_client(fs: FileSystem, ino: int, size: int, content: bytes) -> None:
    one = Client(fs, fs.open_file(ino, os.O_RDWR))
    one.ask(size, len(content), STORE | EXTEND)
    one.store(size, content)
    one.stored(size + len(content))
    one.close()


@pytest.mark.parametrize("how", [by_write, by_truncate, by_allocation, by_client])
@pytest.mark.parametrize("name", ["4k", "1k"])
def test_stale_clients_that_go_on_appending(
    folder: Path, tmp_path: Path, name: str, how: Callable[[FileSystem, int, int, bytes], None]
) -> None:
    """What they were granted past EOF does not become part of the file in the next mount."""
    old = Bench(image(folder, name)).fs
    block = old.volume.block_size
    one = client(old, b"log", content=b"x" * 3 * block)
    one.ask(3 * block, 16 * block, STORE | EXTEND)
    old.sync()
    bench = Bench(bytes(old.volume.pool.memory), stale_clients=True)
    fs = bench.fs
    content = random.Random(7).randbytes(4 * block)
    for number in range(2):
        how(fs, one.file.ino, (3 + 4 * number) * block, content)
    check(fs, [], [(one.file.ino, one.granted)])
    for at in one.granted:
        fs.volume.pool.write(at * block, b"\xee" * block)
    assert fs.tree.read_bytes("log") == b"x" * 3 * block + content * 2
    bench.pool.stale_clients = False
    fs.tick()
    assert not nameless(fs)
    bench.close(tmp_path / "pool")


def test_preallocated_pieces_of_a_scattered_pool(folder: Path, tmp_path: Path) -> None:
    """Hundreds of preallocated pieces past EOF are freed again within the credits of a handle."""
    bench = Bench(image(folder, "1k"))
    fs = bench.fs
    give_out_everything(fs)
    eater = fs.open_file(fs.tree.resolve("eater"), 2)
    for block in range(0, 400, 2):
        fs.fallocate(eater, PUNCH, block * 1024, 1024)
    fs.sync()
    held = client(fs, b"new", b"x")
    held.ask_all(0, 150 * 1024, STORE | EXTEND)
    assert len(fs.describe(held.file.ino)) > 100
    fs.write(held.file, 1, b"more")
    check(fs, [held])
    held.ask_all(0, 150 * 1024, STORE | EXTEND | RENEW)
    held.close()
    fs.release(eater)
    assert not nameless(fs)
    assert not inodes.read(fs.volume.view, fs.tree.resolve("new")).size > 5
    bench.close(tmp_path / "pool")
