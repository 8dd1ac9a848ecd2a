"""A file system as a dictionary: the state that a state machine expects, and its comparison with a real file system.

A state maps inode numbers to `Thing`s, which are replaced and never changed, so that a copy of the dictionary is a
snapshot. `differences` compares a file system with one state. After a crash a file's bytes may be those of any state
since the last sync, because overwrites are made in place. The directory of snapshots is no part of the model.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from daxfs.ext4.inode import file_type_of_mode
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.snapshots import catalogue
from daxfs.fs.tiers import members


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
SNAPSHOTS = b".daxfs"
"""What the root has and the model has not."""
OWN = (members.ATTRIBUTE, catalogue.RECORD)
"""Attributes of the root that daxfs changes itself: with its storage, and with each mount."""


class Partial(NamedTuple):
    """A write that may be there in part: the file size may be any from ``low`` to ``high``."""

    ino: int
    low: int
    high: int


NONE = Partial(0, 0, 0)


def state_in(fs: FileSystem) -> State:
    """Return the state that a file system is in, without times."""
    state: State = {}
    todo = [ROOT_INO]
    while todo:
        ino = todo.pop()
        real = fs.getattr(ino)
        kind = stat.S_IFMT(real.mode)
        names = {name: child for name, (child, _) in listing(fs, ino).items()} if kind == stat.S_IFDIR else {}
        content = read_whole(fs, ino) if kind == stat.S_IFREG else fs.readlink(ino) if kind == stat.S_IFLNK else b""
        owner = real.uid, real.gid, real.rdev
        state[ino] = Thing(real.mode, real.nlink, *owner, content, names, xattrs_of(fs, ino))
        todo += names.values() - state.keys()
    return state


def descendants(state: State, ino: int) -> set[int]:
    """Return a directory and all directories below it."""
    found = {ino}
    todo = [ino]
    while todo:
        below = [child for child in state[todo.pop()].names.values() if state[child].is_dir]
        found.update(below)
        todo += below
    return found


def renumbered(state: State, numbers: Mapping[int, int]) -> State:
    """Return the state with other inode numbers; what ``numbers`` does not have is left out."""
    return {
        numbers[ino]: thing._replace(names={name: numbers[child] for name, child in thing.names.items()})
        for ino, thing in state.items()
        if ino in numbers
    }


def numbers_in(fs: FileSystem, state: State) -> dict[int, int]:
    """Return the number that each inode of the model with a name has in ``fs``, which has the same names."""
    numbers = {ROOT_INO: ROOT_INO}
    todo = [ROOT_INO]
    while todo:
        ino = todo.pop()
        for name, child in state[ino].names.items():
            if child not in numbers:
                numbers[child] = fs.lookup(numbers[ino], name).ino
                todo.append(child)
    return numbers


def differences(
    fs: FileSystem,
    state: State,
    window: Sequence[State] = (),
    partial: Partial = NONE,
    *,
    times: bool = True,
    numbers: dict[int, int] | None = None,
) -> list[str]:
    """Return what in ``fs``, reached from the root, differs from ``state``; empty if nothing does.

    Args:
        fs: the real file system.
        state: the model.
        window: the states from which a file's bytes may come, beside ``state``.
        partial: a write that may have been cut.
        times: whether to compare times.
        numbers: takes the number of each inode of the model; None: it must be that of the model.
    """
    found: list[str] = []
    known = {ROOT_INO: ROOT_INO} if numbers is None else numbers
    known[ROOT_INO] = ROOT_INO
    seen: set[int] = set()
    todo = [ROOT_INO]
    while todo:
        ino = todo.pop()
        if ino in seen:
            continue
        seen.add(ino)
        thing, real = state[ino], known[ino]
        names = listing(fs, real) if thing.is_dir else {}
        hidden = int(ino == ROOT_INO and names.pop(SNAPSHOTS, None) is not None)
        found += attribute_differences(fs, real, thing, partial._replace(ino=known.get(partial.ino, 0)), hidden, times)
        if thing.is_dir:
            for name, child in thing.names.items():
                known.setdefault(child, child if numbers is None else names.get(name, (0, 0))[0])
            expected = {
                name: (known[child], file_type_of_mode(state[child].mode)) for name, child in thing.names.items()
            }
            if names != expected:
                found.append(f"directory {ino}: {sorted(names.items() ^ expected.items())[:6]}")
            else:
                todo += thing.names.values()
        elif thing.is_file:
            older = [moment[ino].content for moment in window if ino in moment]
            if not contents_agree(read_whole(fs, real), thing.content, older, cut=partial.ino == ino):
                found.append(f"content of file {ino}")
        if len(found) > 5:
            break
    if len(set(known.values())) < len(known):
        found.append(f"one number of two files: {known}")
    return found


def xattrs_of(fs: FileSystem, ino: int) -> dict[bytes, bytes]:
    """Return the extended attributes that users have set."""
    return {name: fs.getxattr(ino, name) for name in fs.listxattr(ino) if name not in OWN}


def attribute_differences(
    fs: FileSystem, ino: int, thing: Thing, partial: Partial, hidden: int, times: bool
) -> list[str]:
    """Return how stat, the attributes and a link's target differ from the model. ``hidden``: directories it lacks."""
    real = fs.getattr(ino)
    pairs: list[tuple[str, object, object]] = [
        ("mode", real.mode, thing.mode),
        ("nlink", real.nlink - hidden, thing.nlink),
        ("owner", (real.uid, real.gid), (thing.uid, thing.gid)),
        ("rdev", real.rdev, thing.rdev),
        ("xattrs", xattrs_of(fs, ino), thing.xattrs),
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
