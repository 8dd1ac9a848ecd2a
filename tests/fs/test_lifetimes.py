"""The states of inodes: after every transition, undone or not, the records agree with the pool."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem, OpenFile
from daxfs.fs.types import ROOT_INO
from daxfs.structures import inode_bitmaps

OpenFs = Callable[..., FileSystem]
NAMES = [b"a", b"b", b"c"]


@pytest.fixture
def fs(open_fs: OpenFs) -> FileSystem:
    return open_fs(size="16M")


def failing(_: object) -> object:
    raise FsError(errno.EIO)


@pytest.mark.interpreted
def test_a_name_that_is_not_given(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = fs.tmpfile(ROOT_INO, 0o600)
    fs.sync()
    lives = fs.volume.lives
    before = set(lives.nameless), set(lives.linkable), set(lives.listed)
    monkeypatch.setattr("daxfs.fs.names.attributes_of", failing)
    with pytest.raises(FsError):
        fs.link(file.ino, ROOT_INO, b"name")
    monkeypatch.undo()
    assert (lives.nameless, lives.linkable, lives.listed) == before == ({file.ino},) * 3
    fs.check()
    fs.link(file.ino, ROOT_INO, b"name")
    assert not lives.nameless | lives.linkable | lives.listed
    fs.release(file)


@pytest.mark.interpreted
def test_a_name_that_is_not_taken(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = fs.create(ROOT_INO, b"name", 0o600)
    replaced, _ = fs.create(ROOT_INO, b"other", 0o600)
    monkeypatch.setattr(type(fs.volume.nodes), "stamped", lambda *_, **__: failing(0))
    with pytest.raises(FsError):
        fs.unlink(ROOT_INO, b"name")
    with pytest.raises(FsError):
        fs.rename(ROOT_INO, b"name", ROOT_INO, b"other")
    monkeypatch.undo()
    assert not fs.volume.lives.nameless
    fs.check()
    fs.release(file)
    fs.release(replaced)


@pytest.mark.interpreted
def test_a_nameless_file_that_is_not_made(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daxfs.fs.lifetimes.Lifetimes.made_nameless", made_and_failed(fs))
    with pytest.raises(FsError):
        fs.tmpfile(ROOT_INO, 0o600)
    monkeypatch.undo()
    assert not fs.volume.lives.nameless
    assert not fs.volume.lives.linkable
    fs.check()


def made_and_failed(fs: FileSystem) -> Callable[..., None]:
    whole = type(fs.volume.lives).made_nameless

    def fail(*arguments: object, **options: object) -> None:
        whole(*arguments, **options)  # type: ignore[arg-type]
        raise FsError(errno.EIO)

    return fail


class Lives(RuleBasedStateMachine):
    """Names, pins, opens and commits in any order; some operations fail at their end."""

    fs: FileSystem

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[OpenFile] = []
        self.pinned: list[int] = []

    @rule(name=st.sampled_from(NAMES))
    def create(self, name: bytes) -> None:
        self.attempt(lambda: self.opened.append(self.fs.create(ROOT_INO, name, 0o600)[0]))

    @rule(flags=st.sampled_from([os.O_RDWR, os.O_RDWR | os.O_EXCL]))
    def tmpfile(self, flags: int) -> None:
        self.opened.append(self.fs.tmpfile(ROOT_INO, 0o600, flags)[0])

    @rule(at=st.integers(0, 9), name=st.sampled_from(NAMES))
    def link(self, at: int, name: bytes) -> None:
        if self.opened:
            self.attempt(lambda: self.fs.link(self.opened[at % len(self.opened)].ino, ROOT_INO, name))

    @rule(name=st.sampled_from(NAMES))
    def unlink(self, name: bytes) -> None:
        self.attempt(lambda: self.fs.unlink(ROOT_INO, name))

    @rule(name=st.sampled_from(NAMES), other=st.sampled_from(NAMES), flags=st.sampled_from([0, 1, 2, 4]))
    def rename(self, name: bytes, other: bytes, flags: int) -> None:
        self.attempt(lambda: self.fs.rename(ROOT_INO, name, ROOT_INO, other, flags))

    @rule(at=st.integers(0, 9))
    def release(self, at: int) -> None:
        if self.opened:
            self.fs.release(self.opened.pop(at % len(self.opened)))

    @rule(at=st.integers(0, 9))
    def pin(self, at: int) -> None:
        if self.opened:
            self.pinned.append(self.opened[at % len(self.opened)].ino)
            self.fs.pin(self.fs.getattr(self.pinned[-1]))

    @rule(at=st.integers(0, 9))
    def unpin(self, at: int) -> None:
        if self.pinned:
            self.fs.unpin(self.pinned.pop(at % len(self.pinned)))

    @rule()
    def sync(self) -> None:
        self.fs.sync()

    @invariant()
    def the_books_agree(self) -> None:
        self.fs.check()
        held = {file.ino for file in self.opened} | set(self.pinned)
        assert all(inode_bitmaps.in_use(self.fs.volume.view, ino) for ino in held)
        assert self.fs.volume.lives.nameless <= held

    def teardown(self) -> None:
        for file in self.opened:
            self.fs.release(file)
        for ino in self.pinned:
            self.fs.unpin(ino)
        assert not self.fs.volume.lives.nameless
        for name in NAMES:
            self.attempt(lambda name=name: self.fs.unlink(ROOT_INO, name))  # type: ignore[misc]

    @staticmethod
    def attempt(operation: Callable[[], object]) -> None:
        try:
            operation()
        except FsError as error:
            assert error.errno in {errno.ENOENT, errno.EEXIST}, error


def test_any_order(fs: FileSystem) -> None:
    class Machine(Lives):
        pass

    Machine.fs = fs
    quick = settings(max_examples=25, stateful_step_count=30, deadline=None, database=None)
    run_state_machine_as_test(Machine, settings=settings(quick, suppress_health_check=list(HealthCheck)))
