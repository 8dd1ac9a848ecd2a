"""A pool with files and a connection to it, a valid message for every opcode, and checks for every message."""

from __future__ import annotations

import contextlib
import os
import resource
import stat
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

from message_rig import ALL, HEADER, LAYOUTS, ROOT, UNANSWERED, Answer, Rig, pack, unpack

from daxfs.fs.filesystem import FileSystem
from daxfs.fuse.kernel.abi import Opcode
from daxfs.pmem.memory import MemoryPool
from support import fsck, mke2fs

SECONDS = 5.0
"""The time limit of one answer on a busy machine; the usual time is a thousandth of it."""
HEADROOM = 768 << 20
"""The most additional address space of a test, in bytes: a handler must not allocate by a size that is too large."""
LARGEST_ANSWER = 17 << 20

WORD, LONG = (1 << 32) - 1, (1 << 64) - 1
WILD_NODES = (0, *range(2, 12), 1 << 10, 1 << 16, 1 << 31, WORD, 1 << 32, 1 << 63, LONG - 1, LONG)
WILD_NUMBERS = (0, 1, 2, 4095, 4097, (1 << 31) - 1, 1 << 31, WORD, 1 << 40, (1 << 63) - 1, 1 << 63, LONG)

NAMES = (
    b"", b".", b"..", b"/", b"a/b", b"/a", b"\xff\xfe", b"\n", b"x" * 255, b"x" * 256, b"x" * 257, b"y" * 1024,
    b"z" * 4095, b"w" * 5000, b"lost+found", b"inner",
)  # fmt: skip

GETFLAGS = 0x80086601


class Message(NamedTuple):
    """The parts of a message: ``layout`` names the structure that the body begins with, if any."""

    node: int
    body: bytes
    layout: str = ""


class Target:
    """A connection to a pool with files; every message is sent by ``send``.

    Attributes:
        directory, file, other, hole, link, device, fifo, spare: nodes that the kernel knows.
        fh, other_fh, hole_fh, spare_fh: handles.
    """

    def __init__(self, core: FileSystem) -> None:
        self.rig = rig = Rig(core)
        self.core = core
        self.numbers = count()
        rig.init()
        self.directory = rig.mkdir(b"d").nodeid
        made, self.fh = rig.create(b"inner", self.directory)
        self.file = made.nodeid
        rig.write(self.file, self.fh, bytes(range(256)) * 64)
        made, self.other_fh = rig.create(b"other")
        self.other = made.nodeid
        rig.write(self.other, self.other_fh, b"x" * 5000)
        made, self.hole_fh = rig.create(b"hole")
        self.hole = made.nodeid
        rig.done(Opcode.SETATTR, self.hole, pack("setattr_in", valid=8, size=1 << 40))
        self.link = rig.symlink(b"link", b"target").nodeid
        self.long_link = rig.symlink(b"long", b"t" * 1000).nodeid
        self.device = rig.mknod(b"dev", stat.S_IFCHR, rdev=0xFFFFFFFF).nodeid
        self.fifo = rig.mknod(b"fifo", stat.S_IFIFO).nodeid
        made, self.spare_fh = rig.create(b"spare")
        self.spare = made.nodeid
        rig.mkdir(b"sub", self.directory)
        rig.mknod(b"victim", stat.S_IFREG, self.directory)
        rig.done(Opcode.SETXATTR, self.file, pack("setxattr_in", size=5) + b"user.x\0value")

    def send(self, message: bytes) -> Answer | None:
        """Send a message and return its answer; check that it comes in time and that the volume is still writable."""
        begin = time.process_time()
        found = self.rig.whole_answer(message) if len(message) >= HEADER else self.nothing(message)
        taken = time.process_time() - begin
        assert taken < SECONDS, f"{taken:.1f} s for {message[:200].hex()}"
        assert not self.core.read_only, f"read-only after {message[:200].hex()}"
        assert found is None or len(found.body) < LARGEST_ANSWER
        assert (found is None) <= (len(message) < HEADER or struct.unpack_from("=I", message, 4)[0] in UNANSWERED)
        return found

    def fresh(self) -> bytes:
        """Return an unused name with its zero byte."""
        return f"new {next(self.numbers)}".encode() + b"\0"

    def nothing(self, message: bytes) -> None:
        """Send a message without a whole header and check that it has no answer."""
        assert self.rig.raw(message) is None

    def ask(self, opcode: int, node: int, body: bytes, ext: bytes = b"") -> Answer | None:
        """Send a message with a valid header and return its answer."""
        return self.send(self.rig.message(opcode, node, body, ext))

    def valid(self, opcode: int) -> Message:
        """Return the valid message of an opcode."""
        return VALID[opcode](self)

    def close(self) -> None:
        """Close the connection as the session does at its end."""
        self.rig.connection.close_all(unmounted=False)
        self.core.close()


