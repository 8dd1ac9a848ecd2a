"""Random histories with snapshots: each image is clean and has the tree of its moment, after power cuts too.

Clients store meanwhile without the daemon, also right after a snapshot, when they do not know of it. The full sweep has
``--histories=N`` of them, in slices of `SLICE`; ``-k "histories[56]"`` selects the slice that begins with number 56.
"""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import pytest
from crash_rig import FORMATS, OPERATIONS, Picture, Workbench, image
from in_memory import tmp_path
from lease_rig import MEMORY, NOTHING, RENEW, STORE, WRITE, Client, entry_of
from recorder import RecordingPool
from snapshot_rig import after_power_loss, differences, remounted, tree
from tree_rig import QUIET

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.snapshots.catalogue import FULL, OLDER, REASONS
from daxfs.fs.types import Grant
from daxfs.pmem.memory import MemoryPool
from daxfs.protocol import GrantedExtent

__all__ = ["tmp_path"]

STEPS = 24
NEARLY_FULL = 60
"""Blocks."""
SAMPLE, SLICE = 6, 25
FILES = ("big", "f", "g", "d/x")
"""For clients."""
CHANGES = [name for name in OPERATIONS if "snapshot" not in name]


class History:
    """A pool whose file system is changed at random.

    Attributes:
        trees: what each snapshot must show.
        clients: with the answers that let them store.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.fs = FileSystem.open(RecordingPool(image(self.rng.choice(list(FORMATS)))), QUIET)
        self.trees: dict[bytes, Picture] = {}
        self.log: list[str] = []
        self.clients: dict[Client, list[Grant]] = {}

    def step(self) -> None:
        """Do one thing."""
        choice = self.rng.random()
        if choice < 0.2 and len(self.trees) < 4:
            self.snapshot(b"%d" % len(self.log))
        elif choice < 0.27 and self.trees:
            name = self.rng.choice(sorted(self.trees))
            self.log.append(f"delete {name!r}")
            self.fs.delete_snapshot(name)
            del self.trees[name]
        elif choice < 0.32:
            self.log.append("remount")
            for client in self.clients:
                client.close()
            self.clients.clear()
            self.fs = remounted(self.fs)
        elif choice < 0.37:
            self.log.append("power loss")
            self.clients.clear()
            self.fs = after_power_loss(self.fs)
        elif choice < 0.45:
            self.log.append("sync")
            self.fs.sync()
        elif choice < 0.6:
            with contextlib.suppress(FsError):  # the file is gone, or the pool full
                self.client()
        else:
            name = self.rng.choice(CHANGES)
            self.log.append(name)
            self.change(name)
        self.forget_lost()

    def change(self, name: str) -> None:
        """Try a change: what it needs may be gone or not open, and a write is short where the pool is full."""
        try:
            OPERATIONS[name](Workbench(self.fs))
        except (FsError, LookupError):
            pass
        except AssertionError:
            assert self.fs.statfs().free < NEARLY_FULL, self.log

    def client(self) -> None:
        """Have a client begin, ask, renew, store or end."""
        choice = self.rng.random()
        if not self.clients or (choice < 0.15 and len(self.clients) < 4):
            path = self.rng.choice(FILES)
            self.log.append(f"client of {path}")
            file = self.fs.open_file(self.fs.tree.resolve(path), os.O_RDWR)
            self.clients[Client(self.fs, file, len(self.log))] = []
        client = self.rng.choice(list(self.clients))
        answers = self.clients[client]
        if choice < 0.2:
            self.log.append("client closes")
            del self.clients[client]
            client.close()
        elif choice < 0.6:
            begin, length = 4096 * self.rng.randrange(6), 4096 * self.rng.randint(1, 5)
            flags = self.rng.choice((STORE, WRITE, STORE | RENEW, NOTHING, RENEW))
            self.log.append(f"client asks for {length} bytes from {begin} with {flags!r}")
            if flags & RENEW:
                answers.clear()
            answer = client.ask(begin, length, flags)
            if flags & WRITE:
                answers.append(answer)
        else:
            self.store(client, self.places(client))

    def places(self, client: Client) -> list[GrantedExtent]:
        """Where a client may store now: what it was granted for storing."""
        size = self.fs.getattr(client.file.ino).size
        return [
            piece._replace(length=min(piece.length, size - piece.offset))
            for answer in self.clients[client]
            if entry_of(self.fs, answer.entry).epoch == answer.epoch
            for piece in answer.pieces
            if piece.kind == MEMORY and piece.offset < size
        ]

    def store(self, client: Client, places: list[GrantedExtent]) -> None:
        """Store without the daemon."""
        for place in self.rng.sample(places, min(2, len(places))):
            begin = self.rng.randrange(place.length)
            count = self.rng.randint(1, place.length - begin)
            self.log.append(f"client of inode {client.file.ino} stores {count} bytes at {place.pool_offset + begin}")
            self.fs.volume.pool.unhooked.write(place.pool_offset + begin, self.rng.randbytes(count))

    def snapshot(self, name: bytes) -> None:
        """Make one, if there is room."""
        self.log.append(f"snapshot {name!r}")
        expected = tree(self.fs)
        in_flight = [(client, self.places(client)) for client in self.clients]
        with contextlib.suppress(FsError):
            self.fs.create_snapshot(name)
            self.trees[name] = expected
        for client, places in in_flight:
            if self.rng.random() < 0.7:
                self.store(client, places)

    def forget_lost(self) -> None:
        """A snapshot may be lost only because the pool was full."""
        for found in self.fs.list_snapshots():
            if found.lost:
                assert found.lost in (REASONS[FULL], REASONS[OLDER]), self.log
                self.trees.pop(found.name, None)

    def check(self, fs: FileSystem, folder: Path, what: str) -> None:
        """All snapshots of a mounted pool show their trees."""
        for found in fs.list_snapshots():
            if found.name in self.trees and not found.lost:
                unlike = differences(fs, found.name, self.trees[found.name], folder)
                assert not unlike, (what, found.name, self.log, unlike)


def run_history(seed: int, folder: Path) -> int:
    history = History(seed)
    for _ in range(STEPS):
        history.step()
    history.check(history.fs, folder, "at the end")
    assert {each.name for each in history.fs.list_snapshots() if not each.lost} == set(history.trees)
    # Once more on a recording pool: what a cut may leave while everything goes on.
    pool = RecordingPool(bytearray(history.fs.volume.pool.memory))
    history.fs = FileSystem.open(pool, QUIET)
    known = dict(history.trees)
    pool.restart()
    for _ in range(3):
        history.change(history.rng.choice(CHANGES))
    history.fs.sync()
    cuts = list(pool.crash_images(history.rng, prefixes=1, subsets=1))
    for left in history.rng.sample(cuts, min(2, len(cuts))):
        with_cut = FileSystem.open(MemoryPool(bytearray(left.image)), QUIET)
        history.check(with_cut, folder, f"cut at {left.position}: {left.choice}")
        lost = {each.lost for each in with_cut.list_snapshots()} - {""}
        assert lost <= {REASONS[FULL], REASONS[OLDER]}, history.log
    return len(known)


def test_a_sample_of_histories(tmp_path: Path) -> None:
    assert sum(run_history(seed, tmp_path) for seed in range(SAMPLE)) > SAMPLE / 2


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "first" in metafunc.fixturenames:
        metafunc.parametrize("first", range(SAMPLE, metafunc.config.getoption("--histories"), SLICE))


@pytest.mark.full
def test_histories(first: int, tmp_path: Path) -> None:
    assert sum(run_history(first + at, tmp_path) for at in range(SLICE)) > SLICE / 2
