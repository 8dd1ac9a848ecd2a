"""A state machine of random operations against the model of `tree_model`: names, data, attributes, and growth.

Other machines derive from `Machine` and add what else happens to a pool.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from model_machine import ModelMachine, picks, seeds
from range_rig import COLLAPSE, INSERT, KEEP_SIZE, PUNCH, ZERO
from tree_model import Partial, State, Thing, contents_agree, descendants, read_whole

from daxfs.fs.filesystem import ROOT_INO, OpenFile
from daxfs.fs.types import RenameFlags, SetAttributes

NAMES = [bytes([letter]) for letter in b"abcdef"] + [b"%d" % number + b"long" * 50 for number in range(4)]
XATTRS = [b"user.a", b"user.bb", b"trusted.c", b"security.d"]
SIZES = (0, 1, 1000, 1024, 4096, 5000, 20_000, 70_000)
MAX_OPEN = 4

names = st.sampled_from(NAMES)
offsets = st.one_of(st.sampled_from(SIZES), st.integers(0, 100_000))


def anything(_: Thing) -> bool:
    return True


class Machine(ModelMachine):
    """Names, data and attributes change at random."""

    def unnamed(self, ino: int) -> tuple[State, set[int]]:
        """Return what changes in the model when an inode loses a name, and the inodes that are gone."""
        thing = self.state[ino]
        left = 0 if thing.is_dir else thing.nlink - 1
        if left or self.busy(ino):
            return {ino: thing._replace(nlink=left, mtime_ns=None if thing.is_dir else thing.mtime_ns)}, set()
        return {}, {ino}

    # Names

    def made(self, parent: int, name: bytes, thing: Thing, action: Callable[[], object]) -> None:
        """Add a new inode to the model."""
        directory = self.state[parent]
        if not self.tried(action, {errno.EEXIST} if name in directory.names else set()):
            return
        ino = self.fs.lookup(parent, name).ino
        assert ino not in self.state, f"inode {ino} is in use and was given out again"
        directory = directory.with_name(name, ino)
        if thing.is_dir:
            directory = directory._replace(nlink=directory.nlink + 1)
        self.moment({parent: directory, ino: thing})

    @rule(pick=picks, name=names, mode=st.sampled_from((0o644, 0o755, 0o600)))
    def mkdir(self, pick: int, name: bytes, mode: int) -> None:
        parent = self.directory(pick)
        handed_down = self.state[parent].mode & stat.S_ISGID
        thing = Thing(stat.S_IFDIR | mode | handed_down, 2)
        self.made(parent, name, thing, lambda: self.fs.mkdir(parent, name, mode))

    @rule(pick=picks, name=names, kind=st.sampled_from((stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR)))
    def mknod(self, pick: int, name: bytes, kind: int) -> None:
        parent = self.directory(pick)
        rdev = os.makedev(10, 300) if kind == stat.S_IFCHR else 0
        thing = Thing(kind | 0o640, 1, rdev=rdev)
        self.made(parent, name, thing, lambda: self.fs.mknod(parent, name, kind | 0o640, rdev))

    @rule(pick=picks, name=names, length=st.sampled_from((1, 59, 60, 500)))
    def symlink(self, pick: int, name: bytes, length: int) -> None:
        parent = self.directory(pick)
        thing = Thing(stat.S_IFLNK | 0o777, 1, content=b"t" * length)
        self.made(parent, name, thing, lambda: self.fs.symlink(parent, name, b"t" * length))

    @rule(pick=picks, name=names, offset=offsets, size=st.sampled_from(SIZES), seed=seeds)
    def create(self, pick: int, name: bytes, offset: int, size: int, seed: int) -> None:
        """Make a file with some content."""
        parent = self.directory(pick)
        self.made(parent, name, Thing(stat.S_IFREG | 0o644, 1), lambda: self.fs.mknod(parent, name, 0o644))
        ino = self.state[parent].names.get(name, 0)
        if ino and self.state[ino].is_file:
            self.written(ino, offset, random.Random(seed).randbytes(size))

    @rule(pick=picks, into=picks, name=names)
    def link(self, pick: int, into: int, name: bytes) -> None:
        ino, parent = self.choose(pick, anything), self.directory(into)
        thing, directory = self.state[ino], self.state[parent]
        expected = {errno.EPERM} if thing.is_dir else set()
        if name in directory.names:
            expected.add(errno.EEXIST)
        if self.tried(lambda: self.fs.link(ino, parent, name), expected):
            self.moment({parent: directory.with_name(name, ino), ino: thing._replace(nlink=thing.nlink + 1)})

    @rule(pick=picks, into=picks, seed=st.integers(0, 9))
    def crowd(self, pick: int, into: int, seed: int) -> None:
        """Make many names at once, so that directories split."""
        ino, parent = self.file(pick), self.directory(into)
        if not ino:
            return
        for number in range(40):
            name = b"crowd-%d-%d" % (seed, number) + b"n" * 80
            thing, directory = self.state[ino], self.state[parent]
            expected = {errno.EEXIST} if name in directory.names else set()
            if self.tried(lambda name=name: self.fs.link(ino, parent, name), expected):
                self.moment({parent: directory.with_name(name, ino), ino: thing._replace(nlink=thing.nlink + 1)})

    @rule(pick=picks)
    def disperse(self, pick: int) -> None:
        """Remove all files of a directory."""
        parent = self.directory(pick)
        for name, ino in list(self.state[parent].names.items()):
            if not self.state[ino].is_dir:
                self.lose(parent, name)

    def lose(self, parent: int, name: bytes) -> None:
        """Unlink an existing name."""
        changes, gone = self.unnamed(self.state[parent].names[name])
        self.fs.unlink(parent, name)
        self.moment({parent: self.state[parent].without_name(name), **changes}, gone)

    @rule(pick=picks, which=picks, name=names)
    def unlink(self, pick: int, which: int, name: bytes) -> None:
        parent = self.directory(pick)
        directory = self.state[parent]
        name = self.likely(directory, which, name)
        ino = directory.names.get(name)
        expected = {errno.ENOENT} if ino is None else {errno.EISDIR} if self.state[ino].is_dir else set()
        if expected:
            self.tried(lambda: self.fs.unlink(parent, name), expected)
        else:
            self.lose(parent, name)

    def likely(self, directory: Thing, which: int, name: bytes) -> bytes:
        """Return a name, mostly an existing one."""
        present = sorted(directory.names.keys() - {b"lost+found"})
        return present[which % len(present)] if present and which % 4 else name

    @rule(pick=picks, which=picks, name=names)
    def rmdir(self, pick: int, which: int, name: bytes) -> None:
        parent = self.directory(pick)
        directory = self.state[parent]
        name = self.likely(directory, which, name)
        ino = directory.names.get(name)
        expected = set()
        if ino is None:
            expected.add(errno.ENOENT)
        elif not self.state[ino].is_dir:
            expected.add(errno.ENOTDIR)
        elif self.state[ino].names:
            expected.add(errno.ENOTEMPTY)
        self.remove_directory(parent, name, expected)

    def remove_directory(self, parent: int, name: bytes, expected: set[int]) -> None:
        directory = self.state[parent]
        if self.tried(lambda: self.fs.rmdir(parent, name), expected):
            changes, gone = self.unnamed(directory.names[name])
            shrunk = directory.without_name(name)._replace(nlink=directory.nlink - 1)
            self.moment({parent: shrunk, **changes}, gone)

    @rule(
        pick=picks,
        which=picks,
        name=names,
        into=picks,
        other=names,
        flags=st.sampled_from((0, 0, 0, RenameFlags.NOREPLACE, RenameFlags.EXCHANGE)),
    )
    def rename(self, pick: int, which: int, name: bytes, into: int, other: bytes, flags: int) -> None:
        source, target = self.directory(pick), self.directory(into)
        name = self.likely(self.state[source], which, name)
        old = self.state[source].names.get(name)
        if flags == RenameFlags.EXCHANGE:
            other = self.likely(self.state[target], which // 7, other)
        new = self.state[target].names.get(other)
        expected = self.rename_errors(source, old, target, new, flags)
        if not self.tried(lambda: self.fs.rename(source, name, target, other, flags), expected):
            return
        assert old is not None
        if old == new and flags != RenameFlags.EXCHANGE:
            return
        state = dict(self.state)
        changes, gone = ({}, set()) if new is None or flags == RenameFlags.EXCHANGE else self.unnamed(new)
        moves = [(old, source, target)]
        if flags == RenameFlags.EXCHANGE:
            assert new is not None
            state[source] = state[source].with_name(name, new)
            moves.append((new, target, source))
        else:
            state[source] = state[source].without_name(name)
            if new is not None and state[new].is_dir:
                state[target] = state[target]._replace(nlink=state[target].nlink - 1)
        state[target] = state[target].with_name(other, old)
        for ino, left, joined in moves:
            if state[ino].is_dir:
                state[left] = state[left]._replace(nlink=state[left].nlink - 1)
                state[joined] = state[joined]._replace(nlink=state[joined].nlink + 1)
        self.moment({source: state[source], target: state[target], **changes}, gone)

    def rename_errors(self, source: int, old: int | None, target: int, new: int | None, flags: int) -> set[int]:
        """Return every error that rename may raise; their order is not modelled."""
        state, expected = self.state, set()
        if old is None:
            return {errno.ENOENT}
        if flags == RenameFlags.NOREPLACE and new is not None:
            expected.add(errno.EEXIST)
        if flags == RenameFlags.EXCHANGE:
            if new is None:
                return {errno.ENOENT}
            if state[new].is_dir and source in descendants(state, new):
                expected.add(errno.EINVAL)
        elif new is not None and new != old:
            if state[old].is_dir and not state[new].is_dir:
                expected.add(errno.ENOTDIR)
            elif state[new].is_dir and not state[old].is_dir:
                expected.add(errno.EISDIR)
            elif state[new].names:
                expected.add(errno.ENOTEMPTY)
        if state[old].is_dir and target in descendants(state, old) and not (new == old and not flags):
            expected.add(errno.EINVAL)
        return expected

    # Data

    def written(self, ino: int, offset: int, content: bytes, file: OpenFile | None = None) -> None:
        """Write, and add the bytes that were written to the model."""
        handle = file or self.fs.open_file(ino, os.O_RDWR)
        done = [0]
        try:
            self.tried(lambda: done.append(self.fs.write(handle, offset, content)), set())
        finally:
            if file is None:
                self.fs.release(handle)
        if count := done[-1]:
            self.grown(ino, offset, content[:count])

    def grown(self, ino: int, offset: int, content: bytes) -> None:
        """Put the bytes into the model."""
        thing = self.state[ino]
        held = thing.content.ljust(offset, b"\0")
        after = held[:offset] + content + held[offset + len(content) :]
        partial = Partial(ino, len(thing.content), len(after))
        self.moment({ino: thing._replace(content=after, mtime_ns=None)}, partial=partial)
        assert self.fs.getattr(ino).size == len(after)

    @rule(pick=picks, offset=offsets, size=st.sampled_from(SIZES), seed=seeds)
    def write(self, pick: int, offset: int, size: int, seed: int) -> None:
        if ino := self.file(pick):
            self.written(ino, offset, random.Random(seed).randbytes(size))

    @rule(pick=picks, size=offsets)
    def truncate(self, pick: int, size: int) -> None:
        ino = self.file(pick)
        if ino and self.tried(lambda: self.fs.setattr(ino, SetAttributes(size=size)), set()):
            thing = self.state[ino]
            self.moment({ino: thing._replace(content=thing.content[:size].ljust(size, b"\0"), mtime_ns=None)})

    # Ranges of files

    def extents(self) -> set[int]:
        """Return the error of operations that need extents, for the formats without them."""
        return {errno.EOPNOTSUPP} if self.format == "no-extents" else set()

    def fallocate(self, ino: int, mode: int, offset: int, length: int, expected: set[int]) -> bool:
        file = self.fs.open_file(ino, os.O_RDWR)
        try:
            return self.tried(lambda: self.fs.fallocate(file, mode, offset, length), expected)
        finally:
            self.fs.release(file)

    @rule(
        pick=picks,
        mode=st.sampled_from((0, KEEP_SIZE, PUNCH, ZERO, ZERO | KEEP_SIZE)),
        offset=offsets,
        length=st.sampled_from(SIZES[1:]),
    )
    def change_range(self, pick: int, mode: int, offset: int, length: int) -> None:
        ino = self.file(pick)
        if not ino:
            return
        before = self.state[ino].content
        whole = before if mode & KEEP_SIZE else before.ljust(offset + length, b"\0")
        if mode & (PUNCH | ZERO) & ~KEEP_SIZE:
            whole = whole[:offset] + bytes(len(whole[offset : offset + length])) + whole[offset + length :]
        done = self.fallocate(ino, mode, offset, length, set() if mode == PUNCH else self.extents())
        after = read_whole(self.fs, ino)
        if done:
            assert after == whole
        else:
            # A full pool: whatever was done until then.
            assert len(before) <= len(after) <= len(whole)
            assert contents_agree(after, whole[: len(after)], [before], cut=True)
        partial = Partial(ino, len(before), len(after))
        self.moment({ino: self.state[ino]._replace(content=after, mtime_ns=None)}, partial=partial)

    @rule(pick=picks, mode=st.sampled_from((COLLAPSE, INSERT)), first=st.integers(0, 30), blocks=st.integers(1, 30))
    def move_range(self, pick: int, mode: int, first: int, blocks: int) -> None:
        ino = self.file(pick)
        if not ino:
            return
        thing = self.state[ino]
        offset, length = first * self.fs.volume.block_size, blocks * self.fs.volume.block_size
        reach = offset + length if mode == COLLAPSE else offset
        expected = self.extents() or ({errno.EINVAL} if reach >= len(thing.content) else set())
        if self.fallocate(ino, mode, offset, length, expected):
            between = bytes(length) if mode == INSERT else b""
            after = thing.content[:offset] + between + thing.content[reach:]
            self.moment({ino: thing._replace(content=after, mtime_ns=None)})

    @rule(pick=picks, into=picks, offset=offsets, place=offsets, length=st.sampled_from(SIZES))
    def copy_range(self, pick: int, into: int, offset: int, place: int, length: int) -> None:
        source, ino = self.file(pick), self.file(into)
        if not source:
            return
        content = self.state[source].content[offset : offset + length]
        overlaps = source == ino and abs(offset - place) < len(content)
        files = [self.fs.open_file(number, os.O_RDWR) for number in (source, ino)]
        done = [0]
        try:
            self.tried(
                lambda: done.append(self.fs.copy_range(files[0], offset, files[1], place, length)),
                {errno.EINVAL} if overlaps else set(),
            )
        finally:
            for file in files:
                self.fs.release(file)
        if count := done[-1]:
            self.grown(ino, place, content[:count])

    @precondition(lambda self: len(self.opened) < MAX_OPEN)
    @rule(pick=picks)
    def open(self, pick: int) -> None:
        if ino := self.file(pick):
            self.opened.append(self.fs.open_file(ino, os.O_RDWR))

    @precondition(lambda self: self.opened)
    @rule(pick=picks, offset=offsets, size=st.sampled_from(SIZES), seed=seeds)
    def write_open(self, pick: int, offset: int, size: int, seed: int) -> None:
        """Write to an open file, which may have no name."""
        file = self.opened[pick % len(self.opened)]
        self.written(file.ino, offset, random.Random(seed).randbytes(size), file)
        assert bytes(self.fs.read(file, 0, 1 << 24)) == self.state[file.ino].content

    @rule(pick=picks, then=st.sampled_from(("", "sync", "crash")), seed=seeds)
    def unlink_open(self, pick: int, then: str, seed: int) -> None:
        """Remove a name, perhaps the last, of an open file."""
        if not self.opened:
            self.open(pick)
        if not self.opened:
            return
        ino = self.opened[pick % len(self.opened)].ino
        places = [
            (above, name) for above, thing in self.state.items() for name in thing.names if thing.names[name] == ino
        ]
        for parent, name in sorted(places)[:1]:
            self.lose(parent, name)
        if then:
            self.sync()
        if then == "crash" and self.format != "no-journal":
            self.crash(seed, syncing=False)

    @rule(pick=picks, seed=seeds, then=st.sampled_from(("", "fill", "crash")))
    def raze(self, pick: int, seed: int, then: str) -> None:
        """Remove a directory with all that is in it; its blocks may soon be a file's."""
        self.empty(self.choose(pick, lambda thing: thing.is_dir and b"lost+found" not in thing.names) or ROOT_INO)
        if then:
            self.sync()
            self.fill(pick, seed)
        if then == "crash" and self.format != "no-journal":
            self.crash(seed, syncing=bool(seed % 2))

    def empty(self, parent: int) -> None:
        """Remove everything in a directory."""
        for name, ino in list(self.state[parent].names.items()):
            if self.state[ino].is_dir:
                self.empty(ino)
                self.remove_directory(parent, name, set())
            else:
                self.lose(parent, name)

    @rule(pick=picks, seed=seeds)
    def fill(self, pick: int, seed: int) -> None:
        """Write until the pool is full, so that freed blocks are used again."""
        if ino := self.file(pick):
            chance = random.Random(seed)
            for _ in range(30):
                before = len(self.state[ino].content)
                self.written(ino, before, chance.randbytes(400_000))
                if len(self.state[ino].content) < before + 400_000:
                    break

    @precondition(lambda self: self.opened)
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        file = self.opened.pop(pick % len(self.opened))
        self.fs.release(file)
        self.forget_idle(file.ino)

    @rule(pick=picks)
    def pin(self, pick: int) -> None:
        ino = self.choose(pick, anything)
        self.fs.pin(self.fs.getattr(ino))
        self.pinned.append(ino)

    @precondition(lambda self: self.pinned)
    @rule(pick=picks)
    def unpin(self, pick: int) -> None:
        ino = self.pinned.pop(pick % len(self.pinned))
        self.fs.unpin(ino)
        self.forget_idle(ino)

    def forget_idle(self, ino: int) -> None:
        if not self.state[ino].nlink and not self.busy(ino):
            self.moment({}, {ino})

    # Attributes

    @rule(pick=picks, mode=st.sampled_from((0o600, 0o4755, 0o2755, 0o2644, 0o1777)), time=st.integers(0, 1 << 62))
    def chmod(self, pick: int, mode: int, time: int) -> None:
        ino = self.choose(pick, lambda thing: not stat.S_ISLNK(thing.mode))
        thing = self.state[ino]
        time = time if self.format != "no-csum" else time % (1 << 31) * 10**9
        if self.tried(lambda: self.fs.setattr(ino, SetAttributes(mode=mode, mtime_ns=time)), set()):
            self.moment({ino: thing._replace(mode=stat.S_IFMT(thing.mode) | mode, mtime_ns=time)})

    @rule(pick=picks, uid=st.sampled_from((0, 1000, 70_000)), gid=st.sampled_from((0, 1000, 70_000)))
    def chown(self, pick: int, uid: int, gid: int) -> None:
        ino = self.choose(pick, lambda thing: not thing.is_dir)
        if ino and self.tried(lambda: self.fs.setattr(ino, SetAttributes(uid=uid, gid=gid)), set()):
            thing = self.state[ino]
            mode = thing.mode & ~stat.S_ISUID
            mode &= ~stat.S_ISGID if mode & stat.S_IXGRP else ~0
            self.moment({ino: thing._replace(uid=uid, gid=gid, mode=mode)})

    @rule(
        pick=picks,
        name=st.sampled_from(XATTRS),
        size=st.sampled_from((0, 10, 60, 300, 900, 3900)),
        fill=st.integers(0, 3),
        flags=st.sampled_from((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)),
    )
    def setxattr(self, pick: int, name: bytes, size: int, fill: int, flags: int) -> None:
        ino = self.choose(pick, anything)
        thing = self.state[ino]
        expected = set()
        if name.startswith(b"user.") and not (thing.is_dir or thing.is_file):
            expected.add(errno.EPERM)
        if flags == os.XATTR_CREATE and name in thing.xattrs:
            expected.add(errno.EEXIST)
        if flags == os.XATTR_REPLACE and name not in thing.xattrs:
            expected.add(errno.ENODATA)
        value = bytes([fill]) * size
        if self.tried(lambda: self.fs.setxattr(ino, name, value, flags), expected):
            self.moment({ino: thing._replace(xattrs={**thing.xattrs, name: value})})

    @rule(pick=picks, name=st.sampled_from(XATTRS))
    def removexattr(self, pick: int, name: bytes) -> None:
        ino = self.choose(pick, lambda thing: name in thing.xattrs or thing.is_dir)
        thing = self.state[ino]
        expected = set() if name in thing.xattrs else {errno.ENODATA}
        if self.tried(lambda: self.fs.removexattr(ino, name), expected):
            self.moment({ino: thing._replace(xattrs={key: v for key, v in thing.xattrs.items() if key != name})})

    # The size

    @rule(blocks=st.sampled_from((1, 100, 500, 700)))
    def grow(self, blocks: int) -> None:
        """Make the file system larger; all earlier changes are durable then."""
        most = self.pool.size // self.fs.statfs().block_size
        before, now = self.fs.resize(min(self.fs.volume.geometry.blocks_count + blocks, most))
        if now > before:
            self.durable(self.state)