def packed(layout: str, node: int, rest: bytes = b"", **fields: int) -> Message:
    """Return a message whose body begins with a structure."""
    return Message(node, pack(layout, **fields) + rest, layout)


def two_handles(target: Target) -> Message:
    return packed(
        "copy_file_range_in", target.file, fh_in=target.fh, off_in=0, nodeid_out=target.other, fh_out=target.other_fh,
        off_out=100, len=3000,
    )  # fmt: skip


VALID: dict[int, Callable[[Target], Message]] = {
    Opcode.LOOKUP: lambda t: Message(t.directory, b"inner\0"),
    Opcode.FORGET: lambda t: packed("forget_in", t.spare, nlookup=1),
    Opcode.GETATTR: lambda t: packed("getattr_in", t.file),
    Opcode.SETATTR: lambda t: packed(
        "setattr_in", t.file, valid=0xFFF, fh=t.fh, size=3000, atime=1, mtime=2, ctime=3, mode=0o100644, uid=1, gid=2
    ),
    Opcode.READLINK: lambda t: Message(t.link, b""),
    Opcode.SYMLINK: lambda t: Message(t.directory, t.fresh() + b"target\0"),
    Opcode.MKNOD: lambda t: packed("mknod_in", t.directory, t.fresh(), mode=stat.S_IFBLK | 0o600, rdev=0x103),
    Opcode.MKDIR: lambda t: packed("mkdir_in", t.directory, t.fresh(), mode=0o755, umask=0o22),
    Opcode.UNLINK: lambda t: Message(t.directory, b"victim\0"),
    Opcode.RMDIR: lambda t: Message(t.directory, b"sub\0"),
    Opcode.RENAME: lambda t: packed("rename_in", t.directory, b"victim\0moved\0", newdir=ROOT),
    Opcode.LINK: lambda t: packed("link_in", t.directory, t.fresh(), oldnodeid=t.other),
    Opcode.OPEN: lambda t: packed("open_in", t.file, flags=os.O_RDWR),
    Opcode.READ: lambda t: packed("read_in", t.file, fh=t.fh, offset=100, size=4096),
    Opcode.WRITE: lambda t: packed("write_in", t.other, b"data", fh=t.other_fh, offset=100, size=4),
    Opcode.STATFS: lambda _: Message(ROOT, b""),
    Opcode.RELEASE: lambda t: packed("release_in", t.spare, fh=t.spare_fh),
    Opcode.FSYNC: lambda t: packed("fsync_in", t.file, fh=t.fh, fsync_flags=1),
    Opcode.SETXATTR: lambda t: packed("setxattr_in", t.file, b"user." + t.fresh() + b"value", size=5, setxattr_flags=1),
    Opcode.GETXATTR: lambda t: packed("getxattr_in", t.file, b"user.x\0", size=100),
    Opcode.LISTXATTR: lambda t: packed("getxattr_in", t.file, size=100),
    Opcode.REMOVEXATTR: lambda t: Message(t.file, b"user.x\0"),
    Opcode.FLUSH: lambda t: packed("flush_in", t.file, fh=t.fh),
    Opcode.INIT: lambda _: packed(
        "init_in", 0, major=7, minor=45, max_readahead=1 << 17, flags=ALL & 0xFFFFFFFF, flags2=ALL >> 32
    ),
    Opcode.OPENDIR: lambda t: packed("open_in", t.directory),
    Opcode.READDIR: lambda t: packed("read_in", t.directory, size=4096),
    Opcode.RELEASEDIR: lambda t: packed("release_in", t.directory),
    Opcode.FSYNCDIR: lambda t: packed("fsync_in", t.directory),
    Opcode.ACCESS: lambda t: packed("access_in", t.file, mask=4),
    Opcode.CREATE: lambda t: packed("create_in", t.directory, t.fresh(), flags=os.O_RDWR, mode=0o100644, umask=0o22),
    Opcode.INTERRUPT: lambda _: packed("interrupt_in", 0, unique=2),
    Opcode.DESTROY: lambda _: Message(0, b""),
    Opcode.IOCTL: lambda t: packed("ioctl_in", t.file, bytes(8), fh=t.fh, cmd=GETFLAGS, in_size=8, out_size=8),
    Opcode.POLL: lambda t: packed("poll_in", t.file, fh=t.fh),
    Opcode.BATCH_FORGET: lambda t: packed(
        "batch_forget_in", 0, pack("forget_one", nodeid=t.spare, nlookup=1) * 2, count=2
    ),
    Opcode.FALLOCATE: lambda t: packed("fallocate_in", t.file, fh=t.fh, offset=4096, length=8192, mode=3),
    Opcode.READDIRPLUS: lambda t: packed("read_in", t.directory, size=4096),
    Opcode.RENAME2: lambda t: packed("rename2_in", t.directory, b"victim\0moved\0", newdir=ROOT, flags=1),
    Opcode.LSEEK: lambda t: packed("lseek_in", t.file, fh=t.fh, offset=5, whence=os.SEEK_HOLE),
    Opcode.COPY_FILE_RANGE: two_handles,
    Opcode.COPY_FILE_RANGE_64: two_handles,
    Opcode.SYNCFS: lambda _: packed("syncfs_in", ROOT),
    Opcode.TMPFILE: lambda t: packed("create_in", t.directory, b"/\0", flags=os.O_RDWR, mode=0o100600),
    Opcode.STATX: lambda t: packed("statx_in", t.file, sx_mask=0xFFF),
}
"""The valid messages by opcode; sent in this order to one pool, all but the last few of a kind succeed."""

