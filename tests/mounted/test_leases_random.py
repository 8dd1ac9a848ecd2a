"""Random operations of several clients and plain programs on the same files: all see the same, and clients are killed.

The model is the content of each file. What a client stores by the rules is in the file; what it stores into memory that
the file has given up is nowhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from actor_rig import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, checked, libc
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from lease_actor import TO_STORE, Client, becomes, free_blocks
from machine_rig import run_few, run_many
from mount_rig import SESSIONS, mounted

from daxfs.protocol import Flag

BLOCK = 4096
REACH = 24 * BLOCK
NAMES = ("a", "b", "c")
CLIENTS = 3
SLOTS = 2
GARBAGE = b"memory that the file has given up! "

names = st.sampled_from(NAMES)
clients = st.integers(0, CLIENTS - 1)
slots = st.integers(0, SLOTS - 1)
places = st.one_of(st.integers(0, REACH), st.integers(0, REACH // BLOCK).map(lambda block: block * BLOCK))
lengths = st.one_of(st.integers(1, 3 * BLOCK), st.integers(1, 6).map(lambda blocks: blocks * BLOCK))
flags = st.sampled_from((Flag(0), Flag.WRITE, TO_STORE, TO_STORE))


class File:
    """What one inode holds."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, offset: int, content: bytes) -> None:
        self.resize(max(len(self.content), offset + len(content)))
        self.content[offset : offset + len(content)] = content

    def resize(self, size: int) -> None:
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    def zero(self, offset: int, length: int) -> None:
        end = min(offset + length, len(self.content))
        self.content[offset:end] = bytes(max(end - offset, 0))


