"""One tree, written and read by daxfs and by the kernel in the same way, so that what they see can be compared.

A `Side` changes a file system by paths; `kernel_tree` and `pool_tree` return all that can be seen; `same` compares.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from daxfs.errors import FsError
from daxfs.ext4.inode import file_type_of_mode
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.snapshots.catalogue import RECORD
from daxfs.fs.types import Options, SetAttributes

CHUNK = 1 << 16
READ_WHOLE = 4 << 20
SECOND = 10**9


class Facts(NamedTuple):
    """All that can be seen of one inode.

    ``content``: the checksums of a file's chunks that are not zeros; a link's target; a directory's names.
    """

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    content: object


Tree = dict[bytes, Facts]


def same(found: Tree, expected: Tree) -> None:
    """Both trees are equal; if not, say what differs rather than everything."""
    assert sorted(found) == sorted(expected)
    differences = [
        f"{path!r}: {field} is {mine!r:.200}, expected {theirs!r:.200}"
        for path in sorted(expected)
        for field, mine, theirs in zip(Facts._fields, found[path], expected[path], strict=True)
        if mine != theirs
    ]
    assert not differences, "\n".join(differences[:20])


def portable(tree: Tree) -> Tree:
    """Return what any writer of the tree would have made: no places, no numbers, no times that can't be set."""
    found = {}
    for path, facts in tree.items():
        if path == b"lost+found":
            continue
        facts = facts._replace(ino=0, blocks=0, ctime_ns=0)
        if isinstance(facts.content, tuple) and stat.S_ISDIR(facts.mode):
            names = tuple((name, kind) for name, _, kind in facts.content if name != b"lost+found")
            facts = facts._replace(size=0, content=names)
        found[path] = facts
    return found


def timeless(tree: Tree) -> Tree:
    """The same without times."""
    return {path: facts._replace(atime_ns=0, mtime_ns=0) for path, facts in portable(tree).items()}