ASKS_NO_ARGUMENTS = frozenset(
    {
        Opcode.GETATTR, Opcode.READLINK, Opcode.STATFS, Opcode.OPENDIR, Opcode.RELEASEDIR, Opcode.DESTROY,
        Opcode.SYNCFS, Opcode.INTERRUPT,
    }
)  # fmt: skip
"""Opcodes whose handlers do not read the body."""
NEEDLESS = frozenset({Opcode.FLUSH, Opcode.POLL})
"""Opcodes that are always answered by ENOSYS."""


def with_field(message: Message, offset: int, size: int, value: int) -> Message:
    """Return the message with other bytes in one of its fields."""
    there = value & (1 << 8 * size) - 1
    body = message.body[:offset] + there.to_bytes(size, "little") + message.body[offset + size :]
    return message._replace(body=body)


def numbers_of(layout: str) -> list[tuple[str, int, int]]:
    """Return (name, offset, size) of each number in a structure."""
    return [(name, offset, size) for name, offset, size in LAYOUTS["fuse_" + layout].offsets() if size <= 8]


def opcode_of(message: bytes) -> int:
    opcode: int = unpack("in_header", message).opcode
    return opcode


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Limit the address space, so that an allocation of far too much memory raises MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + HEADROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def image(place: Path, *options: str, size: str = "8M") -> bytes:
    """Return the bytes of a new pool."""
    return mke2fs(place / "image", "-b", "4096", *options, size=size).read_bytes()


@contextlib.contextmanager
def target_in(content: bytes, *, check: bool = True) -> Iterator[Target]:
    """Make a copy of a pool in memory, add files, and yield it; afterwards close it and check it by e2fsck."""
    store = bytearray(content)
    target = Target(FileSystem.open(MemoryPool(store)))
    yield target
    target.close()
    if check:
        check_bytes(store)


def check_bytes(memory: bytearray) -> None:
    """Check that e2fsck finds no fault in these bytes."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "pool"
        place.write_bytes(memory)
        fsck(place)
