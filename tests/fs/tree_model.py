"""A file system as a dictionary: the state that a state machine expects, and its comparison with a real file system.

A state maps inode numbers to `Thing`s, which are replaced and never changed, so that a copy of the dictionary is a
snapshot. `differences` compares a file system with one state. After a crash a file's bytes may be those of any state
since the last sync, because overwrites are made in place.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from daxfs.ext4.inode import file_type_of_mode
from daxfs.fs.filesystem import ROOT_INO, FileSystem


class Thing(NamedTuple):
    """One inode. ``content``: a file's bytes or a link's target; ``names``: a directory's. ``mtime_ns``: if known."""

    mode: int
    nlink: int
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    content: bytes = b""
    names: dict[bytes, int] = {}
    xattrs: dict[bytes, bytes] = {}
    mtime_ns: int | None = None

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    def with_name(self, name: bytes, ino: int) -> Thing:
        return self._replace(names={**self.names, name: ino}, mtime_ns=None)

    def without_name(self, name: bytes) -> Thing:
        return self._replace(names={key: ino for key, ino in self.names.items() if key != name}, mtime_ns=None)


State = dict[int, Thing]


class Partial(NamedTuple):
    """A write that may be there in part: the file size may be any from ``low`` to ``high``."""

    ino: int
    low: int
    high: int


NONE = Partial(0, 0, 0)


def first_state(fs: FileSystem) -> State:
    """Return the state that mke2fs makes."""
    lost = fs.lookup(ROOT_INO, b"lost+found")
    root = fs.getattr(ROOT_INO)
    return {
        ROOT_INO: Thing(root.mode, 3, names={b"lost+found": lost.ino}),
        lost.ino: Thing(lost.mode, 2),
    }


def descendants(state: State, ino: int) -> set[int]:
    """Return a directory and all directories below it."""
    found = {ino}
    todo = [ino]
    while todo:
        below = [child for child in state[todo.pop()].names.values() if state[child].is_dir]
        found.update(below)
        todo += below
    return found


def differences(
    fs: FileSystem, state: State, window: Sequence[State] = (), partial: Partial = NONE, *, times: bool = True
) -> list[str]:
    """Return what in ``fs``, reached from the root, differs from ``state``; empty if nothing does.

    Args:
        fs: the real file system.
        state: the model.
        window: the states from which a file's bytes may come, beside ``state``.
        partial: a write that may have been cut.
        times: whether to compare times.
    """
    found: list[str] = []
    seen: set[int] = set()
    todo = [ROOT_INO]
    while todo:
        ino = todo.pop()
        if ino in seen:
            continue
        seen.add(ino)
        thing = state[ino]
        found += attribute_differences(fs, ino, thing, partial, times=times)
        if thing.is_dir:
            names = listing(fs, ino)
            expected = {name: (child, file_type_of_mode(state[child].mode)) for name, child in thing.names.items()}
            if names != expected:
                found.append(f"directory {ino}: {sorted(names.items() ^ expected.items())[:6]}")
            else:
                todo += [child for child, _ in names.values()]
        elif thing.is_file:
            older = [moment[ino].content for moment in window if ino in moment]
            if not contents_agree(read_whole(fs, ino), thing.content, older, cut=partial.ino == ino):
                found.append(f"content of file {ino}")
        if len(found) > 5:
            break
    return found


def attribute_differences(fs: FileSystem, ino: int, thing: Thing, partial: Partial, *, times: bool) -> list[str]:
    """Return how stat, the attributes and a link's target differ from the model."""
    real = fs.getattr(ino)
    pairs: list[tuple[str, object, object]] = [
        ("mode", real.mode, thing.mode),
        ("nlink", real.nlink, thing.nlink),
        ("owner", (real.uid, real.gid), (thing.uid, thing.gid)),
        ("rdev", real.rdev, thing.rdev),
        ("xattrs", {name: fs.getxattr(ino, name) for name in fs.listxattr(ino)}, thing.xattrs),
    ]
    if not thing.is_dir and not (ino == partial.ino and partial.low <= real.size <= partial.high):
        pairs.append(("size", real.size, len(thing.content)))
    if stat.S_ISLNK(thing.mode):
        pairs.append(("target", fs.readlink(ino), thing.content))
    if times and thing.mtime_ns is not None:
        pairs.append(("mtime", real.mtime_ns, thing.mtime_ns))
    return [f"{what} of {ino}: {mine!r:.300}, expected {model!r:.300}" for what, mine, model in pairs if mine != model]


def listing(fs: FileSystem, ino: int) -> dict[bytes, tuple[int, int]]:
    """Return name -> number and type; no name may come twice."""
    directory = fs.opendir(ino)
    try:
        entries = [entry for entry in fs.readdir(directory) if entry.name not in (b".", b"..")]
    finally:
        fs.releasedir(directory)
    found = {entry.name: (entry.ino, entry.file_type) for entry in entries}
    assert len(found) == len(entries), f"directory {ino} lists a name twice"
    return found


def read_whole(fs: FileSystem, ino: int) -> bytes:
    """Return a file's bytes."""
    file = fs.open_file(ino, os.O_RDONLY)
    try:
        return bytes(fs.read(file, 0, 1 << 24))
    finally:
        fs.release(file)


def contents_agree(real: bytes, expected: bytes, older: list[bytes], *, cut: bool) -> bool:
    """Return whether each byte is the expected one, or that of another state; ``cut``: the length may differ."""
    if real == expected:
        return True
    if not older or (len(real) != len(expected) and not cut):
        return False
    mine = np.frombuffer(real, np.uint8)
    good = np.zeros(len(mine), bool)
    for moment in (expected, *older):
        there = np.frombuffer(moment, np.uint8)[: len(mine)]
        good[: len(there)] |= mine[: len(there)] == there
    return bool(good.all())