class Machine(RuleBasedStateMachine):
    """Files by name, and by client and slot."""

    def __init__(self, pool: Path) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.place = self.stack.enter_context(mounted(pool, *SESSIONS["kernel"])).place
        self.free = free_blocks(self.place)
        self.clients = [Client(self.place) for _ in range(CLIENTS)]
        self.files: dict[str, File] = {}
        self.held: dict[tuple[int, int], File] = {}
        self.serial = 0
        for name in NAMES:
            self.make(name)

    def make(self, name: str) -> None:
        """A file anew, with something in it and something missing."""
        (self.place / name).write_bytes(b"")
        self.files[name] = File()
        self.write(name, 2 * BLOCK, 9000)
        self.truncate(name, 8 * BLOCK)

    def some(self, length: int) -> bytes:
        """Bytes that no step has used before."""
        self.serial += 1
        return (b"%d " % self.serial * length)[:length]

    def teardown(self) -> None:
        with self.stack:
            for client in self.clients:
                client.kill()
            for name in NAMES:
                (self.place / name).unlink(missing_ok=True)
            # All but a block for the status page.
            assert becomes(lambda: free_blocks(self.place) >= self.free - 1), "blocks are missing"

    # Plain programs

    @rule(name=names, offset=places, length=lengths)
    def write(self, name: str, offset: int, length: int) -> None:
        content = self.some(length)
        with (self.place / name).open("r+b", buffering=0) as file:
            assert os.pwrite(file.fileno(), content, offset) == length
        self.files[name].write(offset, content)

    @rule(name=names, length=lengths)
    def append(self, name: str, length: int) -> None:
        file, content = self.files[name], self.some(length)
        if len(file.content) <= REACH:
            with (self.place / name).open("ab", buffering=0) as opened:
                assert opened.write(content) == length
            file.write(len(file.content), content)

    @rule(name=names, size=places)
    def truncate(self, name: str, size: int) -> None:
        os.truncate(self.place / name, size)
        self.files[name].resize(size)

    @rule(name=names)
    def open_to_truncate(self, name: str) -> None:
        (self.place / name).write_bytes(b"")
        self.files[name].resize(0)

    @rule(name=names, mode=st.sampled_from((PUNCH_HOLE, ZERO_RANGE, 0)), offset=places, length=lengths)
    def fallocate(self, name: str, mode: int, offset: int, length: int) -> None:
        with (self.place / name).open("r+b") as file:
            checked(libc.fallocate(file.fileno(), mode | KEEP_SIZE, offset, length))
        if mode:
            self.files[name].zero(offset, length)

    @rule(name=names)
    def replace(self, name: str) -> None:
        (self.place / name).unlink()
        self.make(name)

    @rule(name=names, other=names)
    def rename_over(self, name: str, other: str) -> None:
        if name != other:
            (self.place / name).rename(self.place / other)
            self.files[other] = self.files[name]
            self.make(name)

    # Clients

    def held_by(self, who: int, slot: int) -> File:
        """The file that the client has there; it opens one if it has none."""
        if (who, slot) not in self.held:
            self.serial += 1
            self.open(who, slot, NAMES[self.serial % len(NAMES)])
        return self.held[who, slot]

    @rule(who=clients, slot=slots, name=names)
    def open(self, who: int, slot: int, name: str) -> None:
        if self.held.pop((who, slot), None):
            self.clients[who].must("forget", slot)
        self.clients[who].must("open", slot, name, os.O_RDWR)
        self.clients[who].must("attach_once", slot)
        self.held[who, slot] = self.files[name]

    @rule(who=clients, slot=slots, offset=places, length=lengths, flags=flags)
    def lease(self, who: int, slot: int, offset: int, length: int, flags: Flag) -> None:
        size = len(self.held_by(who, slot).content)
        assert self.clients[who].must("lease", slot, offset, length, flags).size == size

    @rule(who=clients, slot=slots, flags=flags)
    def lease_all(self, who: int, slot: int, flags: Flag) -> None:
        self.lease(who, slot, 0, REACH, flags)

    @rule(who=clients, slot=slots)
    def renew(self, who: int, slot: int) -> None:
        if (who, slot) in self.held:
            self.clients[who].must("renew", slot)

    @rule(who=clients, slot=slots, offset=places, length=lengths, asks=st.booleans())
    def store(self, who: int, slot: int, offset: int, length: int, asks: bool) -> None:
        file, content = self.held_by(who, slot), self.some(length)
        offset %= len(file.content) + 1
        content = content[: len(file.content) - offset]
        if asks:
            self.lease_all(who, slot, TO_STORE)
        if content and self.clients[who].must("put", slot, offset, content):
            file.write(offset, content)
            event("stored")

    @rule(who=clients, slot=slots, offset=places, length=lengths, asks=st.booleans())
    def load(self, who: int, slot: int, offset: int, length: int, asks: bool) -> None:
        file = self.held_by(who, slot)
        offset %= len(file.content) + 1
        if asks:
            self.lease_all(who, slot, Flag(0))
        found = self.clients[who].must("get", slot, offset, length)
        assert found in (None, file.content[offset : offset + length])
        event(f"loaded: {found is not None}")

    @rule(who=clients, slot=slots, length=lengths)
    def append_directly(self, who: int, slot: int, length: int) -> None:
        file = self.held_by(who, slot)
        if len(file.content) <= REACH:
            content = self.some(length)
            found = self.clients[who].do("append_directly", slot, content)
            event(f"appended: {found if isinstance(found, str) else ''}")
            if found != "EAGAIN":  # somebody else does
                assert found == len(file.content)
                file.write(found, content)

    @rule(who=clients, slot=slots)
    def store_into_what_was_given_up(self, who: int, slot: int) -> None:
        if (who, slot) in self.held:
            event(f"given up: {self.clients[who].must('put_where_it_was', slot, GARBAGE) > 0}")

    @rule(who=clients, slot=slots)
    def let_a_child_store(self, who: int, slot: int) -> None:
        """A child has the mapping, and ends before anything else happens."""
        file, content = self.held_by(who, slot), self.some(1)
        if self.clients[who].must("put_in_child", slot, 0, content):
            file.write(0, content)

    @rule(who=clients)
    def kill(self, who: int) -> None:
        self.clients[who].kill()
        self.clients[who] = Client(self.place)
        for slot in range(SLOTS):
            self.held.pop((who, slot), None)

    # What must hold

    @invariant()
    def all_see_the_same(self) -> None:
        for name, file in self.files.items():
            self.compare(name, (self.place / name).read_bytes(), file)
        for (who, slot), file in self.held.items():
            if file not in self.files.values():
                found: Any = self.clients[who].must("pread", slot, len(file.content) + 1, 0)
                self.compare(f"client {who}, file {slot}", found, file)

    def compare(self, what: str, found: bytes, file: File) -> None:
        if found != file.content:
            wrong = next(
                (at for at, pair in enumerate(zip(found, file.content, strict=False)) if pair[0] != pair[1]), -1
            )
            raise AssertionError(
                f"{what}: {len(found)} bytes, expected {len(file.content)}; at {wrong}: "
                f"{found[wrong : wrong + 40]!r}, expected {bytes(file.content[wrong : wrong + 40])!r}"
            )


def machines(pool: Callable[..., Path], *options: str) -> Callable[[], Machine]:
    made: list[Path] = []

    def make() -> Machine:
        for path in made:
            path.unlink()
        made[:] = [pool(*options, size="24M")]
        return Machine(made[0])

    return make


def test_random_operations(pool: Callable[..., Path]) -> None:
    run_few(machines(pool, "-b", "4096"), 6, steps=80)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("options", [("-b", "4096"), ("-b", "1024"), ("-b", "4096", "-O", "orphan_file")])
def test_many_random_operations(pool: Callable[..., Path], options: tuple[str, ...]) -> None:
    run_many(machines(pool, *options), 400, steps=100)