def digest(read: Callable[[int, int], bytes], size: int, ranges: Iterable[tuple[int, int]]) -> tuple[object, ...]:
    """The checksums of the chunks that are not zeros. Big files are read in ``ranges`` and in a few places between."""
    if size <= READ_WHOLE:
        wanted = set(range(-(-size // CHUNK)))
    else:
        wanted = {0, size // CHUNK // 2, size // CHUNK // 3, (size - 1) // CHUNK}
        for begin, end in ranges:
            wanted.update(range(begin // CHUNK, -(-min(end, size) // CHUNK)))
    found = []
    for index in sorted(wanted):
        content = read(index * CHUNK, CHUNK)
        if content.strip(b"\0"):
            found.append((index, len(content), zlib.crc32(content)))
    return tuple(found)


def lasting(names: Iterable[bytes]) -> list[bytes]:
    """Return the names of attributes, in order, without the record that each mount of a pool with storage changes."""
    return sorted(name for name in names if name != RECORD)


# The kernel's view


def kernel_tree(root: Path) -> Tree:
    """Everything below a mountpoint."""
    tree: Tree = {}
    todo = [b""]
    while todo:
        path = todo.pop()
        full = os.path.join(os.fsencode(root), path)
        status = os.lstat(full)
        content: object = None
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(full) as entries:
                names = [(entry.name, entry.inode(), type_of(entry)) for entry in entries]
            content = tuple(sorted(names))
            todo += [os.path.join(path, name) for name, _, kind in names if kind == file_type_of_mode(stat.S_IFDIR)]
            tree.update({os.path.join(path, name): kernel_facts(os.path.join(full, name)) for name, _, _ in names})
        tree[path] = kernel_facts(full, content)
    return tree


def type_of(entry: os.DirEntry[bytes]) -> int:
    """The type that the directory entry itself holds."""
    if entry.is_dir(follow_symlinks=False):
        return file_type_of_mode(stat.S_IFDIR)
    if entry.is_symlink():
        return file_type_of_mode(stat.S_IFLNK)
    if entry.is_file(follow_symlinks=False):
        return file_type_of_mode(stat.S_IFREG)
    return file_type_of_mode(entry.stat(follow_symlinks=False).st_mode)


def kernel_facts(full: bytes, content: object = None) -> Facts:
    """What the kernel says of one path."""
    status = os.lstat(full)
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(full)
    elif stat.S_ISREG(status.st_mode):
        content = kernel_content(full, status.st_size)
    names = lasting(map(os.fsencode, os.listxattr(full, follow_symlinks=False)))
    return Facts(
        status.st_ino,
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_rdev,
        status.st_size,
        status.st_blocks,
        status.st_atime_ns,
        status.st_mtime_ns,
        status.st_ctime_ns,
        tuple((name, os.getxattr(full, name, follow_symlinks=False)) for name in names),
        content,
    )


def kernel_content(full: bytes, size: int) -> tuple[object, ...]:
    """The chunks of a file, holes left out by SEEK_DATA."""
    descriptor = os.open(full, os.O_RDONLY | os.O_NOATIME)
    try:
        ranges = []
        position = 0
        while position < size:
            try:
                begin = os.lseek(descriptor, position, os.SEEK_DATA)
            except OSError:  # ENXIO: no data from here on
                break
            if begin >= size:  # the kernel finds reserved blocks behind EOF whose page is dirty
                break
            position = os.lseek(descriptor, begin, os.SEEK_HOLE)
            ranges.append((begin, position))
        return digest(lambda offset, length: os.pread(descriptor, length, offset), size, ranges)
    finally:
        os.close(descriptor)


# Our view


QUIET = Options(atime="noatime")
"""For pools that are walked while they are open: looking changes nothing."""


def pool_tree(pool: Path | FileSystem) -> Tree:
    """Everything in a pool, read by daxfs without changing it (a path is opened read-only)."""
    if isinstance(pool, FileSystem):
        return walk(pool)
    with FileSystem.open(pool, Options(read_only=True, atime="noatime")) as fs:
        return walk(fs)


def walk(fs: FileSystem, *, contents: bool = True) -> Tree:
    """Everything in an open file system, which must be mounted with noatime; ``contents`` of files too."""
    assert fs.volume.options.atime == "noatime"
    tree: Tree = {}
    known: dict[int, Facts] = {}  # by inode number: an inode with several names is read once
    todo = [(b"", ROOT_INO)]
    while todo:
        path, ino = todo.pop()
        directory = fs.opendir(ino)
        entries = [entry for entry in fs.readdir(directory) if entry.name not in (b".", b"..")]
        fs.releasedir(directory)
        tree[path] = pool_facts(fs, ino, tuple(sorted((entry.name, entry.ino, entry.file_type) for entry in entries)))
        for name, child, kind, _ in entries:
            below = os.path.join(path, name)
            assert fs.lookup(ino, name).ino == child
            if kind == file_type_of_mode(stat.S_IFDIR):
                todo.append((below, child))
                continue
            if child not in known:
                known[child] = pool_facts(fs, child, contents=contents)
            tree[below] = known[child]
    for path, facts in list(tree.items()):
        if stat.S_ISDIR(facts.mode) and path:
            assert fs.lookup(facts.ino, b"..").ino == tree[os.path.dirname(path)].ino
    return tree


def pool_facts(fs: FileSystem, ino: int, content: object = None, *, contents: bool = True) -> Facts:
    """Return the facts of one inode, read by daxfs."""
    found = fs.getattr(ino)
    if stat.S_ISLNK(found.mode):
        content = fs.readlink(ino)
    elif stat.S_ISREG(found.mode) and contents:
        content = pool_content(fs, ino, found.size)
    return Facts(
        ino,
        found.mode,
        found.nlink,
        found.uid,
        found.gid,
        found.rdev,
        found.size,
        found.blocks - sectors_of_window(fs, ino),
        found.atime_ns,
        found.mtime_ns,
        found.ctime_ns,
        tuple((name, fs.getxattr(ino, name)) for name in lasting(fs.listxattr(ino))),
        content,
    )


def sectors_of_window(fs: FileSystem, ino: int) -> int:
    """What ``st_blocks`` counts of blocks past EOF that are there for appends: nobody else has them after the mount."""
    node = fs.volume.nodes.open.get(ino)
    if node is None or not node.window:
        return 0
    return node.window - (node.size + -node.size % fs.volume.block_size) >> 9


def pool_content(fs: FileSystem, ino: int, size: int) -> tuple[object, ...]:
    """The chunks of a file, holes left out by its extents."""
    bits = fs.volume.block_bits
    ranges = [(run.lblk << bits, (run.lblk + run.length) << bits) for run in fs.describe(ino)]
    file = fs.open_file(ino)
    try:
        return digest(lambda offset, length: bytes(fs.read(file, offset, length)), size, ranges)
    finally:
        fs.release(file)


# Writing


class Side(Protocol):
    """A file system that is changed by paths (bytes, relative to its root)."""

    def mkdir(self, path: bytes) -> None: ...
    def write(self, path: bytes, offset: int, content: bytes) -> None: ...
    def truncate(self, path: bytes, size: int) -> None: ...
    def symlink(self, target: bytes, path: bytes) -> None: ...
    def link(self, old: bytes, new: bytes) -> None: ...
    def mknod(self, path: bytes, mode: int, rdev: int = 0) -> None: ...
    def unlink(self, path: bytes) -> None: ...
    def rmdir(self, path: bytes) -> None: ...
    def rename(self, old: bytes, new: bytes) -> None: ...
    def setxattr(self, path: bytes, name: bytes, value: bytes) -> None: ...
    def removexattr(self, path: bytes, name: bytes) -> None: ...
    def chmod(self, path: bytes, mode: int) -> None: ...
    def chown(self, path: bytes, uid: int, gid: int) -> None: ...
    def utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> None: ...
    def sync(self) -> None: ...


class KernelSide:
    """Below a mountpoint."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)

    def at(self, path: bytes) -> bytes:
        return os.path.join(self.root, path)

    def mkdir(self, path: bytes) -> None:
        os.mkdir(self.at(path), 0o755)

    def write(self, path: bytes, offset: int, content: bytes) -> None:
        descriptor = os.open(self.at(path), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            assert os.pwrite(descriptor, content, offset) == len(content)
        finally:
            os.close(descriptor)

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self.at(path), size)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self.at(path))

    def link(self, old: bytes, new: bytes) -> None:
        os.link(self.at(old), self.at(new), follow_symlinks=False)

    def mknod(self, path: bytes, mode: int, rdev: int = 0) -> None:
        os.mknod(self.at(path), mode, rdev)

    def unlink(self, path: bytes) -> None:
        os.unlink(self.at(path))

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self.at(path))

    def rename(self, old: bytes, new: bytes) -> None:
        os.rename(self.at(old), self.at(new))

    def setxattr(self, path: bytes, name: bytes, value: bytes) -> None:
        os.setxattr(self.at(path), name, value, follow_symlinks=False)

    def removexattr(self, path: bytes, name: bytes) -> None:
        os.removexattr(self.at(path), name, follow_symlinks=False)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self.at(path), mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        os.chown(self.at(path), uid, gid, follow_symlinks=False)

    def utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self.at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def sync(self) -> None:
        os.sync()


class PoolSide:
    """A file system of ours."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs

    def at(self, path: bytes) -> int:
        return self.fs.tree.resolve(path, follow=False)

    def above(self, path: bytes) -> tuple[int, bytes]:
        return self.fs.tree.parent(path)

    def mkdir(self, path: bytes) -> None:
        self.fs.mkdir(*self.above(path), 0o755)

    def write(self, path: bytes, offset: int, content: bytes) -> None:
        fs = self.fs
        try:
            file = fs.open_file(self.at(path), os.O_RDWR)
        except FsError as error:
            assert error.errno == errno.ENOENT
            file, _ = fs.create(*self.above(path), 0o644)
        try:
            assert fs.write(file, offset, content) == len(content)
        finally:
            fs.release(file)

    def truncate(self, path: bytes, size: int) -> None:
        self.fs.setattr(self.at(path), SetAttributes(size=size))

    def symlink(self, target: bytes, path: bytes) -> None:
        self.fs.symlink(*self.above(path), target)

    def link(self, old: bytes, new: bytes) -> None:
        self.fs.link(self.at(old), *self.above(new))

    def mknod(self, path: bytes, mode: int, rdev: int = 0) -> None:
        self.fs.mknod(*self.above(path), mode, rdev)

    def unlink(self, path: bytes) -> None:
        self.fs.unlink(*self.above(path))

    def rmdir(self, path: bytes) -> None:
        self.fs.rmdir(*self.above(path))

    def rename(self, old: bytes, new: bytes) -> None:
        self.fs.rename(*self.above(old), *self.above(new))

    def setxattr(self, path: bytes, name: bytes, value: bytes) -> None:
        self.fs.setxattr(self.at(path), name, value)

    def removexattr(self, path: bytes, name: bytes) -> None:
        self.fs.removexattr(self.at(path), name)

    def chmod(self, path: bytes, mode: int) -> None:
        self.fs.setattr(self.at(path), SetAttributes(mode=mode))

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        self.fs.setattr(self.at(path), SetAttributes(uid=uid, gid=gid))

    def utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        self.fs.setattr(self.at(path), SetAttributes(atime_ns=atime_ns, mtime_ns=mtime_ns))

    def sync(self) -> None:
        self.fs.sync()


# What is planted

TIMES = (
    -(1 << 31) * SECOND,
    -123_456_789_012_345_678,
    -1,
    0,
    1,
    1_234_567_890_123_456_789,
    ((1 << 31) - 1) * SECOND + 999_999_999,
    (1 << 31) * SECOND + 5,
    (1 << 32) * SECOND + 123_456_789,
    ((1 << 34) - (1 << 31) - 1) * SECOND,
)
"""The first and the last time of 34-bit seconds, those beside the epoch and beside 2038, and some between."""

OWNERS = ((1000, 1000), (65535, 65536), (70_000, 80_000), (4_294_967_294, 3_000_000_000))
MODES = (0o000, 0o4755, 0o2755, 0o1644, 0o6777, 0o7777, 0o444)
NAMED_ACL = ((1, 7), (2, 5, 1000), (2, 6, 70_000), (4, 5), (8, 4, 80_000), (16, 5), (32, 1))
PLAIN_ACL = ((1, 6), (4, 4), (32, 0))


def wire(entries: tuple[tuple[int, ...], ...]) -> bytes:
    """An ACL as system calls take it: (tag, permissions[, id]) each."""
    packed = [struct.pack("<HHI", tag, perm, *(ident or (0xFFFFFFFF,))) for tag, perm, *ident in entries]
    return struct.pack("<I", 2) + b"".join(packed)


def plant(side: Side, block_size: int = 4096) -> None:
    """Grow the tree that exercises every kind of inode, map, directory and attribute."""
    chance = random.Random(20)
    for directory in (b"files", b"dirs", b"dirs/many", b"links", b"nodes", b"xattrs", b"acls", b"times", b"modes"):
        side.mkdir(directory)
    plant_files(side, chance, block_size)
    plant_directories(side, chance)
    for number, length in enumerate((1, 59, 60, 61, 200, 1000)):
        side.symlink(b"t" * length, b"links/%d" % number)
    side.link(b"links/4", b"links/same")
    side.mknod(b"nodes/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    side.mknod(b"nodes/old", stat.S_IFBLK | 0o600, os.makedev(8, 255))
    side.mknod(b"nodes/big", stat.S_IFBLK | 0o660, os.makedev(4000, 70_000))
    side.mknod(b"nodes/fifo", stat.S_IFIFO | 0o622)
    side.mknod(b"nodes/socket", stat.S_IFSOCK | 0o755)
    plant_attributes(side, chance)
    plant_acls(side)
    for number, mode in enumerate(MODES):
        side.write(b"modes/%d" % number, 0, b"m")
        side.chown(b"modes/%d" % number, *OWNERS[number % len(OWNERS)])
        side.chmod(b"modes/%d" % number, mode)
    side.chown(b"links/0", *OWNERS[-1])
    side.chmod(b"modes", 0o3770)
    for number, _ in enumerate(TIMES):
        side.write(b"times/%d" % number, 0, b"")


def plant_files(side: Side, chance: random.Random, block_size: int) -> None:
    """Empty, small, large, sparse, and in many pieces."""
    side.write(b"files/empty", 0, b"")
    side.write(b"files/small", 0, b"small content\n")
    side.write(b"files/block", 0, chance.randbytes(block_size))
    side.write(b"files/large", 0, chance.randbytes(3_000_000))
    side.truncate(b"files/large", 2_900_001)
    side.truncate(b"files/large", 2_950_000)
    for offset in (0, 100_000, 70 << 20, (5 << 30) + 1000):
        side.write(b"files/sparse", offset, chance.randbytes(5000))
    side.write(b"files/hollow", 0, b"x")
    side.truncate(b"files/hollow", 1 << 30)
    pieces = list(range(0, 1400, 2))
    chance.shuffle(pieces)
    for piece in pieces:
        side.write(b"files/pieces", piece * block_size, chance.randbytes(block_size - 100))


def plant_directories(side: Side, chance: random.Random) -> None:
    """Thousands of names, names of all lengths, half of them gone again; a deep path."""
    for number in range(10):
        side.mknod(b"dirs/target-%d" % number, stat.S_IFREG | 0o600)
    names = [b"entry-%05d" % number for number in range(2400)]
    names += [b"%03d" % length + chance.choice((b"x", b"\xc3\xa4", b"\xff")) * (length - 3) for length in range(4, 128)]
    names += [b"%03d-" % number + b"long" * 62 for number in range(200)]
    for number, name in enumerate(names):
        side.link(b"dirs/target-%d" % (number % 10), b"dirs/many/" + name)
    for name in chance.sample(names, 900):
        side.unlink(b"dirs/many/" + name)
    path = b"dirs"
    for number in range(30):
        path += b"/%d" % number
        side.mkdir(path)


def plant_attributes(side: Side, chance: random.Random) -> None:
    """Attributes in the inode, in a block, in both, of all families, on all kinds of inodes."""
    side.write(b"xattrs/in-inode", 0, b"")
    side.setxattr(b"xattrs/in-inode", b"user.a", b"1")
    side.setxattr(b"xattrs/in-inode", b"user.empty", b"")
    side.write(b"xattrs/in-block", 0, b"")
    side.setxattr(b"xattrs/in-block", b"user.big", chance.randbytes(700))
    side.write(b"xattrs/in-both", 0, b"")
    for name in (b"user.one", b"trusted.two", b"security.three", b"user." + b"n" * 100):
        side.setxattr(b"xattrs/in-both", name, chance.randbytes(50))
    side.setxattr(b"xattrs/in-both", b"user.binary", bytes(range(256)))
    side.removexattr(b"xattrs/in-both", b"trusted.two")
    for number in range(3):
        side.write(b"xattrs/alike-%d" % number, 0, b"")
        side.setxattr(b"xattrs/alike-%d" % number, b"user.alike", b"alike" * 100)
    side.setxattr(b"xattrs/alike-1", b"user.alike", b"other" * 100)
    side.setxattr(b"xattrs", b"user.of-a-directory", b"d")
    side.setxattr(b"links/3", b"trusted.of-a-link", b"l")
    side.setxattr(b"links/0", b"trusted.of-a-short-link", b"l")
    side.setxattr(b"nodes/fifo", b"security.of-a-fifo", b"f")
    side.setxattr(b"nodes/null", b"trusted.of-a-device", b"n" * 300)


def plant_acls(side: Side) -> None:
    """Access ACLs, one that the mode says as well, and what a default ACL hands down."""
    for name, entries in ((b"named", NAMED_ACL), (b"plain", PLAIN_ACL), (b"changed", NAMED_ACL)):
        side.write(b"acls/" + name, 0, b"")
        side.setxattr(b"acls/" + name, b"system.posix_acl_access", wire(entries))
    side.chmod(b"acls/changed", 0o624)
    side.mkdir(b"acls/heir")
    side.setxattr(b"acls/heir", b"system.posix_acl_default", wire(NAMED_ACL))
    side.mkdir(b"acls/heir/below")
    side.write(b"acls/heir/below/file", 0, b"")
    side.symlink(b"file", b"acls/heir/below/link")
    side.mknod(b"acls/heir/fifo", stat.S_IFIFO | 0o666)


def set_times(side: Side, tree: Tree) -> None:
    """Give every inode times of its own, directories last; nothing may be changed afterwards."""
    for number, path in enumerate(sorted(tree, reverse=True)):
        directory, name = os.path.split(path)
        if directory == b"times":
            atime = mtime = TIMES[int(name)]
        else:
            atime = (1_600_000_000 + number) * SECOND + number * 7
            mtime = (1_500_000_000 - number) * SECOND + number * 11
        side.utime(path, atime, mtime)


def mingle(side: Side, chance: random.Random, tree: Tree, turns: int) -> None:
    """Change a tree at random: the same changes whoever makes them."""
    files = sorted(path for path, facts in tree.items() if stat.S_ISREG(facts.mode))
    directories = sorted(path for path, facts in tree.items() if stat.S_ISDIR(facts.mode)) or [b""]
    directories = [path for path in directories if path != b"lost+found"]
    for _ in range(turns):
        name = os.path.join(chance.choice(directories), b"%x-" % chance.getrandbits(40) + b"n" * chance.randrange(80))
        what = chance.randrange(8)
        if what == 0:
            side.mkdir(name)
            directories.append(name)
        elif what == 1 and files:
            old = chance.choice(files)
            side.link(old, name)
            files.append(name)
        elif what == 2 and files:
            old = files.pop(chance.randrange(len(files)))
            side.rename(old, name)
            files.append(name)
        elif what == 3 and files:
            side.unlink(files.pop(chance.randrange(len(files))))
        elif what == 4 and files:
            side.truncate(chance.choice(files), chance.randrange(300_000))
        elif what == 5 and files:
            key = b"user.%d" % chance.randrange(3)
            side.setxattr(chance.choice(files), key, chance.randbytes(chance.choice((4, 60, 300))))
        else:
            target = chance.choice(files) if files and what == 6 else name
            for _ in range(chance.randrange(1, 4)):
                side.write(target, chance.randrange(200_000), chance.randbytes(chance.choice((10, 4096, 20_000))))
            if target is name:
                files.append(name)


def furnish(fs: FileSystem) -> None:
    """A file in many pieces, one with an attribute block, an indexed directory."""
    fs.tree.write_bytes("/f", b"content")
    file, _ = fs.create(ROOT_INO, b"pieces", 0o644)
    for number in range(20):
        fs.write(file, number * 16384, b"piece")
    fs.release(file)
    ino = fs.mknod(ROOT_INO, b"attributes", 0o644).ino
    fs.setxattr(ino, b"user.big", b"x" * 900)
    fs.tree.mkdir("/d")
    directory = fs.tree.resolve("/d")
    for number in range(400):
        fs.link(ino, directory, b"%d" % number + b"n" * 50)
    fs.tree.symlink("s" * 200, "/link")
